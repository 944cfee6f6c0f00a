"""What makes a measurement look better than it is: rows that stand in two splits, texts of two labels, rare classes.

Two texts are the same where their tokens are, as many of them as are kept: what the network cannot tell apart.
"""

from typing import Any

import numpy as np

from ..errors import many
from ..types import Corpus

MOSTLY = 0.9  # share of one class beyond which accuracy alone says little
SPLITS = ("train", "valid", "test")


def described(corpus: Corpus, key: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """Rows and classes of every split, and what `shared` finds; `key` as there."""
    found: dict[str, Any] = {"labels": labels, "rows": {}, "classes": {}, "class_shares": {}}
    for name in SPLITS:
        rows = getattr(corpus, name)
        counts = dict(zip(labels, np.bincount(corpus.target[rows], minlength=len(labels)).tolist(), strict=True))
        found["rows"][name], found["classes"][name] = len(rows), counts
        found["class_shares"][name] = {label: count / len(rows) for label, count in counts.items()}
    return found | {"shared": shared(key, corpus)}


def shared(key: np.ndarray, corpus: Corpus) -> dict[str, Any]:
    """Counts of rows and texts; `key` [R] is the same number for the same text.

    Exact but for two texts that meet in one key of 64 bits: for a million rows, once in 37 million data sets.
    """
    rows = {name: key[getattr(corpus, name)] for name in SPLITS}
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]]))
    target = corpus.target[order]
    torn = np.minimum.reduceat(target, starts) != np.maximum.reduceat(target, starts)
    size = np.diff(starts, append=len(key))
    return {
        "valid_in_train": int(np.isin(rows["valid"], rows["train"]).sum()),
        "test_in_train": int(np.isin(rows["test"], rows["train"]).sum()),
        "repeated": {name: len(rows[name]) - len(np.unique(rows[name])) for name in SPLITS},
        "conflicting": {"texts": int(torn.sum()), "rows": int(size[torn].sum())},
    }


def warnings(report: dict[str, Any]) -> list[str]:
    """What a reader of the result should know first, a line each; `report` is that of text.encode."""
    found, rows = [], report["rows"]
    for name in ("valid", "test"):
        if count := report["shared"][f"{name}_in_train"]:
            found.append(f"{count:,} of the {rows[name]:,} {name} rows also stand{'s' * (count == 1)} in train")
    if count := report["shared"]["conflicting"]["texts"]:
        found.append(f"{many(count, 'text')} stand{'s' * (count == 1)} under more than one label")
    label, share = max(report["class_shares"]["train"].items(), key=lambda entry: entry[1])
    if share > MOSTLY:
        found.append(f"{share:.1%} of the training rows are {label!r}: look at F1, not at accuracy")
    for name in ("valid", "test"):
        if none := [label for label, count in report["classes"][name].items() if not count]:
            found.append(f"no {name} row has the label {', '.join(map(repr, none[:10]))}")
    return found


def left_out(files: dict[str, Any]) -> list[str]:
    """A line for each file of which rows were skipped, as asked for with dataset.on_bad_row=skip."""
    lost = [(path, found["rows"] - found["used"], found["rows"]) for path, found in files.items()]
    return [f"{count:,} of the {rows:,} rows of {path} were left out" for path, count, rows in lost if count]
