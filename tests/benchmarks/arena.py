"""Contestants in turn: A B A B, one process each, every one but the one whose turn it is waiting for a line of input.

A library runs at its best setting: `best` tries its options one knob at a time, in a short heat. Then `race` times the
winners together, and what is kept of each is the median of its turns and their quartiles.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn import devices
from tests.benchmarks.problem import WRONG, Problem

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("jaxrnn", "jax", "jaxlib", "optax", "numpy", "torch", "flax", "equinox", "dm-haiku", "keras")
NEEDS = ("torch", "flax", "equinox", "haiku", "keras")
TURN = 0.1  # seconds of one contestant before the next
SETTLE = 0.05  # seconds after a turn, for threads that spin a while before they sleep
WARM_UPS = 5
Contender = tuple[str, dict[str, Any], dict[str, list[Any]]]  # module, fixed options, knobs


class Failed(Exception):
    """A contestant that could not be built or timed."""


class Worker:
    """One contestant in a process of its own."""

    def __init__(self, name: str, module: str, problem: Problem, options: dict[str, Any], warm_ups: int):
        self.name, self.problem, self.options = name, problem, options
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": _path()}
        if problem.device == "cpu":
            environment["JAX_PLATFORMS"] = "cpu"
        if "threads" in options:
            environment["OMP_NUM_THREADS"] = str(options["threads"])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=ROOT,
            text=True,
        )  # fmt: skip
        self.told: dict[str, Any] = {}
        try:
            self.told = self.ask(do="build", module=module, problem=problem, options=options)
            began = time.perf_counter()
            self.turn(warm_ups)
            self.repeats = max(1, round(TURN / max((time.perf_counter() - began) / (warm_ups + 1), 1e-6)))
            self.repeats = min(self.repeats, 30)
        except BaseException:
            self.close()
            raise

    def ask(self, **message: Any) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"{self.name}: the process ended with code {self.process.wait()}")
        answer = json.loads(line)
        if "failed" in answer:
            raise Failed(f"{self.name} {self.options}: {answer['failed']}")
        return answer

    def turn(self, repeats: int) -> list[float]:
        return self.ask(do="turn", repeats=repeats)["seconds"]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def command(words: list[str], *, cache: str, folder: str, device: str = "cpu") -> "subprocess.Popen[str]":
    """`python -m words...` in `folder`, its lines on a pipe as they are said; compiled programs are kept in `cache`."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    environment |= {"PYTHONPATH": _path(), "XDG_CACHE_HOME": cache, "PYTHONUNBUFFERED": "1"}
    if device == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    line = [sys.executable, "-m", *words]
    return subprocess.Popen(
        line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def _path() -> str:
    return os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)


