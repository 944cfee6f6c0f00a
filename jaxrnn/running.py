"""The jobs of a sweep, each in a folder of its own: what is missing is run; one that fails takes no others with it.

    sweep.json   {"jobs": [{"job", "overrides", "status", "code", "reason" where it failed}]}
    <n>/         the run folder of job n

Jobs that differ in numbers only are a group, read and compiled once (see `group`).
"""

import importlib
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from jaxrnn import (
    command,
    devices,
    fingerprints,
    group,
    job,
    launchers,
    outline,
    processes,
    progress,
    runs,
    standing,
    trackers,
)
from jaxrnn.core import Core
from jaxrnn.errors import BusyError, ConfigurationError, JaxrnnError, MemoryExceeded, many, too_large, unknown
from jaxrnn.group import Group
from jaxrnn.job import Halt
from jaxrnn.launchers import Outcome, Room, Task, Turns
from jaxrnn.settings import Settings

Watch = Callable[[int, dict[str, Any]], bool]  # takes a job's number and the record of an epoch; True prunes the job
GROUPS_KEPT = 8  # ready for jobs that come later
WRITTEN_EVERY = 1.0  # seconds: of thousands of jobs it is a large file


class Runner:
    """Runs jobs in the folder of a sweep and keeps its sweep.json. Made by `opened`, which locks the folder.

        with opened(folder, "population") as runner:
            outcomes = runner.run([(0, settings), (1, other)], watch)

    `run` may be called again with more jobs: what was compiled is kept. A job that the folder holds as ended is left
    alone and its summary returned; an unfinished one goes on from where it was saved. `watch(number, record)` is called
    after every epoch, on the thread of the job, with the record that metrics.jsonl got: {"step", "epoch", "train",
    "valid", "best", "seconds"}. Where it returns True the job ends there: saved, not tested, its status "pruned".
    """

    def __init__(
        self,
        folder: Path,
        launcher: str,
        hydra: Sequence[str] = (),
        config_dir: str | None = None,
        members: int | None = None,
        shown: Sequence[str] = (),
    ):
        self.folder, self.shown = folder, shown  # keys that a job is called by; none: by what differs
        self.members = members if launcher == "population" else 1  # of a group at once in one program; None: as it pays
        self.launch = launchers.OURS.get(launcher) or processes.Processes(folder, hydra, config_dir)
        if self.members != 1:
            self.launch = partial(launchers.population, members=self.members or self.at_once)
        self.entries: dict[int, dict[str, Any]] = standing.entries(folder)
        self.groups: dict[str, Group] = {}
        self.cores: dict[str, int] = {}  # that a job of the group takes
        self.digests: dict[str, str] = {}  # of rows
        self.told: set[str] = set()  # rows of which was said what they are
        self.read: tuple[str, Any] | None = None  # those that were read last, to compare them with ended jobs
        self.jobs: dict[str, int] = {}  # of a group, to be run
        self.new: Counter[str] = Counter()  # of these, that are yet to begin and have no folder
        self.making, self.room, self.turns = threading.Lock(), Room(devices.cores()), Turns()
        self.core = Core()  # of all jobs that train in one program

    def run(self, jobs: Sequence[tuple[int, Settings]], watch: Watch | None = None) -> list[Outcome]:
        """How each job ended, in their order; BusyError where the folder holds another job of that number."""
        drawn = any(settings.plots == "auto" for _, settings in jobs)
        jobs = [(number, job.bare(settings)) for number, settings in jobs]
        self.check(jobs, watch)
        found: dict[int, Outcome] = {}
        told = standing.names(jobs, [entry.get("overrides") or [] for entry in self.entries.values()], self.shown)
        for number, settings in jobs:
            outcome = standing.ended_before(self.folder, number) if number in self.entries else None
            if outcome and self.same(number, settings):
                found[number] = outcome
                print(f"{told[number]}   {outcome.status} before, left alone", flush=True)
            status, code = (found[number].status, found[number].code) if number in found else ("waiting", None)
            overrides = list(settings.overrides)
            self.entries[number] = {"job": number, "overrides": overrides, "status": status, "code": code}
        self.write()

        def ended(outcomes: Sequence[Outcome]) -> None:
            before = len(jobs) - len(found)
            for outcome in outcomes:
                found[outcome.number] = outcome
                reason = {"reason": standing.why(outcome)} if outcome.status == "failed" else {}
                self.entries[outcome.number] |= {"status": outcome.status, "code": outcome.code, **reason}
            if time.monotonic() - self.written >= WRITTEN_EVERY:
                self.write()
            for outcome in outcomes:
                standing.tell(told[outcome.number], outcome)
                standing.lighten(outcome.error)
            if len(jobs) - len(found) <= self.room.cores < before:  # what `conclude` needs, while the last jobs compute
                with suppress(RuntimeError):  # no more threads here: it is imported when it is needed
                    threading.Thread(target=_import, args=[["scipy.special", *(["matplotlib.figure"] * drawn)]]).start()

        tasks = [Task(n, s, partial(self.one, n, s, watch)) for n, s in jobs if n not in found]
        keys = [group.key(task.settings) for task in tasks]
        self.jobs, self.turns = dict(Counter(keys)), Turns()
        new = (not (self.folder / str(task.number)).exists() for task in tasks)
        self.new = Counter(key for key, counted in zip(keys, new, strict=True) if counted)
        rank = {key: n for n, key in enumerate(self.jobs)}  # one group after the other, however jobs mix them
        ordered = [task for _, task in sorted(zip(keys, tasks, strict=True), key=lambda pair: rank[pair[0]])]
        if tasks and not self.shown:
            print(f"{many(len(tasks), 'job')} to run in {self.folder}", flush=True)
        with trackers.sweep(self.folder, {name for _, settings in jobs for name in settings.logger}, len(tasks)):
            try:
                self.launch(ordered, ended)
            except launchers.AtOnce:
                self.leave()
            finally:
                self.write()
        return [found[number] for number, _ in jobs]

    def leave(self) -> NoReturn:
        """End the process as a kill would, which leaves what was saved whole: its threads cannot be ended otherwise."""
        try:
            self.write()
            print(f"jaxrnn.train: {progress.stopped(self.folder, 'sweep')}", file=sys.stderr, flush=True)
            sys.stdout.flush()
        finally:
            os._exit(command.code_of(KeyboardInterrupt()))

    def check(self, jobs: Sequence[tuple[int, Settings]], watch: Watch | None) -> None:
        """Refuse what cannot be run here, before anything is changed."""
        if watch and isinstance(self.launch, processes.Processes):
            raise ConfigurationError("jobs in other processes cannot be pruned: expected hydra/launcher=population")
        if len(dict(jobs)) < len(jobs):
            raise ConfigurationError("expected jobs of different numbers")
        for number, settings in jobs:
            if number not in self.entries:
                continue
            if settings.resume == "never":
                raise BusyError(f"{self.folder} already holds job {number} and resume=never: choose another folder")
            if told := standing.difference(self.entries[number].get("overrides"), settings.overrides):
                raise BusyError(f"{self.folder} already holds another job {number}, {told}: choose another folder")

    def same(self, number: int, settings: Settings) -> bool:
        """Is a job that has ended the one of these settings and rows; where not, it will meet it, and say so."""
        folder = self.folder / str(number)
        try:
            if not fingerprints.recorded(folder, settings):
                return False
            rows = fingerprints.rows_of(folder)
            return rows is None or rows == self.digest(settings)
        except JaxrnnError:
            return False

    def digest(self, settings: Settings) -> str:
        """Of the rows of a job; equal ones are read once."""
        rows = group.rows(group.key(settings))
        if rows not in self.digests:
            self.read = rows, group.read(settings)
            self.digests[rows] = group.digest(self.read[1])
        return self.digests[rows]

    def write(self) -> None:
        self.written = time.monotonic()
        runs.write_json(self.folder / "sweep.json", {"jobs": [self.entries[number] for number in sorted(self.entries)]})

    def one(self, number: int, settings: Settings, watch: Watch | None, halt: Halt | None) -> Outcome:
        """Run job `number`; what it raises is part of the outcome."""
        folder, summary = self.folder / str(number), {}
        try:
            if halt and (stop := halt()):
                raise stop
            key = group.key(settings)
            shared, cores = self.group(settings)
            if not folder.exists():
                with self.making:
                    progress.room(self.folder, shared, self.new[key])
                    self.new[key] -= 1
            with self.seat(shared, cores, self.jobs[key]) as computing:
                if halt and (stop := halt()):
                    raise stop
                summary = job.run(
                    settings,
                    folder,
                    loud=False,
                    group=shared,
                    watch=watch and partial(watch, number),
                    halt=halt,
                    computing=computing,
                )
            return Outcome(number, summary["status"], 0, summary)
        except KeyboardInterrupt as stopped:
            return Outcome(number, "stopped", command.code_of(stopped), summary, stopped)
        except Exception as error:
            refusal = command.typed(error)
            return Outcome(number, "failed", refusal.code if refusal else 1, summary, refusal or error)

    @contextmanager
    def seat(self, shared: Group, cores: int, jobs: int) -> Iterator[job.Computing]:
        """What a job enters to train. One that trains with others is waited for from now on, until it has trained."""
        if shared.population is None:
            yield partial(self.room.taken, cores)
            return
        at_work = shared.population.at_work
        with ExitStack() as held:
            held.callback(at_work.again, at_work.others)  # last: behind those that train, who wait for its place
            held.enter_context(self.turns.taken(shared, partial(self.together, shared, jobs)))
            held.enter_context(shared.population.member())
            held.enter_context(self.core.kept())
            with at_work.taken():
                yield partial(closing, held)

    def at_once(self, tasks: Sequence[Task]) -> int:
        """How many jobs of the first group that can be prepared may train at once in one program."""
        firsts = {group.key(task.settings): task.settings for task in reversed(tasks)}
        for settings in reversed(firsts.values()):
            with suppress(Exception):  # its jobs will meet it again, and say so
                return self.group(settings)[0].members
        return 1

    def group(self, settings: Settings) -> tuple[Group, int]:
        """The group of a job, compiled, and how many cores the job takes; equal rows are read once for all groups."""
        key = group.key(settings)
        with self.making:
            if key not in self.groups:
                rows = group.rows(key)
                same = [g.encoded for k, g in self.groups.items() if group.rows(k) == rows]
                same += [self.read[1]] if self.read and self.read[0] == rows else []
                made = group.prepare(settings, lambda _: None, next(iter(same), None), self.members)
                if rows not in self.told:
                    self.told.add(rows)
                    print(outline.rows(settings, made.encoded), flush=True)
                while len(self.groups) >= GROUPS_KEPT:
                    oldest = next(iter(self.groups))
                    del self.groups[oldest]
                    self.cores.pop(oldest, None)
                self.groups[key] = made
            made = self.groups[key] = self.groups.pop(key)  # the last that was used
            if made.population is not None:
                made.population.widths.begin(min(made.members, self.jobs[key]))
                made.known()
            elif key not in self.cores:
                self.cores[key] = self.fitted(made)
            return made, self.cores.get(key, 1)

    def fitted(self, made: Group) -> int:
        """Compile, and find how many of the cores a job takes: more than it uses where memory is short."""
        needed, free = made.needed, devices.free_memory(made.devices[0])
        if free is None or needed * self.room.cores <= free * len(made.devices):
            return len(made.devices)
        if needed > free:
            raise MemoryExceeded(too_large(needed, free))
        count = math.ceil(self.room.cores * needed / free)
        print(f"{self.room.cores // count} jobs at once: each needs {needed:,} bytes, {free:,} are free", flush=True)
        return count

    def together(self, made: Group, jobs: int) -> int:
        """How many jobs of a group train at once in one program; so many of those to come are compiled for."""
        widths, free = made.population.widths, devices.free_memory(made.devices[0])
        widths.most, asked = made.members, min(made.members, jobs)
        members = widths.fit(asked, free)
        short = "" if members == asked else f"; {asked} need more than the {free:,} bytes that are free"
        print(f"{members} jobs at once in one program (unroll: {made.unroll}){short}", flush=True)
        return widths.most


