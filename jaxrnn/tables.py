"""From the gradients of a batch to the parameters, and to the table [V, E] of embeddings, of which a batch touches few
rows. Two ways, one signature:

    read(state, ids [T, B], length) -> rows [T, B, E], found                            as they are now
    learn(state, gradients, found, ids, length, rows, rate, hyper, finite)
        -> params, memory, norm of the mean gradient, finite                         unchanged if a number is not finite
    settle(state) -> state                                                              every row brought up to date

`gradients` are sums over the `rows` of the batch, that of the table still dL/dx [T, B, E]; a model without a table has
ids None. `found` is what one way has to tell itself. `fused` is the second in C.

`dense` writes the gradient of the whole table and moves all of it, by any optimizer. `deferred` is Adam at the cost of
the rows touched. A row without gradient still moves under Adam, but along a path that is known: from update s to n

    m -> b1^k m    v -> b2^k v    k = n - s,       p -> d p - q m / (sqrt(v) + e)

    q = sum_{u = s+1 .. n} rate_u c_u (b1 / sqrt b2)^(u - s) d_u       c_u = sqrt(1 - b2^u) / (1 - b1^u)
    d_u = prod_{w = u+1 .. n} (1 - rate_w weight_decay),   d = (1 - rate_{s+1} weight_decay) d_{s+1}

q and d depend on s alone, so they are kept for every s of an epoch [S + 1], and a row is brought up to date when it is
next read. What differs from dense Adam: eps enters with the weight of the first missed update (e), not of each, which
moves p by less than rounding while sqrt(v) is over 1e3 eps; and the order of float sums.

With an axis, the table is this device's share of the rows; ids and gradients of rows go to all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxrnn import optimizers
from jaxrnn.optimizers import Clip
from jaxrnn.types import Array, Hyper, TrainState

WORTH_DEFERRING = 3  # entries of the table for each place of a batch: at 8 gained 2 times, at 0.6 lost 1.4 times


class Table(NamedTuple):
    read: Callable
    learn: Callable
    settle: Callable


class Behind(NamedTuple):
    """Where the rows of a deferred table stand."""

    since: Array  # [V] int32, updates of this epoch that row i has seen
    drift: Array  # [S + 1] q for a row that stands at s
    shrink: Array  # [S + 1] d
    now: Array  # int32, updates of this epoch


class Memory(NamedTuple):
    """Of a deferred optimizer; the table's moments are as old as its rows."""

    adam: optax.ScaleByAdamState
    behind: Behind


def look_up(table: Array, ids: Array, axis: str | None) -> Array:
    """The rows [T, B, E] of ids [T, B]."""
    if axis is None:
        return rows_of(table, ids)
    here = _here(table, ids, axis)
    held = here < len(table)
    return lax.psum_scatter(jnp.where(held[..., None], rows_of(table, jnp.where(held, here, 0)), 0), axis)


def rows_of(table, ids):
    """table[ids] without a check of what the host has checked: it would be one more pass over [T, B, E]."""
    return table.at[ids].get(mode="promise_in_bounds")


def _here(table, ids, axis):
    """The ids of all devices as rows of this one's share, len(table) for those it does not hold."""
    if axis is not None:
        ids = lax.all_gather(ids, axis) - lax.axis_index(axis) * len(table)
    return jnp.where((ids >= 0) & (ids < len(table)), ids, len(table))


def _given(table, ids, length, gradients, axis):
    """-> ids [N] held here, gradients [N, E]. Padding has gradient zero: not worth adding."""
    ids = jnp.where(jnp.arange(len(ids))[:, None] < length, ids, -1)
    rows = gradients if axis is None else lax.all_gather(gradients, axis)
    return _here(table, ids, axis).reshape(-1), rows.reshape(-1, rows.shape[-1])


def summed(array, weight: float = 1.0) -> Array:
    """The sum of all numbers, each times `weight`: a product with a vector, which XLA:CPU runs 4 times as fast as a
    reduction (2,048 x 128: 25 in place of 100 us)."""
    wide = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    return jnp.sum(jnp.matmul(wide, jnp.full(wide.shape[1], weight, wide.dtype), precision=lax.Precision.HIGHEST))


