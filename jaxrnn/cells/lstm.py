"""Long short-term memory with a forget gate.

    i, f, o = sigmoid(W_x x + W_h h + b)     g = f_act(W_x x + W_h h + b)        gates in rows i, f, g, o
    c' = f * c + i * g                       h' = o * f_act(c')                  h, c [H]

W_xh [4H, D], W_hh [4H, H], one bias b_h [4H]; the forget bias starts at 1 (Jozefowicz et al. 2015). Backward, with
g_h = dL/dh' and s = f_act(c'):

    g_c += g_h o f_act'(s)       a_o = g_h s o (1 - o)       a_f = g_c c f (1 - f)
    a_i = g_c g i (1 - i)        a_g = g_c i f_act'(g)
    dL/dc = g_c f             dL/dh = W_hh^T [a_i, a_f, a_g, a_o]

Hochreiter and Schmidhuber 1997; Gers et al. 2000 for the forget gate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import activations, initializers
from jaxrnn.projection import project, transpose
from jaxrnn.types import Array, Cell, Split


class Params(NamedTuple):
    W_xh: Array  # [4H, D], rows i, f, g, o
    W_hh: Array  # [4H, H]
    b_h: Array  # [4H]


class State(NamedTuple):
    h: Array
    c: Array


class Kept(NamedTuple):
    state: State
    gates: Array  # [..., 4H] i, f, g, o after their activations


def lstm(
    input_size: int,
    hidden_size: int,
    *,
    activation=activations.tanh,
    recurrent_init="orthogonal",
    input_init="glorot_uniform",
) -> Cell:
    """One LSTM; each gate's block of W_hh is drawn on its own."""
    H, activation = hidden_size, activations.named(activation)

    def init(key) -> Params:
        key_x, key_h = jax.random.split(key)
        return Params(
            initializers.gates(initializers.named(input_init), key_x, 4, H, input_size),
            initializers.gates(initializers.named(recurrent_init or "orthogonal"), key_h, 4, H, H),
            jnp.zeros(4 * H).at[H : 2 * H].set(1.0),
        )

    def start(params):
        return State(jnp.zeros(H, params.W_hh.dtype), jnp.zeros(H, params.W_hh.dtype))

    def step(params, state, x):
        state, _ = advance(params, state, before_loop(params, x))
        return state, state.h

    def before_loop(params, x):
        return project(params.W_xh, x) + params.b_h

    def advance(params, state, p):
        u = p + state.h @ params.W_hh.T
        i, f, o = (jax.nn.sigmoid(u[..., k * H : (k + 1) * H]) for k in (0, 1, 3))
        g = activation.apply(u[..., 2 * H : 3 * H])
        c = f * state.c + i * g
        state = State(o * activation.apply(c), c)
        return state, Kept(state, jnp.concatenate([i, f, g, o], axis=-1))

    def pullback(params, kept, before, grad):
        i, f, g, o = (kept.gates[..., k * H : (k + 1) * H] for k in range(4))
        s = activation.apply(kept.state.c)
        g_c = grad.c + grad.h * o * activation.slope(s)
        a = jnp.concatenate(
            [
                g_c * g * i * (1 - i),
                g_c * before.c * f * (1 - f),
                g_c * i * activation.slope(g),
                grad.h * s * o * (1 - o),
            ],
            axis=-1,
        )
        return State(a @ params.W_hh, g_c * f), a

    def after_loop(params, x, before, a):
        dW_xh, dx = transpose(params.W_xh, x, a)
        return Params(dW_xh, a.T @ before.h, a.sum(0)), dx

    return Cell("lstm", init, start, step, lambda state: state.h, H,
                Split(before_loop, advance, lambda kept: kept.state, pullback, after_loop), activation)  # fmt: skip
