"""S: many rows, little memory, many jobs, many old runs. S2 stands with storage, S5 with kills."""

import json
import os

import faultbench as bench
import pytest

from jaxrnn import command, runs, train

ROWS = int(os.environ.get("FAULTS_ROWS", 50_000))  # 1,000,000 before a release
ENCODE = """
import time
from jaxrnn import text
from jaxrnn.data.files import files
began = time.monotonic()
encoded = text.encode(files(path=sys.argv[1]), text.words(), max_length=512)
found = [encoded.report["tokens"], sum(encoded.report["rows"].values()), time.monotonic() - began]
"""


def written(path, count):
    """That many rows of 1 to 400 words, some of them rare."""
    with path.open("w") as file:
        file.write("text\tlabel\n")
        for number in range(count):
            words = [bench.WORDS[(number * 7 + at * at) % len(bench.WORDS)] for at in range(1 + number * 131 % 400)]
            file.write(f"{' '.join(words)} n{number % 50_000} {number}\t{number % 2}\n")
    return path


@pytest.mark.fault("S1")
@pytest.mark.parametrize("count", [5_000, pytest.param(ROWS, marks=pytest.mark.whole)])
def test_rows_cost_little_more_than_their_ids(tmp_path, capsys, count):
    """FAULTS_ROWS=1000000 for the whole; times are told, not judged."""
    path = written(tmp_path / "rows.tsv", count)
    tokens, rows, seconds = bench.bounded(ENCODE, path, limit=int(1.5 * 4 * count * 203) + (600 << 20))
    with capsys.disabled():
        print(f"\n{rows:,} rows, {path.stat().st_size:,} bytes, {tokens:,} tokens read in {seconds:.1f} s")
    assert rows == count


@pytest.mark.fault("S3")
@pytest.mark.whole
def test_an_allocation_that_fails_is_refused_with_the_knobs(basis, cache, tmp_path):
    """4 GB of addresses for a recurrent matrix of 1.6 GB and what training adds to it."""
    line = [*basis, f"hydra.run.dir={tmp_path / 'run'}", "hidden_size=20000", "device.count=1"]
    code, _, err = bench.train(line, cache, before=["prlimit", "--as=4000000000"])
    assert code == 8 and "batch_size" in err[-1] and "XLA_PYTHON_CLIENT" in err[-1], err
    assert bench.summary(tmp_path / "run")["error"]["code"] == 8


@pytest.mark.fault("S4")
def test_a_thousand_jobs_are_checked_and_none_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train.main(["-m", "dry_run=true", "seed=range(0,500)", "optimizer.learning_rate=0.1,0.01"]) == 0
    assert "1000 jobs" in capsys.readouterr().out.splitlines()[-1].replace(",", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("S4")
def test_ten_thousand_old_runs_are_passed_over(tmp_path, monkeypatch):
    """The newest completed run is found by the age of its record: of the others none is opened."""
    for number in range(10_000):
        run = tmp_path / "runs" / "old" / str(number)
        run.mkdir(parents=True)
        (run / "summary.json").write_text('{"status": "completed"}')
        os.utime(run / "summary.json", (number, number))
    (tmp_path / "runs" / "old" / "7" / "summary.json").write_text(json.dumps({"status": "failed"}))
    opened, read = [], runs.read_json
    monkeypatch.setattr(runs, "read_json", lambda path: opened.append(path) or read(path))
    assert runs.find("latest", tmp_path / "runs").name == "9999" and len(opened) == 2


@pytest.mark.fault("S3")
@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: 3 GB"), ImportError("x.so: failed to map segment")]
)
def test_every_failed_allocation_has_the_code_of_memory(error):
    refusal = command.typed(error)
    assert refusal.code == 8 and "lower batch_size" in str(refusal)
    assert command.typed(RuntimeError("something else")) is None
