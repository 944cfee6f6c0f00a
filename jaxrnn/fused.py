"""`tables` as calls in C (native/adam.c): the norm, the clips and Adam, or plain gradient descent, for all parameters
at once, in place.

XLA's way with a deferred table gathers, brings up to date and scatters a row for every place of the padded batch, some
twenty passes over [T, B, E], and needs five small kernels for each other array. Here the work is that of the ids in the
batch: each row is read once, its gradients are added up once. For one device, a CPU.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import optimizers, tables, targets
from jaxrnn.tables import Behind, Memory, Table
from jaxrnn.types import Hyper, TrainState


def update(optimizer: Any, has_table: bool) -> Table | None:
    """The update of this optimizer in C; None where there is none."""
    if isinstance(optimizer, optimizers.Adam) and optimizer.rows != "dense":
        return adam(optimizer, has_table)
    return descent(optimizer) if isinstance(optimizer, optimizers.Descent) and not has_table else None


def descent(optimizer: optimizers.Descent) -> Table:
    """For a model without a table; its state is that of `tables.dense`."""

    def learn(state: TrainState, gradients, found, ids, length, rows, rate, hyper: Hyper, finite):
        params, structure = jax.tree.flatten(state.params)
        numbers = _numbers(params[0].dtype, 0, 0, 0, *_of(hyper, rate, rows))
        scalars = jnp.int32(0), jnp.int32(0), finite, *numbers
        params, norm, finite = _learned(params, scalars, jax.tree.leaves(gradients))
        return jax.tree.unflatten(structure, params), state.optimizer, norm, finite

    return tables.dense(optimizer)._replace(learn=learn)


def adam(optimizer: optimizers.Adam, has_table: bool) -> Table:
    """For a model with a table its state is that of `tables.deferring`."""
    def numbers(state: TrainState, *more):
        return _numbers(state.params.W_hy.dtype, optimizer.b1, optimizer.b2, optimizer.eps, *more)

    def wide(state: TrainState):
        """What is kept of the table, as the C code takes it."""
        adam, behind = state.optimizer
        return [state.params.input, adam.mu.input, adam.nu.input, behind.since, behind.drift, behind.shrink]

    def counts(state: TrainState):
        adam, behind = state.optimizer
        return behind.now, adam.count

    def read(state: TrainState, ids, length):
        table = state.params.input
        results = [_like((*ids.shape, table.shape[1]), table.dtype)]
        results += [_like((n,), jnp.int32) for n in (ids.size, ids.size + 1, 1)]
        call = targets.call("read", table.dtype, results)
        x, *found = call(*wide(state), *counts(state), *numbers(state), ids, length)
        return x, found

    def settle(state: TrainState):
        adam, _ = state.optimizer
        table, changed = state.params.input, wide(state)
        results = [_like(array.shape, array.dtype) for array in changed]
        call = targets.call("settle", table.dtype, results, {n: n for n in range(len(changed))})
        p, m, v, since, drift, shrink = call(*changed, *counts(state), *numbers(state))
        adam = adam._replace(mu=adam.mu._replace(input=m), nu=adam.nu._replace(input=v))
        memory = Memory(adam, Behind(since, drift, shrink, jnp.int32(0)))
        return state._replace(params=state.params._replace(input=p), optimizer=memory)

    def learn(state: TrainState, gradients, found, ids, length, rows, rate, hyper: Hyper, finite):
        adam = state.optimizer.adam if has_table else state.optimizer
        trees = state.params, adam.mu, adam.nu, gradients
        table, of_table, now = [], [], jnp.int32(0)
        if has_table:
            table, of_table, now = wide(state), [gradients.input, ids, *found], state.optimizer.behind.now
            trees = tuple(tree._replace(input=None) for tree in trees)
        *kept, given = map(jax.tree.leaves, trees)
        changed = [array for triple in zip(*kept, strict=True) for array in triple] + table
        scalars = now, adam.count, finite, *numbers(state, *_of(hyper, rate, rows))
        changed, norm, finite = _learned(changed, scalars, [*given, *of_table])

        end, structure = 3 * len(given), jax.tree.structure(trees[0])
        params, mu, nu = (jax.tree.unflatten(structure, changed[n:end:3]) for n in range(3))
        made = finite.astype(jnp.int32)
        if not has_table:
            return params, adam._replace(count=adam.count + made, mu=mu, nu=nu), norm, finite
        p, m, v, since, drift, shrink = changed[end:]
        adam = adam._replace(count=adam.count + made, mu=mu._replace(input=m), nu=nu._replace(input=v))
        memory = Memory(adam, Behind(since, drift, shrink, now + made))
        return params._replace(input=p), memory, norm, finite

    return Table(read, learn, settle if has_table else lambda state: state)


def _of(hyper: Hyper, rate, rows):
    """What the C code asks of an update, after its constants."""
    return rate, hyper.weight_decay, rows, hyper.clip_value, hyper.clip_global_norm


def _numbers(dtype, *numbers):
    """Each by itself: to make one array of them XLA takes longer than the C code to read them."""
    return [jnp.asarray(number, dtype) for number in numbers]


def _learned(changed, scalars, given):
    """-> what becomes of `changed`, in its place; the norm of the mean gradient; is all finite."""
    results = [_like(array.shape, array.dtype) for array in changed]
    dtype = changed[0].dtype
    results += [_like((), dtype), _like((), jnp.bool_)]
    call = targets.call("learn", dtype, results, {n: n for n in range(len(changed))})
    *changed, norm, done = call(*changed, *scalars, *given)
    return changed, norm, done


def _like(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)
