"""train -m: every combination of the values given, one job folder each, in this process and one after another."""

import sys
import traceback
from pathlib import Path
from typing import Any

from jaxrnn import command, progress, runs
from jaxrnn.errors import BusyError
from jaxrnn.settings import Settings
from jaxrnn.train import train


def sweep(directory: str | None, jobs: list[Settings]) -> int:
    """Runs the jobs; one that fails is recorded and the others go on. -> exit code of the first that failed.

    In a folder that holds the same sweep the jobs that completed are left alone and the others run, each going on from
    where it was saved. With dry_run=true the jobs, which were checked, are listed.
    """
    if any(job.dry_run for job in jobs):
        for number, job in enumerate(jobs):
            print(f"job {number}: {' '.join(job.overrides)}")
        print(f"dry run: {len(jobs)} jobs, all of them sound; nothing was made or trained", flush=True)
        return 0
    folder = Path(directory) if directory else runs.new_folder(jobs[0].experiment, prefix="sweep_")
    with runs.locked(folder):
        return _run(folder, jobs)


def _entries(folder: Path, jobs: list[Settings]) -> list[dict[str, Any]]:
    """The record of each job, as it stands if the folder holds this sweep; BusyError for another one."""
    fresh: list[dict[str, Any]] = [
        {"job": number, "overrides": list(job.overrides), "status": "waiting", "code": None}
        for number, job in enumerate(jobs)
    ]
    if not (folder / "sweep.json").exists():
        return fresh
    held = runs.read_json(folder / "sweep.json")
    known = held.get("jobs") if isinstance(held, dict) else None
    same = isinstance(known, list) and [entry.get("overrides") for entry in known if isinstance(entry, dict)] == [
        entry["overrides"] for entry in fresh
    ]
    if not same or any(job.resume == "never" for job in jobs):
        raise BusyError(f"{folder} already holds a sweep of other jobs: choose another folder, or give none")
    for entry in fresh:
        if progress.completed(folder / str(entry["job"])):
            entry.update(status="completed", code=0)
    return fresh


def _run(folder: Path, jobs: list[Settings]) -> int:
    entries = _entries(folder, jobs)
    runs.write_json(folder / "sweep.json", {"jobs": entries})
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    for number, job in enumerate(jobs):
        told = f"job {number}: " + " ".join(line for line in job.overrides if line not in common)
        if entries[number]["status"] == "completed":
            print(f"{told}   completed before, left alone", flush=True)
            continue
        try:
            summary = train(job, folder / str(number), loud=False)
            entries[number].update(status="completed", code=0)
            test, valid = (summary[split]["accuracy"] for split in ("test", "valid"))
            print(f"{told}   valid {valid:.4f}   test {test:.4f}   {summary['seconds']:.1f} s", flush=True)
        except KeyboardInterrupt as stopped:
            entries[number].update(status="stopped", code=command.code_of(stopped))
            raise
        except Exception as error:
            refusal = command.typed(error)
            if refusal is None:
                traceback.print_exc()
            entries[number].update(status="failed", code=refusal.code if refusal else 1)
            print(f"{told}   failed", flush=True)
            print(f"job {number}: {refusal or repr(error)}", file=sys.stderr, flush=True)
        finally:
            runs.write_json(folder / "sweep.json", {"jobs": entries})
    print(f"sweep: {folder}", flush=True)
    return next((entry["code"] for entry in entries if entry["code"]), 0)
