"""What a network does with one text, step by step: states forward, gradients backward, each step's share of dL/dW.

Every state is tapped: s_t = step(params, s_{t-1}, x_t) + tap_t with tap_t = 0, so that dL/dtap_t = dL/ds_t, along every
path, for any cell, direction, number of layers and head. The share of step t in a parameter's gradient is the pullback
of that one step, with the states as they were:

    (dL/dW)_t = (ds_t / dW with s_{t-1} fixed)^T dL/ds_t          dL/dW = sum_t (dL/dW)_t

For the vanilla cell this is delta_t h_{t-1}^T, delta_t x_t^T and delta_t, with delta_t = f'(h_t) * dL/dh_t. In every
cell the share in b_h is the gradient at the pre-activation, and goes by the name delta.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn.projection import project
from jaxrnn.types import Array, Batch, Cell, Model, Parts

DIRECTIONS = ("left to right", "right to left")
SATURATED = 0.1  # a unit whose output moves by less than this per unit of pre-activation


class Pass(NamedTuple):
    """One cell carried over one text; T steps in the order of the text, whichever way it was read."""

    inputs: Array  # [T, D], or [T] integers that name one-hot vectors
    before: Any  # the state that step t started from, [T, ...]
    after: Any
    outputs: Array  # y_t, [T, H]
    reverse: bool


class Shares(NamedTuple):
    """What each step adds to the gradients of the cell's parameters."""

    grad_state: Array  # ||dL/dy_t||, all paths, [T]
    delta: Array | None  # the step's share in dL/db_h, [T, G]
    norms: Any  # like the parameters: the norm of the step's share, [T]
    total: Any  # like the parameters: the sum over all steps
    saturation: Array | None  # share of units with slope below SATURATED, [T]


class Trace(NamedTuple):
    """`passes` and `shares` are tuples of tuples: layers, then directions."""

    logits: Array  # [C], or [T, C]
    loss: Array  # -ln p of the target, mean over steps where there is one answer per step
    passes: tuple[tuple[Pass, ...], ...]
    shares: tuple[tuple[Shares, ...], ...]
    error: Array  # largest difference of a sum of shares from autodiff's gradient, over that gradient's largest number


def look_up(parts: Parts, params, tokens: Array) -> Array:
    """What the first layer reads: rows of the embedding [T, D], or the ids themselves of one-hot words [T]."""
    return tokens if parts.one_hot else params.input[tokens]


def each(function, *trees):
    """`function` of every (layer, direction) of tuples of tuples."""
    return tuple(tuple(map(function, *rows)) for rows in zip(*trees, strict=True))


def cell_params(parts: Parts, params):
    """The parameters of every cell, as layers of directions."""
    return tuple(p if len(cells) == 2 else (p,) for cells, p in zip(parts.cells, params.layers, strict=True))


def taps(parts: Parts, params, steps: int):
    """Zeros of the shape of every state of every step."""

    def zeros(cell, p):
        start = jax.eval_shape(cell.start, p)
        return jax.tree.map(lambda s: jnp.zeros((steps, *s.shape), s.dtype), start)

    return each(zeros, parts.cells, cell_params(parts, params))


def forward(parts: Parts, params, xs: Array, tap) -> tuple[Array, tuple[tuple[Pass, ...], ...]]:
    """xs [T, ...] -> logits [C] or [T, C], and every pass on the way."""
    passes, end = [], jnp.zeros(0)
    for cells, ps, ts in zip(parts.cells, cell_params(parts, params), tap, strict=True):
        ways = enumerate(zip(cells, ps, ts, strict=True))
        row = tuple(carried(cell, p, xs, t, bool(way)) for way, (cell, p, t) in ways)
        passes.append(row)
        xs = jnp.concatenate([one.outputs for one in row], -1)
        end = jnp.concatenate([one.outputs[0 if one.reverse else -1] for one in row], -1)
    features = parts.head.apply(params.head, end[None], xs[:, None], jnp.array([len(xs)]))
    logits = features @ params.W_hy.T + params.b_y
    return (logits[:, 0] if parts.every else logits[0]), tuple(passes)


def carried(cell: Cell, params, xs: Array, tap=None, reverse: bool = False) -> Pass:
    """One cell over the inputs xs [T, ...] of one text; `tap` is added to its states, nothing by default."""
    if tap is None:
        tap = jax.tree.map(lambda s: jnp.zeros((len(xs), *s.shape), s.dtype), cell.start(params))

    def tick(state, here):
        x, zero = here
        new = jax.tree.map(jnp.add, cell.step(params, state, x)[0], zero)
        return new, (state, new, cell.output(new))

    _, (before, after, ys) = lax.scan(tick, cell.start(params), (xs, tap), reverse=reverse)
    return Pass(xs, before, after, ys, reverse)


