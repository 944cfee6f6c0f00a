"""Measurements of R answers from their logits, in float64 numpy: exact sums over all rows, divided once at the end.

Logits are [R, C] of a softmax over C classes, or [R, 1] of a sigmoid: class 1 against class 0. Target is [R] integers.
Everything is finite for finite logits, however large.
"""

import numpy as np

BINS = 15
Z95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


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
    return log_probabilities(logits).argmax(axis=1)


def loss(logits: np.ndarray, target: np.ndarray) -> float:
    """Mean -ln p of the true class, in nats."""
    _check(target)
    return float(-log_probabilities(logits)[np.arange(len(target)), target].mean())


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


def ece(logits: np.ndarray, target: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy - confidence| over equal bins of confidence."""
    _check(target)
    p = probabilities(logits)
    confidence = p.max(axis=1)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are (a, b]
    gap = np.bincount(place, (p.argmax(axis=1) == target) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(target))


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
