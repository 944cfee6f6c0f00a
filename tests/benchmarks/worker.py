"""One contestant in a process of its own: XLA's flags, the number of devices and of threads belong to a process.

It reads one JSON line at a time and answers with one: {"do": "build", ...}, {"do": "turn", "repeats": n}. Between two
turns it waits in a read and costs nothing, so contestants of several processes can run in turn: A B A B.
"""

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.benchmarks.problem import TINY, Problem, error


class Contestant(NamedTuple):
    """What a contestant's `build(problem, **options)` gives back, ready to be timed."""

    turn: Callable[[], Any]  # `updates` updates from where the last turn ended; waits until they are done
    updates: int
    losses: list[float]  # of the first updates, from the given parameters
    compile_seconds: float
    close: Callable[[], None] = lambda: None


def timed(turn: Callable[[], Any], updates: int, repeats: int) -> list[float]:
    """Seconds per update of each of `repeats` turns; one more goes before, to warm up what another process cooled."""
    turn()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        turn()
        seconds.append((time.perf_counter() - began) / updates)
    return seconds


def build(module: str, problem: list, options: dict[str, Any]) -> tuple[Contestant, dict[str, Any]]:
    """Check the contestant on a tiny problem against the float64 reference, then build the real one."""
    contestant = importlib.import_module(f"tests.benchmarks.{module}")
    real = Problem(*problem)
    off = None
    if hasattr(contestant, "gradients"):
        tiny = TINY._replace(cell=real.cell, device=real.device)
        off = error(tiny, *contestant.gradients(tiny, **options))
    ready = contestant.build(real, **options)
    told = {"error": off, "losses": ready.losses, "updates": ready.updates, "compile_seconds": ready.compile_seconds}
    return ready, told


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer
    ready: Contestant | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["do"] == "build":
                ready, answer = build(asked["module"], asked["problem"], asked["options"])
            else:
                assert ready is not None, "build comes first"
                answer = {"seconds": timed(ready.turn, ready.updates, asked["repeats"])}
        except BaseException:
            answer = {"failed": traceback.format_exc()}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
