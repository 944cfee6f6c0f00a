"""How long is a sweep, from the command to its last line?

    python -m tests.benchmarks.sweep [--quick] [--only toy sst many] [--contestants ours warm ...] [--device gpu]

toy   4 learning rates x 8 seeds of experiment=notes on the teaching notes' 58 phrases, 200 epochs each:
      ours    python -m jaxrnn.train -m ... hydra/launcher=population, with an empty compile cache
      warm    the same again, with what that left in the cache
      basic   hydra/launcher=basic
      plain   plain.py, a Hydra script that jits in every job; its own basic launcher
      joblib  plain.py with hydra/launcher=joblib on 2 processes
sst   64 seeds on SST-2 sentences, 3 epochs, against 64 x the seconds of the updates of one job on one core / cores
many  with --device gpu: 4 learning rates x 64 seeds of the toy in one vmapped program, against one of these runs alone,
      both with an empty compile cache, then both with what that left in it

Contestants take turns, each a process of its own in an empty folder; the time holds everything, Python's start too.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxrnn import devices
from tests.benchmarks import arena

SENTENCES = 6920
SST = ["head=last", "bidirectional=false", "hidden_size=64", "input.size=64", "batch_size=32", "patience=null"]
SST += ["device.count=1"]
COLUMNS = ["shape", "who", "jobs", "seconds", "times_ours", "times_bare", "times_one"]
CONTESTANTS = ("ours", "warm", "basic", "plain", "joblib")
LIMIT = 1200.0  # seconds


def words(who: str, data: Path, rates: int, seeds: int, epochs: int) -> list[str]:
    """The command line of a contestant on the toy."""
    toy = data / "toy_vzhou"
    learning_rate = ",".join(str(0.005 * 2**n) for n in range(rates))
    if who in ("plain", "joblib"):
        launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"] if who == "joblib" else []
        line = ["tests.benchmarks.plain", "-m", f"train={toy / 'train.tsv'}", f"test={toy / 'test.tsv'}", *launcher]
        return [*line, f"learning_rate={learning_rate}", f"seed=range({seeds})", f"epochs={epochs}"]
    line = ["jaxrnn.train", "-m", "experiment=notes", "dataset=files", "dataset.text=sentence", f"epochs={epochs}"]
    line += [f"dataset.path={toy / 'train.tsv'}", f"dataset.test_path={toy / 'test.tsv'}"]
    line += [f"optimizer.learning_rate={learning_rate}", f"seed=range({seeds})"]
    return [*line, f"hydra/launcher={'basic' if who == 'basic' else 'population'}"]


def timed(line: list[str], cache: str, jobs: int, device: str = "cpu") -> tuple[float, list[dict[str, Any]]]:
    """Seconds of a sweep from start to end, and the summaries of its jobs; Failed unless there are `jobs` of them."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = arena.command(line, cache=cache, folder=folder, device=device)
        try:
            process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            raise arena.Failed(f"{line[0]}: not done in {LIMIT:.0f} s") from None
        finally:
            process.kill()
            process.wait()
        spent = time.perf_counter() - began
        found = [json.loads(path.read_text()) for path in Path(folder).rglob("summary.json")]
        found = [summary for summary in found if "test" in summary]
    if process.returncode or len(found) != jobs:
        raise arena.Failed(f"{' '.join(line)}: code {process.returncode}, {len(found)} of {jobs} jobs")
    return spent, found


def toy(names: list[str], data: Path, repeats: int, quick: bool) -> list[dict[str, Any]]:
    rates, seeds = (2, 2) if quick else (4, 8)
    seconds: dict[str, list[float]] = {who: [] for who in names}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for who in names:
                line = words(who, data, rates, seeds, 5 if quick else 200)
                with tempfile.TemporaryDirectory() as own:  # only what is called warm finds what another left
                    spent, _ = timed(line, cache if who in ("ours", "warm") else own, rates * seeds)
                seconds[who].append(spent)
    middle = {who: statistics.median(times) for who, times in seconds.items()}
    ours = middle.get("ours")
    return [
        {"shape": "toy", "who": who, "jobs": rates * seeds, "seconds": middle[who], "all": seconds[who]}
        | ({"times_ours": middle[who] / ours} if ours else {})
        for who in names
    ]


@contextmanager
def one_core() -> Iterator[None]:
    """What is started inside has one core; what it compiles is kept for all."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def sst(data: Path, quick: bool) -> list[dict[str, Any]]:
    jobs, epochs, cores = (2, 1, 1) if quick else (64, 3, devices.cores())
    line = ["jaxrnn.train", "-m", "dataset=sst2", f"dataset.root={data}", "dataset.train=sentences", *SST]
    line += [f"epochs={epochs}", "hydra/launcher=population"]
    with tempfile.TemporaryDirectory() as cache:
        with one_core():
            _, (alone,) = timed([*line, "seed=0"], cache, 1)
        spent, _ = timed([*line, f"seed=range({jobs})"], cache, jobs)
    bare = epochs * SENTENCES / alone["examples_per_second"]
    row = {"shape": "sst", "who": "ours", "jobs": jobs, "seconds": spent, "bare_s": bare}
    return [row | {"times_bare": spent * cores / (jobs * bare)}]


def many(data: Path, repeats: int, quick: bool, device: str) -> list[dict[str, Any]]:
    rates, seeds, epochs = (2, 2, 5) if quick else (4, 64, 200)
    line = [*words("ours", data, rates, seeds, epochs), f"device={device}", "hydra.launcher.members=auto"]
    cut = {"-m", "hydra/launcher=population", "hydra.launcher.members=auto"}
    one = [word for word in line if word not in cut and not word.startswith(("optimizer.learning_rate", "seed"))]
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty", "filled"):
                for who, given, jobs in (("one", one, 1), ("all", line, rates * seeds)):
                    spent, (first, *_) = timed(given, cache, jobs, device)
                    seconds.setdefault((who, state), []).append(spent)
    middle = {key: statistics.median(times) for key, times in seconds.items()}
    return [
        {"shape": "many", "who": f"{who}, {state} cache", "jobs": 1 if who == "one" else rates * seeds}
        | {"seconds": middle[who, state], "all": seconds[who, state]}
        | {"times_one": middle[who, state] / middle["one", state], "device": first["device"]}
        for who, state in seconds
    ]


def main(argv: list[str] | None = None) -> None:
    parser = arena.arguments(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=1, help="turns of each contestant (default: 1)")
    given = parser.parse_args(argv)
    say = (lambda text: None) if given.json else (lambda text: print(text, flush=True))
    data, rows = Path(given.data).resolve(), []
    names = [who for who in CONTESTANTS if who in (given.contestants or CONTESTANTS)]
    plugins = importlib.util.find_spec("hydra_plugins")
    if "joblib" in names and not (plugins and importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher")):
        say("joblib: hydra-joblib-launcher is not installed")
        names.remove("joblib")
    made = {
        "toy": lambda: toy(names, data, given.repeats, given.quick),
        "sst": lambda: sst(data, given.quick),
        "many": lambda: many(data, given.repeats, given.quick, given.device),
    }
    for shape in given.only or (["many"] if given.device != "cpu" else ["toy"] if given.quick else ["toy", "sst"]):
        say(f"{shape} ...")
        rows += made[shape]()
    cells = [
        [f"{row[k]:.2f}" if isinstance(row.get(k), float) else str(row.get(k, "")) for k in COLUMNS] for row in rows
    ]
    say(arena.table("seconds from the command to its last line", COLUMNS, cells))
    print(arena.record("sweep", given, rows=rows))


if __name__ == "__main__":
    main()
