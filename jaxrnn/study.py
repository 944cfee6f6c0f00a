"""-m hydra/sweeper=optuna: trials that Optuna chooses, run as jobs of a sweep, told back.

Trial t is the jobs t * seeds ... t * seeds + seeds - 1 of the sweep's folder. Its first seed reports every epoch and
decides whether the trial is pruned, so that all trials are compared by the same seed.

A storage outlives its processes and may have several. A trial is marked with the folder of who runs it (OWNER): a
process that starts in that folder again goes on with it, and a process that finds the folder without a writer (its
lock is free) fails the trial (LEFT) and puts its values in the queue (AGAIN). So each of n_trials is run to its end
once. Two processes that ask for the last one at once get one too many: the later one is given back (SURPLUS).
"""

import json
import math
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from jaxrnn import choosing, devices, fingerprints, metrics, running, runs, space, standing, sweep
from jaxrnn.choosing import AGAIN, LEFT, OWNER, SURPLUS
from jaxrnn.errors import ArtefactError, BusyError, ConfigurationError
from jaxrnn.launchers import Outcome
from jaxrnn.planning import Value
from jaxrnn.running import Runner
from jaxrnn.settings import KEYS, Settings, dotted
from jaxrnn.space import Search

OF_THE_TRIAL = (2, 4, 8)  # exit codes that its values are to blame for: configuration, not finite, memory
ORPHANED = 60.0  # seconds after which a trial that nobody has put a name to is nobody's


