"""From the command line of a sweep to the settings of every job.

Hydra needs about 0.1 s for one job. Jobs that differ only in numbers that stand in for numbers are composed once: the
numbers are then set in what was composed, as Hydra sets them, and each job is checked as if it had been composed.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from jaxrnn import config, results
from jaxrnn.errors import ConfigurationError
from jaxrnn.refusals import refusing
from jaxrnn.settings import Settings

LAUNCHERS = ("basic", "population")  # our own
MOST_REFUSALS = 10  # that are said


class Plan(NamedTuple):
    """What a sweep is to do."""

    directory: str | None  # if one was named
    launcher: str
    jobs: list[Settings]
    hydra: list[str] = []  # words of the command line that are about the launcher
    config_dir: str | None = None
    members: int | None = None  # hydra.launcher.members, None for auto


class Value(NamedTuple):
    """One word of a job's command line; `number` where its key is given a plain number, else None."""

    line: str
    key: str = ""
    number: int | float | None = None


def planned(overrides: Sequence[str], *, config_dir: str | None = None) -> Plan | None:
    """The settings of every job, the last key turning fastest; None where hydra/sweeper=optuna is to choose them.

    All of them are checked before any starts; the refusal has one line for each bad job.
    """
    config.check_places(overrides, multirun=True)
    with config.opened(config_dir) as loader:
        check_once(found := parsed(loader, overrides))
        launching = [override.input_line for override in found if _launches(override.get_key_element())]
        places = [override.input_line for override in found if _places(override) and not override.is_sweep_override()]
        example, known = first(loader, found, [*launching, *places])
        if example.config.hydra.runtime.choices["hydra/sweeper"] == "optuna":
            return None
        found += added(loader, config.plain(loader, example, "sweeper").get("params"), found)
        if (count := counted(loader, found)) > results.MOST_RUNS:
            raise ConfigurationError(f"the sweep has {count:,} jobs, expected at most {results.MOST_RUNS:,}")
        directory, choices = config.directory(loader, example, "sweep"), []
        for override in found:
            key, line, swept = override.get_key_element(), override.input_line, override.is_sweep_override()
            if swept and (_launches(key) or _places(override)):
                raise ConfigurationError(f"{line}: expected one value, it holds for all jobs")
            if _places(override):
                continue
            if swept and not override.is_discrete_sweep():
                raise ConfigurationError(f"{line}: expected values, as in {key}=0.1,0.2, or hydra/sweeper=optuna")
            elif swept:
                choices.append(list(values(loader, override)))
                if not choices[-1]:
                    raise ConfigurationError(f"{line}: expected at least one value to sweep over, found none")
            elif not _launches(key):
                choices.append([Value(line)])
        jobs, refused = [], []
        with refusing(loader, launching):
            launcher, members = example.launcher
        for number, made in enumerate(settings(loader, itertools.product(*choices), known, config_dir)):
            if not isinstance(made, Settings):
                refused.append(f"job {number} ({' '.join(made[0])}): {made[1]}")
            elif why := trains_alone(made, members):
                refused.append(f"job {number} ({' '.join(made.overrides)}): {why}")
            else:
                jobs.append(made)
    if refused:
        more = [f"and {len(refused) - MOST_REFUSALS} more jobs"] if len(refused) > MOST_REFUSALS else []
        raise ConfigurationError("\n".join(refused[:MOST_REFUSALS] + more))
    return Plan(directory, launcher, jobs, launching, config_dir, members)


def trains_alone(settings: Settings, members: int | None) -> str | None:
    """Why the job cannot be one of so many in one program, as far as its words tell; None where it can."""
    count = settings.device.count or 1
    if not members or members == 1 or (count == 1 and settings.unroll.name != "kernel"):
        return None
    word = f"device.count={count}" if count > 1 else "unroll=kernel"
    return f"{word} is for jobs that train alone: expected hydra.launcher.members=1 beside it"


def first(loader: Any, overrides: Sequence[Any], launching: Sequence[str]) -> tuple[config.Composed, "Known"]:
    """What is composed for the first job, the words about the launcher included, and what that is known as.

    A word that has no first value, as interval(0,1), is left out; all that are swept are, where they are refused.
    """
    job = []
    for override in overrides:
        key = override.get_key_element()
        if _launches(key) or _places(override):
            continue
        if not override.is_sweep_override():
            job.append(Value(override.input_line))
        elif override.is_discrete_sweep():
            job.extend(itertools.islice(values(loader, override), 1))
    known: Known = {}
    try:
        found = config.composed(loader, [*launching, *(value.line for value in job)])
        known[same(job)] = found
    except ConfigurationError:
        found = config.composed(loader, [o.input_line for o in overrides if not o.is_sweep_override()])
    return found, known