def squares(tree) -> Array:
    """The squared norm of all numbers of a tree."""
    return sum((summed(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)), jnp.float32(0))


def finite_everywhere(tree, axis: str | None) -> Array:
    """Is every number of the tree finite, on every device. The weight keeps a sum of finite numbers finite."""
    found = jnp.isfinite(sum(summed(leaf, 1e-20) for leaf in jax.tree.leaves(tree)))
    return found if axis is None else lax.pmin(found.astype(jnp.int32), axis) == 1


def _learning(collect: Callable, move: Callable, axis: str | None) -> Callable:
    """`learn` in two steps:

    collect(state, found, ids, length, dx) -> gradient of the table (still a sum), found, its squared norm
    move(state, gradients, clip, found, rate, hyper, finite) -> params, memory, finite
    """

    def total(number):
        return number if axis is None else lax.psum(number, axis)

    def learn(state: TrainState, gradients, found, ids, length, rows, rate, hyper: Hyper, finite):
        rest, of_table, square = gradients, None, jnp.float32(0)
        if ids is not None:
            of_table, found, square = collect(state, found, ids, length, gradients.input)
            rest, gradients = gradients._replace(input=None), gradients._replace(input=of_table)

        def limited(clip):
            of_rest, of_rows = (squares(optimizers.limited(tree, clip)) for tree in (rest, of_table))
            return jnp.sqrt(total(of_rows) + of_rest)

        norm = jnp.sqrt(total(square) + squares(rest)) / rows
        clip = optimizers.clipping(hyper, rows, norm, limited)
        *after, finite = move(state, gradients, clip, found, rate, hyper, finite & jnp.isfinite(norm))
        return *after, norm, finite

    return learn


def dense(optimizer: Any, axis: str | None = None) -> Table:
    """The whole table, by any optimizer; also for a model without one."""

    def read(state: TrainState, ids, length):
        return look_up(state.params.input, ids, axis), None

    def collect(state: TrainState, found, ids, length, gradients):
        table = state.params.input
        here, rows = _given(table, ids, length, gradients, axis)
        gradient = jnp.zeros_like(table).at[here].add(rows, mode="drop")
        held = here < len(table)
        products = rows * rows_of(gradient, jnp.where(held, here, 0))
        # sum_i <row_i, gradient[id_i]> is its squared norm: it reads what was touched, not the table
        return gradient, None, summed(jnp.where(held[:, None], products, 0))

    def move(state: TrainState, gradients, clip: Clip, found, rate, hyper: Hyper, finite):
        gradients = optimizers.clipped(gradients, clip)
        updates, memory = optimizer.update(gradients, state.optimizer, state.params)
        params = optimizers.apply(state.params, updates, rate, hyper)
        finite &= finite_everywhere(params, axis)
        return *_chosen(finite, (params, memory), (state.params, state.optimizer)), finite

    return Table(read, _learning(collect, move, axis), lambda state: state)


def _chosen(finite, new, old):
    """One of two trees."""
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)


