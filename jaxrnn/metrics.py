"""Measurements of R answers from their logits, in float64 numpy: exact sums over all rows, divided once at the end.

Logits are [R, C] of a softmax over C classes, or [R, 1] of a sigmoid: class 1 against class 0. Target is [R] integers.
Everything is finite for finite logits, however large; what is measured of others is a NumericalError.
"""

import math
from collections.abc import Sequence

import numpy as np

from jaxrnn.errors import NumericalError

BINS = 15
Z95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


def finite(logits: np.ndarray) -> np.ndarray:
    """The same logits; NumericalError where one is not finite: an answer would mean nothing."""
    good = np.isfinite(logits).all(axis=-1)
    if not good.all():
        wrong = good.size - int(good.sum())
        raise NumericalError(f"{wrong:,} of {good.size:,} answers are not finite: the network has grown too large")
    return logits


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """ln p of every class, [R, C]; C is 2 for a sigmoid: -ln(1 + e^s) and -ln(1 + e^-s)."""
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"expected logits [rows, classes], found the shape {logits.shape}")
    if logits.shape[1] == 1:
        return -np.logaddexp(0.0, np.concatenate([logits, -logits], axis=1))
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """p of every class, [R, C], rows sum to 1."""
    return np.exp(log_probabilities(logits))


def predictions(logits: np.ndarray) -> np.ndarray:
    """The most probable class of every row, [R]; the first of equals."""
    return log_probabilities(finite(logits)).argmax(axis=1)


def loss(logits: np.ndarray, target: np.ndarray) -> float:
    """Mean -ln p of the true class, in nats."""
    _check(target)
    return float(-log_probabilities(finite(logits))[np.arange(len(target)), target].mean())


def accuracy(logits: np.ndarray, target: np.ndarray) -> float:
    """Share of rows whose most probable class is the true one."""
    _check(target)
    return float((predictions(logits) == target).mean())


