"""What a study may choose from: Hydra's override syntax as Optuna's distributions, checked before anything starts.

    cell=gru,lstm                    one of these; also choice(gru,lstm), glob(*)
    hidden_size=range(16,129,16)     16, 32, ... 128: numbers in order, the end left out, as in a sweep
    dropout_rate=interval(0,0.5)     any number between
    hidden_size=int(interval(8,64))  any whole number, both ends included

tag(log, ...) takes an interval, or a range of step 1, by its logarithm.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from importlib.util import find_spec
from typing import Any, NamedTuple

from jaxrnn import config, planning
from jaxrnn.allowed import Allowed, one_of, or_null, whole, words
from jaxrnn.errors import ConfigurationError, unknown
from jaxrnn.planning import Value
from jaxrnn.refusals import refusing
from jaxrnn.settings import Settings, checked

SAMPLERS = ("tpe", "random", "grid", "cmaes")
OPTIONS: dict[str, Allowed] = {
    "sampler": one_of(*SAMPLERS),
    "pruner": one_of("median", "hyperband", "halving", "none"),
    "n_trials": whole(1),
    "metric": one_of("accuracy", "loss"),
    "seeds": whole(1, 1000),
    "aggregate": one_of("mean", "bound"),
    "batch": or_null(whole(1)),
    "startup_trials": whole(),
    "warmup_epochs": whole(),
    "sampler_seed": or_null(whole()),
    "storage": or_null(words),
    "study_name": words,
}
LARGEST_GRID = 100_000  # trials
DIGITS = 6  # of a number that was drawn: enough to train the same run again
Space = Mapping[str, Any]  # key -> distribution


class Search(NamedTuple):
    """What a study is to do; open only within `search`."""

    directory: str | None  # if one was named
    launcher: str
    members: int | None  # hydra.launcher.members, None for auto
    options: dict[str, Any]  # hydra.sweeper.*
    space: Space
    fixed: list[str]  # overrides of every trial
    compose: Callable[[Sequence[Value]], Settings]  # words -> settings of a trial
    example: Settings  # of one of them


@contextmanager
def search(overrides: Sequence[str], *, config_dir: str | None = None) -> Iterator[Search]:
    """The study that hydra/sweeper=optuna asks for. Every choice and both ends of every range are composed first."""
    if find_spec("optuna") is None:
        raise ConfigurationError("hydra/sweeper=optuna needs Optuna, which is not installed: pip install 'optuna>=5'")
    with config.opened(config_dir) as loader:
        fixed: list[str] = []
        own: list[str] = []
        swept: dict[str, Any] = {}
        planning.check_once(words := planning.parsed(loader, overrides))
        for line, override in zip(overrides, words, strict=True):
            key = override.get_key_element()
            hydras = key.lstrip("+").startswith(("hydra/", "hydra."))
            if override.is_sweep_override():
                if hydras:
                    raise ConfigurationError(f"{line}: expected one value, it holds for all jobs")
                swept[key] = override
            else:
                (own if hydras else fixed).append(line)
        composed = config.composed(loader, [*own, *fixed])
        options = config.plain(loader, composed, "sweeper")
        given = planning.parsed(loader, fixed)
        for override in planning.added(loader, options.pop("params", None), [*given, *swept.values()]):
            if override.is_sweep_override():
                swept[override.get_key_element()] = override
            else:
                fixed.append(override.input_line)
        with refusing(loader, own):
            launcher, members = composed.launcher
        if launcher not in planning.LAUNCHERS:
            raise ConfigurationError(unknown("hydra/launcher", launcher, planning.LAUNCHERS))
        options = checked("hydra.sweeper", {"hydra.sweeper": options}, OPTIONS)
        if not swept:
            raise ConfigurationError("hydra/sweeper=optuna: nothing to choose; expected keys with several values")
        found = {key: distribution(override) for key, override in swept.items()}

        known: planning.Known = {}

        def compose(chosen: Sequence[Value]) -> Settings:
            keys = {value.key for value in chosen}
            rest = [Value(line) for line in fixed if line.partition("=")[0] not in keys]
            (made,) = planning.settings(loader, [[*rest, *chosen]], known, config_dir)
            if not isinstance(made, Settings):
                raise made[1]
            if why := planning.trains_alone(made, members):
                raise ConfigurationError(why)
            return made

        held = [compose(spelled(corner)) for corner in corners(found)]
        directory = config.directory(loader, composed, "sweep")
        yield Search(directory, launcher, members, options, found, fixed, compose, held[0])


def distribution(override: Any) -> Any:
    """The distribution of one parsed override; ConfigurationError where nothing can be chosen."""
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution

    sweep, line = override.value(), override.input_line
    if isinstance(sweep, RangeSweep | IntervalSweep):
        log = "log" in sweep.tags
        if sweep.tags - {"log"}:
            raise ConfigurationError(f"{line}: unknown tag {min(sweep.tags - {'log'})!r}; expected tag(log, ...)")
        low, high, step = _range(sweep) if isinstance(sweep, RangeSweep) else _interval(sweep)
        if not (low <= high and math.isfinite(low) and math.isfinite(high)):
            raise ConfigurationError(f"{line}: nothing lies between; expected a start below the end")
        if log and (low <= 0 or step not in (None, 1)):
            raise ConfigurationError(f"{line}: a logarithm needs a start above 0, and a range of step 1")
        return _numeric(low, high, step, log)
    if isinstance(sweep, ChoiceSweep):
        sweep.shuffle = False  # the order means nothing here, but it must be the same tomorrow
    values = list(dict.fromkeys(override.sweep_string_iterator()))
    if not values:
        raise ConfigurationError(f"{line}: expected at least one value, found none")
    return CategoricalDistribution(values)


def _range(sweep: Any) -> tuple[float, float, float]:
    """First, last and step of the numbers of range(start, stop, step), which may go down."""
    start, stop, step = (Decimal(str(value)) for value in (sweep.start, sweep.stop, sweep.step))  # 0.3, not 0.30000004
    count = math.ceil((stop - start) / step) if step else 0
    kind = int if all(isinstance(value, int) for value in (sweep.start, sweep.step)) else float
    ends = kind(start), kind(start + (count - 1) * step)
    return (min(ends), max(ends), kind(abs(step))) if count > 0 else (1, 0, 1)


def _interval(sweep: Any) -> tuple[float, float, None]:
    return sweep.start, sweep.end, None


def _numeric(low: float, high: float, step: float | None, log: bool) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    if all(isinstance(value, int) for value in (low, high, step or 1)):
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(low, high, log=log, step=step)


def written(value: Any) -> str:
    """A chosen value as an override has it.

    >>> written("gru"), written(64), written(0.00123456789)
    ('gru', '64', '0.00123457')
    """
    return repr(float(f"{value:.{DIGITS}g}")) if isinstance(value, float) else str(value)


def spelled(params: Mapping[str, Any]) -> list[Value]:
    """What a command line says for these values, in the order of their keys: the same for every trial of a study."""
    found = []
    for key in sorted(params):
        value = params[key] if isinstance(params[key], str) else type(params[key])(written(params[key]))
        plain = not isinstance(value, str) and key[0] not in "+~" and "@" not in key
        found.append(Value(f"{key}={written(value)}", key, value if plain else None))
    return found


def recorded(space: Space) -> dict[str, Any]:
    """What a storage keeps, to know the study again."""
    from optuna.distributions import distribution_to_json

    return {key: distribution_to_json(space[key]) for key in sorted(space)}


def corners(space: Space) -> list[dict[str, Any]]:
    """Few points that hold every choice and both ends of every range: what is composed before anything starts."""
    from optuna.distributions import CategoricalDistribution

    held = {
        key: list(d.choices) if isinstance(d, CategoricalDistribution) else [d.low, d.high] for key, d in space.items()
    }
    most = max(map(len, held.values()), default=1)
    return [{key: values[min(i, len(values) - 1)] for key, values in held.items()} for i in range(most)]


def grid(space: Space) -> list[dict[str, Any]]:
    """Every point, the last key turning fastest; ConfigurationError where they cannot be counted."""
    from optuna.distributions import CategoricalDistribution

    held: dict[str, Sequence[Any]] = {}
    for key, d in space.items():
        if isinstance(d, CategoricalDistribution):
            held[key] = d.choices
        elif d.step is None or d.log:
            raise ConfigurationError(f"{key}: sampler=grid needs choices or a range of even steps, found {d}")
        else:
            held[key] = [d.low + i * d.step for i in range(min(LARGEST_GRID, round((d.high - d.low) / d.step)) + 1)]
    if (size := math.prod(map(len, held.values()))) > LARGEST_GRID:
        raise ConfigurationError(f"sampler=grid: {size:,} points, expected at most {LARGEST_GRID:,}")
    return [dict(zip(held, point, strict=True)) for point in itertools.product(*held.values())]
