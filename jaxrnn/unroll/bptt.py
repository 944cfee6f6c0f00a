"""Backpropagation through time by hand, for every cell that gives its `Split`.

Autodiff of a scan adds a_t h_{t-1}^T to a carried [H, H] sum at every step: T products of inner length B. Here the
reverse loop only finds a_t, and the weight gradients are one product of inner length K * B per chunk of K steps:

    forward    p = W_xh x + b for a chunk       then  h_t = f(p_t + W_hh h_{t-1})         step by step
    backward   a_t = f'(h_t) * g_t,  g_{t-1} += W_hh^T a_t   step by step,  then  dW_hh += A^T H,  dW_xh += A^T X

Both loops stop at the longest real length of the batch, a value and not a shape: nothing has to differentiate the
loop, so one compiled program serves every length. Chunks of about CHUNK_ROWS rows keep p and a in the cache.
Rumelhart, Hinton and Williams 1986; Werbos 1990.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxrnn.errors import ConfigurationError
from jaxrnn.types import Array, Cell

CHUNK_ROWS = 1024  # K * B: large enough for a fast product, small enough that [K * B, 4 * 256] floats stay in 4 MB


def bptt(cell: Cell, params, xs: Array, length: Array | None = None, *, reverse: bool = False):
    """The answer and the gradients of `scan`, faster: xs [T, B, D], length [B] -> (state [B, ...], ys [T, B, H]).

    Raises ConfigurationError for a cell that does not give its split.
    """
    check(cell)
    return _unroll(cell, reverse, params, xs, length)


def check(cell: Cell) -> None:
    """ConfigurationError for a cell that does not give its split."""
    if cell.split is None:
        raise ConfigurationError(f"unroll=bptt needs a cell with a hand-derived pullback, {cell.name!r} has none; "
                                 "use unroll=scan")  # fmt: skip


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _unroll(cell, reverse, params, xs, length):
    state, ys, _ = _forward(cell, reverse, params, xs, length)
    return state, ys


def _forward(cell, reverse, params, xs, length):
    """-> state [B, ...], ys [T, B, H], kept [T + 1, B, ...] with the zero start before (or, reversed, after) step t."""
    split = cell.split
    T, B = xs.shape[:2]
    start = _start(cell, params, B)
    kept_shape = jax.eval_shape(lambda: split.advance(params, start, split.before_loop(params, xs[0]))[1])
    kept = jax.tree.map(lambda k: jnp.zeros((T + 1, *k.shape), k.dtype), kept_shape)
    here = 0 if reverse else 1  # kept[t + here] belongs to step t, kept[t + 1 - here] to the step read before it

    def chunk(begin, window, carry):
        p = split.before_loop(params, lax.dynamic_slice_in_dim(xs, begin, window, 0))

        def tick(t, carry):
            state, kept = carry
            new, new_kept = split.advance(params, state, _at(p, t - begin))
            if length is not None:
                state, new_kept = _alive(t, length, (new, new_kept), (state, None))
            else:
                state = new
            return state, jax.tree.map(lambda k, n: _put(k, t + here, n), kept, new_kept)

        return tick, carry

    state, kept = _over_time(chunk, (start, kept), T, B, length, backwards=reverse)
    ys = cell.output(split.state(jax.tree.map(lambda k: k[here : here + T], kept)))
    return state, ys, kept


def _unroll_forward(cell, reverse, params, xs, length):
    saved = jax.tree.map(lambda a: a.value, (params, xs, length), is_leaf=lambda a: hasattr(a, "perturbed"))
    params, xs, length = saved
    state, ys, kept = _forward(cell, reverse, params, xs, length)
    return (state, ys), (params, xs, length, kept)


def _unroll_backward(cell, reverse, saved, gradients):
    params, xs, length, kept = saved
    split = cell.split
    T, B = xs.shape[:2]
    grad_state, grad_ys = gradients
    grad_state = jax.tree.map(_instantiate, grad_state, is_leaf=lambda g: isinstance(g, SymbolicZero))
    here = 0 if reverse else 1
    into_state = jax.linear_transpose(cell.output, _start(cell, params, B))
    a_shape = jax.eval_shape(lambda: _pullback(split, params, kept, 0, here, grad_state)[1])
    grads = jax.tree.map(jnp.zeros_like, params)
    integers = jnp.issubdtype(xs.dtype, jnp.integer)
    grad_xs = None if integers else jnp.zeros_like(xs)

    def chunk(begin, window, carry):
        grad_state, grads, grad_xs = carry

        def tick(t, carry):
            grad_state, a = carry
            grad = grad_state
            if not isinstance(grad_ys, SymbolicZero):
                grad = jax.tree.map(jnp.add, grad_state, *into_state(_at(grad_ys, t)))
            before, a_t = _pullback(split, params, kept, t, here, grad)
            if length is not None:
                before, a_t = _alive(t, length, (before, a_t), (grad_state, None))
            return before, _put(a, t - begin, a_t)

        def after(carry):
            grad_state, a = carry
            x = lax.dynamic_slice_in_dim(xs, begin, window, 0)
            if length is not None and not integers:
                real = (begin + jnp.arange(window))[:, None] < length
                x = jnp.where(real[:, :, None], x, 0)
            before = split.state(jax.tree.map(lambda k: lax.dynamic_slice_in_dim(k, begin + 1 - here, window, 0), kept))
            flat = jax.tree.map(lambda v: v.reshape(window * B, *v.shape[2:]), (x, before, a))
            more, dx = split.after_loop(params, *flat)
            summed = jax.tree.map(jnp.add, grads, more)
            if integers:
                return grad_state, summed, None
            # steps outside this chunk have a = 0, so dx is 0 there and adding is exact where the last chunk overlaps
            old = lax.dynamic_slice_in_dim(grad_xs, begin, window, 0)
            return grad_state, summed, lax.dynamic_update_slice_in_dim(grad_xs, old + dx.reshape(x.shape), begin, 0)

        return tick, (grad_state, jnp.zeros((window, *a_shape.shape), a_shape.dtype)), after

    carry = _over_time(chunk, (grad_state, grads, grad_xs), T, B, length, backwards=not reverse)
    _, grads, grad_xs = carry
    return grads, grad_xs, None


_unroll.defvjp(_unroll_forward, _unroll_backward, symbolic_zeros=True)


def _over_time(chunk, carry, T, B, length, *, backwards):
    """Run `chunk(begin, window, carry) -> tick, carry[, after]` over chunks of time, each tick inside, last step first
    when `backwards`. Only the steps that some row really has are visited."""
    window = min(T, max(1, CHUNK_ROWS // B))
    steps = T if length is None else jnp.clip(_longest(length), 0, T)
    chunks = -(-T // window) if length is None else (steps + window - 1) // window

    def one(i, carry):
        index = chunks - 1 - i if backwards and window < T else i
        first = index * window
        last = jnp.minimum(first + window, steps)
        tick, inner, *after = chunk(jnp.minimum(first, T - window), window, carry)

        def visit(i, inner):
            return tick(first + last - 1 - i if backwards else i, inner)

        inner = lax.fori_loop(first, last, visit, inner)
        return after[0](inner) if after else inner

    return one(0, carry) if window == T else lax.fori_loop(0, chunks, one, carry)


@jax.custom_batching.custom_vmap
def _longest(length):
    return jnp.max(length)


@_longest.def_vmap
def _longest_of_all(size, batched, length):
    """Of several networks side by side the same bound: to stop one loop by itself, XLA would choose between the old
    and the new array of all its steps, at every step."""
    return _longest(length.reshape(-1)), False


def _pullback(split, params, kept, t, here, grad_state):
    at = jax.tree.map(lambda k: _at(k, t + here), kept)
    before = split.state(jax.tree.map(lambda k: _at(k, t + 1 - here), kept))
    return split.pullback(params, at, before, grad_state)


def _at(array, t):
    """array[t]. jnp's own indexing wraps negative numbers and checks bounds: three more kernels in a loop of five,
    and past eight XLA's CPU backend hands every step to its thread pool."""
    return lax.dynamic_index_in_dim(array, t, 0, keepdims=False, allow_negative_indices=False)


def _put(array, t, value):
    return lax.dynamic_update_index_in_dim(array, value, t, 0, allow_negative_indices=False)


def _start(cell, params, B):
    return jax.tree.map(lambda s: jnp.broadcast_to(s, (B, *s.shape)), cell.start(params))


def _instantiate(gradient):
    return jnp.zeros(gradient.shape, gradient.dtype) if isinstance(gradient, SymbolicZero) else gradient


def _alive(t, length, new, old):
    """Rows that are still reading at step t take `new` = (carry, emitted); the others keep their carry and emit 0."""
    alive = (t < length)[:, None]
    carry = jax.tree.map(lambda n, o: jnp.where(alive, n, o), new[0], old[0])
    return carry, jax.tree.map(lambda n: jnp.where(alive, n, 0), new[1])