def confusion(logits: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Counts [C, C]: row = true class, column = predicted class."""
    classes = max(2, np.shape(logits)[1])
    return np.bincount(np.asarray(target) * classes + predictions(logits), minlength=classes**2).reshape(classes, -1)


def f1_macro(logits: np.ndarray, target: np.ndarray) -> float:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN); a class that is neither there nor predicted is left out."""
    _check(target)
    counts = confusion(logits, target)
    whole = counts.sum(axis=0) + counts.sum(axis=1)
    return float((2 * np.diag(counts)[whole > 0] / whole[whole > 0]).mean())


def accuracy_ci95(right: int, rows: int) -> tuple[float, float]:
    """The Wilson interval of an accuracy (Wilson 1927): `right` of `rows` answers.

    >>> [round(x, 4) for x in accuracy_ci95(90, 100)]
    [0.8256, 0.9448]
    """
    if rows < 1:
        raise ValueError("expected at least one row, found none")
    share, square = right / rows, Z95**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    half = Z95 / (1 + square / rows) * np.sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    return max(0.0, min(share, float(middle - half))), min(1.0, max(share, float(middle + half)))  # rounding


def mean_ci95(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of repetitions and half of its 95 % interval (Student 1908); of a single one there is no interval.

    >>> mean, half = mean_ci95([0.80, 0.82, 0.84])
    >>> f"{mean:.4f} ± {half:.4f}"
    '0.8200 ± 0.0497'
    """
    if not len(values):
        raise ValueError("expected at least one value, found none")
    from scipy.special import stdtrit

    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return mean, None
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return mean, float(stdtrit(count - 1, 0.975)) * spread / math.sqrt(count)


def ece(logits: np.ndarray, target: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy - confidence| over equal bins of confidence."""
    _check(target)
    p = probabilities(logits)
    confidence = p.max(axis=1)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are (a, b]
    gap = np.bincount(place, (p.argmax(axis=1) == target) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(target))


def bootstrap_ci95(logits: np.ndarray, target: np.ndarray, measure=accuracy, *, draws: int = 1000, seed: int = 0):
    """The interval of any measure(logits, target) -> number: its 2.5 % and 97.5 % quantiles over rows drawn again.

    Efron 1979. The stream is Philox's raw output, the same on every machine.
    """
    _check(target)
    stream, rows = np.random.Philox(key=seed), len(target)
    found = []
    for _ in range(draws):
        again = (stream.random_raw(rows) % np.uint64(rows)).astype(np.int64)
        found.append(measure(np.asarray(logits)[again], np.asarray(target)[again]))
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def temperature(logits: np.ndarray, target: np.ndarray) -> float:
    """The number that logits are divided by for the smallest loss (Guo et al. 2017), 0.1 to 10; fit it on validation.

    The loss is convex in 1 / temperature, so the sign of its slope is halved to the minimum.
    """
    _check(target)
    z = np.asarray(logits, np.float64)
    z = np.concatenate([np.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z
    true = z[np.arange(len(target)), target]
    low, high = np.log(0.1), np.log(10.0)
    for _ in range(60):
        middle = (low + high) / 2  # ln of 1 / temperature
        slope = ((probabilities(z * np.exp(middle)) * z).sum(axis=1) - true).mean()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """The exact two-sided p-value of two classifiers being equally good on the same rows (McNemar 1947).

    Only rows that one got right and the other wrong count: b and c of them, which a fair coin would share out.

    >>> mcnemar(np.array([1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 0, 0]))  # 5 to 0: 2 / 2^5
    0.0625
    """
    from scipy.special import bdtr

    one, other = np.asarray(right_a, bool), np.asarray(right_b, bool)
    if one.shape != other.shape:
        raise ValueError(f"expected answers to the same rows, found {one.shape} and {other.shape}")
    b, c = int((one & ~other).sum()), int((~one & other).sum())
    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))


def difference_ci95(right_a: np.ndarray, right_b: np.ndarray) -> tuple[float, float]:
    """The interval of accuracy a - accuracy b on the same rows: Wald's with half a row more in each of the four cells.

    Agresti and Min 2005; unlike Wald's own it keeps near 95 % when few answers differ.

    >>> [round(x, 4) for x in difference_ci95(np.array([1] * 60 + [0] * 40), np.array([1] * 50 + [0] * 50))]
    [0.0372, 0.1589]
    """
    one, other = np.asarray(right_a, bool), np.asarray(right_b, bool)
    b, c, rows = int((one & ~other).sum()), int((~one & other).sum()), len(one)
    middle = (b - c) / (rows + 2)
    half = Z95 * math.sqrt(b + c + 1 - (b - c) ** 2 / (rows + 2)) / (rows + 2)
    share = (b - c) / rows
    return max(-1.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def accuracy_by_length(logits: np.ndarray, target: np.ndarray, length: np.ndarray, parts: int = 4) -> list[dict]:
    """The accuracy of short, medium and long texts: about equal numbers of rows, equal lengths together."""
    right, length = predictions(logits) == target, np.asarray(length)
    edges = np.unique(np.quantile(length, np.linspace(0, 1, parts + 1)[1:], method="higher"))
    place = np.searchsorted(edges, length)
    return [
        {
            "tokens": [int(length[place == part].min()), int(length[place == part].max())],
            "rows": int((place == part).sum()),
            "accuracy": float(right[place == part].mean()),
        }
        for part in np.unique(place)
    ]


def measure(logits: np.ndarray, target: np.ndarray) -> dict:
    """All of it under the names of `evaluate --json`, as plain Python values."""
    counts = confusion(logits, target)
    return {
        "rows": len(target),
        "loss": loss(logits, target),
        "accuracy": accuracy(logits, target),
        "accuracy_ci95": list(accuracy_ci95(int(np.trace(counts)), len(target))),
        "f1_macro": f1_macro(logits, target),
        "confusion": counts.tolist(),
        "ece": ece(logits, target),
    }


def _check(target: np.ndarray) -> None:
    if len(target) < 1:
        raise ValueError("expected at least one row, found none")