def installed(library: str) -> bool:
    return library not in NEEDS or importlib.util.find_spec(library) is not None


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles in ms, and how many there were."""
    low, middle, high = (float(np.quantile(seconds, q) * 1e3) for q in (0.25, 0.5, 0.75))
    return {"ms": middle, "quartiles_ms": [low, high], "repeats": len(seconds)}


def race(workers: Sequence[Worker], *, repeats: int = 30, seconds: float = 2.0) -> dict[str, dict[str, Any]]:
    """Take turns until each has `repeats` timed calls, or at least 5 that make `seconds`. -> name: statistics."""
    found: dict[str, list[float]] = {worker.name: [] for worker in workers}

    def wanting(worker: Worker) -> bool:
        times = found[worker.name]
        spent = sum(times) * worker.told["updates"]
        return len(times) < repeats and not (spent >= seconds and len(times) >= 5)

    rounds = 0
    while left := [worker for worker in workers if wanting(worker)]:
        for worker in left if rounds % 2 == 0 else reversed(left):
            found[worker.name] += worker.turn(worker.repeats)
            time.sleep(SETTLE)
        rounds += 1
    return {w.name: spread(found[w.name]) | _facts(w) for w in workers}


def _facts(worker: Worker) -> dict[str, Any]:
    return {key: worker.told[key] for key in ("compile_seconds", "error", "losses")} | {"options": worker.options}


@contextlib.contextmanager
def opened() -> Iterator[list[Worker]]:
    """Workers put into this list are ended with the block, whatever happens."""
    workers: list[Worker] = []
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


def best(
    workers: list[Worker], name: str, module: str, problem: Problem, options: dict[str, Any], knobs: dict[str, list],
    *, say: Callable[[str], None], tries: int = 5, warm_ups: int = WARM_UPS,
) -> Worker | None:  # fmt: skip
    """The contestant at its fastest: from the first value of every knob, each knob's others are tried one by one.

    The winner joins `workers`. None, and a line said, for a library that is not installed or fails in every setting.
    """
    if not installed("torch" if module == "peers_torch" else options.get("library", "jaxrnn")):
        say(f"{name}: not installed")
        return None
    kept: tuple[float, Worker] | None = None
    settings = {knob: values[0] for knob, values in knobs.items()}
    trials = [settings] + [{knob: value} for knob, values in knobs.items() for value in values[1:]]
    for change in trials:
        chosen = options | settings | change
        try:
            worker = Worker(name, module, problem, chosen, warm_ups)
            try:
                check(worker)
                time.sleep(SETTLE)
                now = float(np.median(worker.turn(tries)))
            except BaseException:
                worker.close()
                raise
        except Failed as failure:
            say(f"{name}: left out {change}: {str(failure).strip().splitlines()[-1]}")
            continue
        if kept is not None and kept[0] <= now:
            worker.close()
            continue
        if kept is not None:
            kept[1].close()
            workers.remove(kept[1])
        kept, settings = (now, worker), settings | change
        workers.append(worker)
    return kept[1] if kept else None


def check(worker: Worker) -> None:
    """Failed unless loss and gradients were those of the float64 reference."""
    off = worker.told["error"]
    if off is not None and not off < WRONG:
        raise Failed(f"{worker.name} {worker.options}: off the float64 reference by {off:.1e} (limit {WRONG:.0e})")


def same_path(losses: dict[str, Sequence[float]], name: str) -> list[str]:
    """Contestants whose first losses leave those of `name`: by 1e-4 at first, 2 % after (Adam enlarges rounding)."""
    wrong = []
    for other, values in losses.items():
        for n, (value, right) in enumerate(zip(values[:4], losses[name], strict=False)):
            if abs(value - right) > (1e-4 if n == 0 else 0.02) * abs(right):
                wrong.append(f"{other}: loss {value:.6f} of update {n + 1}, {name} has {right:.6f}")
                break
    return wrong


def environment() -> dict[str, Any]:
    """What the numbers belong to."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu(), "flags_of_ours": f"--{devices.FUSIONS}=", "cores": cores,
        "load": os.getloadavg()[0], "python": platform.python_version(),
        "versions": versions, "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }  # fmt: skip


def cpu() -> str:
    """The processor's own name for itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def arguments(description: str) -> argparse.ArgumentParser:
    """What every script takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="the smallest sizes and few repeats: does it run?")
    parser.add_argument("--only", nargs="+", metavar="SHAPE", help="these shapes, in place of all")
    parser.add_argument("--contestants", nargs="+", metavar="WHO", help="these, in place of all")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON line")
    parser.add_argument("--data", default="../shared/data", help="the folder of the data sets")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    return parser


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, its columns aligned."""
    every = [list(head), *map(list, rows)]
    widths = [max(len(row[k]) for row in every) for k in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in every]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(["", title, "", *lines])


def record(benchmark: str, given: argparse.Namespace, **found: Any) -> str:
    """The one JSON line that ends a script."""
    head = {"benchmark": benchmark, "quick": given.quick, "device": given.device}
    return json.dumps(head | environment() | found, default=float)
