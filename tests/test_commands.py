"""train, evaluate, predict as a user meets them: what is printed, what is written, which code they leave with."""

import hashlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from jaxrnn import (
    artefact,
    command,
    config,
    devices,
    evaluate,
    explain,
    job,
    loggers,
    predict,
    progress,
    settings,
    stored,
    train,
)
from jaxrnn.data import Splits
from jaxrnn.errors import ConfigurationError, DataError
from jaxrnn.text import encode, words

COMMANDS = {"train": train.main, "evaluate": evaluate.main, "predict": predict.main, "explain": explain.main}
TINY = ["hidden_size=8", "input.size=4", "batch_size=16", "epochs=2", "dataset.train_rows=64"]
TINY += ["dataset.valid_rows=20", "dataset.test_rows=30"]


pytestmark = pytest.mark.usefixtures("own_place")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """One finished run, its printed lines and its folder."""
    where = tmp_path_factory.mktemp("trained")
    before, out = os.getcwd(), sys.stdout
    os.chdir(where)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = "set by the tests"
    sys.stdout = printed = io.StringIO()
    try:
        code = command.exit_code("train", train.main, [*TINY, "log_every_steps=2", "logger=[console,jsonl,csv]"])
    finally:
        sys.stdout = out
        os.chdir(before)
        del os.environ["JAX_COMPILATION_CACHE_DIR"]
    lines = printed.getvalue().splitlines()
    assert code == 0, lines
    return where / lines[-1].removeprefix("run: "), lines


def call(name, *arguments, capsys):
    """-> exit code, lines of standard output, lines of standard error."""
    code = command.exit_code(name, COMMANDS[name], [str(a) for a in arguments])
    found = capsys.readouterr()
    return code, found.out.split("\n")[:-1], found.err.split("\n")[:-1]  # a text may hold U+2028


def test_train_prints_progress_a_table_and_its_folder(trained):
    folder, lines = trained
    assert folder.is_dir()
    assert lines[-1] == f"run: {Path('runs/default') / folder.name}"
    assert any("4 programs, ready to train after" in line for line in lines)
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/2", "2/2"]
    assert {"network", "bag", "majority"} <= {line.split()[0] for line in lines if line.startswith("  ")}


@pytest.mark.parametrize(("more", "unbuffered"), [([], "1"), (["-m", "seed=range(5)"], "")], ids=["run", "sweep"])
def test_training_goes_on_when_nobody_reads_its_output(more, unbuffered):
    environment = {**os.environ, "PYTHONPATH": str(Path(train.__file__).parent.parent), "PYTHONUNBUFFERED": unbuffered}
    words = [sys.executable, "-m", "jaxrnn.train", *TINY, *more]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(120) == 0
    found = [json.loads(path.read_text())["status"] for path in Path("runs").rglob("summary.json")]
    assert found == ["completed"] * (5 if more else 1)


def test_a_command_without_any_output_runs():
    code = "import sys; from jaxrnn import command; command.run('x', lambda _: int(sys.stdout.isatty()), unread=True)"
    environment = {**os.environ, "PYTHONPATH": str(Path(train.__file__).parent.parent)}
    line = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code]
    assert subprocess.run(line, env=environment, check=False).returncode == 0


def test_the_run_folder_holds_what_the_contract_names(trained):
    folder, _ = trained
    wanted = "checkpoints config.yaml data_report.json environment.json metrics.csv metrics.jsonl model overrides.json"
    wanted += " plots run.lock summary.json vocabulary.json"
    assert sorted(path.name for path in folder.iterdir()) == wanted.split()
    pictures = sorted(path.name for path in (folder / "plots").iterdir())
    assert pictures == ["confusion.png", "curves.png", "gradient_flow.png"]
    summary = json.loads((folder / "summary.json").read_text())
    wanted = "status valid test baselines best_epoch steps parameters seconds compile_seconds examples_per_second"
    assert set(summary) == {*wanted.split(), "tokens_per_second", "device", "overrides", "bitwise", "ended_by"}
    assert summary["status"] == "completed"
    assert summary["steps"] == 8
    assert summary["test"]["rows"] == 30
    assert summary["parameters"] == sum(a.size for a in stored.load_model(folder).arrays.values())
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "grad_norm" in record] == [2, 4, 6, 8]
    assert [record["step"] for record in records if "flow" in record] == list(range(9))
    assert [record["epoch"] for record in records if "train" in record] == [1, 2]
    assert json.loads((folder / "environment.json").read_text())["versions"]["jax"]


def test_evaluate_measures_what_training_measured(trained, capsys):
    folder, _ = trained
    code, out, err = call("evaluate", folder, "--json", capsys=capsys)
    found = json.loads("".join(out))
    summary = json.loads((folder / "summary.json").read_text())
    assert (code, err) == (0, [])
    assert found["accuracy"] == summary["test"]["accuracy"]
    assert found["loss"] == pytest.approx(summary["test"]["loss"], rel=1e-6)
    assert found["baselines"] == summary["baselines"]
    wanted = "run split rows loss accuracy accuracy_ci95 f1_macro confusion labels ece baselines"
    assert set(found) == set(wanted.split())
    code, out, _ = call("evaluate", folder, "--split", "valid", capsys=capsys)
    assert code == 0
    assert "valid, 20 rows" in out[0]