def deferred(optimizer: optimizers.Adam, axis: str | None = None) -> Table:
    """Adam, the rows of the table brought up to date when they are read; its state is that of `deferring`."""
    b1, b2, eps = optimizer.b1, optimizer.b2, optimizer.eps

    def current(state: TrainState, ids):
        """The rows of ids (any shape; len(table) is filler) and their moments, after all updates so far."""
        (count, mu, nu), behind = state.optimizer
        ids = jnp.minimum(ids, len(state.params.input) - 1)
        p, m, v = (rows_of(table, ids) for table in (state.params.input, mu.input, nu.input))
        since = rows_of(behind.since, ids)
        missed = (behind.now - since)[..., None].astype(p.dtype)
        first = (count - behind.now + since + 1)[..., None].astype(p.dtype)
        e = eps * jnp.sqrt((1 - b2**first) / b2)
        drift, shrink = (rows_of(numbers, since)[..., None] for numbers in (behind.drift, behind.shrink))
        p = jnp.where(missed > 0, shrink * p - drift * m / (jnp.sqrt(v) + e), p)
        return p, b1**missed * m, b2**missed * v

    def read(state: TrainState, ids, length):
        here = _here(state.params.input, ids, axis)
        p, m, v = current(state, here)
        found = tuple(rows.reshape(-1, rows.shape[-1]) for rows in (p, m, v))
        if axis is None:
            return p, found
        held = here < len(state.params.input)
        return lax.psum_scatter(jnp.where(held[..., None], p, 0), axis), found

    def collect(state: TrainState, found, ids, length, gradients):
        """The gradient is [N, E], each id in one place; the others are filler, and `found` ends with the ids [N]."""
        table = state.params.input
        here, rows = _given(table, ids, length, gradients, axis)
        place = jnp.arange(len(here))
        one_of = jnp.zeros(len(table), jnp.int32).at[here].set(place, mode="drop")  # of the places of an id
        its = jnp.where(here < len(table), rows_of(one_of, jnp.minimum(here, len(table) - 1)), len(here))
        gradient = jnp.zeros_like(rows).at[its].add(rows, mode="drop")
        return gradient, (*found, jnp.where(its == place, here, len(table))), squares(gradient)

    def move(state: TrainState, gradients, clip: Clip, found, rate, hyper: Hyper, finite):
        (count, mu, nu), behind = state.optimizer
        params = state.params._replace(input=None)
        memory = optax.ScaleByAdamState(count, mu._replace(input=None), nu._replace(input=None))
        updates, new_memory = optimizer.update(optimizers.clipped(gradients._replace(input=None), clip), memory, params)
        new = optimizers.apply(params, updates, rate, hyper), new_memory
        p, m, v, here = found
        update, m, v = optimizer.one(optimizers.clipped(gradients.input, clip), m, v, new_memory.count)
        (p,) = optimizers.apply((p,), (update,), rate, hyper)

        finite &= finite_everywhere((new[0], p), axis)
        params, memory = _chosen(finite, new, (params, memory))
        at = jnp.where(finite, here, len(state.params.input))

        def written(table, rows):
            return table.at[at].set(rows, mode="drop")

        table, m, v = written(state.params.input, p), written(mu.input, m), written(nu.input, v)
        behind = jax.lax.cond(finite, _next, lambda behind, *_: behind, behind, rate, hyper, new_memory.count)
        behind = behind._replace(since=behind.since.at[at].set(behind.now, mode="drop"))
        adam = optax.ScaleByAdamState(memory.count, memory.mu._replace(input=m), memory.nu._replace(input=v))
        return params._replace(input=table), Memory(adam, behind), finite

    def _next(behind: Behind, rate, hyper, count):
        """After one more update, the `count`-th of Adam."""
        steps = jnp.arange(len(behind.drift))
        keep = 1 - rate * hyper.weight_decay
        c = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        age = behind.now + 1 - steps  # of a row that stands at s, when this update has been made
        more = rate * c * (b1 / b2**0.5) ** jnp.maximum(age, 0)
        drift = jnp.where(age > 0, keep * behind.drift + more, 0)
        return Behind(behind.since, drift, jnp.where(age > 0, keep * behind.shrink, 1), behind.now + 1)

    def settle(state: TrainState):
        adam, behind = state.optimizer
        p, m, v = current(state, jnp.arange(len(state.params.input)))
        adam = adam._replace(mu=adam.mu._replace(input=m), nu=adam.nu._replace(input=v))
        behind = _fresh(behind.since, behind.drift)
        return state._replace(params=state.params._replace(input=p), optimizer=Memory(adam, behind))

    return Table(read, _learning(collect, move, axis), settle)


def _fresh(since, drift):
    return Behind(jnp.zeros_like(since), jnp.zeros_like(drift), jnp.ones_like(drift), jnp.int32(0))


def deferring(optimizer: optimizers.Adam, steps: int) -> Any:
    """The optimizer with a memory that knows where the rows stand, for epochs of so many updates."""

    def init(params):
        return Memory(optimizer.init(params), _fresh(jnp.zeros(len(params.input), jnp.int32), jnp.zeros(steps + 1)))

    return optimizer._replace(init=init)
