"""How the gradient flows while a network learns: measured every so many updates, always on the same few texts.

For each layer and direction, with s_t its state (h_t, for an LSTM also c_t), g_t = dL/ds_t along every path to the
loss, J_t = ds_t/ds_{t-1}, and d = 0 .. T - 1 the distance from the step read last; means are over the texts:

    norms     n_d = mean ln ||g_{T-d}||                       what there is to learn from at each step
    growth    c_0 = 0,  c_{d+1} = c_d + mean ln (||J_t^T g_t|| / ||g_t||), t = T - d      what the recurrence does to it

Where the last state alone answers, c_d = n_d - n_0; where each state does, the head adds to g_t at every step, which is
no growth. The rate of growth is the slope of c (see `flow`). Nothing is drawn at random and no state is changed: a run
that is watched is the run that is not, bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn import flow, insight
from jaxrnn.types import Array, Corpus, Model

TEXTS = 16  # a quarter of a usual batch, so that a measurement costs one or two updates
LONG = 0.9  # the texts begin at this quantile of the lengths: where gradients have far to go, outliers left out
MOST_STEPS = 256
MEASUREMENTS = 20  # of a run: enough for a picture; each costs one or two updates, so in 800 they are under 5 %
SQUARINGS = 10  # ||W^1024||^(1/1024) is within 1 % of the spectral radius of 1,000 units


class Reading(NamedTuple):
    """Of one layer and direction, in the order of the text."""

    log_norm: Array  # mean ln ||g_t||, [T]; -inf where nothing arrives
    log_factor: Array  # mean ln (||J_t^T g_t|| / ||g_t||), [T]
    saturation: Array | None  # share of units, texts and steps (see `insight.saturation`)
    spectral_radius: Array | None  # of W_hh


def period(asked: int | str | None, *, updates: int, epoch: int, early: bool) -> int | None:
    """Updates between two measurements, None for never. `asked` may be "auto": MEASUREMENTS in the `updates` planned,
    and at least one an `epoch` where a run may end `early`.
    """
    if asked != "auto":
        return int(asked) if asked else None
    spread = max(1, updates // MEASUREMENTS)
    return min(spread, epoch) if early else spread


def texts(corpus: Corpus) -> tuple[np.ndarray, np.ndarray] | None:
    """The texts of the measurement and their classes, tokens [B, T] and target [B]; None if they have no tokens.

    They are training rows from the quantile LONG of length upwards, each cut to the length of the shortest.
    """
    rows = corpus.train[np.argsort(corpus.length[corpus.train], kind="stable")]
    rows = rows[int(LONG * len(rows)) :][:TEXTS]
    steps = min(int(corpus.length[rows[0]]), MOST_STEPS)
    tokens = corpus.tokens[corpus.offset[rows][:, None] + np.arange(steps)]
    return (tokens, corpus.target[rows]) if steps else None


def make_readings(model: Model) -> Callable:
    """readings(params, tokens [B, T], target [B]) -> a Reading for every layer and direction."""
    parts = model.parts

    def gradients(params, tokens, target):
        def loss(tap):
            logits, passes = insight.forward(parts, params, insight.look_up(parts, params, tokens), tap)
            return insight.loss_of(parts, logits, target), passes

        return jax.grad(loss, has_aux=True)(insight.taps(parts, params, len(tokens)))

    def at_step(cell, params, x, before, grad_state):
        """-> ||g_t||, ||J_t^T g_t|| / ||g_t||, saturation."""
        size = _norm(grad_state)
        _, pull = jax.vjp(lambda state: cell.step(params, state, x)[0], before)
        (back,) = pull(jax.tree.map(lambda g: g / jnp.where(size > 0, size, 1), grad_state))
        return size, _norm(back), insight.saturation(cell, params, x, before)

    def reading(cell, params, run, grad_state):
        each = jax.vmap(jax.vmap(lambda *here: at_step(cell, params, *here)))
        size, factor, stiff = each(run.inputs, run.before, grad_state)  # [B, T]
        W_hh = getattr(params, "W_hh", None)
        return Reading(
            _mean_log(size),
            _mean_log(factor),
            None if stiff is None else jnp.mean(stiff),
            None if W_hh is None else spectral_radius(W_hh),
        )

    def readings(params, tokens, target):
        grad_states, passes = jax.vmap(gradients, in_axes=(None, 0, 0))(params, tokens, target)
        return insight.each(reading, parts.cells, insight.cell_params(parts, params), passes, grad_states)

    return readings


def _norm(tree):
    """Of all numbers of a tree; the square of 1e-30 is none, so they are scaled first."""
    top = jnp.maximum(jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)])), 1e-37)
    return top * jnp.sqrt(sum(jnp.sum(jnp.square(leaf / top)) for leaf in jax.tree.leaves(tree)))


def _mean_log(norms):
    """[B, T] -> [T]: over the texts where something arrives."""
    arrives = norms > 0
    count = jnp.sum(arrives, 0)
    mean = jnp.sum(jnp.log(jnp.where(arrives, norms, 1)), 0) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, -jnp.inf)


def spectral_radius(W_hh: Array) -> Array:
    """`flow.spectral_radius` by Gelfand's formula, lim ||W^k||^(1/k): products, where eigenvalues would be slow."""
    blocks = W_hh.reshape(-1, W_hh.shape[1], W_hh.shape[1])

    def square(_, carry):
        power, log_norm = carry  # W^k = exp(log_norm) power, and ||power|| = 1
        power = power @ power
        size = jnp.linalg.norm(power, axis=(1, 2), keepdims=True)
        return power / jnp.maximum(size, 1e-30), 2 * log_norm + jnp.log(size)

    size = jnp.linalg.norm(blocks, axis=(1, 2), keepdims=True)
    start = blocks / jnp.maximum(size, 1e-30), jnp.log(size)
    _, log_norm = lax.fori_loop(0, SQUARINGS, square, start)
    return jnp.exp(jnp.max(log_norm) / 2**SQUARINGS)