def test_evaluate_measures_the_rows_of_a_file_as_those_of_a_split(trained, capsys):
    rows = list(artefact.again(artefact.load(trained[0]).record["dataset"]).test)
    Path("test.csv").write_text("said,is\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    line = ["evaluate", trained[0], "--json", "--detail"]
    code, out, _ = call(*line, "--file", "test.csv", "--text", "said", "--label", "is", capsys=capsys)
    found = json.loads("".join(out))
    assert (code, found.pop("split")) == (0, "test.csv")
    expected = json.loads("".join(call(*line, "--split", "test", capsys=capsys)[1]))
    assert expected.pop("split") == "test"
    assert found == expected and found["rows"] == 30
    for content, code, says in (
        ("text,label\na,good\na,fine\n", 3, "one.csv: unknown label 'fine'; known: bad, good"),
        ("text,label\n", 3, "one.csv: holds no rows"),
        ("text,said\na,good\n", 3, "unknown column 'label'; known: said, text; give --label"),
        ("text,label\na,\n", 3, "line 2: an empty 'label'"),
    ):
        Path("one.csv").write_text(content)
        found, out, err = call("evaluate", trained[0], "--file", "one.csv", capsys=capsys)
        assert (found, out) == (code, []) and says in err[-1]


@pytest.mark.parametrize("end", [False, True])
def test_rows_of_a_file_are_numbered_as_in_training(end):
    rows = [("a b c d", "yes"), ("", "no"), ("b q", "no"), ("b", "yes")]
    tokenizer = words(end=end)
    found = encode(Splits(rows, rows, rows), tokenizer, max_length=3)
    Path("rows.tsv").write_text("text\tlabel\n" + "".join("\t".join(row) + "\n" for row in rows))
    record = {"labels": found.labels, "max_length": 3, "dataset": {"name": "phrases"}}
    trained = artefact.Loaded(None, None, found.vocabulary, tokenizer, record)
    corpus = evaluate.joined(found.corpus, *evaluate.numbered(evaluate.Other("rows.tsv"), trained))
    assert len(corpus.target) == 16 and corpus.test.tolist() == [12, 13, 14, 15]
    for mine, old in zip(corpus.test, found.corpus.test, strict=True):
        assert corpus.target[mine] == found.corpus.target[old]
        one, other = (corpus.tokens[corpus.offset[row] : corpus.offset[row + 1]].tolist() for row in (mine, old))
        assert one == other


def test_predict_answers_each_text_in_order(trained, tmp_path, capsys):
    folder, _ = trained
    texts = ["this is not good", "", "good", "zzz", "  ", "a\u2028b", "i am happy " * 9]
    (tmp_path / "texts").write_bytes("\n".join(texts).encode() + b"\r\n")
    code, out, err = call("predict", folder, "--file", tmp_path / "texts", "--json", capsys=capsys)
    found = [json.loads(line) for line in out]
    assert (code, err) == (0, ["jaxrnn.predict: 2 texts have no token that the vocabulary knows"])
    assert [line["text"] for line in found] == texts
    assert [line.get("unknown", 0) for line in found] == [0, 0, 0, 1, 0, 2, 0]
    assert not any("cut" in line for line in found)
    assert [line.get("empty", False) for line in found] == [False, True, False, False, True, False, False]
    assert all(sum(line["probabilities"].values()) == pytest.approx(1) for line in found)
    assert all(line["label"] == max(line["probabilities"], key=line["probabilities"].get) for line in found)

    code, out, err = call("predict", folder, *texts, capsys=capsys)
    assert code == 0
    assert [line.split("\t")[0] for line in out] == [line["label"] for line in found]
    assert [line.split("\t")[2] for line in out] == texts
    assert ["text 2 is empty" in err[0], "text 5 is empty" in err[1]] == [True, True]


TABLES = {
    "rows.csv": 'id,text,said\n1,good,bad\n\n2,"not good, ""at"" all\nreally",sad\n3,,x\n',
    "rows.TSV": 'id\ttext\tsaid\n1\tgood\tbad\n2\tnot good, "at" all really\tsad\n3\t\tx\n',
    "rows.jsonl": '{"text": "good", "said": "bad"}\n{"text": "not good, \\"at\\" all really", "said": "sad"}\n'
    '{"text": "", "said": "x"}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_predict_reads_a_column_of_a_table_row_by_row(trained, name, tmp_path, capsys):
    Path(name).write_text(TABLES[name])
    code, out, _ = call("predict", trained[0], "--file", name, capsys=capsys)
    assert code == 0
    assert [line.split("\t")[2] for line in out] == ["good", 'not good, "at" all really', ""]
    code, out, _ = call("predict", trained[0], "--file", name, "--text", "said", capsys=capsys)
    assert [line.split("\t")[2] for line in out] == ["bad", "sad", "x"]
    code, out, err = call("predict", trained[0], "--file", name, "--text", "sais", capsys=capsys)
    assert (code, out, len(err)) == (3, [], 1)
    assert "'sais'; did you mean 'said'?" in err[0] and err[0].endswith("give --text")


def test_predict_reads_a_table_as_the_run_read_its_own(trained, tmp_path, capsys):
    saved = stored.load_model(trained[0])
    saved.settings["dataset"] = {"name": "files", "path": "x.csv", "text": "said", "encoding": "latin-1"}
    stored.save_model(tmp_path, saved)
    Path("rows.csv").write_text("text,said\na,cr\xe8me\n", "latin-1")
    code, out, _ = call("predict", tmp_path, "--file", "rows.csv", capsys=capsys)
    assert (code, [line.split("\t")[2] for line in out]) == (0, ["cr\xe8me"])
    Path("rows.csv").write_text("text,said\na,b\na,b,c\n")
    code, _, err = call("predict", tmp_path, "--file", "rows.csv", capsys=capsys)
    assert (code, err) == (3, ["jaxrnn.predict: rows.csv: line 3: 3 columns instead of 2"])
    for wrong in ({"text": ["said"]}, {"max_ratio": "many"}, {"encoding": 8}):
        saved.settings["dataset"] |= wrong
        stored.save_model(tmp_path, saved)
        assert call("predict", tmp_path, "--file", "rows.csv", capsys=capsys)[0] == 5


def test_predict_says_which_texts_were_cut(trained, tmp_path, capsys):
    saved = stored.load_model(trained[0])
    saved.settings["max_length"] = 3
    stored.save_model(tmp_path, saved)
    texts = ["this is not good", "this is good", "zzz good now today"]
    code, out, err = call("predict", tmp_path, *texts, "--json", capsys=capsys)
    assert (code, err) == (0, ["jaxrnn.predict: 2 texts are longer than max_length=3 and were cut"])
    assert [json.loads(line).get("cut") for line in out] == [True, None, True]
    assert [json.loads(line).get("unknown") for line in out] == [None, None, 1]
    code, out, err = call("predict", tmp_path, texts[0], "zzz", capsys=capsys)
    assert [line.split("\t")[2] for line in out] == [texts[0], "zzz"]
    assert err == [
        "jaxrnn.predict: 1 text is longer than max_length=3 and was cut",
        "jaxrnn.predict: 1 text has no token that the vocabulary knows",
    ]


def measured(confusion):
    labels, rows = [f"class {number}" for number in range(len(confusion))], sum(map(sum, confusion))
    found = {"run": "r", "split": "test", "rows": rows, "labels": labels, "confusion": confusion}
    found |= dict.fromkeys(("accuracy", "loss", "f1_macro", "ece"), 0.5) | {"accuracy_ci95": [0.1, 0.9]}
    return found | {"baselines": {name: {"accuracy": 0.5} for name in ("bag_of_words", "majority")}}


def test_many_classes_are_measured_one_by_one():
    confusion = np.diag([2] * 12 + [6, 0])
    confusion[12, 3], confusion[0, 1], confusion[1, 0] = 4, 1, 3
    lines = evaluate.table(measured(confusion.tolist())).splitlines()
    assert max(map(len, lines)) < 80
    start = next(number for number, line in enumerate(lines) if "precision" in line) + 1
    shown = [line.split()[1:] for line in lines[start : start + 14]]
    assert [line[0] for line in shown[:4]] == ["12", "1", "0", "2"] and shown[-1][0] == "13"  # by rows
    assert shown[0] == ["12", "10", "1.0000", "0.6000", "0.7500"]
    assert shown[2] == ["0", "3", "0.4000", "0.6667", "0.5000"]
    assert shown[-1] == ["13", "0", "-", "-", "-"]
    assert [line.split() for line in lines[start + 15 :]] == [
        ["true", "rows", "answered"],
        ["class", "12", "4", "class", "3"],
        ["class", "1", "3", "class", "0"],
        ["class", "0", "1", "class", "1"],
    ]
    assert evaluate.table(measured([[1, 0], [0, 0]])).startswith("r, test, 1 row\n")
    assert evaluate.table(measured([[1, 0], [0, 1]])).startswith("r, test, 2 rows\n")
    few = evaluate.table(measured(np.eye(12, dtype=int).tolist()))
    assert "true / answered" in few and "precision" not in few


def test_a_label_stays_in_its_column_and_moves_no_cursor():
    labels = ["a\tb\nc", "\x1b[2J"]
    assert predict.told("x", np.array([0.75, 0.25]), {}, labels, False) == "a b c\t0.7500\tx"
    assert json.loads(predict.told("x", np.array([0.75, 0.25]), {}, labels, True))["label"] == labels[0]
    table = evaluate.table(measured([[1, 0], [0, 1]]) | {"labels": labels})
    assert "\x1b" not in table and "\\x1b[2J" in table and r"a\tb\nc" in table


def test_a_line_without_end_is_refused(trained, monkeypatch, capsys):
    monkeypatch.setattr(predict, "LONGEST", 100)
    code, _, err = call("predict", trained[0], "--file", "/dev/zero", capsys=capsys)
    assert code == 3 and "line 1: more than 100 bytes" in err[-1]


def test_predict_reads_standard_input(trained, monkeypatch, capsys):
    folder, _ = trained
    for named in ([], ["-"], ["--file", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"good\nbad"), encoding="utf-8"))
        code, out, _ = call("predict", folder, *named, capsys=capsys)
        assert code == 0
        assert [line.split("\t")[2] for line in out] == ["good", "bad"]


def test_predict_says_that_it_reads_from_the_terminal(trained, monkeypatch, capsys):
    for asked in (True, False):
        stdin = io.TextIOWrapper(io.BytesIO(b"good\nbad\n"), encoding="utf-8")
        monkeypatch.setattr(stdin, "isatty", lambda asked=asked: asked)
        monkeypatch.setattr(sys, "stdin", stdin)
        code, out, err = call("predict", trained[0], capsys=capsys)
        assert (code, len(out)) == (0, 2)
        assert [line.partition(": ")[2] for line in err] == [
            "reading texts from the terminal, one per line; Ctrl-D ends"
        ] * asked


def test_predictions_do_not_depend_on_the_company(trained):
    answer = predict.predictor(artefact.load(trained[0]))
    texts = ["this is not good", "good", "i think the food was awful but is great now"]
    together = answer(texts).probabilities
    alone = np.concatenate([answer([text])[0] for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)


REFUSED = {
    "train hiden_size=64": (2, "hidden_size"),
    "train head=every": (2, "head=every"),
    "train cell=gru,lstm": (2, "-m"),
    "train --nosuch": (2, "--nosuch"),
    "train -m cell=gru optimizer.learning_rate=1,oops": (2, "oops"),
    "train --experimental-rerun x.pickle": (2, "pickle"),
    "train --cfg job hiden_size=1": (2, "hiden_size"),
    "train cell=gru --cfg": (2, "--cfg"),
    "train cell=gru --cfg jobs": (2, "'jobs'"),
    "train cell=gru --cfg job --nosuch": (2, "--nosuch"),
    "train dataset=files": (2, "dataset.path"),
    "train dataset=files dataset.path=nosuch.tsv": (3, "nosuch.tsv"),
    "train batch_size=15 device.count=2": (2, "batch_size=15"),
    "evaluate": (2, "RUN"),
    "evaluate nosuch": (5, "nosuch"),
    "evaluate latest": (5, "no completed run"),
    "evaluate . --split half": (2, "half"),
    "evaluate . --split test --file f.csv": (2, "both"),
    "evaluate . --text said": (2, "--file"),
    "predict": (2, "required: RUN;"),
    "predict .": (5, "model/"),
    "predict . text --file f": (2, "both"),
    "predict . --text a --file f.txt": (2, ".csv, .jsonl"),
    "predict . --text a": (2, "--file"),
    "explain latest not good": (2, "unrecognized arguments: good; quote the text; see"),
    "explain latest good --nosuch": (2, "unrecognized arguments: --nosuch; see"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_refusal_is_two_lines_and_a_code_and_leaves_nothing(line, tmp_path, capsys, monkeypatch):
    name, *arguments = line.split()
    wanted, says = REFUSED[line]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(devices, "choose", lambda name, count=1, **sizes: [None] * count)
    code, out, err = call(name, *arguments, capsys=capsys)
    assert (code, out) == (wanted, []), err
    assert 1 <= len(err) <= 2
    assert says in err[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_absent_device_lists_what_is_there():
    with pytest.raises(ConfigurationError, match=r"device=tpu.*there is: cpu"):
        devices.choose("tpu")


def test_float32_is_all_of_it_on_an_accelerator_unless_the_user_chose(monkeypatch):
    gpu = type("Gpu", (), {"platform": "gpu"})()
    monkeypatch.setattr(jax, "devices", lambda *_: [gpu])
    before = jax.config.jax_default_matmul_precision
    try:
        for chosen, found in ((None, "highest"), ("tensorfloat32", "tensorfloat32")):
            jax.config.update("jax_default_matmul_precision", chosen)
            assert devices.choose("gpu") == [gpu]
            assert jax.config.jax_default_matmul_precision == found
            assert devices.products(gpu) == ("" if chosen is None else ", products tensorfloat32")
        monkeypatch.undo()
        jax.config.update("jax_default_matmul_precision", None)
        devices.choose("cpu")
        assert jax.config.jax_default_matmul_precision is None
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def test_a_gpu_repeats_itself_where_xla_was_told_to(tmp_path, monkeypatch, capsys):
    gpu, cpu = (type("Device", (), {"platform": name})() for name in ("gpu", "cpu"))
    told = {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false --xla_gpu_deterministic_ops=true"}
    last = {"XLA_FLAGS": f"{told['XLA_FLAGS']} --xla_gpu_deterministic_ops=false"}
    assert [devices.repeatable(*one) for one in ((cpu, {}), (gpu, {}), (gpu, told), (gpu, last))] == [1, 0, 1, 0]
    line = [*TINY, "hydra.run.dir=here", "schedule=constant"]
    assert call("train", *line, "epochs=1", capsys=capsys)[0] == 0
    monkeypatch.setattr(devices, "repeatable", lambda device: False)
    assert call("train", *line, "epochs=2", capsys=capsys)[0] == 0
    assert json.loads((tmp_path / "here" / "summary.json").read_text())["bitwise"] is False


def test_cfg_prints_what_a_run_would_use(capsys):
    given = ["dataset=sst2", "cell=gru", "optimizer.learning_rate=0.5"]  # conf/tuned/sst2.yaml brings the rest
    code, out, err = call("train", "--cfg", "job", *given, capsys=capsys)
    assert (code, err) == (0, [])
    for line in ([*given, "--cfg", "job"], [given[0], "--cfg=job", *given[1:]]):
        assert call("train", *line, capsys=capsys) == (0, out, [])
    shown, used = yaml.safe_load("\n".join(out)), settings.plain(config.compose(given))
    assert shown["cell"]["name"] == "gru" and shown["optimizer"]["learning_rate"] == 0.5
    for key in ("head", "bidirectional", "hidden_size", "epochs", "dropout_rate", "optimizer", "input"):
        assert shown[key] == used[key]


def test_a_loss_that_is_not_finite_fails_the_run_and_says_so(tmp_path, capsys):
    bad = ["optimizer=sgd", "optimizer.learning_rate=1e38", "clip_global_norm=null", "init_scale=100"]
    code, _, err = call("train", *TINY, *bad, "hydra.run.dir=here", capsys=capsys)
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert (code, summary["status"], summary["error"]["code"]) == (4, "failed", 4)
    assert "not finite" in err[-1]


def test_a_network_that_grows_until_it_answers_nothing_is_refused(tmp_path, capsys):
    """The update itself is finite, what is measured after it is not."""
    grown = ["optimizer=sgd", "optimizer.learning_rate=1e30", "clip_global_norm=null", "activation=identity"]
    code, _, err = call("train", *TINY, *grown, "max_steps=1", "hydra.run.dir=here", capsys=capsys)
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert (code, summary["status"], summary["error"]["code"]) == (4, "failed", 4)
    assert "validation loss after epoch 1 is not finite" in err[-1]


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ([], 0, "left alone"),
        (["resume=never"], 6, "already holds a run"),
        (["hidden_size=9", "seed=1"], 5, "hidden_size: 8 there, 9 here; seed: 0 there, 1 here"),
        (["batch_size=8"], 5, "batch_size: 16 there, 8 here"),
        (["tokenizer=characters"], 5, "tokenizer.name: 'words' there, 'characters' here. Choose another folder"),
        (["seed=1", "optimizer.b1=0.8"], 5, "Choose another folder, or resume_allow=[optimizer.b1,seed]"),
        (["layers=2", "seed=1"], 5, "seed: 0 there, 1 here. Choose another folder"),
        (["optimizer=sgd"], 5, "Choose another folder"),
        (["hidden_size=9", "resume_allow=[hidden_size]"], 5, "choose another folder, or leave hidden_size as before"),
        (
            ["dataset.test_rows=32"],
            5,
            "run: the rows of the data are not those it was trained on. Choose another folder",
        ),
        (["epochs=1", "resume_allow=[epochs]"], 5, "epochs=1: {folder} has come to 2 of them"),
        (["max_steps=7", "resume_allow=[max_steps]"], 5, "max_steps=7: {folder} has come to 8 of them"),
        (["resume_step=3"], 5, "no checkpoint of step 3 in {folder}; there are: 8"),
    ],
)
def test_a_folder_that_holds_a_finished_run_is_left_alone(trained, change, code, says, capsys):
    folder, _ = trained
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"}
    found, out, err = call("train", *TINY, *change, f"hydra.run.dir={folder}", capsys=capsys)
    assert found == code
    told, says = [*out, *err][-2 if code == 0 else -1], says.format(folder=folder)
    assert told.endswith(says) if "Choose" in says else says in told
    assert before == {path: path.read_bytes() for path in before}
    assert len(before) == sum(path.is_file() for path in folder.rglob("*")) - 1


@pytest.mark.parametrize("left", ["summary.json", "metrics.jsonl", "metrics.csv", "model", "checkpoints"])
def test_a_folder_that_lost_its_config_is_no_empty_one(trained, left, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    copy = shutil.copytree if (trained[0] / left).is_dir() else shutil.copyfile
    copy(trained[0] / left, tmp_path / "run" / left)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, out, err = call("train", *TINY, "cell=lstm", "hydra.run.dir=run", capsys=capsys)
    assert (code, out, len(err)) == (5, [], 1)
    assert f"run holds {left} of a run, but not its config.yaml: bring that file back" in err[0]
    assert before == {path: path.read_bytes() for path in before}


def test_a_folder_of_other_files_or_of_a_run_that_hardly_began_is_trained_in(tmp_path, monkeypatch, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("notes.txt", "vocabulary.json", "overrides.json", "config.yaml.tmp-abc", "run.lock"):
        (tmp_path / "run" / name).write_text("{}")
    line = [*TINY, "epochs=1", "plots=never", "hydra.run.dir=run"]
    with monkeypatch.context() as full:
        full.setattr(progress.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
        code, _, err = call("train", *line, capsys=capsys)
    assert code == 7 and "bytes free" in err[-1] and not (tmp_path / "run" / "summary.json").exists()
    assert call("train", *line, capsys=capsys)[0] == 0
    assert call("train", *line, capsys=capsys)[1][-2] == "run holds a completed run: left alone"


@pytest.mark.parametrize("word", ["resume=must", "resume_step=5"])
def test_what_there_is_no_run_for_to_go_on_with_makes_no_folder(word, tmp_path, capsys):
    for place, named in ([], "a new folder"), (["hydra.run.dir=here"], "here"):
        code, out, err = call("train", *TINY, word, *place, capsys=capsys)
        assert (code, out) == (5, [])
        assert err == [f"jaxrnn.train: {word}, but {named} holds no run: expected the folder of one"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (command.Terminated, 143)])
def test_a_polite_stop_keeps_the_best_model_so_far(stop, code, tmp_path, monkeypatch, capsys):
    def second_epoch(folder, stream=None, epochs=1):
        def epoch(record):
            if record["epoch"] == 2:
                raise stop

        return loggers.Logger(epoch=epoch)

    monkeypatch.setitem(loggers.MEMBERS, "csv", second_epoch)
    found, _, err = call("train", *TINY, "logger=csv", "hydra.run.dir=here", capsys=capsys)
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert (found, summary["status"], summary["error"]["code"]) == (code, "stopped", code)
    assert summary["best_epoch"] == 1
    assert "test" not in summary
    assert err == ["jaxrnn.train: stopped before a checkpoint was saved in here; the same command begins again"]
    assert artefact.load(tmp_path / "here").labels == ["bad", "good"]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stopped_run_says_where_it_was_saved_and_goes_on_from_there(name, code, monkeypatch, capsys):
    def heard(folder, stream=None, epochs=1):
        return loggers.Logger(epoch=lambda record: os.kill(os.getpid(), getattr(signal, name)))

    line = [*TINY, "plots=never", "logger=csv"]
    with monkeypatch.context() as patched:
        patched.setitem(loggers.MEMBERS, "csv", heard)
        found, _, (told,) = call("train", *line, capsys=capsys)
    (folder,) = Path("runs/default").iterdir()
    way = f"hydra.run.dir={folder}"
    expected = f"stopped, saved after update 4 in {folder}; resume with the same command and {way}"
    assert (found, told) == (code, f"jaxrnn.train: {expected}")
    code, out, _ = call("train", *line, way, capsys=capsys)
    assert code == 0 and f"resuming at step 4 of {folder}" in out


def test_with_another_seed_an_epoch_that_was_under_way_begins_again(monkeypatch, capsys):
    """The order of its rows is another one: going on in it would read some twice and others never."""

    def heard(folder, stream=None, epochs=1):
        return loggers.Logger(step=lambda record: os.kill(os.getpid(), signal.SIGTERM))

    line = [*TINY, "plots=never", "log_every_steps=1", "checkpoint.every_steps=2", "flow.every_steps=null"]
    line.append("hydra.run.dir=here")
    with monkeypatch.context() as patched:
        patched.setitem(loggers.MEMBERS, "csv", heard)
        assert call("train", *line, "logger=csv", capsys=capsys)[0] == 143
    code, out, _ = call("train", *line, "logger=jsonl", "seed=1", "resume_allow=[seed]", capsys=capsys)
    assert code == 0 and "resuming at step 2 of here" in out
    assert json.loads(Path("here/summary.json").read_text())["steps"] == 2 + 2 * 4


STILL = ["optimizer=sgd", "optimizer.learning_rate=1e-30"]  # nothing gets better after the first epoch


@pytest.mark.parametrize(
    ("words", "by", "says"),
    [
        (
            ["epochs=9", "patience=2", *STILL],
            "patience",
            "stopped after epoch 3: 2 epochs brought nothing better (patience=2)",
        ),
        (["epochs=9", "max_steps=6"], "max_steps", "stopped after epoch 2 (max_steps=6)"),
        (["epochs=2", "patience=1", *STILL], "epochs", None),
        (["epochs=2", "max_steps=8"], "epochs", None),
    ],
)
def test_why_a_run_ended_is_said_and_recorded(words, by, says, capsys):
    code, out, _ = call("train", *TINY, *words, "plots=never", "hydra.run.dir=here", capsys=capsys)
    assert code == 0 and json.loads(Path("here/summary.json").read_text())["ended_by"] == by
    assert [line for line in out if line.startswith("stopped after")] == [says] * (says is not None)


def test_a_run_that_patience_had_ended_says_what_trains_on_and_keeps_its_record(capsys):
    line = [*TINY, *STILL, "schedule=constant", "plots=never", "hydra.run.dir=here"]
    assert call("train", *line, "epochs=9", "patience=2", capsys=capsys)[0] == 0
    before = Path("here/summary.json").read_bytes()
    code, out, _ = call("train", *line, "epochs=12", "patience=2", capsys=capsys)
    said = "patience had ended this run: patience=null, with resume_allow=[patience], trains on"
    assert code == 0 and said in out and "here holds a completed run: left alone" in out
    assert Path("here/summary.json").read_bytes() == before
    code, _, err = call("train", *line, "epochs=9", "patience=null", "resume_allow=[patience]", capsys=capsys)
    assert code == 0, err
    assert json.loads(Path("here/summary.json").read_text())["steps"] == 9 * 4


def test_a_run_that_had_only_its_test_to_do_keeps_the_speed_of_its_updates(monkeypatch, capsys):
    def heard(folder, stream=None, epochs=1):
        return loggers.Logger(epoch=lambda record: record["epoch"] < 2 or os.kill(os.getpid(), signal.SIGTERM))

    line = [*TINY, "plots=never", "hydra.run.dir=here"]
    with monkeypatch.context() as patched:
        patched.setitem(loggers.MEMBERS, "csv", heard)
        assert call("train", *line, "logger=csv", capsys=capsys)[0] == 143
    stopped = json.loads(Path("here/summary.json").read_text())
    shutil.copytree("here", "copy")
    changed = ["head=mean", "resume_allow=[head]", "hydra.run.dir=copy"]
    other = call("train", *line, "logger=csv", *changed, capsys=capsys)
    assert other[0] == 5 and "nothing is left to train (epochs=2)" in other[2][0]
    assert call("train", *line, "logger=csv", capsys=capsys)[0] == 0
    summary = json.loads(Path("here/summary.json").read_text())
    for key in progress.SPEEDS:
        assert summary[key] == stopped[key] > 0


@pytest.mark.parametrize(
    ("change", "allow"), [("dataset.valid_rows=22", "data"), ("head=mean", "head"), ("activation=relu", "activation")]
)
def test_the_best_epoch_is_forgotten_with_what_it_was_measured_on(trained, change, allow, tmp_path, capsys):
    shutil.copytree(trained[0], tmp_path / "here")
    position = tmp_path / "here" / "checkpoints" / "step_8" / "position.json"
    held = json.loads(position.read_text())
    best = json.dumps(held | {"score": [1.0, 0.0], "waited": 2}).encode()
    position.write_bytes(best)
    manifest = json.loads((position.parent / "manifest.json").read_text())
    manifest["files"]["position.json"] = {"bytes": len(best), "sha256": hashlib.sha256(best).hexdigest()}
    (position.parent / "manifest.json").write_text(json.dumps(manifest))
    line = [*TINY, "log_every_steps=2", "logger=[console,jsonl,csv]", "epochs=3", "hydra.run.dir=here"]
    assert "head.name" in manifest["fingerprint"]
    code, _, err = call("train", *line, change, f"resume_allow=[{allow}]", capsys=capsys)
    assert code == 0, err
    assert json.loads((tmp_path / "here" / "summary.json").read_text())["best_epoch"] == 3


def test_a_stop_before_training_says_that_nothing_was_saved(monkeypatch, capsys):
    def stop(*_):
        raise command.Terminated

    monkeypatch.setattr(job, "prepare", stop)
    code, _, err = call("train", *TINY, capsys=capsys)
    assert (code, err) == (143, ["jaxrnn.train: stopped before training began, nothing was saved"])


def test_a_sweep_goes_on_when_a_job_fails(tmp_path, capsys):
    bad = ["optimizer=sgd", "optimizer.learning_rate=1e+38,0.01", "clip_global_norm=null", "init_scale=100", "epochs=1"]
    code, out, err = call("train", "-m", *TINY, *bad, capsys=capsys)
    folder = tmp_path / out[-1].removeprefix("sweep: ")
    entries = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert code == 4
    assert [(entry["job"], entry["status"], entry["code"]) for entry in entries] == [
        (0, "failed", 4), (1, "completed", 0),
    ]  # fmt: skip
    assert "2 jobs to run in " in out[0] and out[1].startswith("data: phrases, 64 train")
    assert [line.split()[:3] for line in out[2:4]] == [
        ["job", "0:", "optimizer.learning_rate=1e+38"], ["job", "1:", "optimizer.learning_rate=0.01"],
    ]  # fmt: skip
    assert "not finite" in err[-1]
    assert json.loads((folder / "1" / "summary.json").read_text())["status"] == "completed"
    assert call("evaluate", "latest", "--json", capsys=capsys)[0] == 0


def test_the_same_command_gives_the_same_model(trained, tmp_path, capsys):
    code, *_ = call("train", *TINY, "hydra.run.dir=again", capsys=capsys)
    assert code == 0
    first, second = stored.load_model(trained[0]).arrays, stored.load_model(tmp_path / "again").arrays
    np.testing.assert_equal(first, second)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record.update(extra=1), "no keys but"),
        (lambda record: record.update(format=2), "expected format 1"),
        (lambda record: record.pop("labels"), "labels"),
        (lambda record: record["network"].update(_target_="os.system"), "model.json"),
        (lambda record: record["network"].update(cell="os"), "unknown cell 'os'"),
        (lambda record: record["network"].update(hidden_size=9), "W_"),
        (lambda record: record["network"].update(vocabulary_size=3), "do not match"),
        (lambda record: record["tokenizer"].update(name="os"), "unknown tokenizer 'os'"),
        (lambda record: record["labels"].append("more"), "do not match"),
    ],
)
def test_a_record_from_a_stranger_is_checked(trained, tmp_path, change, says, capsys):
    saved = stored.load_model(trained[0])
    change(saved.settings)
    stored.save_model(tmp_path, saved)
    code, _, err = call("predict", tmp_path, "good", capsys=capsys)
    assert code == 5, err
    assert says in err[-1]


def test_relative_data_are_found_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "rows.tsv").write_text("text\tlabel\na\t0\nb\t1\n")
    monkeypatch.chdir(tmp_path / "there")
    recorded = artefact.record(config.compose(["dataset=files", "dataset.path=rows.tsv"]), {}, [])["dataset"]
    assert recorded["path"] == "rows.tsv"
    for place in (tmp_path, tmp_path / "there"):
        monkeypatch.chdir(place)
        assert list(artefact.again(recorded).train) == [("a", "0"), ("b", "1")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"there/rows\.tsv: no such file"):
        artefact.again(recorded)
    monkeypatch.chdir(tmp_path / "moved")
    assert len(list(artefact.again(recorded).train)) == 2
    absolute = config.compose(["dataset=files", f"dataset.path={tmp_path}"])
    assert "folder" not in artefact.record(absolute, {}, [])["dataset"]


def test_data_that_have_changed_since_are_not_measured(trained, tmp_path, capsys):
    saved = stored.load_model(trained[0])
    saved.settings["dataset"]["train_rows"] = 20
    stored.save_model(tmp_path, saved)
    code, _, err = call("evaluate", tmp_path, capsys=capsys)
    assert code == 5
    assert "changed since" in err[-1]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError("too much"), 8),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"), 8),
        (OSError(28, "No space left on device"), 7),
        (PermissionError(13, "Permission denied", "runs"), 7),
        (OSError(36, "File name too long", "x" * 300), 7),
    ],
)
def test_errors_of_libraries_have_codes(error, code, capsys):
    def main(arguments):
        raise error

    assert command.exit_code("train", main, []) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bug_keeps_its_traceback():
    def main(arguments):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        command.exit_code("train", main, [])