def _places(override: Any) -> bool:
    return override.get_key_element().lstrip("+") == "hydra.sweep.dir"


def _launches(key: str) -> bool:
    return key == "hydra/launcher" or key.lstrip("+").startswith("hydra.launcher.")


def parsed(loader: Any, overrides: Sequence[str]) -> list[Any]:
    """Hydra's Override of each line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    config.check_words(overrides)
    with refusing(loader, overrides):
        return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def check_once(overrides: Sequence[Any]) -> None:
    """ConfigurationError for a key with several values that another word is about too; else the last word counts."""
    keys = [override.get_key_element().lstrip("+~") for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if override.is_sweep_override() and keys.count(key) > 1:
            raise ConfigurationError(
                f"{override.input_line}: {key} is given twice; expected all its values in one word"
            )


def added(loader: Any, params: Any, given: Sequence[Any]) -> list[Any]:
    """The Overrides of hydra.sweeper.params, but for keys that the command line has."""
    params = params or {}
    if not isinstance(params, dict) or not all(isinstance(value, str | int | float) for value in params.values()):
        raise ConfigurationError(f"hydra.sweeper.params={params!r}: expected key: values, as in cell: gru,lstm")
    keys = {override.get_key_element() for override in given}
    return parsed(loader, [f"{key}={value}" for key, value in params.items() if key not in keys])


def values(loader: Any, override: Any) -> Iterator[Value]:
    """The words that a swept word stands for; ConfigurationError where it has none, as range(0,3,0).

    In order even where they are to be shuffled: the same command plans the same jobs.
    """
    from hydra.core.override_parser.types import Transformer
    from hydra.errors import HydraException

    key = override.get_key_element()
    if hasattr(sweep := override.value(), "shuffle"):
        sweep.shuffle = False
    plain = not key.startswith(("+", "~")) and "@" not in key and not loader.get_group_options(key)
    try:
        for value in override.sweep_iterator():
            line = f"{key}={Transformer.str(value)}"
            yield Value(line, key, value if plain and type(value) in (int, float) else None)
    except (HydraException, ValueError) as error:
        raise ConfigurationError(f"{override.input_line}: {error}") from error


def counted(loader: Any, overrides: Sequence[Any]) -> float:
    """How many jobs a sweep has, before any is planned."""
    from hydra.core.override_parser.types import RangeSweep

    def length(override: Any) -> float:
        sweep = override.value()
        if not isinstance(sweep, RangeSweep):
            return len(list(values(loader, override)))
        start, stop, step = cast(Any, (sweep.start, sweep.stop, sweep.step or 1))
        steps = (stop - start) / step
        return max(0, math.ceil(steps) if math.isfinite(steps) else steps)

    return math.prod(length(override) for override in overrides if override.is_discrete_sweep())


Known = dict[tuple[str, ...], config.Composed | ConfigurationError]  # words, a number's its key -> what they compose


def settings(
    loader: Any, jobs: Iterable[Sequence[Value]], known: Known | None = None, config_dir: str | None = None
) -> Iterator[Settings | tuple[list[str], ConfigurationError]]:
    """The settings of each job in turn; for one that is refused its words, and why. `known` is kept between calls."""
    from omegaconf import OmegaConf

    known = {} if known is None else known
    for job in jobs:
        lines = [value.line for value in job]
        numbers, words = numbers_of(job), same(job)
        try:
            if words not in known:
                try:
                    known[words] = config.composed(loader, lines)
                except ConfigurationError as error:  # of a word that the others have too
                    known[words] = error
            found = known[words]
            if isinstance(found, ConfigurationError):
                raise found
            for key, number in numbers.items():
                OmegaConf.update(found.config, key, number)
            ours = dict(zip(found.overrides[len(found.overrides) - len(lines) :], lines, strict=True))
            made = config.checked(loader, found, config_dir)
            yield dataclasses.replace(made, overrides=tuple(ours.get(line, line) for line in made.overrides))
        except ConfigurationError as error:
            yield lines, error


def same(job: Sequence[Value]) -> tuple[str, ...]:
    """The words of a job, of those that stand for a number the key alone: equal for jobs that are composed once."""
    numbers = numbers_of(job)
    return tuple(value.key if value.key in numbers else value.line for value in job)


def numbers_of(job: Sequence[Value]) -> dict[str, int | float]:
    """The numbers of a job that stand alone: no other word of it says anything about their keys."""
    if any("{" in value.line for value in job):  # a part of the tree, or an interpolation
        return {}
    keys = [value.key or value.line.partition("=")[0].lstrip("+~") for value in job]
    return {value.key: value.number for value in job if value.number is not None and keys.count(value.key) == 1}
