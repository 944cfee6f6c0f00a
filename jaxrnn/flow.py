"""Where the gradient goes: how much of the last state still depends on each earlier one.

    ds_T/ds_t = J_T J_{T-1} ... J_{t+1}        J_t = ds_t/ds_{t-1}, for the vanilla cell diag(f'(h_t)) W_hh

The growth rate is the slope of ln ||ds_T/ds_t|| over T - t, by least squares: W_hh = g Q with Q orthogonal and the
identity as activation has the slope ln g. Norms are spectral, and kept as logarithms: e^-1000 is a number here.
T is the step read last, so for a cell that reads right to left distances count from the first word.

The scalar system of the slides, h_t = f(w h_{t-1}), has the derivative in closed form:

    dh_t'/dh_t = w^(t'-t) prod_k f'(w h_k),  k = t .. t'-1

Bengio, Simard and Frasconi 1994, "Learning long-term dependencies with gradient descent is difficult"; Pascanu,
Mikolov and Bengio 2013, "On the difficulty of training recurrent neural networks".
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxrnn.activations import Activation
from jaxrnn.insight import Pass
from jaxrnn.types import Array, Cell

EXACT = 4e9  # T n^3 up to which whole products of Jacobians are affordable: a few seconds
PROBES = 16  # directions followed backwards where they are not
AT_ONE = ("default", "orthogonal", "identity")  # initializers of W_hh with the spectral radius 1
BOUNDED = ("tanh", "sigmoid", "softsign", "hard_tanh")
FACTOR = 10.0  # the first word's share of the gradient, shrunk or grown this much, is called vanishing or exploding


class Flow(NamedTuple):
    """The gradient over a text of T steps."""

    log_norm: np.ndarray  # ln ||ds_T/ds_t||, [T]; -inf where nothing arrives
    log_slope: float | None  # per step of distance; None for a single step
    fit: np.ndarray  # the fitted line, [T]
    verdict: str  # vanishing, healthy or exploding
    exact: bool  # False: from PROBES random directions, a lower bound


def gradient_flow(cell: Cell, params, run: Pass) -> Flow:
    """Measured along the states of a run of the cell (see `insight.trace`)."""
    steps = len(jax.tree.leaves(run.after)[0])
    size = sum(leaf.size for leaf in jax.tree.leaves(run.after)) // max(steps, 1)
    exact = steps * size**3 <= EXACT
    reverse = bool(run.reverse)
    logs = np.asarray(_log_norms(cell, exact, reverse, params, run.inputs, run.before), np.float64)
    slope, fit = log_slope(logs if reverse else logs[::-1])
    fit = fit if reverse else fit[::-1]
    return Flow(logs, slope, fit, verdict(slope, steps), exact)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _log_norms(cell, exact, reverse, params, inputs, befores):
    """ln of the spectral norm of the product, scaled to a Frobenius norm of 1 after every factor."""
    flat, shape = ravel_pytree(jax.tree.map(lambda s: s[0], befores))
    eye = jnp.eye(flat.size, dtype=flat.dtype)
    if not exact:  # orthonormal rows: their image is never longer than the spectral norm
        draw = jax.random.normal(jax.random.key(0), (flat.size, PROBES), flat.dtype)
        eye = jnp.linalg.qr(draw)[0].T

    def step(state, x):
        return ravel_pytree(cell.step(params, shape(state), x)[0])[0]

    def back(carry, here):
        rows, log_scale = carry
        x, before = here
        gram = rows @ rows.T
        log_norm = log_scale + 0.5 * jnp.log(jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], 0))
        _, pull = jax.vjp(lambda s: step(s, x), ravel_pytree(before)[0])
        rows = jax.vmap(lambda row: pull(row)[0])(rows)
        size = jnp.linalg.norm(rows)
        rows = jnp.where(size > 0, rows / jnp.maximum(size, 1e-30), 0)
        return (rows, log_scale + jnp.log(size)), log_norm

    _, logs = lax.scan(back, (eye, jnp.zeros((), flat.dtype)), (inputs, befores), reverse=not reverse)
    return logs


def log_slope(log_norm: np.ndarray) -> tuple[float | None, np.ndarray]:
    """Least squares over the distance 0, 1, ... : the slope per step, and the line; None where there is no distance.

    >>> log_slope(np.log([1.0, 0.5, 0.25]))[0]  # halved at every step
    -0.6931471805599453
    """
    finite = np.isfinite(log_norm)
    distance = np.arange(len(log_norm))
    if finite.sum() < 2:
        return (None if len(log_norm) < 2 else -np.inf), np.where(finite, log_norm, -np.inf)
    centred = distance - distance[finite].mean()
    slope = float((centred[finite] * log_norm[finite]).sum() / (centred[finite] ** 2).sum())
    return slope, log_norm[finite].mean() + slope * centred


def verdict(slope: float | None, steps: int) -> str:
    """What the growth rate does over the whole text: shrinks or grows the first step's share FACTOR times, or not."""
    most, slope = healthy(steps), slope or 0.0
    return "vanishing" if slope < -most else "exploding" if slope > most else "healthy"


