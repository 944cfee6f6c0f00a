"""What every contestant is given: one training task, its batches, its first parameters, and the right answer.

Many-to-one, two classes: embedding, one recurrent layer, softmax of the last state; the mean cross-entropy of a batch;
dense Adam (rate 1e-3, b1 0.9, b2 0.999, eps 1e-8). All numbers are drawn with a literal seed, so that processes that
share nothing train the same network on the same rows.
"""

from typing import NamedTuple

import numpy as np

RATE, EPS = 1e-3, 1e-8
CLASSES = 2
GATES = {"vanilla": 1, "gru": 3, "lstm": 4}
WRONG = 1e-4  # largest error of a loss or a gradient, relative to its largest number, that passes as rounding


class Problem(NamedTuple):
    """V words, E and H features, B rows of T words each; `updates` batches are cycled through."""

    cell: str
    V: int
    E: int
    H: int
    B: int
    T: int
    updates: int
    device: str = "cpu"
    corpus: str | None = None  # an .npz of tokens, offset, target, order: real rows in place of drawn ones


TINY = Problem("vanilla", 37, 5, 7, 4, 9, 3)

SHAPES = {
    "toy": (18, 18, 64, 58, 10, 64),
    "sst": (16000, 128, 128, 64, 32, 16),
    "mid": (16000, 128, 256, 64, 64, 8),
    "imdb": (20000, 128, 256, 64, 400, 3),
    "small": (5000, 64, 64, 128, 64, 16),
    "b1": (5000, 64, 64, 1, 512, 32),
    "tiny": (37, 5, 8, 4, 9, 8),
}  # V, E, H, B, T, updates in one timed call


def parameters(problem: Problem) -> dict[str, np.ndarray]:
    """The first parameters, by their names in the cells: gates in the order of the cells, b_hn zero."""
    draw = np.random.default_rng(7)
    G, V, E, H = GATES[problem.cell], problem.V, problem.E, problem.H
    sizes = {"table": (V, E), "W_xh": (G * H, E), "W_hh": (G * H, H), "b_h": (G * H,), "W_hy": (CLASSES, H)}
    found = {name: draw.standard_normal(size, np.float32) for name, size in sizes.items()}
    found["table"] *= np.float32(0.3)
    found["b_h"] *= np.float32(0.1)
    for name in ("W_xh", "W_hh", "W_hy"):
        found[name] *= np.float32(0.8 / np.sqrt(found[name].shape[1]))
    if problem.cell == "gru":
        found["b_hn"] = np.zeros(H, np.float32)
    return found | {"b_y": np.zeros(CLASSES, np.float32)}


def batches(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """-> tokens [updates, B, T] int32, none of them 0, target [updates, B] int32; of more updates the same first."""
    words, answers = np.random.default_rng(11), np.random.default_rng(12)
    tokens = words.integers(1, problem.V, (problem.updates, problem.B, problem.T), dtype=np.int32)
    return tokens, answers.integers(0, CLASSES, (problem.updates, problem.B), dtype=np.int32)


def reference(problem: Problem) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of batch 0 and its gradients, float64 NumPy."""
    from tests import oracles

    p = {name: value.astype(np.float64) for name, value in parameters(problem).items()}
    tokens, target = (part[0] for part in batches(problem))
    cell = {name: p[name] for name in ("W_xh", "W_hh", "b_h", "b_hn") if name in p}
    xs = p["table"][tokens.T]
    state, ys, tapes = oracles.unroll(problem.cell, cell, xs)
    z = state[0] @ p["W_hy"].T + p["b_y"]
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    rows = np.arange(problem.B)
    dz = np.exp(log_p)
    dz[rows, target] -= 1
    dz /= problem.B
    dstate = (dz @ p["W_hy"], *(np.zeros_like(part) for part in state[1:]))
    gradients, dxs = oracles.unroll_back(problem.cell, cell, tapes, xs, None, dstate, np.zeros_like(ys))
    table = np.zeros_like(p["table"])
    np.add.at(table, tokens.T, dxs)
    gradients |= {"table": table, "W_hy": dz.T @ state[0], "b_y": dz.sum(0)}
    return float(-log_p[rows, target].mean()), gradients


def error(problem: Problem, loss: float, gradients: dict[str, np.ndarray]) -> float:
    """The largest relative error of a loss and gradients of batch 0; a parameter that a peer lacks is not asked."""
    right_loss, right = reference(problem)
    off = [abs(loss - right_loss) / right_loss]
    for name, found in gradients.items():
        off.append(np.abs(np.asarray(found, np.float64) - right[name]).max() / np.abs(right[name]).max())
    return float(max(off))
