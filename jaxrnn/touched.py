"""`tables.deferred` in C (native/rows.c), for one device: the work of the ids that a batch holds, in three calls.

XLA's way gathers, brings up to date and scatters a row for every place [T, B] of the padded batch, some twenty passes
over [T, B, E]. Here each id is read once, its gradients are added up once, and its row is moved in place.
"""

import jax
import jax.numpy as jnp

from jaxrnn import optimizers, tables, targets
from jaxrnn.optimizers import Clip
from jaxrnn.tables import Behind, Table
from jaxrnn.types import Hyper, TrainState


def in_c(deferred: Table, optimizer: optimizers.Adam) -> Table:
    """The table with its three steps in C; it settles as before."""

    def held(state: TrainState):
        """The arguments that a call begins with."""
        (_, mu, nu), behind = state.optimizer
        return state.params.input, mu.input, nu.input, behind.since, behind.drift, behind.shrink

    def numbers(state, *more):
        return jnp.stack([optimizer.b1, optimizer.b2, optimizer.eps, *more]).astype(state.params.input.dtype)

    def counts(state, *more):
        return jnp.stack([state.optimizer.behind.now, state.optimizer.adam.count, *more])

    def read(state: TrainState, ids, length):
        table = state.params.input
        results = [_like(table, (*ids.shape, table.shape[1])), *(_integers(ids.size + n) for n in (0, 1)), _integers(1)]
        call = targets.call("rows_read", table.dtype, results)
        x, *found = call(*held(state), counts(state), numbers(state), ids, length)
        return x, tuple(found)

    def collect(state: TrainState, found, ids, length, gradients, rows, limit):
        results = [_like(gradients, (ids.size, gradients.shape[-1])), _like(gradients, (2,))]
        given = jnp.stack([rows, limit]).astype(gradients.dtype)
        gradient, square = targets.call("rows_collect", gradients.dtype, results)(gradients, *found, given)
        return gradient, (ids, *found), square[0], lambda _: square[1]

    def move(state: TrainState, gradients, clip: Clip, found, rate, hyper: Hyper, finite):
        new, old = tables.moved_rest(optimizer, state, gradients, clip, rate, hyper)
        finite &= tables.finite_everywhere(new[0], None)
        arrays = held(state)
        call = targets.call("rows_move", arrays[0].dtype, [*map(_like, arrays), _integers(1)], {n: n for n in range(6)})
        more = numbers(state, rate, hyper.weight_decay, *clip)
        *arrays, done = call(*arrays, counts(state, finite), more, *found, gradients.input)
        table, mu, nu, since, drift, shrink = arrays
        finite = done[0] == 1
        behind = Behind(since, drift, shrink, state.optimizer.behind.now + finite)
        return *tables.joined(*tables.chosen(finite, new, old), table, mu, nu, behind), finite

    return deferred._replace(read=read, collect=collect, move=move)


def _like(array, shape=None):
    return jax.ShapeDtypeStruct(array.shape if shape is None else shape, array.dtype)


def _integers(count):
    return jax.ShapeDtypeStruct((count,), jnp.int32)