def loss_of(parts: Parts, logits: Array, target: Array) -> Array:
    """-ln p of the target, a class or one class per step."""
    return jnp.mean(parts.output.loss(logits, target))


@partial(jax.jit, static_argnums=0)
def trace(model: Model, params, tokens: Array, target: Array) -> Trace:
    """Everything about the text tokens [T], T > 0, and its target: a class, or one class per step for head=every."""
    parts = model.parts

    def tapped(tap):
        logits, passes = forward(parts, params, look_up(parts, params, tokens), tap)
        return loss_of(parts, logits, target), (logits, passes)

    zero = taps(parts, params, len(tokens))
    (loss, (logits, passes)), grad_states = jax.value_and_grad(tapped, has_aux=True)(zero)
    shares = each(step_shares, parts.cells, cell_params(parts, params), passes, grad_states)
    batch = Batch(tokens[None], jnp.array([len(tokens)]), target[None], jnp.ones(1))
    autodiff = jax.grad(lambda p: model.loss(p, batch)[0])(params)
    sums = each(lambda share: share.total, shares)
    return Trace(logits, loss, passes, shares, _difference(sums, cell_params(parts, autodiff)))


def step_shares(cell: Cell, params, run: Pass, grad_state) -> Shares:
    """The pullback of every step by itself, at the states of the run; grad_state is dL/ds_t, [T, ...]."""

    def share(total, here):
        x, before, grad = here
        _, pull = jax.vjp(lambda p: cell.step(p, before, x)[0], params)
        (mine,) = pull(grad)
        norms = jax.tree.map(jnp.linalg.norm, mine)
        return jax.tree.map(jnp.add, total, mine), (norms, _bias(mine), saturation(cell, params, x, before))

    nothing = jax.tree.map(jnp.zeros_like, params)
    total, (norms, delta, stiff) = lax.scan(share, nothing, (run.inputs, run.before, grad_state))
    return Shares(jnp.linalg.norm(cell.output(grad_state), axis=-1), delta, norms, total, stiff)


def _bias(tree):
    """The entry of b_h: a bias is added to the pre-activation, so its gradient is the gradient there."""
    return getattr(tree, "b_h", None)


def stuck(cell: Cell, params, x: Array, before) -> Array | None:
    """Of each unit [H]: does its output hardly answer to any of its pre-activations, in one step from a state.

    For the vanilla cell |f'(h)| < SATURATED. None for a cell without a bias b_h of whole gates.
    """
    y, pull = jax.vjp(lambda p: cell.step(p, before, x)[1], params)
    slope = _bias(pull(jnp.ones_like(y))[0])
    if slope is None or slope.shape[0] % cell.output_size:
        return None
    return jnp.sum(jnp.abs(slope.reshape(-1, cell.output_size)), 0) < SATURATED


def saturation(cell: Cell, params, x: Array, before) -> Array | None:
    """The share of units that are stuck."""
    units = stuck(cell, params, x, before)
    return None if units is None else jnp.mean(units)


def _difference(got, expected) -> Array:
    worst = [jnp.max(jnp.abs(g - e)) / jnp.maximum(jnp.max(jnp.abs(e)), 1e-30)
             for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)]  # fmt: skip
    return jnp.max(jnp.stack(worst))


def products(params, run: Pass) -> tuple[Array | None, Array | None]:
    """W_xh x_t and W_hh h_{t-1} of every step, [T, G] each; None for a cell without such a matrix."""
    W_xh, W_hh = getattr(params, "W_xh", None), getattr(params, "W_hh", None)
    before = getattr(run.before, "h", run.before)
    return (None if W_xh is None else project(W_xh, run.inputs)), (None if W_hh is None else project(W_hh, before))


@partial(jax.jit, static_argnums=0)
def so_far(model: Model, params, tokens: Array) -> Array:
    """The logits after each step, as if the text ended there, [T, C].

    One direction: the model's own `step`, once along the text. Two: a pass over every beginning of the text.
    """
    if len(model.parts.cells[0]) == 1:
        return lax.scan(lambda state, token: model.step(params, state, token), model.start(params), tokens)[1]

    def beginning(t):
        batch = Batch(tokens[None], t[None], jnp.zeros(1, jnp.int32), jnp.ones(1))
        logits = model.apply(params, batch)[0]
        return logits[t - 1] if model.parts.every else logits

    return lax.map(beginning, jnp.arange(1, len(tokens) + 1), batch_size=64)
