"""F: several processes at once. A and G: what is refused before anything runs."""

import json
import multiprocessing
import signal
import time

import faultbench as bench
import pytest

from jaxrnn import runs


@pytest.mark.fault("F1")
@pytest.mark.whole
def test_runs_of_the_same_second_have_folders_of_their_own(basis, cache, reference, tmp_path):
    processes = [bench.start(basis, cache, cwd=tmp_path) for _ in range(16)]
    ends = [bench.ended(process) for process in processes]
    folders = {out[-1].removeprefix("run: ") for _, out, _ in ends}
    assert [code for code, *_ in ends] == [0] * 16 and len(folders) == 16
    for folder in folders:
        assert bench.digest(tmp_path / folder) == bench.digest(reference)


@pytest.mark.fault("F2")
def test_a_second_process_leaves_a_live_run_alone(basis, cache, reference, tmp_path):
    run = tmp_path / "run"
    arguments = [*basis, f"hydra.run.dir={run}", "checkpoint.every_steps=1", "epochs=400"]
    first = bench.start(arguments, cache)
    assert bench.until(lambda: bench.logged(run) > 3, first)
    config = (run / "config.yaml").read_bytes()
    began = time.monotonic()
    code, _, err = bench.train(arguments, cache)
    took, going = time.monotonic() - began, first.poll() is None
    first.terminate()
    assert bench.ended(first)[0] == 143
    assert going and code == 6 and f"process {first.pid}" in err[-1] and took < 10
    assert (run / "config.yaml").read_bytes() == config
    assert bench.verifies(run) == bench.steps(run)


@pytest.mark.fault("F3")
@pytest.mark.whole
def test_a_sweep_that_was_killed_runs_what_is_missing(basis, cache, tmp_path):
    folder = tmp_path / "sweep"
    line = ["-m", *basis, f"hydra.sweep.dir={folder}", "epochs=40", "seed=0,1,2,3"]
    process = bench.start(line, cache)
    assert bench.until(lambda: bench.logged(folder / "1") > 20, process)
    process.kill()
    process.communicate()
    assert bench.summary(folder / "0")["status"] == "completed" and bench.summary(folder / "1") is None
    before = (folder / "0" / "summary.json").read_bytes()
    code, out, err = bench.train(line, cache)
    assert (code, err) == (0, []) and sum("left alone" in text for text in out) == 1
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert [(job["job"], job["status"], job["code"]) for job in jobs] == [(n, "completed", 0) for n in range(4)]
    assert (folder / "0" / "summary.json").read_bytes() == before
    assert len(bench.losses(folder / "1")) == 400
    assert bench.train([*line[:-1], "seed=0,1"], cache)[0] == 6


def append(path, who):
    lines = runs.Lines(path)
    for number in range(200):
        lines.add(json.dumps({"who": who, "number": number, "text": "x" * 300}))
        if number % 3 == 0:
            lines.flush()
    lines.close()


@pytest.mark.fault("F4")
def test_lines_of_ten_processes_stay_whole(tmp_path):
    spawn, path = multiprocessing.get_context("spawn"), tmp_path / "metrics.jsonl"
    writers = [spawn.Process(target=append, args=(path, who)) for who in range(10)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with path.open("ab") as file:
        file.write(b'{"half')
    found = list(runs.read_lines(path))
    assert len({(record["who"], record["number"]) for record in found}) == len(found) == 2000


REFUSED = {
    "hiden_size=64": ("A1", "hidden_size"),
    "cell=lstmm": ("A2", "lstm"),
    "+foo=1": ("A2", "foo"),
    "~dataset.path": ("A2", "dataset.path"),
    "batch_size=0": ("A3", "batch_size"),
    "batch_size=-4": ("A3", "batch_size"),
    "optimizer.learning_rate=-1": ("A3", "learning_rate"),
    "optimizer.learning_rate=nan": ("A3", "learning_rate"),
    "dropout_rate=1.5": ("A3", "dropout_rate"),
    "checkpoint.every_steps=0": ("A3", "checkpoint.every_steps"),
    "precision=float46": ("A4", "float46"),
    "hidden_size=long": ("A4", "hidden_size"),
    "bidirectional=yes": ("A4", "bidirectional"),
    "-m cell=gru,lstm optimizer.learning_rate=0.1,oops": ("A5", "oops"),
    "--experimental-rerun evil.pickle": ("G3", "pickle"),
}


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=pytest.mark.fault(case)) for line, (case, _) in REFUSED.items()]
)
def test_a_refusal_comes_before_anything_is_made(basis, tmp_path, monkeypatch, capsys, line):
    from jaxrnn import command, train

    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = command.exit_code("train", train.main, [*basis, *line.split()])
    finally:
        signal.signal(signal.SIGTERM, before)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and 1 <= len(err.splitlines()) <= 2
    assert REFUSED[line][1] in err and not list(tmp_path.iterdir())
    if "oops" in line:
        assert "job 1" in err and "job 3" in err
