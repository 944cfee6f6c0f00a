"""Data sets: one file each, `name(**settings) -> Splits`. Text and label of every row, and nothing of the network.

A member streams: iterating `train` twice reads the file twice, and no file's text is ever held whole.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

Rows = Iterable[tuple[str, str]]  # text and label; can be iterated again


class Splits(NamedTuple):
    """Rows to learn from, to choose by, and to measure on once; a split that is None is taken from `train`.

    `valid_share` and `test_share` say how much of `train` is taken then, `seed` which rows: the same rows for every
    seed of training, so that two runs are measured on the same texts. `labels` are those there can be, where the rows
    may show fewer: then a single class is enough to learn from. `strict` refuses what `quality` warns of. `read` gets
    the counts of rows used and skipped, file by file, while they are read.
    """

    train: Rows
    valid: Rows | None = None
    test: Rows | None = None
    valid_share: float = 0.1
    test_share: float = 0.1
    seed: int = 0
    labels: tuple[str, ...] = ()
    strict: bool = False
    read: dict[str, Any] | None = None
