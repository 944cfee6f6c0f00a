"""The report over run folders made by hand: what counts, what is ranked by what, what strangers may not do."""

import csv
import json
import math
import os
import shlex
from pathlib import Path

import pytest

from jaxrnn import command, config, job, planning, ranking, report, reportpage, results, runs
from jaxrnn.errors import ArtefactError, ConfigurationError


def made(folder, overrides, valid=0.5, test=0.5, *, status="completed", **more):
    """A run folder with what a report reads of it."""
    folder.mkdir(parents=True)
    (folder / "overrides.json").write_text(json.dumps(overrides))
    summary = {"status": status, "overrides": overrides, "seconds": 1.5}
    if status == "completed":
        summary |= {"valid": {"accuracy": valid, "loss": 1 - valid}, "test": {"accuracy": test, "loss": 0.3}}
        summary |= {"best_epoch": 3}
    if status:
        (folder / "summary.json").write_text(json.dumps(summary | more))
    return folder


def recorded(folder, overrides, *measured, **more):
    """The same with the record of all settings, as train writes it."""
    settings = config.compose(overrides)
    made(folder, overrides, *measured, **more)
    (folder / "config.yaml").write_text(runs.sealed(config.to_yaml(settings)))
    return folder


def swept(folder, jobs):
    """A sweep of these (overrides, valid, test), completed; None in place of a number for a job that waits."""
    folder.mkdir(parents=True)
    entries = []
    for number, (overrides, valid, test) in enumerate(jobs):
        if valid is not None:
            made(folder / str(number), overrides, valid, test)
        status = "waiting" if valid is None else "completed"
        entries.append({"job": number, "overrides": overrides, "status": status, "code": None})
    (folder / "sweep.json").write_text(json.dumps({"jobs": entries}))
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Two cells by three seeds: gru is better on validation, vanilla on the test."""
    numbers = {"vanilla": ((0.70, 0.99), (0.72, 0.97), (0.74, 0.98)), "gru": ((0.90, 0.6), (0.92, 0.6), (0.94, 0.6))}
    jobs = [([f"cell={cell}", "epochs=2", f"seed={seed}"], *pair) for cell in numbers
            for seed, pair in enumerate(numbers[cell])]  # fmt: skip
    return swept(tmp_path / "runs" / "x" / "sweep_1", jobs)


def call(*arguments, capsys):
    code = command.exit_code("report", report.main, [str(argument) for argument in arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_sweep_is_ranked_by_validation_with_an_interval_over_seeds(sweep, capsys):
    code, out, err = call(sweep, capsys=capsys)
    assert (code, err) == (0, "")
    head, *rows = [line.split("  ") for line in out.splitlines() if line.startswith("  ")][:3]
    assert [cell.strip() for cell in head if cell.strip()] == "rank,cell,runs,valid accuracy,test accuracy".split(",")
    # Student's t of two degrees of freedom is 4.3027; the spread 0.02, of three runs
    half = 4.302652729911275 * 0.02 / math.sqrt(3)
    assert [" ".join(row).split() for row in rows] == [
        ["1", "gru", "3", "0.9200", "±", f"{half:.4f}", "0.6000", "±", "0.0000"],
        ["2", "vanilla", "3", "0.7200", "±", f"{half:.4f}", "0.9800", "±", f"{half / 2:.4f}"],
    ]
    assert f"{sweep}/5, trained again by\n  python -m jaxrnn.train cell=gru epochs=2 seed=2" in out
    assert report.text(ranking.ranked(results.collect([str(sweep)]))) + "\n" == out


def test_one_run_has_no_interval(tmp_path, capsys):
    made(tmp_path / "a", ["cell=gru"], 0.75, 0.5)
    _, out, _ = call(tmp_path / "a", capsys=capsys)
    assert "±" not in out.replace(ranking.NOTE, "")
    assert "1 completed run, 1 configuration\n" in out
    assert "none for one run" in out


def test_jobs_that_did_not_complete_are_listed_and_not_counted(sweep, capsys):
    record = json.loads((sweep / "sweep.json").read_text())
    made(sweep / "6", ["cell=lstm"], status="failed", error={"code": 4, "message": "loss is not finite\nsecond line"})
    made(sweep / "7", ["cell=lstm"], status="stopped", error={"code": 130, "message": "interrupted"})
    made(sweep / "8", ["cell=lstm"], status="")  # killed: no summary
    made(sweep / "9", ["cell=lstm"])
    (sweep / "9" / "summary.json").write_text("{")
    made(sweep / "10", ["cell=lstm"], status="stopped")
    for number in range(6, 12):
        status = {10: "pruned", 11: "waiting"}.get(number, "failed" if number == 6 else "completed")
        record["jobs"].append({"job": number, "overrides": ["cell=lstm"], "status": status, "code": None})
    record["jobs"].append({"job": 12, "overrides": ["cell=rnn"], "status": "failed", "code": 8, "reason": "no\troom"})
    (sweep / "sweep.json").write_text(json.dumps(record))
    code, out, _ = call(sweep, capsys=capsys)
    assert code == 0
    assert "6 completed runs, 2 configurations" in out
    others = "2 failed, 1 damaged, 1 stopped, 1 unfinished, 1 waiting, 1 pruned"
    assert f"not completed, not counted: {others}" in out
    assert "failed      " + f"{sweep}/6  cell=lstm  exit 4: loss is not finite\n" in out
    assert "is not JSON" in out and f"{sweep}/12  cell=rnn  no\ufffdroom\n" in out


def test_what_trains_a_run_again_asks_for_no_checkpoint(tmp_path, capsys):
    made(tmp_path / "a", ["cell=gru", "resume=must", "+resume_allow=[seed]", "seed=1"])
    assert "  python -m jaxrnn.train cell=gru seed=1\n" in call(tmp_path / "a", capsys=capsys)[1]


def test_what_another_sweep_pruned_counts_here(sweep, capsys):
    other = swept(sweep.parent / "sweep_2", [(["cell=gru", "epochs=2", "seed=9"], 0.1, 0.1)])
    summary = other / "0" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"status": "pruned"}))
    code, out, _ = call(sweep, other, capsys=capsys)
    assert code == 0 and "1  gru         3  0.9200" in out and "1 pruned" in out


def test_words_of_languages_that_join_letters_are_told(tmp_path, capsys):
    folder = made(tmp_path / "a", ["dataset.path=\u0645\u06cc\u200c\u0631\u0648\u0645.csv"])
    assert call(folder, capsys=capsys)[0] == 0
    bad = made(tmp_path / "b", ["dataset.path=a\u202eb.csv"])
    assert call(bad, capsys=capsys)[0] == 5


def test_of_a_pruned_configuration_no_seed_counts(sweep, capsys):
    record = json.loads((sweep / "sweep.json").read_text())
    (sweep / "4" / "summary.json").write_text(json.dumps({"status": "pruned"}))
    record["jobs"][4]["status"] = "pruned"
    (sweep / "sweep.json").write_text(json.dumps(record))
    _, out, _ = call(sweep, "--json", capsys=capsys)
    found = json.loads(out)
    assert [row["values"] for row in found["configurations"]] == [{}]  # vanilla alone is left
    assert [(run["run"][-1], run["status"]) for run in found["not_completed"]] == [(n, "pruned") for n in "345"]


def test_values_that_a_run_was_not_told_are_its_defaults(tmp_path):
    found = [results.read(made(tmp_path / "a", ["cell=gru", "cell=lstm"])), results.read(made(tmp_path / "b", []))]
    ranked = ranking.ranked(found)
    assert ranked.keys == ("cell",)
    assert {row.values["cell"] for row in ranked.configurations} == {"lstm", "(default)"}


def test_runs_are_compared_by_what_they_were_not_by_the_words_typed(tmp_path):
    lines = [["cell=vanilla"], ["seed=0"], ["seed=1", "hidden_size=64", "plots=auto"], ["cell=gru", "seed=0"]]
    found = [results.read(recorded(tmp_path / str(n), line)) for n, line in enumerate(lines)]
    ranked = ranking.ranked(found)
    assert ranked.keys == ("cell",)
    assert {row.values["cell"]: len(row.runs) for row in ranked.configurations} == {"vanilla": 2, "gru": 1}
    assert [run.folder.name for run in ranked.repeated] == ["0"]
    assert {line["cell"]: line["seed"] for line in csv.DictReader(report.as_csv(ranked).splitlines())} == {
        "vanilla": "0", "gru": "0"}  # fmt: skip
    assert {row.values["hidden_size"] for row in ranking.ranked(found, ["hidden_size"]).configurations} == {"64"}
    assert {row.values["layers"] for row in ranking.ranked(found, ["layers"]).configurations} == {"1"}


def test_what_nobody_typed_parts_runs_too_unless_it_decides_nothing(tmp_path):
    for number, (size, plots) in enumerate(((8, "auto"), (8, "never"), (16, "auto"))):
        folder = recorded(tmp_path / str(number), [f"hidden_size={size}", f"plots={plots}", f"seed={number}"])
        (folder / "overrides.json").write_text(json.dumps(["experiment=mine", f"seed={number}"]))
    ranked = ranking.ranked(results.collect([str(tmp_path / "*")]))
    assert [(row.values, len(row.runs)) for row in ranked.configurations] == [
        ({"hidden_size": "8"}, 2), ({"hidden_size": "16"}, 1)]  # fmt: skip


def test_a_record_is_read_by_lines_and_never_as_yaml(tmp_path):
    line = ["experiment=slides", "dataset.texts=['a b','c: d']", "dataset.answers=[1,0]", "cell=gru", "patience=null"]
    found = results.read(recorded(tmp_path / "a", line)).settings
    told = {key: found[key] for key in ("cell", "experiment", "patience", "tokenizer.end", "logger")}
    assert list(told.values()) == ["gru", "slides", "null", "true", "[console,jsonl]"]
    assert found["dataset.texts"] == "[a b,'c: d']" and "optimizer.name" not in found and "flow" not in found
    path = " ".join(["a word"] * 40)
    found = results.read(recorded(tmp_path / "b", ["dataset=files", f"dataset.path='{path}'"])).settings
    assert (found["dataset"], found["dataset.path"], found["seed"]) == ("files", path, "0")
    strange = "cell:\n  name: \u202eurg\n" + "".join(f"a{n}: 1\n" for n in range(9999))
    write(tmp_path / "b" / "config.yaml", runs.sealed(strange))
    found = results.read(tmp_path / "b").settings
    assert found["cell"] == "\ufffdurg" and len(found) == results.MOST_OVERRIDES


def test_the_same_configuration_and_seed_counts_once(tmp_path, capsys):
    for number, valid in enumerate((0.5, 0.6)):
        made(tmp_path / str(number), ["cell=gru", "seed=0"], valid)
    made(tmp_path / "2", ["cell=gru", "seed=1"], 0.8)
    _, out, _ = call(tmp_path / "*", tmp_path / "1", capsys=capsys)
    assert "2 completed runs, 1 configuration" in out
    assert "0.7000 ±" in out
    assert f"1 run not counted: the same configuration and seed named again\n  {tmp_path}/0" in out


def test_by_pools_what_else_differs(tmp_path, capsys):
    jobs = [([f"cell={cell}", f"hidden_size={size}"], valid, 0.5) for cell, size, valid in
            (("gru", 8, 0.6), ("gru", 16, 0.8), ("vanilla", 8, 0.5))]  # fmt: skip
    swept(tmp_path / "s", jobs)
    _, out, _ = call(tmp_path / "s", "--by", "cell", "--json", capsys=capsys)
    found = json.loads(out)
    assert found["keys"] == ["cell"]
    assert [(row["values"], len(row["runs"])) for row in found["configurations"]] == [
        ({"cell": "gru"}, 2), ({"cell": "vanilla"}, 1)]  # fmt: skip
    assert found["configurations"][0]["valid_accuracy"]["mean"] == pytest.approx(0.7)
    assert found["configurations"][1]["valid_accuracy"]["half95"] is None
    assert found["best"] == {"run": f"{tmp_path}/s/1", "command": "python -m jaxrnn.train cell=gru hidden_size=16"}
    code, _, err = call(tmp_path / "s", "--by", "cel", capsys=capsys)
    assert (code, "did you mean 'cell'" in err) == (2, True)


def test_runs_of_different_data_are_never_in_one_row(tmp_path, capsys):
    data = (["dataset=sst2"], ["dataset=files", "dataset.path=a.tsv"], ["dataset=files", "dataset.path=b.tsv"], [])
    for number, words in enumerate(data):
        for size in (8, 16):
            made(tmp_path / f"{number}-{size}", [*words, "cell=gru", f"hidden_size={size}"])
    code, out, _ = call(tmp_path / "*", "--by", "cell", "--json", capsys=capsys)
    found = json.loads(out)
    assert (code, found["keys"]) == (0, ["cell", "dataset", "dataset.path"])
    assert [len(row["runs"]) for row in found["configurations"]] == [2, 2, 2, 2]
    _, out, _ = call(tmp_path / "1*", tmp_path / "2*", "--by", "cell", capsys=capsys)
    assert "the rows are of different data sets" in out
    _, out, _ = call(tmp_path / "1*", "--by", "cell", "--json", capsys=capsys)
    assert json.loads(out)["keys"] == ["cell"]


def test_every_key_that_rows_may_go_by_is_named(tmp_path, capsys):
    recorded(tmp_path / "a", ["cell=gru"])
    code, _, err = call(tmp_path / "a", "--by", "cel", capsys=capsys)
    assert code == 2 and all(f" {key}," in err for key in ("cell", "hidden_size", "optimizer.learning_rate"))


def test_many_keys_that_vary_share_a_column_of_the_text(tmp_path, capsys):
    words = ["cell=gru", "hidden_size=8", "layers=2", "epochs=3", "batch_size=16", "patience=1", "dropout_rate=0.1"]
    for number, word in enumerate(words):
        recorded(tmp_path / str(number), [word, "seed=1"], 0.1 * number)
    _, out, _ = call(tmp_path / "*", "--csv", tmp_path / "t.csv", capsys=capsys)
    lines = out.splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("  rank"))
    assert lines[head].split() == ["rank", "runs", *["valid", "accuracy", "test", "accuracy"], "settings"]
    assert [line.split()[-1] for line in lines[head + 1 : head + 8]] == words[::-1]
    assert max(map(len, lines[head : head + 8])) < 80
    assert all(word.partition("=")[0] in (tmp_path / "t.csv").read_text() for word in words)
    _, out, _ = call(tmp_path / "[0-5]", capsys=capsys)
    assert "  rank  cell     hidden_size" in out


def test_a_key_that_a_run_does_not_have_is_no_default(tmp_path, capsys):
    for name, words in (("a", ["optimizer=sgd", "optimizer.momentum=0.9"]), ("b", ["optimizer=sgd"]), ("c", [])):
        recorded(tmp_path / name, words)
    made(tmp_path / "d", ["optimizer=sgd"])
    code, out, _ = call(tmp_path / "*", "--json", "--csv", tmp_path / "t.csv", capsys=capsys)
    held = {Path(row["runs"][0]["run"]).name: row["values"] for row in json.loads(out)["configurations"]}
    assert [held[name]["optimizer.momentum"] for name in "abcd"] == ["0.9", "0.0", "–", "(default)"]
    assert code == 0 and ",–," in (tmp_path / "t.csv").read_text()


def test_every_key_of_the_data_parts_rows(tmp_path, capsys):
    for column in ("stars", "topic"):
        for size in (8, 16):
            words = ["dataset=files", "dataset.path=a.tsv", f"dataset.label={column}", f"hidden_size={size}"]
            recorded(tmp_path / f"{column}-{size}", words)
    recorded(tmp_path / "other", ["dataset=sst2"])
    _, out, _ = call(tmp_path / "*-*", "--by", "cell", "--json", capsys=capsys)
    found = json.loads(out)
    assert found["keys"] == ["cell", "dataset.label"] and len(found["configurations"]) == 2
    assert "different data sets" in call(tmp_path / "*-*", "--by", "cell", capsys=capsys)[1]
    _, out, _ = call(tmp_path / "*", "--by", "cell", "--json", capsys=capsys)
    assert json.loads(out)["keys"] == ["cell", "dataset", "dataset.label"]  # not all that only one of the two has


def test_more_rows_to_learn_from_are_a_row_of_their_own_and_no_other_data_set(tmp_path, capsys):
    for rows in (10, 100, 1000):
        recorded(tmp_path / str(rows), [f"dataset.train_rows={rows}"])
    code, out, _ = call(tmp_path / "*", "--by", "cell", capsys=capsys)
    assert (code, "different data sets" in out, "3 configurations" in out) == (0, False, True)


def test_the_command_is_quoted_for_a_shell(tmp_path):
    overrides = ["dataset.path=my file.tsv; rm -rf $HOME", "cell=gru", "input.vectors='it`s'"]
    run = results.read(made(tmp_path / "a", overrides))
    assert shlex.split(run.command) == ["python", "-m", "jaxrnn.train", *overrides]


def test_the_command_names_the_folder_of_ones_own_members(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my own" / "cell").mkdir(parents=True)
    (tmp_path / "my own" / "cell" / "mine.yaml").write_text("name: gru\n")
    words = ["cell=mine", "seed=0,1"]
    for found in (config.compose(words[:1], config_dir="my own"), planning.planned(words, config_dir="my own").jobs[1]):
        assert found.config_dir == "my own" and "config_dir" not in config.to_yaml(found)
    run = results.read(made(tmp_path / "a", ["cell=mine"], config_dir="my own"))
    assert run.command == "python -m jaxrnn.train --config-dir 'my own' cell=mine"
    code, _, err = call(made(tmp_path / "b", [], config_dir="\x1b[31m"), capsys=capsys)
    assert (code, "printable" in err) == (5, True)


def test_csv_has_a_line_for_every_run(sweep, tmp_path, capsys):
    made(tmp_path / "bad", ["cell=lstm", 'note="a,b\nc"'.replace("\n", " ")], status="failed")
    code, out, _ = call(sweep, tmp_path / "bad", "--csv", tmp_path / "t.csv", capsys=capsys)
    lines = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert code == 0 and out.endswith(f"\nwritten to {tmp_path}/t.csv\n")
    assert [line["rank"] for line in lines] == ["1"] * 3 + ["2"] * 3 + [""]
    assert [line["seed"] for line in lines[:3]] == ["2", "1", "0"]
    assert float(lines[0]["valid_accuracy"]) == 0.94
    assert (lines[-1]["status"], lines[-1]["cell"]) == ("failed", "lstm")


@pytest.mark.parametrize("flag", ["--csv", "--html"])
def test_what_is_no_file_is_not_replaced_by_one(flag, tmp_path, capsys):
    run = made(tmp_path / "a", ["cell=gru"])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "nowhere").symlink_to("missing")
    for name in ("pipe", "link", "nowhere"):
        before = (tmp_path / name).lstat()
        code, out, err = call(run, flag, tmp_path / name, capsys=capsys)
        assert (code, out) == (2, "") and "expected a file" in err
        assert (tmp_path / name).lstat().st_ino == before.st_ino
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "missing").exists()


def test_two_outputs_are_two_files(tmp_path, capsys):
    run = made(tmp_path / "a", ["cell=gru"])
    code, out, err = call(run, "--csv", tmp_path / "x", "--html", tmp_path / "a" / ".." / "x", capsys=capsys)
    assert (code, out, "twice" in err, (tmp_path / "x").exists()) == (2, "", True, False)


@pytest.mark.parametrize("flag", ["--csv", "--html"])
def test_a_file_is_written_where_a_folder_is_or_refused(flag, tmp_path, capsys):
    run = made(tmp_path / "a", ["cell=gru"])
    for place in (tmp_path / "typo" / "deep" / "x", run / "summary.json" / "x", run):
        code, out, err = call(run, flag, place, capsys=capsys)
        assert (code, out, len(err.splitlines())) == (2, "", 1) and f"cannot write {place}" in err
    assert not (tmp_path / "typo").exists()
    code, out, err = call(run, "--json", flag, tmp_path / "x", capsys=capsys)
    assert (code, err) == (0, f"written to {tmp_path}/x\n") and json.loads(out)
    code, _, err = call(run, flag, tmp_path / ("x" * 300), capsys=capsys)
    assert code == 7 and err.endswith("name another file\n")


def test_the_page_needs_no_network_and_escapes_everything(tmp_path, capsys):
    evil = "<script>alert(1)</script>\"'&"
    jobs = [([f"cell={cell}", f"optimizer.learning_rate={10**-n}", f"seed={seed}"], 0.5 + n / 50 + seed / 100, 0.5)
            for cell in ("gru", evil) for n in range(12) for seed in (0, 1)]  # fmt: skip
    swept(tmp_path / evil.replace("/", ""), jobs)
    made(tmp_path / "x", [f"cell={evil}"], status="failed", error={"code": 1, "message": evil})
    code, _, _ = call(tmp_path / evil.replace("/", ""), tmp_path / "x", "--html", tmp_path / "r.html", capsys=capsys)
    page = (tmp_path / "r.html").read_text()
    assert code == 0
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in page and "src=" not in page and "url(" not in page
    assert page.count("<polyline") == 24  # one line per configuration
    assert page.count('fill-opacity=".65"') == 2 * 48  # a dot per run in the slice of each key
    assert "nan" not in page


def test_numbers_without_a_span_stand_at_equal_distances():
    for values in (["1" + "0" * n + "e-" + str(n) for n in range(12)], ["-1e308", *map(str, range(10)), "1e308"]):
        found = reportpage.axis(values)
        assert sorted(found.place) == sorted(set(values)) and all(0 < place < 1 for place in found.place.values())


def test_axes_keep_words_apart_and_numbers_to_scale():
    few = reportpage.axis(["1e-3", "0.1", "0.01"])
    assert few.place == pytest.approx({"1e-3": 1 / 6, "0.01": 0.5, "0.1": 5 / 6})
    log = reportpage.axis([str(10.0**-n) for n in range(11)])
    assert log.place["1e-05"] == pytest.approx(0.5)
    assert [label for _, label in log.ticks][::2] == ["1e-10", "1e-05", "1"]
    linear = reportpage.axis([str(n) for n in range(10, 22)])
    assert linear.place["12"] == pytest.approx(2 / 11)
    assert len(reportpage.axis([f"w{n}" for n in range(40)]).ticks) <= reportpage.MOST_PLACES


@pytest.mark.parametrize("values", [[0.5], [0.0, 1.0], [0.9123, 0.9124], [1.0, 1.0], [0.0]])
def test_a_scale_holds_its_values(values):
    found = reportpage.scale(values)
    assert found.low <= min(values) + 1e-9 and found.high >= max(values) - 1e-9
    assert 2 <= len(found.ticks) <= 7
    assert all(0 <= found.place(value) <= 1 for value in values)
    assert 0 <= found.low < found.high <= 1 + 1e-9
    assert len({f"{tick:.3g}" for tick in found.ticks}) == len(found.ticks)


def test_the_page_of_equal_accuracies_has_axes_and_says_what_an_interval_is(tmp_path, capsys):
    run = swept(tmp_path / "sweep", [([f"cell={cell}", f"seed={seed}"], 1.0, 1.0) for cell in "ab" for seed in (0, 1)])
    assert call(run, "--html", tmp_path / "r.html", capsys=capsys)[0] == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<th>validation<th>validation, 95 % (0.998 to 1)<th>test" in page
    assert all(f">{tick}</text>" in page for tick in ("0.998", "0.999", "1"))


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))


DAMAGE = {
    "no summary, no sweep": (lambda run: [path.unlink() for path in run.iterdir()], "expected a run or a sweep"),
    "no JSON": (lambda run: write(run / "summary.json", "[1,"), "not JSON"),
    "no object": (lambda run: write(run / "summary.json", [1]), "expected a JSON object"),
    "too deep": (lambda run: write(run / "summary.json", "[" * 10**6), "not JSON"),
    "another status": (lambda run: write(run / "summary.json", {"status": "well"}), "status"),
    "no accuracy": (lambda run: write(run / "summary.json", {"status": "completed"}), "valid.accuracy"),
    "an accuracy of 7": (
        lambda run: write(run / "summary.json", {"status": "completed", "valid": {"accuracy": 7}}),
        "valid.accuracy, a number of at least 0 and at most 1",
    ),
    "NaN": (
        lambda run: write(run / "summary.json", '{"status": "completed", "valid": {"accuracy": NaN}}'),
        "valid.accuracy",
    ),
    "overrides of numbers": (lambda run: write(run / "overrides.json", [1]), "printable lines"),
    "an escape code": (lambda run: write(run / "overrides.json", ["cell=\x1b[31m"]), "printable lines"),
    "a reversal of text": (lambda run: write(run / "overrides.json", ["cell=\u202eurg"]), "printable lines"),
    "a million overrides": (lambda run: write(run / "overrides.json", ["a=1"] * 10**6), "printable lines"),
    "another record": (lambda run: write(run / "config.yaml", "seed: 0\n"), "is not the file that was recorded"),
    "a pipe": (lambda run: (os.unlink(run / "summary.json"), os.mkfifo(run / "summary.json")), "not a file"),
    "a sweep of nothing": (lambda run: write(run / "sweep.json", {}), "list of at most"),
    "a sweep of no jobs": (lambda run: write(run / "sweep.json", {"jobs": []}), "no runs"),
    "a sweep of strangers": (lambda run: write(run / "sweep.json", {"jobs": [{"job": "../.."}]}), "a job's number"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_or_strange_folder_is_refused_in_a_line(name, tmp_path, capsys):
    change, says = DAMAGE[name]
    run = made(tmp_path / "a", ["cell=gru"])
    change(run)
    code, out, err = call(run, capsys=capsys)
    assert (code, out) == (5, "")
    assert says in err
    assert len(err.splitlines()) == 1 and len(err) < 600


def test_paths_that_name_nothing_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("nosuch", "no*such", "latest"):
        code, _, err = call(path, capsys=capsys)
        assert (code, len(err.splitlines())) == (5, 1)
    assert call(capsys=capsys)[0] == 2
    assert call(tmp_path, capsys=capsys)[0] == 5


def test_nothing_completed_is_told_and_refused(tmp_path, capsys):
    made(tmp_path / "a", ["cell=gru"], status="failed", error={"code": 3, "message": "no such file"})
    code, out, err = call(tmp_path / "a", capsys=capsys)
    assert (code, "exit 3: no such file" in out) == (5, True)
    assert "at least one completed run, found 1 failed" in err


def test_latest_is_the_sweep_of_the_newest_run(sweep, monkeypatch):
    monkeypatch.chdir(sweep.parent.parent.parent)
    assert len(results.collect(["latest"])) == 6


def test_ranking_by_a_key_that_no_run_has_names_the_nearest(sweep):
    with pytest.raises(ConfigurationError, match="epochs"):
        ranking.ranked(results.collect([str(sweep)]), ["epoch"])
    with pytest.raises(ArtefactError, match="not a folder"):
        results.collect([str(sweep / "99")])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three tiny runs: two on the same rows, the third on others."""
    folder = tmp_path_factory.mktemp("trained")
    tiny = ["hidden_size=8", "input.size=4", "batch_size=16", "epochs=1", "dataset.train_rows=64"]
    tiny += ["dataset.valid_rows=20", "dataset.test_rows=30"]
    changes = (["seed=0"], ["seed=1", "tokenizer=characters"], ["seed=0", "dataset.seed=5"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "set by the tests")
        for name, change in zip("abc", changes, strict=True):
            job.run(config.compose([*tiny, *change]), folder / name, loud=False)
        yield folder


@pytest.mark.slow
def test_two_runs_on_the_same_rows_are_compared_row_by_row(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    code, out, err = call("a", "b", "--json", capsys=capsys)
    found = json.loads(out)["paired"]
    assert (code, err) == (0, "")
    accuracy = [json.loads((trained / name / "summary.json").read_text())["test"]["accuracy"] for name in "ab"]
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["rows"] == 30
    assert found["only_first"] - found["only_second"] == round(30 * (accuracy[0] - accuracy[1]))
    less = min(found["only_first"], found["only_second"])
    flips = found["only_first"] + found["only_second"]
    tail = sum(math.comb(flips, k) for k in range(less + 1)) / 2**flips
    assert found["p"] == pytest.approx(min(1, 2 * tail))
    low, high = found["difference_ci95"]
    assert low <= found["difference"] <= high
    code, out, _ = call("a", "b", "--html", "r.html", capsys=capsys)
    assert (code, "McNemar's test, exact, p = " in out) == (0, True)
    assert "McNemar" in (trained / "r.html").read_text()


@pytest.mark.slow
def test_two_runs_on_other_rows_are_not_compared(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    code, out, _ = call("a", "c", capsys=capsys)
    assert code == 0
    assert "the two runs are not compared: their test rows differ, 30 and 30 with" in out
    (trained / "b" / "model" / "params.safetensors").write_bytes(b"")
    code, out, err = call("a", "b", capsys=capsys)
    assert (code, "2 completed runs" in out, "is damaged" in err) == (5, True, True)
