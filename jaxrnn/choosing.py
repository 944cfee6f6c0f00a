"""Optuna's samplers, pruners and storages by the names of hydra/sweeper=optuna; what they raise as our refusals.

A sampler is made anew for every batch, its randomness from the seed and the number of trials there are: a study that
goes on after a kill does not draw its first trials again.
"""

import re
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.storages.journal import JournalFileBackend

from jaxrnn.errors import ArtefactError, BusyError, ConfigurationError, JaxrnnError, StorageError

PATIENCE = 20  # seconds that a locked database is waited for
LOOKS = 10  # at a database whose tables are being made
OWNER, AGAIN, LEFT, SURPLUS = "owner", "again", "left", "surplus"  # attributes of trials, see study.py


class Grid(optuna.samplers.BaseSampler):
    """The next point that has not been given out: trials have numbers of their own, whoever asks."""

    def __init__(self, points: Sequence[Mapping[str, Any]]):
        self.points = points

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        place = sum(
            other.number < trial.number and not {AGAIN, SURPLUS} & set(other.user_attrs)
            for other in study.get_trials(deepcopy=False)
        )
        return self.points[place % len(self.points)][param_name]


def sampler(options: Mapping[str, Any], points: Sequence[Mapping[str, Any]], mark: str) -> Any:
    """`points` are those of a grid; with sampler_seed the same `mark` draws the same trials."""
    name, startup = options["sampler"], options["startup_trials"]
    seed = None if options["sampler_seed"] is None else zlib.crc32(f"{options['sampler_seed']} {mark}".encode())
    if name == "grid":
        return Grid(points)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "cmaes":
        if find_spec("cmaes") is None:
            raise ConfigurationError("sampler=cmaes needs a package that is not installed: pip install cmaes")
        return optuna.samplers.CmaEsSampler(n_startup_trials=startup, seed=seed, warn_independent_sampling=False)
    return optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed)


def pruner(options: Mapping[str, Any]) -> Any:
    if options["pruner"] == "hyperband":
        return optuna.pruners.HyperbandPruner()
    if options["pruner"] == "halving":
        return optuna.pruners.SuccessiveHalvingPruner()
    if options["pruner"] == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=options["startup_trials"])
    return optuna.pruners.NopPruner()


def storage(place: str) -> Any:
    """A database by its URL, or a journal file by its path."""
    with refusals(place):
        if "://" not in place:
            return optuna.storages.JournalStorage(JournalFileBackend(place))
        return _database(place, {"connect_args": {"timeout": PATIENCE}} if place.startswith("sqlite") else {})


@contextmanager
def opened(place: str) -> Iterator[Any]:
    """The storage, its connections closed at the end."""
    held = storage(place)
    try:
        yield held
    finally:
        if isinstance(held, optuna.storages.RDBStorage):
            held.remove_session()
            held.engine.dispose()


def _database(place: str, how: dict[str, Any]) -> Any:
    """Processes that find it empty all make its tables; who comes second is refused by it, and looks again."""
    for _ in range(LOOKS):
        try:
            return optuna.storages.RDBStorage(place, engine_kwargs=how)
        except (
            sqlalchemy.exc.IntegrityError,
            sqlalchemy.exc.OperationalError,
            sqlalchemy.exc.ProgrammingError,
        ) as error:
            if not isinstance(error, sqlalchemy.exc.IntegrityError) and "already exists" not in str(error):
                raise
            time.sleep(0.2)
    return optuna.storages.RDBStorage(place, engine_kwargs=how)


@contextmanager
def refusals(place: str, *, known: bool = False) -> Iterator[None]:
    """What a storage raises, in a line: 2 no such storage, 5 damaged, 6 locked, 7 unreachable.

    `known`: a study was read from it, so what else is raised is not the storage's fault.
    """
    place = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", place)  # a password is nobody's business
    try:
        yield
    except JaxrnnError:
        raise
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError, ImportError) as error:
        if known:
            raise
        raise ConfigurationError(
            f"hydra.sweeper.storage={place}: {_first(error)}; expected a database, as in sqlite:///study.db, "
            "or the path of a journal file"
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        told = _first(cause or error)
        if "locked" in told or "busy" in told:
            raise BusyError(f"{place}: another process has kept it locked for {PATIENCE} s: try again later") from error
        if "not a database" in told or "malformed" in told:
            raise ArtefactError(f"{place} is damaged: {told}") from error
        raise StorageError(f"{place} cannot be used: {told}") from error
    except OSError as error:
        raise StorageError(f"{place} cannot be used: {error.strerror or error}") from error
    except (ValueError, KeyError, RuntimeError) as error:  # a journal that is none; tables of another version
        if known:
            raise
        raise ArtefactError(f"{place} holds no study that can be read: {_first(error)}") from error


def _first(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300]