def test_flags_are_set_only_where_the_library_knows_them(monkeypatch):
    environ = {"XLA_FLAGS": "--a=1"}
    devices.set_flags(environ)
    assert environ["XLA_FLAGS"] == f"--a=1 --{devices.FUSIONS}="
    devices.set_flags(environ)
    assert environ["XLA_FLAGS"].count(devices.FUSIONS) == 1
    monkeypatch.setattr(devices, "FUSIONS", "xla_no_such_flag_at_all")
    devices.set_flags(environ)
    assert "no_such" not in environ["XLA_FLAGS"]


def test_a_container_may_grant_less_than_its_cores(tmp_path):
    own, none = tmp_path / "own", tmp_path / "none"
    assert devices.granted(none, own) == math.inf
    (deep := tmp_path / "a" / "b").mkdir(parents=True)
    own.write_text("1:name=systemd:/x\n0::/a/b\n")
    (deep / "cpu.max").write_text("max 100000\n")
    assert devices.granted(tmp_path, own) == math.inf
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    assert devices.granted(tmp_path, own) == 1.5
    (tmp_path / "cpu").mkdir()
    for name, number in (("quota", -1), ("period", 100000)):
        (tmp_path / "cpu" / f"cpu.cfs_{name}_us").write_text(f"{number}\n")
    assert devices.granted(tmp_path, own) == 1.5
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    assert devices.granted(tmp_path, own) == 0.5
    assert devices.granted() > 0