def run(plan: Search) -> int:
    """Run the study. -> 0 if any trial has completed, else the exit code of the last that failed."""
    options = plan.options
    if options["aggregate"] == "bound" and options["seeds"] == 1:
        raise ConfigurationError(
            "hydra.sweeper.aggregate=bound needs several runs: expected hydra.sweeper.seeds=2 or more"
        )
    if options["seeds"] > 1 and "seed" in plan.space:
        raise ConfigurationError("seed is chosen by hydra.sweeper.seeds: expected no seed= with several values")
    last = plan.example.seed + options["seeds"] - 1
    try:
        KEYS["seed"].check("seed", last)
    except ConfigurationError as error:
        raise ConfigurationError(f"the last of hydra.sweeper.seeds={options['seeds']}: {error}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points = space.grid(plan.space) if options["sampler"] == "grid" else []
    choosing.sampler(options, points, "")  # refused before anything is made
    if plan.example.dry_run:
        print(*(f"{key}: {kind}" for key, kind in plan.space.items()), sep="\n")
        corners = [plan.compose(space.spelled(corner)) for corner in space.corners(plan.space)]
        sweep.rehearse(corners, plan.members if plan.launcher == "population" else 1)
        print("dry run: every choice and both ends of every range are sound; nothing was made or trained", flush=True)
        return 0
    with ExitStack() as stack:
        named = options["storage"] and stack.enter_context(choosing.opened(options["storage"]))
        shown = [*plan.space, *(["seed"] if options["seeds"] > 1 else [])]
        where = plan.directory, plan.launcher, plan.example.experiment
        runner = stack.enter_context(running.opened(*where, members=plan.members, shown=shown))
        place = options["storage"] or f"sqlite:///{runner.folder / 'study.db'}"
        storage = named or stack.enter_context(choosing.opened(place))
        with choosing.refusals(place):
            study = Study(plan, runner, storage, place, points)
        code = study.run()
        with choosing.refusals(place, known=True):
            others = study.others()
        sweep.conclude(runner.folder, study.settings_of, others)
    return code


def identity(folder: Path) -> str:
    """What knows a sweep's folder again, on whichever host it is seen; call with the folder locked."""
    path = folder / "study.json"
    if not path.exists():
        runs.write_json(path, {"id": secrets.token_hex(8)})
    held = runs.read_json(path)
    if not isinstance(held, dict) or not isinstance(held.get("id"), str):
        raise ArtefactError(f'{path}: expected {{"id": a word}}')
    return held["id"]


def fixed(plan: Search) -> dict[str, Any]:
    """The settings of every trial that decide its numbers, words and yaml alike, without those chosen and seed."""
    chosen = {key.lstrip("+") for key in plan.space} | {"seed"}
    free = fingerprints.FREE - {"dataset"}  # no checkpoint tells its rows yet
    flat = {key: value for key, value in dotted(plan.example).items() if not {key, key.partition(".")[0]} & chosen}
    return json.loads(json.dumps({key: value for key, value in flat.items() if key.partition(".")[0] not in free}))


def differences(held: Any, record: dict[str, Any]) -> list[str]:
    """What of a study's record is not as it is held; of settings, which older ones lack, those that both have."""
    if not isinstance(held, dict):
        return list(record)
    there = held.get("settings")
    there = there if isinstance(there, dict) else {}
    both = record["settings"].keys() & there
    settings = [
        fingerprints.difference(key, there, record["settings"])
        for key in sorted(both)
        if there[key] != record["settings"][key]
    ]
    other = [key for key in record if key not in ("settings", "fixed") and held.get(key) != record[key]]
    words = standing.difference(held.get("fixed"), record["fixed"])
    return other + [f"fixed words: {words}"] * bool(words) + settings


class Study:
    """The part that one process, writer of one sweep's folder, has in a study."""

    def __init__(self, plan: Search, runner: Runner, storage: Any, place: str, points: Sequence[dict[str, Any]]):
        self.plan, self.runner, self.place, self.points = plan, runner, place, points
        self.options, self.seeds = plan.options, plan.options["seeds"]
        self.owner = {
            "id": identity(runner.folder),
            "folder": str(runner.folder.resolve()),
            "host": socket.gethostname(),
        }
        self.size = min(self.options["n_trials"], len(points) or self.options["n_trials"])
        self.trials: dict[int, Trial] = {}  # under way here
        self.pruned: set[int] = set()
        at_once = (plan.members if (plan.members or 1) > 1 else devices.cores()) if plan.launcher == "population" else 1
        self.batch = self.options["batch"] or math.ceil(at_once / self.seeds)
        self.study = optuna.create_study(
            study_name=self.options["study_name"],
            storage=storage,
            direction="maximize" if self.options["metric"] == "accuracy" else "minimize",
            pruner=choosing.pruner(self.options),
            load_if_exists=True,
        )
        self._recognise()

    def _recognise(self) -> None:
        """ArtefactError where the storage holds a study of that name that chooses from something else."""
        keys = ("metric", "seeds", "aggregate")
        record = {"space": space.recorded(self.plan.space), "fixed": list(self.plan.fixed)}
        record |= {"settings": fixed(self.plan)} | {key: self.options[key] for key in keys}
        trials = self.study.get_trials(deepcopy=False)  # before the record, which others write before their first trial
        held = self.study.user_attrs.get("jaxrnn")
        if held is None and not trials:
            self.study.set_user_attr("jaxrnn", record)
        elif other := differences(held, record):
            raise ArtefactError(
                f"{self.study.study_name!r} there is another study, its {', '.join(other)} not as given here: "
                "expected the same command, another hydra.sweep.dir, or another hydra.sweeper.study_name"
            )

    def run(self) -> int:
        """Trials until there are enough of them."""
        code, completed = 0, self._count(TrialState.COMPLETE)
        done = completed + self._count(TrialState.PRUNED) + self._count(TrialState.FAIL)
        print(f"study {self.study.study_name}: {done} of {self.size} trials done", flush=True)
        while trials := self._next():
            jobs = []
            for trial in trials:
                try:
                    jobs += self._jobs(trial)
                except ConfigurationError as error:  # values that do not go together
                    print(f"trial {trial.number}: {error}", flush=True)
                    code = error.code
                    self._tell(trial, state=TrialState.FAIL)
            outcomes = {o.number: o for o in self.runner.run(jobs, None if self._unpruned() else self._watch)}
            for trial in trials:
                if trial.number in self.trials:
                    first = trial.number * self.seeds
                    code = self._end(trial, [outcomes[first + n] for n in range(self.seeds)]) or code
        with choosing.refusals(self.place, known=True):
            return 0 if self._count(TrialState.COMPLETE) else code

    def others(self) -> list[str]:
        """The sweeps of other processes that took part, as far as they can be seen from here."""
        trials = self.study.get_trials(deepcopy=False)
        held = {str(trial.user_attrs[OWNER]["folder"]) for trial in trials if OWNER in trial.user_attrs}
        return sorted(other for other in held - {self.owner["folder"]} if Path(other, "sweep.json").is_file())

    def settings_of(self, job: int) -> Settings:
        """Those of a job of the study, of an earlier process too."""
        trial = self.study.get_trials(deepcopy=False)[job // self.seeds]
        return self._jobs(trial)[job % self.seeds][1]

    def _count(self, state: TrialState) -> int:
        return sum(map(_counts, self.study.get_trials(deepcopy=False, states=(state,))))

    def _next(self) -> list[Trial]:
        """The trials to run next: first what is left over, then new ones."""
        with choosing.refusals(self.place, known=True):
            left = self._left_over()
            asked: list[Trial] = []
            while len(left) + len(asked) < self.batch:
                trial = self._asked()
                if trial is None:
                    break
                asked.append(trial)
        self.trials = {trial.number: trial for trial in [*left, *asked]}
        return list(self.trials.values())

    def _left_over(self) -> list[Trial]:
        """Trials of this folder that a process before has not ended; those of folders without a writer are queued."""
        found = []
        for held in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = held.user_attrs.get(OWNER)
            if not self.options["storage"] or (owner and owner["id"] == self.owner["id"]):
                found.append(self._taken_up(held))
            elif owner is None:
                if held.datetime_start and time.time() - held.datetime_start.timestamp() > ORPHANED:
                    self._queue(held)
            elif owner["host"] == self.owner["host"]:
                self._queue_if_left(held, Path(owner["folder"]))
        return found

    def _taken_up(self, held: FrozenTrial) -> Trial:
        """A running trial as it was asked for; killed in the middle of asking, it is given the values it lacks."""
        trial = Trial(self.study, held._trial_id)
        for key, kind in self.plan.space.items():
            if key not in held.params:
                trial._suggest(key, kind)
        trial.set_user_attr(OWNER, self.owner)
        first = standing.ended_before(self.runner.folder, held.number * self.seeds)
        if first and first.status == "pruned":  # and so are the seeds that have not begun
            self.pruned.add(held.number)
        return trial

    def _queue_if_left(self, held: FrozenTrial, folder: Path) -> None:
        if not folder.is_dir():
            self._queue(held)
            return
        try:
            with runs.locked(folder):  # which nobody holds whose process is dead; held, it is queued once
                now = self.study.get_trials(deepcopy=False)[held.number]
                if now.state == TrialState.RUNNING:
                    self._queue(now)
        except BusyError:
            return

    def _queue(self, held: FrozenTrial) -> None:
        trial = Trial(self.study, held._trial_id)
        trial.set_user_attr(LEFT, True)
        self.study.tell(trial, state=TrialState.FAIL)
        self.study.enqueue_trial(held.params, user_attrs={AGAIN: held.number})

    def _asked(self) -> Trial | None:
        """A new trial, None where the study has its number of them."""
        trials = self.study.get_trials(deepcopy=False)
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if sum(map(_counts, trials)) >= self.size and not waiting:
            return None
        mark = f"{len(trials)} {self.owner['folder'] if self.options['storage'] else ''}"
        self.study.sampler = choosing.sampler(self.options, self.points, mark)
        trial = self.study.ask(dict(self.plan.space))
        trial.set_user_attr(OWNER, self.owner)
        before = [other for other in self.study.get_trials(deepcopy=False) if other.number < trial.number]
        if sum(map(_counts, before)) < self.size:
            return trial
        trial.set_user_attr(SURPLUS, True)
        self.study.tell(trial, state=TrialState.FAIL)
        return None

    def _jobs(self, trial: Trial | FrozenTrial) -> list[tuple[int, Settings]]:
        chosen, first = space.spelled(trial.params), trial.number * self.seeds
        if self.seeds == 1:
            return [(first, self.plan.compose(chosen))]
        seeds = (self.plan.example.seed + n for n in range(self.seeds))
        return [
            (first + n, self.plan.compose([*chosen, Value(f"seed={seed}", "seed", seed)]))
            for n, seed in enumerate(seeds)
        ]

    def _unpruned(self) -> bool:
        return self.options["pruner"] == "none"

    def _watch(self, job: int, record: dict[str, Any]) -> bool:
        """Called after every epoch of a job, on its thread. -> end it."""
        number, place = divmod(job, self.seeds)
        if place == 0 and number not in self.pruned:
            trial, epoch = self.trials[number], record["epoch"]
            with choosing.refusals(self.place, known=True):
                if epoch not in self.study.get_trials(deepcopy=False)[number].intermediate_values:
                    trial.report(record["valid"][self.options["metric"]], epoch)
                if epoch > self.options["warmup_epochs"] and trial.should_prune():
                    self.pruned.add(number)
        return number in self.pruned

    def _end(self, trial: Trial, outcomes: Sequence[Outcome]) -> int:
        """Tell how a trial ended. -> exit code, 0 unless it failed; what it is not to blame for is raised."""
        failed = [outcome for outcome in outcomes if outcome.status == "failed"]
        for outcome in failed:
            if outcome.code not in OF_THE_TRIAL and outcome.error is not None:
                raise outcome.error  # the trial stays as it is, and is gone on with
        if failed:
            self._tell(trial, state=TrialState.FAIL)
            return failed[0].code
        if outcomes[0].status == "pruned":
            self._tell(trial, state=TrialState.PRUNED)
            return 0
        values = [outcome.summary["valid"][self.options["metric"]] for outcome in outcomes]
        mean, half = metrics.mean_ci95(values)
        if self.options["aggregate"] == "bound" and half is not None:
            mean += -half if self.options["metric"] == "accuracy" else half
        self._tell(trial, mean)
        return 0

    def _tell(self, trial: Trial, value: float | None = None, state: TrialState | None = None) -> None:
        with choosing.refusals(self.place, known=True):
            self.study.tell(trial, value, state)
        del self.trials[trial.number]


def _counts(trial: FrozenTrial) -> bool:
    """Is it one of n_trials."""
    return not {LEFT, SURPLUS} & set(trial.user_attrs)
