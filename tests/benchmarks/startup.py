"""How long is it from the command to the first training step, and where does the time go?

    python -m tests.benchmarks.startup [--quick] [--only toy sst] [--json]

The clock starts before the process and stops when the first update is in metrics.jsonl (log_every_steps=1): it is
written after the first 8, so the number holds those too, and the measurement of the gradient before them. Cold: an
empty cache, in which neither XLA's programs nor the C code are compiled. Warm: what the cold run left. `--help` is a
process from start to end. The phases come from one more run each, see phases.py.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import arena

SHAPES = {
    "default": [],
    "toy": ["dataset.train_rows=600", "hidden_size=64", "input.size=18", "batch_size=58"],
    "sst": ["dataset=sst2", "dataset.root={data}", "dataset.train=sentences", "hidden_size=128", "input.size=128",
            "batch_size=64"],
}  # fmt: skip
COMMON = ["log_every_steps=1", "epochs=1000", "patience=null"]
LIMIT = 120.0  # seconds


def first_step(overrides: list[str], cache: str) -> float:
    """Seconds from the start of the process to the first update in its metrics; the process is ended then."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = arena.command(["jaxrnn.train", *overrides, *COMMON], cache=cache, folder=folder)
        try:
            while time.perf_counter() - began < LIMIT:
                if any('"loss"' in place.read_text() for place in Path(folder).glob("runs/*/*/metrics.jsonl")):
                    return time.perf_counter() - began
                if process.poll() is not None:
                    raise arena.Failed(f"jaxrnn.train {overrides}: ended with code {process.returncode}")
                time.sleep(0.005)
            raise arena.Failed(f"jaxrnn.train {overrides}: no step in {LIMIT:.0f} s")
        finally:
            process.kill()
            process.wait()


def whole(words: list[str], cache: str) -> tuple[float, str]:
    """Seconds of a process from start to end, and its last line."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = arena.command(words, cache=cache, folder=folder)
        try:
            said, _ = process.communicate(timeout=LIMIT)
            return time.perf_counter() - began, said.strip().rpartition("\n")[2]
        finally:
            process.kill()
            process.wait()


def measure(name: str, data: str, repeats: int, warm_repeats: int) -> dict[str, Any]:
    overrides = [word.format(data=Path(data).resolve()) for word in SHAPES[name]]
    cold, warm = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(first_step(overrides, cache))
            warm += [first_step(overrides, cache) for _ in range(warm_repeats)]
    phases = {}
    with tempfile.TemporaryDirectory() as cache:
        for kind in ("cold", "warm"):
            _, said = whole(["tests.benchmarks.phases", *overrides, *COMMON], cache)
            phases[kind] = json.loads(said) if said.startswith("{") else {}
    row = {"shape": name, "cold_s": statistics.median(cold), "warm_s": statistics.median(warm)}
    return row | {"cold": cold, "warm": warm, "phases": phases}


def main(argv: list[str] | None = None) -> None:
    given = arena.arguments(__doc__ or "").parse_args(argv)
    say = (lambda text: None) if given.json else (lambda text: print(text, flush=True))
    repeats, warm_repeats = (1, 1) if given.quick else (3, 3)
    with tempfile.TemporaryDirectory() as cache:
        helps = [whole(["jaxrnn.train", "--help"], cache)[0] for _ in range(1 if given.quick else 10)]
    rows = []
    for name in given.only or (["toy"] if given.quick else list(SHAPES)):
        say(f"{name} ...")
        rows.append(measure(name, given.data, repeats, warm_repeats))
    say(f"\n--help: {statistics.median(helps):.2f} s")
    cells = [[r["shape"], f"{r['cold_s']:.2f}", f"{r['warm_s']:.2f}"] for r in rows]
    say(arena.table("seconds from the command to the first 8 updates", ["shape", "cold", "warm"], cells))
    for row in rows:
        names = list(dict.fromkeys([*row["phases"]["cold"], *row["phases"]["warm"]]))
        cells = [[n, *(f"{row['phases'][k].get(n, 0):.2f}" for k in ("cold", "warm"))] for n in names if n != "updates"]
        say(arena.table(f"{row['shape']}, seconds by phase", ["phase", "cold", "warm"], cells))
    print(arena.record("startup", given, help_s=helps, rows=rows))


if __name__ == "__main__":
    main()