def test_memory_is_no_more_than_control_groups_grant(tmp_path, monkeypatch):
    own, deep = tmp_path / "own", tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    own.write_text("0::/a/b\n")
    assert devices.memory_granted(tmp_path, own) == math.inf
    for folder, most in ((deep, "max"), (deep.parent, 1000)):
        for name, text in (("max", most), ("current", 700), ("stat", "anon 500\ninactive_file 200")):
            (folder / f"memory.{name}").write_text(f"{text}\n")
    assert devices.memory_granted(tmp_path, own) == 500
    (tmp_path / "memory").mkdir()
    for name, text in (("limit_in_bytes", 300), ("usage_in_bytes", 400), ("stat", "total_inactive_file 50")):
        (tmp_path / "memory" / f"memory.{name}").write_text(f"{text}\n")
    assert devices.memory_granted(tmp_path, own) == -50
    device = jax.devices("cpu")[0]
    for granted, expected in ((-50, 0), (4096, 4096)):
        monkeypatch.setattr(devices, "memory_granted", lambda granted=granted: granted)
        assert devices.free_memory(device) == expected


def test_cores_are_no_more_than_granted(monkeypatch):
    for time, expected in ((0.5, 1), (1.0, 1), (math.inf, devices.cores())):
        monkeypatch.setattr(devices, "granted", lambda time=time: time)
        assert devices.cores() == expected


