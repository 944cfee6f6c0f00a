"""How the gradient flows while a network learns: measured every so many updates, always on the same few texts.

For each layer and direction, with s_t its state (h_t, for an LSTM also c_t), g_t = dL/ds_t along every path to the
loss, J_t = ds_t/ds_{t-1}, and d = 0 .. T - 1 the distance from the step read last; means are over the texts:

    norms     n_d = mean ln ||g_{T-d}||                       what there is to learn from at each step
    growth    c_0 = 0,  c_{d+1} = c_d + mean ln (||J_t^T g_t|| / ||g_t||), t = T - d      what the recurrence does to it

Where the last state alone answers, c_d = n_d - n_0; where each state does, the head adds to g_t at every step, which is
no growth. The rate of growth is the slope of c (see `flow`). Nothing is drawn at random and no state is changed: a run
that is watched is the run that is not, bit for bit.

What must be differentiated is compiled (see `gradients`). Norms, logarithms and means are taken here, by NumPy, where
they compile nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn import flow, insight
from jaxrnn.compiling import Program
from jaxrnn.gradients import SMALLEST, Gradients
from jaxrnn.types import Array, Corpus

TEXTS = 16  # a quarter of a usual batch, so that a measurement costs one or two updates
LONG = 0.9  # the texts begin at this quantile of the lengths: where gradients have far to go, outliers left out
MOST_STEPS = 256
MEASUREMENTS = 20  # of a run: enough for a picture; each costs one or two updates, so in 800 they are under 5 %


class Reading(NamedTuple):
    """Of one layer and direction, in the order of the text."""

    log_norm: np.ndarray  # mean ln ||g_t||, [T]; -inf where nothing arrives
    log_factor: np.ndarray  # mean ln (||J_t^T g_t|| / ||g_t||), [T]
    saturation: float | None  # share of units, texts and steps
    spectral_radius: float | None  # of W_hh


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


def readings(found: Gradients) -> tuple[Reading, ...]:
    """Of the directions of one layer, from numpy arrays."""
    stuck = found.stuck
    with np.errstate(all="ignore"):  # an infinite gradient is left out of the record
        size = _norms(found.grad)  # [T, K, B]
        top = np.max([np.abs(leaf).reshape(*size.shape, -1).max(-1) for leaf in jax.tree.leaves(found.grad)], 0)
        factor = _norms(found.back) * np.maximum(top, SMALLEST) / np.where(size > 0, size, 1)
        norm, factor = _mean_log(size), _mean_log(factor)
    return tuple(
        Reading(
            norm[:, way][:: -1 if way else 1],
            factor[:, way][:: -1 if way else 1],
            None if stuck is None else np.count_nonzero(stuck[:, way]) / stuck[:, way].size,
            None if found.squares is None else spectral_radius(found.squares[:, way]),
        )
        for way in range(size.shape[1])
    )


def _norms(states) -> np.ndarray:
    """Of states [T, K, B, ...] in float64, where the square of no float32 is zero: [T, K, B]."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(states)]
    rows = (leaf.reshape(*leaf.shape[:3], -1) for leaf in leaves)
    return np.sqrt(sum(np.einsum("tkbn,tkbn->tkb", row, row) for row in rows))


def _mean_log(norms: np.ndarray) -> np.ndarray:
    """[T, K, B] -> [T, K]: over the texts where something arrives."""
    arrives = norms > 0
    count = arrives.sum(-1)
    mean = np.log(np.where(arrives, norms, 1)).sum(-1) / np.maximum(count, 1)
    return np.where(count > 0, mean, -np.inf)


def spectral_radius(squares: np.ndarray) -> float:
    """`flow.spectral_radius` of W_hh by Gelfand's formula, where eigenvalues would be slow. Of each of k blocks,

        rho = lim ||W^n||^(1/n) = prod_j s_j^(1 / 2^j)        s_0 = ||W||,  s_{j+1} = ||U_j U_j||,  U_j of norm 1

    from the `squares` s_j^2, [J, k].
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # the square of a weight beyond 1e19 is none
        logs = np.log(np.asarray(squares, np.float64)) / 2.0 ** np.arange(1, len(squares) + 1)[:, None]
        return float(np.exp(logs.sum(0).max()))


class Measure(NamedTuple):
    """measure(state) -> a Reading for every layer and direction, of a run's state and its texts."""

    program: Program  # (state, tokens [T, B], target [B]) -> Gradients of every layer
    texts: tuple[Array, Array]

    def __call__(self, state: Any) -> tuple[tuple[Reading, ...], ...]:
        found = jax.tree.map(np.asarray, self.program(state, *self.texts))  # jax would compile a program to index
        return tuple(map(readings, found))

    def done(self) -> bool:
        """Is it compiled: a measurement does not wait."""
        return self.program.done()


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
    factor = "nothing comes" if slope is None else f"x {np.exp(slope):.3g} a step"
    keys = [line.rpartition(": ")[2] for line in flow.advice(worst["verdict"], settings, worst["saturation"])]
    where = f"layer {worst['layer']}, {worst['direction']}"
    found = f"gradient flow: {worst['verdict']}, {factor} back over {steps} steps ({where})"
    return f"{found}; if it does not learn, try {', or '.join(keys)}" if keys else found


def _number(value: Any) -> float | None:
    """Five digits; JSON has no infinity."""
    return float(f"{float(value):.5g}") if np.isfinite(value) else None


def watched(
    reports: Iterable[Any], measure: Measure, every: int, tell: Callable[[dict], None], first: Callable | None
) -> Iterator[Any]:
    """The same reports; `tell` gets a record at every multiple of `every`, before the report, and one of the end.

    `first()` is the state before the first update, None where it has been told. As it can be made again at any time,
    training does not wait for the compilation of `measure`: it is told before the first report that finds it done, and
    at the latest before the next record, the end of an epoch, or an update that was refused. A run that is stopped
    before that, and taken up, has still to tell it.
    """
    now, told = None, None
    for now in reports:
        due = now.step % every == 0 and now.step != told
        if first and (due or now.valid or now.refused or measure.done()):
            tell(record(measure(first()), 0, 0))
            first = None
        if due:
            tell(record(measure(now.state), now.step, now.epoch))
            told = now.step
        yield now
    if now is not None and now.step != told:
        tell(record(measure(now.state), now.step, now.epoch))
