"""What becomes of the outputs of a sequence: name(size) -> Head. Padding is invisible to each of them.

    last       y at the last real step (bidirectional: the last of each direction)
    mean       (1 / length) sum_t y_t                    max    max_t y_t, elementwise
    attention  sum_t alpha_t y_t, alpha = softmax_t(w . tanh(W_a y_t + b_a))       Yang et al. 2016, without context
    every      y_t: one answer per step

A text of length zero has features zero. `tick` gives the answer after each step of a stream.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import initializers
from jaxrnn.errors import ConfigurationError, unknown
from jaxrnn.types import Array, Head


def _real(ys, length):
    return (jnp.arange(ys.shape[0])[:, None] < length)[:, :, None]  # [T, B, 1]


def _empty(params):
    return ()


def last(size: int) -> Head:
    return Head(_empty, lambda params, end, ys, length: end, _empty, lambda params, state, y: (state, y), size)


def every(size: int) -> Head:
    return Head(_empty, lambda params, end, ys, length: ys, _empty, lambda params, state, y: (state, y), size)


def mean(size: int) -> Head:
    def apply(params, end, ys, length):
        return jnp.sum(jnp.where(_real(ys, length), ys, 0), 0) / jnp.maximum(length, 1)[:, None].astype(ys.dtype)

    def tick(params, state, y):
        total, count = state[0] + y, state[1] + 1
        return (total, count), total / count

    return Head(_empty, apply, lambda params: (jnp.zeros(size), 0), tick, size)


def max(size: int) -> Head:
    def apply(params, end, ys, length):
        highest = jnp.max(jnp.where(_real(ys, length), ys, -jnp.inf), 0)
        return jnp.where((length > 0)[:, None], highest, 0)

    def tick(params, highest, y):
        highest = jnp.maximum(highest, y)
        return highest, highest

    return Head(_empty, apply, lambda params: jnp.full(size, -jnp.inf), tick, size)


class Attention(NamedTuple):
    W_a: Array  # [K, K]
    b_a: Array  # [K]
    w: Array  # [K]


def attention(size: int) -> Head:
    def init(key):
        key_a, key_w = jax.random.split(key)
        W_a = initializers.named("glorot_uniform")(key_a, (size, size), jnp.float32)
        return Attention(W_a, jnp.zeros(size), initializers.named("glorot_uniform")(key_w, (1, size), jnp.float32)[0])

    def score(params, ys):
        return jnp.tanh(ys @ params.W_a.T + params.b_a) @ params.w

    def apply(params, end, ys, length):
        real = _real(ys, length)
        ys = jnp.where(real, ys, 0)
        scores = jnp.where(real[:, :, 0], score(params, ys), -1e30)  # finite: a text of length zero divides by T, not 0
        alpha = jax.nn.softmax(scores, axis=0)
        return jnp.sum(alpha[:, :, None] * ys, 0)

    def tick(params, state, y):  # a running softmax: the largest score so far, the weights and the sum relative to it
        top, weight, total = state
        s = score(params, y)
        new_top = jnp.maximum(top, s)
        old, new = jnp.exp(top - new_top), jnp.exp(s - new_top)
        weight, total = weight * old + new, total * old + new * y
        return (new_top, weight, total), total / weight

    return Head(init, apply, lambda params: (-jnp.inf, jnp.zeros(()), jnp.zeros(size)), tick, size)


MEMBERS = {head.__name__: head for head in (last, mean, max, attention, every)}


def named(name: str):
    """The head of that name; ConfigurationError lists the known ones."""
    if name not in MEMBERS:
        raise ConfigurationError(unknown("head", name, MEMBERS))
    return MEMBERS[name]
