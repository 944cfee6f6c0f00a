"""How the jobs of a sweep stand: as sweep.json and their folders say, and in lines for people."""

import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrnn import fingerprints, progress, runs
from jaxrnn.errors import ArtefactError
from jaxrnn.launchers import Outcome
from jaxrnn.settings import Settings


def entries(folder: Path) -> dict[int, dict[str, Any]]:
    """The jobs of sweep.json by number; none where there is no such file."""
    path = folder / "sweep.json"
    held = runs.read_json(path) if path.exists() else {"jobs": []}
    jobs = held.get("jobs") if isinstance(held, dict) else None
    good = isinstance(jobs, list) and all(isinstance(job, dict) and type(job.get("job")) is int for job in jobs)
    if not isinstance(jobs, list) or not good:
        raise ArtefactError(f'{path}: expected {{"jobs": [{{"job": 0, ...}}]}}')
    return {job["job"]: job for job in jobs}


def ended_before(folder: Path, number: int) -> Outcome | None:
    """The outcome of a job that has ended, None where there is something left to do, or to find fault with."""
    try:
        summary = progress.summary(folder / str(number))
    except ArtefactError:  # which the job itself will meet
        return None
    ended = summary.get("status") in ("completed", "pruned")
    return Outcome(number, summary["status"], 0, summary) if ended else None


def difference(there: Any, here: Sequence[str]) -> str:
    """How two command lines differ, "seed=1 there, seed=2 here"; empty where in nothing but order and FREE keys."""

    def counted(words: Any) -> list[str]:
        lines = [word for word in words if isinstance(word, str)] if isinstance(words, list | tuple) else []
        last = {line.lstrip("+~").partition("=")[0]: line for line in lines}  # of those about one key
        return [line for key, line in last.items() if re.split(r"[.@]", key)[0] not in fingerprints.FREE_WORDS]

    before, now = counted(there), counted(here)
    sides = [line for line in before if line not in now], [line for line in now if line not in before]
    told = (f"{' '.join(lines) or 'nothing'} {side}" for lines, side in zip(sides, ("there", "here"), strict=True))
    return ", ".join(told) if any(sides) else ""


def names(
    jobs: Sequence[tuple[int, Settings]], others: Sequence[Sequence[str]] = (), shown: Sequence[str] = ()
) -> dict[int, str]:
    """How each job is called in the lines about it: by its number and what is not the same for all, others included.

    Where `shown` says which keys, by these.
    """
    if shown:
        own = ((n, (line for line in s.overrides if line.partition("=")[0] in shown)) for n, s in jobs)
        return {n: f"job {n}: {' '.join(lines)}" for n, lines in own}
    every = [set(lines) for lines in (*others, *(settings.overrides for _, settings in jobs))]
    common = set.intersection(*every) if len(every) > 1 else set()
    return {n: f"job {n}: " + " ".join(line for line in s.overrides if line not in common) for n, s in jobs}


def lighten(error: BaseException | None) -> None:
    """Let go of the frames that an error was raised in: they hold all that the job had in memory."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def tell(name: str, outcome: Outcome) -> None:
    """The line of a job that has ended."""
    summary, error = outcome.summary, outcome.error
    if outcome.status in ("completed", "pruned"):
        accuracy = (f"{split} {summary[split]['accuracy']:.4f}" for split in ("valid", "test") if split in summary)
        pruned = "   pruned" if outcome.status == "pruned" else ""
        seconds = f"{summary['seconds']:.1f} s" if "seconds" in summary else ""
        print("   ".join([name, *accuracy, seconds]) + pruned, flush=True)
        return
    print(f"{name}   {outcome.status}", flush=True)
    if outcome.code == 1 and error:
        traceback.print_exception(error)
    if outcome.status == "failed":
        print(f"job {outcome.number}: {why(outcome)}", file=sys.stderr, flush=True)


def why(outcome: Outcome) -> str:
    """A job failed, in a line."""
    error = outcome.error
    bug = outcome.code == 1 and error is not None
    told = traceback.format_exception_only(error)[-1] if bug else str(error)
    return (told.strip().splitlines() or [repr(error)])[-1]
