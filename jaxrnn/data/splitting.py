"""Which rows learn, which choose, which measure: classes by name, splits by seed, and what is no data set."""

import math
from collections.abc import Iterable

import numpy as np

from ..errors import DataError
from ..types import Corpus


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Alphabetically; numerically where every label is a number."""
    labels = sorted(labels)
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return labels
    return labels if any(map(math.isnan, numbers)) else sorted(labels, key=float)


def share_out(
    given: dict[str, np.ndarray], target: np.ndarray, shares: tuple[float, float], seed: int
) -> list[np.ndarray]:
    """Row numbers of train, valid and test; what is not given is drawn from train, each class by its share."""
    pool, taken = given["train"], dict(given)
    draw = np.argsort(np.random.Philox(key=seed).random_raw(len(pool)), kind="stable")
    shuffled = pool[draw[np.argsort(target[pool][draw], kind="stable")]]  # by class, at random within
    count = np.bincount(target[pool])
    position = np.arange(len(pool)) - np.repeat(np.cumsum(count) - count, count)  # place within the class
    start = np.zeros_like(count)
    for name, share in zip(("valid", "test"), shares, strict=True):
        if name not in given:
            stop = start + np.floor(share * count + 0.5).astype(count.dtype)
            mine = (position >= np.repeat(start, count)) & (position < np.repeat(stop, count))
            taken[name], start = np.sort(shuffled[mine]), stop
    taken["train"] = np.sort(shuffled[position >= np.repeat(start, count)])
    rows = [taken[name] for name in ("train", "valid", "test")]
    for name, part, share in zip(("train", "valid", "test"), rows, (1.0, *shares), strict=True):
        if not len(part):
            few = f"{len(pool):,} rows of {np.count_nonzero(count):,} labels are too few of each to split"
            why = few if share else f"dataset.{name}_share=0 gives it no rows"
            way = f"give dataset.{name}_path{' or more rows' if share else ''}"
            raise DataError(f"the {name} split is empty: {why}; {way}")
    return rows


def check_classes(corpus: Corpus, names: list[str]) -> None:
    """Raises DataError unless training has two classes or more, and all that the other splits have."""
    known = np.bincount(corpus.target[corpus.train], minlength=len(names)) > 0
    if known.sum() < 2:
        only = names[int(np.argmax(known))]
        raise DataError(f"expected two or more classes in the training rows, found one: {only!r:.80}")
    for name in ("valid", "test"):
        there = np.unique(corpus.target[getattr(corpus, name)])
        strange = [names[number] for number in there if not known[number]]
        if strange:
            raise DataError(
                f"labels in the {name} split that training has not: {', '.join(map(repr, strange[:10]))}"
                f"; training has {', '.join(repr(names[number]) for number in np.flatnonzero(known)[:10])}"
            )