def test_the_heap_is_asked_for_in_large_pages(monkeypatch):
    code = """
import re, sys, threading
from pathlib import Path
from jaxrnn import devices
wide = lambda: sum("hg" in flags.split() for flags in re.findall("VmFlags:(.*)", Path("/proc/self/smaps").read_text()))
counts = [wide()]
devices.large_pages()
counts.append(wide())
thread = threading.Thread(target=devices.large_pages, args=[devices.PIECES_OF_THREAD])
thread.start(), thread.join()
print(*counts, wide())
"""
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or not devices.keep_memory():
        pytest.skip("no large pages here, or not the C library that keep_memory knows")
    monkeypatch.setenv("PYTHONPATH", str(Path(devices.__file__).parent.parent))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found[0] == "0" and 0 < int(found[1]) < int(found[2])


def test_freed_memory_is_kept_for_what_comes_next(monkeypatch):
    code = """
import resource, sys
import numpy as np
from jaxrnn import devices
told = devices.keep_memory() if sys.argv[1] == "kept" else None
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for time in range(10):
    if time == 1:
        before = faults()
    arrays = [np.ones(500_000) for _ in range(8)]
    del arrays
print(told, faults() - before)
"""
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)

    def faults(word):
        done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True, check=True)
        return done.stdout.split()

    told, kept = faults("kept")
    if told == "False":
        pytest.skip("not the C library that keep_memory knows, or it was told something")
    assert int(kept) < 800 < 7000 < int(faults("left alone")[1])  # of 7,800 pages
    assert not devices.keep_memory({"MALLOC_TRIM_THRESHOLD_": "1"})


