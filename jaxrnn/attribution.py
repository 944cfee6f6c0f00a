"""Which words an answer rests on, by three methods that need not agree; F(text) = ln p of a label.

    leave one out           F(text) - F(text without word t)
    gradient x input        x_t . dF/dx_t
    integrated gradients    (x_t - b_t) . int_0^1 dF/dx_t (b + a (x - b)) da,  b = 0: a text of words without features

Integrated gradients are complete: they sum to F(text) - F(b), up to the error of the integral, which is given; the
nodes (Gauss-Legendre) grow until it is below TOLERANCE. Where a long text explodes they never are enough: `complete`
says so, and the numbers mean nothing. One-hot words are vectors of V numbers here.
Sundararajan, Taly and Yan 2017, "Axiomatic attribution for deep networks".
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn.insight import forward, look_up, loss_of, taps
from jaxrnn.types import Array, Batch, Model

TOLERANCE = 5e-4
NODES = (16, 64, 256)
LARGEST = 20_000_000  # numbers in the inputs of one text, [T, D]
LONGEST = 1024  # steps: leaving each word out reads the text once per word


class Attribution(NamedTuple):
    leave_one_out: np.ndarray  # [T]
    gradient_input: np.ndarray
    integrated: np.ndarray
    completeness_error: float  # |sum - (F(text) - F(b))|
    complete: bool  # the error is below TOLERANCE, alone or as a share of F(text) - F(b)


def attributions(model: Model, params, tokens: Array, target: Array) -> Attribution | None:
    """For the text tokens [T] and its target, as in `insight.trace`; None for a text too long or too wide."""
    width = model.parts.one_hot or params.input.shape[1]
    if len(tokens) > LONGEST or len(tokens) * width > LARGEST:
        return None
    for nodes in NODES:
        plain, integrated, error, change = _gradients(model.parts, nodes, params, tokens, target)
        complete = bool(error <= TOLERANCE * max(1.0, abs(change)))
        if complete:
            break
    left = _leave_one_out(model, params, tokens, target)
    return Attribution(np.asarray(left), np.asarray(plain), np.asarray(integrated), float(error), complete)


@partial(jax.jit, static_argnums=(0, 1))
def _gradients(parts, nodes, params, tokens, target):
    xs = look_up(parts, params, tokens)
    xs = jax.nn.one_hot(xs, parts.one_hot) if parts.one_hot else xs
    tap = taps(parts, params, len(tokens))
    place, share = (jnp.asarray(part, xs.dtype) for part in np.polynomial.legendre.leggauss(nodes))  # on -1 to 1

    def score(x):
        return -loss_of(parts, forward(parts, params, x, tap)[0], target)

    slope = jax.grad(score)

    def add(total, here):
        a, w = here
        return total + w * slope(a * xs), None

    mean, _ = lax.scan(add, jnp.zeros_like(xs), ((place + 1) / 2, share / 2))
    integrated = jnp.sum(xs * mean, -1)
    change = score(xs) - score(jnp.zeros_like(xs))
    return jnp.sum(xs * slope(xs), -1), integrated, jnp.abs(jnp.sum(integrated) - change), change


@partial(jax.jit, static_argnums=0)
def _leave_one_out(model, params, tokens, target):
    T = len(tokens)

    def score(tokens, target, length):
        batch = Batch(tokens[None], length[None], target[None], jnp.ones(1))
        return -model.loss(params, batch)[0]

    def without(t):
        at = jnp.arange(T)
        kept = jnp.minimum(jnp.where(at < t, at, at + 1), T - 1)
        return score(tokens[kept], target[kept] if model.parts.every else target, jnp.array(T - 1))

    return score(tokens, target, jnp.array(T)) - lax.map(without, jnp.arange(T), batch_size=64)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's: the correlation of the ranks, equal numbers sharing theirs; None where one has no order.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    ranks = []
    for values in (one, other):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    spread = [rank - rank.mean() for rank in ranks]
    scale = np.sqrt((spread[0] ** 2).sum() * (spread[1] ** 2).sum())
    return None if scale == 0 else float((spread[0] * spread[1]).sum() / scale)
