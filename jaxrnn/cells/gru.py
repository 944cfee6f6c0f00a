"""The gated recurrent unit, reset gate after the recurrent product (the form of cuDNN and PyTorch).

    r, z = sigmoid(W_x x + U_h h + b)            q = U_n h + b_hn         [H] each
    n = f(W_n x + b_n + r * q)                   h' = (1 - z) * n + z * h

The rows of W_xh [3H, D], W_hh [3H, H] and b_h [3H] are r, z, n. Backward, with g = dL/dh':

    a_n = g (1 - z) f'(n)    a_z = g (h - n) z (1 - z)    a_q = a_n r    a_r = a_n q r (1 - r)
    dL/dh = g z + W_hh^T [a_r, a_z, a_q]

Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import activations, initializers
from jaxrnn.projection import project, transpose
from jaxrnn.types import Array, Cell, Split


class Params(NamedTuple):
    W_xh: Array  # [3H, D], rows r, z, n
    W_hh: Array  # [3H, H]
    b_h: Array  # [3H]
    b_hn: Array  # [H], inside the reset product


class Kept(NamedTuple):
    h: Array
    r: Array
    z: Array
    n: Array
    q: Array


def gru(
    input_size: int,
    hidden_size: int,
    *,
    activation=activations.tanh,
    recurrent_init="orthogonal",
    input_init="glorot_uniform",
) -> Cell:
    """One GRU; each gate's block of W_hh is drawn on its own."""
    H, activation = hidden_size, activations.named(activation)

    def init(key) -> Params:
        key_x, key_h = jax.random.split(key)
        return Params(
            initializers.gates(initializers.named(input_init), key_x, 3, H, input_size),
            initializers.gates(initializers.named(recurrent_init or "orthogonal"), key_h, 3, H, H),
            jnp.zeros(3 * H),
            jnp.zeros(H),
        )

    def start(params):
        return jnp.zeros(H, params.W_hh.dtype)

    def step(params, h, x):
        h, _ = advance(params, h, before_loop(params, x))
        return h, h

    def before_loop(params, x):
        return project(params.W_xh, x) + params.b_h

    def advance(params, h, p):
        u = h @ params.W_hh.T
        rz = jax.nn.sigmoid(p[..., : 2 * H] + u[..., : 2 * H])
        r, z = rz[..., :H], rz[..., H:]
        q = u[..., 2 * H :] + params.b_hn
        n = activation.apply(p[..., 2 * H :] + r * q)
        h = n + z * (h - n)
        return h, Kept(h, r, z, n, q)

    def pullback(params, kept, h_before, g):
        _, r, z, n, q = kept
        a_n = g * (1 - z) * activation.slope(n)
        a_z = g * (h_before - n) * z * (1 - z)
        a_q = a_n * r
        a_r = a_q * q * (1 - r)
        back = jnp.concatenate([a_r, a_z, a_q], axis=-1) @ params.W_hh
        return g * z + back, jnp.concatenate([a_r, a_z, a_n, a_q], axis=-1)

    def after_loop(params, x, h_before, a):
        a_rz, a_q = a[:, : 2 * H], a[:, 3 * H :]
        dW_xh, dx = transpose(params.W_xh, x, a[:, : 3 * H])
        dW_hh = jnp.concatenate([a_rz.T @ h_before, a_q.T @ h_before])
        return Params(dW_xh, dW_hh, a[:, : 3 * H].sum(0), a_q.sum(0)), dx

    return Cell("gru", init, start, step, lambda h: h, H,
                Split(before_loop, advance, lambda kept: kept.h, pullback, after_loop), activation)  # fmt: skip
