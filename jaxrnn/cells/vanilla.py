"""The vanilla (Elman) cell, as the notes write it.

    h_t = f(W_xh x_t + W_hh h_{t-1} + b_h)          x [D]   h [H]   W_xh [H, D]   W_hh [H, H]   b_h [H]

Backward, with g_t = dL/dh_t and a_t the gradient at the pre-activation:

    a_t = f'(h_t) * g_t        g_{t-1} += W_hh^T a_t
    dW_hh = sum a_t h_{t-1}^T      dW_xh = sum a_t x_t^T      db_h = sum a_t

Elman 1990, "Finding structure in time".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import activations, initializers
from jaxrnn.projection import project, transpose
from jaxrnn.types import Array, Cell, Split


class Params(NamedTuple):
    W_xh: Array  # [H, D]
    W_hh: Array  # [H, H]
    b_h: Array  # [H]


def vanilla(
    input_size: int,
    hidden_size: int,
    *,
    activation=activations.tanh,
    recurrent_init=None,
    input_init="glorot_uniform",
) -> Cell:
    """One Elman cell. W_hh starts orthogonal, or as the identity for relu (Le et al. 2015), unless it is named."""
    activation = activations.named(activation)
    recurrent = recurrent_init or ("identity" if activation.name == "relu" else "orthogonal")

    def init(key) -> Params:
        key_x, key_h = jax.random.split(key)
        return Params(
            initializers.named(input_init)(key_x, (hidden_size, input_size), jnp.float32),
            initializers.named(recurrent)(key_h, (hidden_size, hidden_size), jnp.float32),
            jnp.zeros(hidden_size),
        )

    def start(params):
        return jnp.zeros(hidden_size, params.W_hh.dtype)

    def step(params, h, x):
        h, _ = advance(params, h, before_loop(params, x))
        return h, h

    def before_loop(params, x):
        return project(params.W_xh, x) + params.b_h

    def advance(params, h, p):
        h = activation.apply(p + h @ params.W_hh.T)
        return h, h

    def pullback(params, h, h_before, g):
        a = activation.slope(h) * g
        return a @ params.W_hh, a

    def after_loop(params, x, h_before, a):
        dW_xh, dx = transpose(params.W_xh, x, a)
        return Params(dW_xh, a.T @ h_before, a.sum(0)), dx

    return Cell("vanilla", init, start, step, lambda h: h, hidden_size,
                Split(before_loop, advance, lambda h: h, pullback, after_loop), activation)  # fmt: skip