def test_the_compile_cache_is_private_or_off(tmp_path, monkeypatch):
    import jax

    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = []
    try:
        folder = devices.open_cache(said.append)
        assert folder == tmp_path / "cache" / "jaxrnn" / "xla"
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.rmdir()
        folder.write_text("a file")
        assert devices.open_cache(said.append) is None
        assert ["compile cache: off" in line for line in said] == [True]
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_the_slides_prediction_rises_from_a_half_to_98_percent(capsys):
    code, out, _ = call("train", "experiment=slides", capsys=capsys)
    lines = [line.split() for line in out if line.startswith("epoch")]
    seen = [float(line[line.index("prediction") + 1]) for line in lines]
    nats = [float(line[line.index("loss") + 1]) for line in lines]
    tens = [float(line[line.index("nats,") + 1]) for line in lines]
    assert code == 0
    assert seen == sorted(seen)
    assert abs(seen[0] - 0.5) < 0.05
    assert seen[1] == pytest.approx(0.78, abs=0.03)
    assert seen[-1] == pytest.approx(0.98, abs=0.005)
    np.testing.assert_allclose(nats, -np.log(seen), atol=2e-4)
    np.testing.assert_allclose(tens, -np.log10(seen), atol=2e-4)
    code, out, _ = call("predict", "latest", "i love cats", capsys=capsys)
    assert (code, out[0].split("\t")[0]) == (0, "1")


def test_a_dry_run_says_what_would_run_and_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["dry_run=true", "dataset.train_rows=100", "dataset.test_rows=20"]) == 0
    out = capsys.readouterr().out
    assert "100 train" in out and "dry run: nothing was made" in out and "4 an epoch" in out
    assert train.main(["-m", "dry_run=true", "seed=0,1", "cell=vanilla,gru"]) == 0
    out = capsys.readouterr().out
    assert "job 3: dry_run=true seed=1 cell=gru" in out and "4 jobs" in out
    assert not list(tmp_path.iterdir())
