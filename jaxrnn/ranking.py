"""Which runs did best: by validation accuracy, never by that of the test.

A configuration is what the settings of a run were, its seed left out; the runs of a configuration repeat it with other
seeds.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrnn import metrics
from jaxrnn.errors import ConfigurationError, unknown
from jaxrnn.results import Run

SEED = "seed"
ABSENT, NONE = "(default)", "–"  # the value of a key that a run has no record of, and of one that it does not have
# settings that decide no number of a run: they part runs only where they were typed
SILENT = {"logger", "log_every_steps", "plots", "flow.every_steps", "experiment", "dry_run"}
SILENT |= {"checkpoint.every_steps", "checkpoint.every_seconds", "checkpoint.keep"}
SILENT |= {"resume", "resume_step", "resume_allow"}
LEARNED_FROM = {"dataset.train_rows", "dataset.train"}  # of the keys of the data those that the rows measured on keep
NOTE = "best first by validation accuracy; ± is half of the 95 % interval over seeds (Student t), none for one run"


class Mean(NamedTuple):
    """Of a measurement over runs; `half` of its 95 % interval (Student t), None of a single run."""

    mean: float
    half: float | None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if self.half is None else f" ± {self.half:.4f}")


class Configuration(NamedTuple):
    """Runs that share the values of a table's keys, best first."""

    values: dict[str, str]
    runs: list[Run]
    valid: Mean
    test: Mean


class Ranking(NamedTuple):
    """What a report tells."""

    keys: tuple[str, ...]  # what varies, or what was asked for
    configurations: list[Configuration]  # best first
    repeated: list[Run]  # of a configuration and seed that a run named later has too: not counted
    others: list[Run]  # that did not complete
    shared: frozenset[str]  # the overrides of every run

    def own(self, run: Run) -> str:
        """The overrides of a run that not all have."""
        return " ".join(line for line in run.overrides if line not in self.shared)

    @property
    def size(self) -> int:
        """The runs that are ranked."""
        return sum(len(row.runs) for row in self.configurations)

    @property
    def mixed(self) -> bool:
        """Are runs on several data sets ranked together."""
        known = (run.known.items() for row in self.configurations for run in row.runs)
        return len({frozenset(pair for pair in held if _of_data(pair[0], LEARNED_FROM)) for held in known}) > 1


def ranked(found: Sequence[Run], by: Sequence[str] | None = None) -> Ranking:
    """Configurations by their mean validation accuracy, then validation loss.

    The keys are those whose values differ, the seed left out, or `by`: runs that share the values of those are then
    one row, whatever else differs but the data. A key that no run was told is one only if the others do not tell the
    runs apart. ConfigurationError for a key in `by` that no run has.
    """
    found = _pruned_wholly(found)
    completed = [run for run in found if run.status == "completed"]
    values = {id(run): run.known for run in found}
    told = list(dict.fromkeys(itertools.chain.from_iterable(run.values for run in found)))
    known = dict.fromkeys([*told, *itertools.chain.from_iterable(values.values())])
    for key in by or ():
        if key not in known:
            raise ConfigurationError(unknown("key", key, known))

    def part(run: Run, keys: Sequence[str]) -> tuple[str, ...]:
        return tuple(values[id(run)].get(key, absent(run)) for key in keys)

    def parts(keys: Sequence[str]) -> set[tuple[str, ...]]:
        return {part(run, keys) for run in completed}

    def parting(keys: Iterable[str], before: Sequence[str] = ()) -> list[str]:
        """`before`, and those of the keys that tell runs apart which those before them do not."""
        held = list(before)
        for key in keys:
            unsaid = {(ABSENT,), (NONE,)} if key not in told else set()
            if len(parts([key]) - unsaid) > 1 and len(parts([*held, key])) > len(parts(held)):
                held.append(key)
        return held

    varied = [key for key in told if key != SEED and len(parts([key])) > 1]
    varied = parting([key for key in known if key not in {SEED, *told, *SILENT}], varied)
    data = parting(sorted(filter(_of_data, known), key=lambda key: key != "dataset"))
    keys = tuple(dict.fromkeys([*by, *data] if by else varied))
    last = {part(run, [*varied, SEED]): run for run in completed}
    counted = {id(run) for run in last.values()}
    repeated = [run for run in completed if id(run) not in counted]
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in last.values():
        groups.setdefault(part(run, keys), []).append(run)
    rows = [_configuration(dict(zip(keys, held, strict=True)), members) for held, members in groups.items()]
    rows.sort(key=lambda row: (_best_first(row.valid.mean, row.runs), natural(" ".join(row.values.values()))))
    shared = frozenset.intersection(*(frozenset(run.overrides) for run in found))
    return Ranking(keys, rows, repeated, [run for run in found if run.status != "completed"], shared)


def absent(run: Run) -> str:
    """What stands for a key that is not among those of the run."""
    return NONE if run.settings else ABSENT


def _of_data(key: str, but: Collection[str] = ()) -> bool:
    return (key == "dataset" or key.startswith("dataset.")) and key not in but


def _pruned_wholly(found: Sequence[Run]) -> list[Run]:
    """Of a configuration with a pruned run no seed of that sweep counts: those that were let through flatter it."""

    def of(run: Run) -> tuple[Path, frozenset[tuple[str, str]]]:
        return run.folder.parent, frozenset(pair for pair in run.known.items() if pair[0] not in {SEED, *SILENT})

    pruned = {of(run) for run in found if run.status == "pruned"}
    return [
        run._replace(status="pruned", reason="another seed of it was")
        if run.status == "completed" and of(run) in pruned
        else run
        for run in found
    ]


def _best_first(accuracy: float | None, members: Sequence[Run]) -> tuple[float, float]:
    return -(accuracy or 0.0), math.fsum(run.valid_loss or 0.0 for run in members) / len(members)


def _configuration(values: dict[str, str], members: list[Run]) -> Configuration:
    members = sorted(members, key=lambda run: (_best_first(run.valid, [run]), natural(str(run.folder))))
    means = (Mean(*metrics.mean_ci95([getattr(run, split) for run in members])) for split in ("valid", "test"))
    return Configuration(values, members, *means)


def natural(text: str) -> list[tuple[float, str]]:
    """To sort by: numbers by their size, words by theirs.

    >>> sorted(["10", "9", "1e-3", "gru"], key=natural)
    ['1e-3', '9', '10', 'gru']
    """
    return [(number, "") if (number := as_number(word)) is not None else (math.inf, word) for word in text.split()]


def as_number(text: str) -> float | None:
    """The finite number that a value is, if it is one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
