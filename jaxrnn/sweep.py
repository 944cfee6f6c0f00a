"""train -m: the jobs of a sweep are run, or rehearsed, and reported."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxrnn import group, history, job, launchers, outline, processes, ranking, report, results, running, standing
from jaxrnn.errors import BusyError, JaxrnnError
from jaxrnn.planning import Plan
from jaxrnn.settings import Settings


def sweep(plan: Plan) -> int:
    """Run the jobs. -> exit code of the first that failed; BusyError where the folder holds a sweep of other jobs.

    With dry_run=true the jobs, which were checked, are listed, and their groups are prepared.
    """
    if any(settings.dry_run for settings in plan.jobs):
        for number, settings in enumerate(plan.jobs):
            print(f"job {number}: {' '.join(settings.overrides)}")
        if plan.launcher in (*launchers.OURS, *processes.HERE):
            rehearse(plan.jobs, plan.members if plan.launcher == "population" else 1)
        print(f"dry run: {len(plan.jobs)} jobs, all of them sound; nothing was made or trained", flush=True)
        return 0
    name = plan.jobs[0].experiment
    where = plan.directory, plan.launcher, name
    with running.opened(*where, hydra=plan.hydra, config_dir=plan.config_dir, members=plan.members) as runner:
        if runner.entries and set(runner.entries) != set(range(len(plan.jobs))):
            raise BusyError(
                f"{runner.folder} already holds a sweep of other jobs, {len(runner.entries):,} there, "
                f"{len(plan.jobs):,} here: choose another folder, or give none"
            )
        outcomes = runner.run(list(enumerate(plan.jobs)))
        conclude(runner.folder, plan.jobs.__getitem__)
    return next((outcome.code for outcome in outcomes if outcome.code), 0)


def rehearse(jobs: Sequence[Settings], members: int | None = 1) -> None:
    """Prepare each group of jobs, equal rows read once, and say what they read; refuse as a job would."""
    firsts: dict[str, Settings] = {}
    for settings in jobs:
        firsts.setdefault(group.key(settings), settings)
    read: dict[str, Any] = {}
    left = Counter(map(group.rows, firsts))
    for key, settings in firsts.items():
        rows = group.rows(key)
        known = read.pop(rows, None)
        try:
            made = group.prepare(settings, lambda _: None, known, members)
        except JaxrnnError as error:
            raise type(error)(f"{' '.join(settings.overrides)}: {error}") from error
        if known is None:
            print(outline.rows(settings, made.encoded))
        left[rows] -= 1
        if left[rows]:  # let go of what no other group reads
            read[rows] = made.encoded


def conclude(folder: Path, settings_of: Callable[[int], Settings], also: Sequence[str] = ()) -> None:
    """Print the report, `also` over other sweeps; draw the best job if it is one of the folder's and was not drawn.

    The last line is where the sweep is, whatever may be wrong with the report. Where there are no jobs there is none.
    """
    try:
        if not also and not standing.entries(folder):
            return
        ranked = ranking.ranked(results.collect([os.path.join(".", folder), *also]))  # "latest" is a folder here
        print(report.text(ranked), flush=True)
        best = ranked.configurations[0].runs[0].folder if ranked.configurations else folder
        if best.parent == folder and not (best / "plots" / "curves.png").exists():
            settings = settings_of(int(best.name))
            if settings.plots == "auto":
                job.draw(settings, best, history.earlier(best), history.test(best))
    finally:
        print(f"sweep: {folder}", flush=True)
