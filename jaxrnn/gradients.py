"""The gradient at every state of a few texts, and what one step back makes of it: two loops per layer.

With s_t the state, J_t = ds_t/ds_{t-1}, g_t = dL/ds_t along every path, and e_t its part through the output y_t alone:

    g_t = J_{t+1}^T g_{t+1} + e_t        top_t = max |g_t|        back_t = J_t^T (g_t / top_t), never too small

Arrays are [T, K, B, ...]: T steps, K directions and B texts side by side. XLA:CPU compiles a kernel in 15 ms, so they
are few, and all that needs no gradient is left to `monitor`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import insight
from jaxrnn.types import Array, Cell, Model

SMALLEST = 1e-37  # the floor of top_t: 1 / top_t is a number
SQUARINGS = 10  # ||W^1024||^(1/1024) is within 1 % of the spectral radius of 1,000 units


class Gradients(NamedTuple):
    """Of the K directions of one layer, each in the order in which it reads: what is compiled."""

    grad: Any  # g_t, like the state [T, K, B, ...]
    back: Any  # back_t
    stuck: Array | None  # is the unit saturated, [T, K, B, H] (see `insight.stuck`)
    squares: Array | None  # for the spectral radius of W_hh, [SQUARINGS + 1, K, blocks]


def make(model: Model) -> Callable:
    """gradients(params, xs, target [B]) -> Gradients of every layer.

    `xs` is what the first layer reads: rows of the embedding [T, B, E], or ids of one-hot words [T, B]. The directions
    of a layer are one cell with other parameters: they go through one loop, each in the order in which it reads.
    """
    parts = model.parts

    def gradients(params, xs, target):
        runs, length = [], jnp.full(len(target), len(xs))
        kept = [_kept(ways) for ways in insight.cell_params(parts, params)]
        for (cell, *other), ps in zip(parts.cells, kept, strict=True):
            runs.append(_run(cell, ps, jnp.stack([xs, *(xs[::-1] for _ in other)], 1)))
            xs = _in_order(runs[-1].outputs)

        def summed_loss(ys):  # of the last layer
            end = jnp.concatenate(list(ys[-1]), -1)
            features = parts.head.apply(params.head, end, _in_order(ys), length)
            logits = features @ params.W_hy.T + params.b_y
            return jnp.sum(jax.vmap(partial(insight.loss_of, parts), int(parts.every))(logits, target))

        grad_ys, found = jax.grad(summed_loss)(runs[-1].outputs), []
        for layer in reversed(range(len(runs))):
            here = parts.cells[layer][0], kept[layer], runs[layer]
            found.append(_back(*here, grad_ys))
            if layer:
                grad_xs = _below(*here, found[-1].grad)
                grad_xs = sum(grad_xs[:: -1 if way else 1, way] for way in range(grad_xs.shape[1]))
                (grad_ys,) = jax.vjp(_in_order, runs[layer - 1].outputs)[1](grad_xs)
        return tuple(reversed(found))

    return gradients


def _kept(ways):
    """The parameters of K directions side by side, every W as W^T: in a loop XLA:CPU multiplies h W^T twice as fast
    from it (16 x 128 x 128: 16 in place of 31 us)."""
    return jax.tree.map(lambda *leaves: jnp.stack([leaf.T for leaf in leaves]), *ways)


def _given(kept):
    """As the cell takes them."""
    return jax.tree.map(jax.vmap(jnp.transpose), kept)


def _in_order(ys):
    """[T, K, B, H] in the order of reading -> [T, B, K H] in the order of the text."""
    return jnp.concatenate([ys[:: -1 if way else 1, way] for way in range(ys.shape[1])], -1)


def _run(cell: Cell, kept, xs: Array) -> insight.Pass:
    """K directions of B texts side by side, xs [T, K, B, ...]; so is every array of the Pass."""

    def tick(state, x):
        new, y = jax.vmap(jax.vmap(cell.step, (None, 0, 0)))(_given(kept), state, x)
        return new, (state, new, y)

    start = jax.eval_shape(cell.start, jax.tree.map(lambda p: p[0], _given(kept)))
    start = jax.tree.map(lambda s: jnp.zeros((*xs.shape[1:3], *s.shape), s.dtype), start)
    before, after, ys = lax.scan(tick, start, xs)[1]
    return insight.Pass(xs, before, after, ys, False)


def _back(cell: Cell, kept, run: insight.Pass, grad_ys: Array) -> Gradients:
    """From dL/dy_t through all that reads y_t, [T, K, B, H]."""

    def at_step(params, later, x, before, grad_y):
        state, pull = jax.vjp(lambda state: cell.step(params, state, x)[0], before)
        grad = jax.tree.map(jnp.add, later, jax.vjp(cell.output, state)[1](grad_y)[0])
        top = jnp.maximum(jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(grad)])), SMALLEST)
        (back,) = pull(jax.tree.map(lambda g: g / top, grad))
        return jax.tree.map(lambda b: b * top, back), (grad, back, insight.stuck(cell, params, x, before))

    def tick(later, here):
        return jax.vmap(jax.vmap(at_step, (None, 0, 0, 0, 0)))(_given(kept), later, *here)

    nothing = jax.tree.map(lambda s: jnp.zeros_like(s[0]), run.before)
    grad, back, stuck = lax.scan(tick, nothing, (run.inputs, run.before, grad_ys), reverse=True)[1]
    W_hh = getattr(_given(kept), "W_hh", None)
    return Gradients(grad, back, stuck, None if W_hh is None else squares(W_hh))


def _below(cell: Cell, kept, run: insight.Pass, grad: Any) -> Array:
    """dL/dx_t through each direction of a layer above another, [T, K, B, D]."""

    def at_step(params, x, before, grad):
        return jax.vjp(lambda x: cell.step(params, before, x)[0], x)[1](grad)[0]

    steps = jax.vmap(jax.vmap(jax.vmap(at_step, (None, 0, 0, 0))), (None, 0, 0, 0))
    return steps(_given(kept), run.inputs, run.before, grad)


def squares(W_hh: Array) -> Array:
    """W_hh [K, k H, H] -> s_j^2 of each direction and block, [SQUARINGS + 1, K, k] (see `spectral_radius`)."""
    blocks = W_hh.reshape(len(W_hh), -1, W_hh.shape[2], W_hh.shape[2])
    ones = jnp.ones(W_hh.shape[2], W_hh.dtype)

    def squared(power, _):
        square = jnp.square(power) @ ones @ ones  # a product compiles no kernel, a sum does
        power = power * lax.rsqrt(jnp.maximum(square, SMALLEST))[..., None, None]
        return power @ power, square

    return lax.scan(squared, blocks, None, SQUARINGS + 1)[1]
