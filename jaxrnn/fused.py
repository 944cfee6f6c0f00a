"""`learn` of `tables` as one call in C (native/adam.c): the norm, the clips and Adam for all parameters, in place.

XLA's way with a deferred table gathers, brings up to date and scatters a row for every place of the padded batch, some
twenty passes over [T, B, E], and needs five small kernels for each other array. Here the work is that of the ids in the
batch: each row is read once, its gradients are added up once. For one device, a CPU.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import optimizers, tables, targets
from jaxrnn.tables import Behind, Memory, Table
from jaxrnn.types import Hyper, TrainState


def adam(optimizer: optimizers.Adam, has_table: bool) -> Table:
    """For a model with a table its state is that of `tables.deferring`, and it settles as `tables.deferred` does."""
    constants = np.array([optimizer.b1, optimizer.b2, optimizer.eps], np.float32)

    def numbers(state, *more):
        dtype = state.params.W_hy.dtype
        return jnp.concatenate([constants.astype(dtype), jnp.stack(more).astype(dtype)]) if more else constants

    def held(state):
        (count, mu, nu), behind = state.optimizer
        return (state.params.input, mu.input, nu.input, behind.since, behind.drift, behind.shrink), behind.now, count

    def read(state: TrainState, ids, length):
        arrays, now, count = held(state)
        table = arrays[0]
        places = [jax.ShapeDtypeStruct((n,), jnp.int32) for n in (ids.size, ids.size + 1, 1)]
        results = [jax.ShapeDtypeStruct((*ids.shape, table.shape[1]), table.dtype), *places]
        x, *found = targets.call("read", table.dtype, results)(
            *arrays, jnp.stack([now, count]), constants.astype(table.dtype), ids, length
        )
        return x, found

    def learn(state: TrainState, gradients, found, ids, length, rows, rate, hyper: Hyper, finite):
        memory, arrays, now, of_table = state.optimizer, (), jnp.int32(0), ()
        params = state.params
        if has_table:
            arrays, now, _ = held(state)
            memory, of_table = state.optimizer.adam, (gradients.input, ids, *found)
            params, gradients = params._replace(input=None), gradients._replace(input=None)
            memory = memory._replace(mu=memory.mu._replace(input=None), nu=memory.nu._replace(input=None))
        leaves, tree = jax.tree.flatten(params)
        triples = zip(leaves, jax.tree.leaves(memory.mu), jax.tree.leaves(memory.nu), strict=True)
        changed = [array for triple in triples for array in triple] + list(arrays)
        dtype = params.W_hy.dtype
        results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in changed]
        results += [jax.ShapeDtypeStruct((1,), dtype), jax.ShapeDtypeStruct((1,), jnp.int32)]
        counts = jnp.stack([now, memory.count, finite.astype(jnp.int32)])
        limits = hyper.clip_value, hyper.clip_global_norm
        *changed, norm, finite = targets.call("learn", dtype, results, {n: n for n in range(len(changed))})(
            *changed, counts, numbers(state, rate, hyper.weight_decay, rows, *limits), *jax.tree.leaves(gradients),
            *of_table,
        )  # fmt: skip
        wide = changed[3 * len(leaves) :]
        params, mu, nu = (jax.tree.unflatten(tree, changed[n : 3 * len(leaves) : 3]) for n in range(3))
        memory = memory._replace(count=memory.count + finite[0], mu=mu, nu=nu)
        if has_table:
            table, m, v, since, drift, shrink = wide
            params = params._replace(input=table)
            memory = memory._replace(mu=mu._replace(input=m), nu=nu._replace(input=v))
            memory = Memory(memory, Behind(since, drift, shrink, now + finite[0]))
        return params, memory, norm[0], finite[0] == 1

    return Table(read, learn, tables.deferred(optimizer).settle if has_table else lambda state: state)
