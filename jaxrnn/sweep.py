"""train -m: every combination of the values given, one job folder each, in this process and one after another."""

import sys
import traceback
from pathlib import Path
from typing import Any

from jaxrnn import command, runs
from jaxrnn.settings import Settings
from jaxrnn.train import train


def sweep(directory: str | None, jobs: list[Settings]) -> int:
    """Runs the jobs; one that fails is recorded and the others go on. -> exit code of the first that failed."""
    folder = Path(directory) if directory else runs.new_folder(jobs[0].experiment, prefix="sweep_")
    entries: list[dict[str, Any]] = [
        {"job": number, "overrides": list(job.overrides), "status": "waiting", "code": None}
        for number, job in enumerate(jobs)
    ]
    runs.claim(folder, "sweep.json", runs.as_json({"jobs": entries}))
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    for number, job in enumerate(jobs):
        told = f"job {number}: " + " ".join(line for line in job.overrides if line not in common)
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