def record(readings: Any, step: int, epoch: int) -> dict[str, Any]:
    """{"step", "epoch", "flow": [...]}, per layer and direction: verdict, log_slope per step and the root mean square
    distance of its fit, saturation, spectral_radius, log_norms by distance; None for what is not finite.
    """
    flows = []
    for layer, ways in enumerate(readings):
        for way, reading in enumerate(ways):
            norms, factors = (np.asarray(v, np.float64)[:: 1 if way else -1] for v in reading[:2])  # by distance
            growth = np.concatenate([[0.0], np.cumsum(factors[:-1])])
            slope, fit = flow.log_slope(growth)
            real = np.isfinite(growth)
            numbers = {"log_slope": slope, "fit_error": np.sqrt(np.mean((growth[real] - fit[real]) ** 2))}
            numbers |= {"saturation": reading.saturation, "spectral_radius": reading.spectral_radius}
            flows.append(
                {"layer": layer + 1, "direction": insight.DIRECTIONS[way], "verdict": flow.verdict(slope, len(norms))}
                | {name: None if value is None else _number(value) for name, value in numbers.items()}
                | {"log_norms": [_number(value) for value in norms]}
            )
    return {"step": step, "epoch": epoch, "flow": flows}


def told(record: dict[str, Any], settings: Mapping[str, Any]) -> str:
    """For people: the layer and direction furthest from healthy, and the keys to change (see `flow.advice`); nothing
    where all are healthy.
    """
    worst = max(record["flow"], key=lambda one: np.inf if one["log_slope"] is None else abs(one["log_slope"]))
    if worst["verdict"] == "healthy":
        return ""
    steps, slope = len(worst["log_norms"]), worst["log_slope"]
    factor = "nothing comes back" if slope is None else f"x {np.exp(slope):.3g} a step"
    keys = [line.rpartition(": ")[2] for line in flow.advice(worst["verdict"], settings, worst["saturation"])]
    where = f"layer {worst['layer']}, {worst['direction']}"
    found = f"gradient flow: {worst['verdict']}, {factor} back over {steps} steps ({where})"
    return f"{found}; if it does not learn, try {', or '.join(keys)}" if keys else found


def _number(value: Any) -> float | None:
    """Five digits; JSON has no infinity."""
    return float(f"{float(value):.5g}") if np.isfinite(value) else None


def watched(
    reports: Iterable[Any], measure: Callable, every: int, tell: Callable[[dict], None], first: Callable | None
) -> Iterator[Any]:
    """The same reports; `tell` gets a record at every multiple of `every`, before the report, and one of the end.

    `measure(state)` gives the readings. `first()` is the state before the first update, where this run made it.
    """
    now, told = None, None
    if first is not None:
        tell(record(measure(first()), 0, 0))
    for now in reports:
        if now.step % every == 0 and now.step != told:
            tell(record(measure(now.state), now.step, now.epoch))
            told = now.step
        yield now
    if now is not None and now.step != told:
        tell(record(measure(now.state), now.step, now.epoch))
