"""What a run must remember to be taken up between two updates: the state as numpy arrays, and where it stands.

The state on disk is that of one device: the rows that only fill up the last of several devices are left away on the
way out and put back on the way in, so the same file serves any number of devices.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import optimizers, tables
from jaxrnn.types import Array, TrainState


class Log(NamedTuple):
    """One number per update of an epoch, [S]."""

    loss: Array  # mean over the batch, nats
    correct: Array
    weight: Array
    grad_norm: Array  # before clipping


EMPTY = Log(*(np.zeros(0, np.float32) for _ in Log._fields))


class Refused(NamedTuple):
    """An update that was not finite and so was not applied."""

    step: int  # it would have been this one, all epochs
    epoch: int
    batch: int  # counts from 0
    loss: float
    grad_norm: float
    rows: np.ndarray  # row numbers of the corpus


class Position(NamedTuple):
    """Where training stands, beside its TrainState."""

    step: int = 0  # updates so far, all epochs
    epoch: int = 1  # under way, or just ended; counts from 1
    batch: int = 0  # updates of it so far
    ended: bool = False  # it has been measured: what follows is the next epoch
    score: tuple[float, float] = (-np.inf, -np.inf)  # of the best epoch: validation accuracy, minus loss
    waited: int = 0  # epochs since then
    refused: int = 0  # updates that were not finite
    log: Log = EMPTY  # numpy, of this epoch's updates so far


def kept(programs: Any, state: TrainState) -> TrainState:
    """The state as numpy arrays, the key as its numbers, no filler rows: its own memory, good until the next update."""
    state = state._replace(key=jax.random.key_data(state.key))
    return jax.tree.map(lambda leaf, like: np.asarray(leaf)[tuple(map(slice, like.shape))], state, programs.kept)


def recorded(programs: Any, named: Mapping[str, np.ndarray]) -> TrainState:
    """Shapes of a state of these arrays: of another number of updates an epoch, or of a table that was not deferred."""
    drift: Any = named.get("optimizer.behind.drift")
    here: Any = programs.kept.optimizer
    if np.shape(drift) == (np.shape(here.behind.drift) if isinstance(here, tables.Memory) else ()):
        return programs.kept
    if drift is None:
        optimizer = programs.optimizer
    elif drift.ndim == 1 and len(drift) and isinstance(programs.optimizer, optimizers.Adam):
        optimizer = tables.deferring(programs.optimizer, len(drift) - 1)
    else:
        return programs.kept
    return programs.kept._replace(optimizer=jax.eval_shape(optimizer.init, programs.kept.params))


def sound(state: TrainState) -> bool:
    """Do the rows of a deferred table stand at updates that its epoch has had? These numbers address memory."""
    if not isinstance(state.optimizer, tables.Memory):
        return True
    since, now = state.optimizer.behind.since, int(state.optimizer.behind.now)
    return 0 <= now < len(state.optimizer.behind.drift) and bool(((since >= 0) & (since <= now)).all())


def refitted(programs: Any, state: TrainState) -> TrainState:
    """A state of `recorded` as these programs keep it; rows that are behind are brought up to date."""
    like = programs.kept.optimizer
    if jax.tree.map(np.shape, state.optimizer) == jax.tree.map(np.shape, like):
        return state
    if isinstance(state.optimizer, tables.Memory):
        settled = tables.deferred(programs.optimizer).settle(jax.tree.map(jnp.asarray, state))
        state = jax.tree.map(np.asarray, settled._replace(optimizer=settled.optimizer.adam))
    if isinstance(like, tables.Memory):
        late = tables.deferring(programs.optimizer, len(like.behind.drift) - 1)
        behind = jax.tree.map(np.asarray, late.init(state.params).behind)
        state = state._replace(optimizer=tables.Memory(state.optimizer, behind))
    return state


def spread(like: Any, tree: Any) -> Any:
    """A tree of numpy arrays on the devices that `like` names, filled up to its shapes."""

    def put(like, leaf):
        full = leaf
        if np.shape(leaf) != like.shape:
            full = np.zeros(like.shape, like.dtype)
            full[tuple(map(slice, leaf.shape))] = leaf
        return jax.device_put(full, like.sharding)

    return jax.tree.map(put, like, tree)


def placed(programs: Any, state: TrainState) -> TrainState:
    """A state of `kept` on the devices of the programs, as they take it."""
    like = programs.placed
    params, optimizer, step = spread(tuple(like[:3]), (state.params, state.optimizer, state.step))
    key = jax.device_put(jax.random.wrap_key_data(jnp.asarray(state.key)), like.key.sharding)
    return TrainState(params, optimizer, step, key)
