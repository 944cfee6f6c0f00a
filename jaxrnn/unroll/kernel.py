"""`bptt` with its loops in C (native/recurrence.c): the same formulas, at the cost of the tokens that exist.

In XLA's loops a product of 64 rows reaches a third of what the processor can do, and every row is computed until the
longest has ended. The kernel keeps the weights packed in the cache, computes at each step only the rows that still
read, and gives each core rows of its own to carry through all time. For the CPU, the cells and the activations below.

The C side takes an H that is a multiple of WIDTH: gates and columns are filled up with zeros here, and cut off again.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jaxrnn import activations, targets
from jaxrnn.errors import ConfigurationError
from jaxrnn.projection import project
from jaxrnn.types import Array, Cell

GATES = {"vanilla": 1, "gru": 3, "lstm": 4}  # H-wide blocks of W_xh; the order is that of recurrence.c
KEPT = {"vanilla": 0, "gru": 4, "lstm": 5}  # H-wide blocks that a step keeps beside h
ACTIVATIONS = ("tanh", "relu", "sigmoid", "softsign", "identity", "leaky_relu", "hard_tanh")  # the order too
WIDTH = 16  # floats of the widest vector


def unfit(cell: Cell) -> str | None:
    """Why this cell cannot be computed by the kernel; None where it can."""
    if cell.name not in GATES or cell.split is None:
        return f"knows the cells {', '.join(GATES)}, not {cell.name!r}"
    name = cell.activation.name if cell.activation else None
    if name not in ACTIVATIONS or cell.activation is not activations.MEMBERS[name]:
        return f"knows the activations {', '.join(ACTIVATIONS)}, not {name!r}"
    return None


def kernel(cell: Cell, params, xs: Array, length: Array | None = None, *, reverse: bool = False):
    """The answer and the gradients of `scan`, in C: xs [T, B, D] float32, length [B] -> (state [B, ...], ys [T, B, H]).

    Raises ConfigurationError for a cell or numbers that it cannot compute, and where the C code has not been loaded,
    ValueError for shapes that do not fit. An infinite input may be answered with NaN where `scan` saturates.
    """
    reason = unfit(cell)
    if reason is None and str(params.W_hh.dtype) not in targets.dtypes():
        loaded = " and ".join(targets.dtypes()) or "nothing yet (jaxrnn.foreign.load())"
        reason = f"is loaded for {loaded}, not for {params.W_hh.dtype}"
    if reason:
        raise ConfigurationError(f"unroll=kernel {reason}; use unroll=bptt, or unroll=scan for any cell")
    T, B = xs.shape[:2]
    words = jnp.issubdtype(xs.dtype, jnp.integer)
    wide = B if length is None else len(length), None if words else xs.shape[2]
    if wide != (B, None if words else params.W_xh.shape[1]):
        raise ValueError(f"unroll=kernel: xs {xs.shape} and length ({wide[0]},) do not fit W_xh {params.W_xh.shape}")
    H, gates = cell.output_size, GATES[cell.name]
    full = H + -H % WIDTH

    def blocks(array):
        """[..., gates * H] -> [..., gates * full]"""
        wide = array.reshape(*array.shape[:-1], gates, H)
        return _filled(wide, full).reshape(*array.shape[:-1], gates * full)

    if words:  # a product with one-hot vectors is a gather: no work for the kernel
        x, W_xh = blocks(project(params.W_xh, xs) + params.b_h), jnp.zeros((gates * full, 0), params.W_hh.dtype)
    else:
        x, W_xh = xs.astype(params.W_hh.dtype), blocks(params.W_xh.T).T
    W_hh = blocks(_filled(params.W_hh, full).T).T
    b_q = _filled(params.b_hn, full) if cell.name == "gru" else jnp.zeros(full, params.W_hh.dtype)
    length = jnp.full(B, T, jnp.int32) if length is None else length.astype(jnp.int32)
    what = (cell.name, cell.activation.name, reverse)
    state, c, ys = _run(what, x, length, W_xh, W_hh, blocks(params.b_h), b_q)
    state, ys = state[:, :H], ys[..., :H]
    return (cell.start(params)._replace(h=state, c=c[:, :H]) if cell.name == "lstm" else state), ys


def _filled(array, size):
    """The last axis filled up with zeros."""
    more = size - array.shape[-1]
    return jnp.pad(array, ((0, 0),) * (array.ndim - 1) + ((0, more),)) if more else array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(what, x, length, W_xh, W_hh, b, b_q):
    return _forward(what, x, length, W_xh, W_hh, b, b_q)[:3]


def _forward(what, x, length, W_xh, W_hh, b, b_q):
    """-> state [B, H], cell state [B, H] (LSTM), ys [T, B, H], kept [T, B, KEPT * H]"""
    (T, B), H = x.shape[:2], W_hh.shape[1]
    c = H if what[0] == "lstm" else 0
    shapes = (T, B, H), (B, H), (T, B, KEPT[what[0]] * H), (B, c)
    ys, state, kept, c = _call("forward", x.dtype, shapes)(_settings(what), x, length, W_xh, W_hh, b, b_q)
    return state, c, ys, kept


def _run_forward(what, *arguments):
    values = [argument.value for argument in arguments]
    state, c, ys, kept = _forward(what, *values)
    return (state, c, ys), (*values, ys, kept)


def _run_backward(what, saved, gradients):
    x, length, W_xh, W_hh, b, b_q, ys, kept = saved
    read = not isinstance(gradients[2], SymbolicZero)
    nothing = jnp.zeros(0, ys.dtype)
    g_state, g_cell = (jnp.zeros(g.shape, g.dtype) if isinstance(g, SymbolicZero) else g for g in gradients[:2])
    backward = _call("backward", x.dtype, [a.shape for a in (x, W_xh, W_hh, b, b_q)])
    dx, *rest = backward(_settings(what, read), x, length, W_xh, W_hh, b, b_q, ys, kept, g_state, g_cell,
                         gradients[2] if read else nothing)  # fmt: skip
    return dx, None, *rest


_run.defvjp(_run_forward, _run_backward, symbolic_zeros=True)


def _call(name, dtype, shapes) -> Callable:
    return targets.call(name, dtype, [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes])


def _settings(what, reads_ys=False):
    cell, activation, reverse = what
    return np.array([list(GATES).index(cell), ACTIVATIONS.index(activation), reverse, reads_ys], np.int32)
