"""The reference: `lax.scan` of the cell's own step, differentiated by jax. Works for every cell."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.types import Array, Cell


def scan(cell: Cell, params, xs: Array, length: Array | None = None, *, reverse: bool = False):
    """Carry `cell` over time: xs [T, B, D], length [B] -> (state [B, ...], ys [T, B, H]).

    Without lengths this is `lax.scan(vmap(partial(cell.step, params)), start, xs)` and nothing else.
    """
    T, B = xs.shape[:2]
    rows = jax.vmap(cell.step, in_axes=(None, 0, 0))
    start = jax.tree.map(lambda s: jnp.broadcast_to(s, (B, *s.shape)), cell.start(params))
    length = jnp.full(B, T) if length is None else length

    def tick(state, t_x):
        t, x = t_x
        alive = t < length  # [B]
        x = jnp.where(_like(alive, x), x, 0)  # before the step: a NaN in the padding must not reach a gradient
        new, y = rows(params, state, x)
        state = jax.tree.map(lambda n, s: jnp.where(_like(alive, n), n, s), new, state)
        return state, jnp.where(_like(alive, y), y, 0)

    return lax.scan(tick, start, (jnp.arange(T), xs), reverse=reverse)


def _like(alive, array):
    return alive.reshape(alive.shape + (1,) * (array.ndim - 1))