@contextmanager
def opened(
    directory: str | None,
    launcher: str,
    experiment: str = "default",
    *,
    hydra: Sequence[str] = (),
    config_dir: str | None = None,
    members: int | None = None,
    shown: Sequence[str] = (),
) -> Iterator[Runner]:
    """A Runner in that folder, or in a new one below runs/<experiment>/, of which nobody else is the writer.

    BusyError where that folder holds a run.
    `hydra`: the words about a launcher that is not ours, as "hydra/launcher=joblib", "hydra.launcher.n_jobs=2".
    `members`: of launcher=population, how many jobs of a group train at once in one program. 1: each in its own, on a
    thread; None: 1 on a CPU, on an accelerator as many as its memory holds. `shown`: the keys whose values are said of
    a job in the lines about it; none: those that are not the same for all.
    """
    if launcher not in launchers.OURS and not hydra:
        raise ConfigurationError(unknown("launcher", launcher, launchers.OURS))
    if members is not None and members < 1:
        raise ConfigurationError(f"members={members}: expected at least 1")
    folder = Path(directory) if directory else runs.new_folder(experiment, prefix="sweep_")
    with runs.locked(folder):
        if progress.traces(folder):
            raise BusyError(f"{folder} holds a run: expected another hydra.sweep.dir, or none, for a new folder")
        try:
            yield Runner(folder, launcher, hydra, config_dir, members, shown)
        except KeyboardInterrupt as error:  # whose text, if any, is about one job
            raise type(error)(progress.stopped(folder, "sweep")) from error


def _import(names: Sequence[str]) -> None:
    """The first takes 0.4 s, matplotlib 0.6 s."""
    for name in names:
        importlib.import_module(name)
