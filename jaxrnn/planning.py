"""From the command line of a sweep to the settings of every job.

Hydra needs about 0.1 s for one job. Jobs that differ only in numbers that stand in for numbers are composed once: the
numbers are then set in what was composed, as Hydra sets them, and each job is checked as if it had been composed.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxrnn import config
from jaxrnn.errors import ConfigurationError
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


class Value(NamedTuple):
    """One word of a job's command line; `number` where its key is given a plain number, else None."""

    line: str
    key: str = ""
    number: int | float | None = None


def planned(overrides: Sequence[str], *, config_dir: str | None = None, launcher: str | None = None) -> Plan:
    """The settings of every job, the last key turning fastest. `launcher`: the one that words of the line choose, which
    have been composed; without it that is done here.

    All of them are checked before any starts; the refusal has one line for each bad job.
    """
    directory, hydra = None, []
    known: Known = {}
    with config.opened(config_dir) as loader:
        choices, swept = [], False
        for line, override in zip(overrides, parsed(loader, overrides), strict=True):
            key = override.get_key_element()
            if key == "hydra.sweep.dir":
                directory = str(override.value())
            elif key == "hydra/launcher" or key.startswith("hydra.launcher."):
                hydra.append(line)
                swept = swept or override.is_sweep_override()
            elif override.is_sweep_override():
                choices.append(list(values(loader, override)))
                if not choices[-1]:
                    raise ConfigurationError(f"{line}: expected at least one value to sweep over, found none")
            elif key != "hydra.run.dir":
                choices.append([Value(line)])
        if swept or (hydra and not launcher):  # words about the launcher are checked with those of the first job
            first = config.composed(loader, [*hydra, *(values[0].line for values in choices)])
            launcher = first.config.hydra.runtime.choices["hydra/launcher"]
        jobs, refused = [], []
        for number, found in enumerate(settings(loader, itertools.product(*choices), known)):
            if isinstance(found, Settings):
                jobs.append(found)
            else:
                refused.append(f"job {number} ({' '.join(found[0])}): {found[1]}")
    if refused:
        more = [f"and {len(refused) - MOST_REFUSALS} more jobs"] if len(refused) > MOST_REFUSALS else []
        raise ConfigurationError("\n".join(refused[:MOST_REFUSALS] + more))
    if not hydra:  # or a yaml of the user's says it
        composed = next(found for found in known.values() if isinstance(found, config.Composed))
        launcher = composed.config.hydra.runtime.choices["hydra/launcher"]
    return Plan(directory, launcher or LAUNCHERS[0], jobs, hydra, config_dir)


def parsed(loader: Any, overrides: Sequence[str]) -> list[Any]:
    """Hydra's Override of each line."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    except HydraException as error:
        raise config.refusal(error, loader, overrides) from error


def values(loader: Any, override: Any) -> Iterator[Value]:
    """The words that a swept word stands for."""
    from hydra.core.override_parser.types import Transformer

    key = override.get_key_element()
    plain = not key.startswith(("+", "~")) and "@" not in key and not loader.get_group_options(key)
    for value in override.sweep_iterator():
        line = f"{key}={Transformer.str(value)}"
        yield Value(line, key, value if plain and type(value) in (int, float) else None)


Known = dict[tuple[str, ...], config.Composed | ConfigurationError]  # words, a number's its key -> what they compose


def settings(
    loader: Any, jobs: Iterable[Sequence[Value]], known: Known | None = None
) -> Iterator[Settings | tuple[list[str], ConfigurationError]]:
    """The settings of each job in turn; for one that is refused its words, and why. `known` is kept between calls."""
    from omegaconf import OmegaConf

    known = {} if known is None else known
    for job in jobs:
        lines = [value.line for value in job]
        numbers = numbers_of(job)
        same = tuple(value.key if value.key in numbers else value.line for value in job)
        try:
            if same not in known:
                try:
                    known[same] = config.composed(loader, lines)
                except ConfigurationError as error:  # of a word that the others have too
                    known[same] = error
            found = known[same]
            if isinstance(found, ConfigurationError):
                raise found
            for key, number in numbers.items():
                OmegaConf.update(found.config, key, number)
            ours = dict(zip(found.overrides[-len(lines) :], lines, strict=True))
            made = config.checked(loader, found)
            yield dataclasses.replace(made, overrides=tuple(ours.get(line, line) for line in made.overrides))
        except ConfigurationError as error:
            yield lines, error


def numbers_of(job: Sequence[Value]) -> dict[str, int | float]:
    """The numbers of a job that stand alone: no other word of it says anything about their keys."""
    if any("{" in value.line for value in job):  # a part of the tree, or an interpolation
        return {}
    keys = [value.key or value.line.partition("=")[0].lstrip("+~") for value in job]
    return {value.key: value.number for value in job if value.number is not None and keys.count(value.key) == 1}