def healthy(steps: int) -> float:
    """The growth rate per step up to which the first of so many steps keeps its share within FACTOR."""
    return float(np.log(FACTOR)) / max(steps - 1, 1)


def spectral_radius(W_hh: Array) -> float:
    """The largest |eigenvalue| of W_hh [H, H], or of any gate's block of W_hh [k H, H]."""
    W_hh = np.asarray(W_hh, np.float64)
    blocks = W_hh.reshape(-1, W_hh.shape[1], W_hh.shape[1])
    return float(np.abs(np.linalg.eigvals(blocks)).max())


def advice(verdict: str, settings: Mapping[str, Any], saturation: float | None) -> list[str]:
    """What to change, as "reason: key=value ...", most promising first; nothing for a healthy network.

    `settings` are those of `jaxrnn.rnn`, and of init_scale, clip_global_norm and learning_rate the ones that are known.
    What is set already, or may be, is not advised.
    """
    if verdict == "healthy":
        return []
    told = []
    vanilla = settings["cell"] == "vanilla"
    recurrent = (settings.get("initializer") or {}).get("recurrent", "default")
    if recurrent not in AT_ONE or settings.get("init_scale", 1) != 1:
        stuck = saturation is not None and saturation > 0.5
        why = "most units are saturated: start smaller" if stuck else "start W_hh at spectral radius 1"
        told.append(f"{why}: initializer.recurrent=orthogonal init_scale=1")
    if verdict == "exploding":
        if (settings.get("clip_global_norm", 1) or np.inf) > 1:
            told.append("bound the update: clip_global_norm=1")
        if rate := settings.get("learning_rate"):
            told.append(f"smaller updates: optimizer.learning_rate={rate / 10:g}")
        if vanilla and settings["activation"] not in BOUNDED:
            told.append("bound what a step can do: activation=tanh")
    if vanilla:
        told.append("carry memory by addition: cell=gru")
    if verdict == "vanishing" and settings.get("head") == "last":
        told.append("let every state answer: head=mean")
    if verdict == "vanishing" and not settings.get("bidirectional"):
        told.append("read from both ends: bidirectional=true")
    return told


class Scalar(NamedTuple):
    """The scalar system over K steps from h_0."""

    states: Array  # h_0 .. h_K, [K + 1]
    exact: Array  # dh_K/dh_0 by the formula
    measured: Array  # the same by automatic differentiation


def scalar_flow(w: float, start: float, steps: int, activation: Activation) -> Scalar:
    """h_t = f(w h_{t-1}) over `steps` steps: the derivative of the last state by the first, by formula and measured.

    >>> from jaxrnn import activations
    >>> found = scalar_flow(0.5, 1.0, 3, activations.identity)
    >>> float(found.exact), float(found.measured)
    (0.125, 0.125)
    """

    def last(h):
        return lax.fori_loop(0, steps, lambda _, h: activation.apply(w * h), h)

    visited = [jnp.asarray(start, float)]
    for _ in range(steps):
        visited.append(activation.apply(w * visited[-1]))
    states = jnp.stack(visited)
    exact = jnp.asarray(w, float) ** steps * jnp.prod(activation.slope(states[1:]))
    return Scalar(states, exact, jax.jvp(last, (states[0],), (jnp.ones_like(states[0]),))[1])
