"""What the accuracy scripts of the peers share: SST-2 sentences as their own few lines would read them, no jax."""

import math
import sys
from pathlib import Path

import numpy as np

from jaxrnn import text
from jaxrnn.data import sst2

SIZE, BATCH, DROPOUT, RATE = 128, 64, 0.5, 1e-3


def settings() -> dict[str, str]:
    return dict(word.split("=", 1) for word in sys.argv[1:])


def read(root: str):
    """-> the corpus of the SST-2 sentences and the size of its vocabulary, numbered as jaxrnn numbers them."""
    encoded = text.encode(sst2.sst2(root=str(Path(root)), train="sentences"), text.words())
    return encoded.corpus, len(encoded.vocabulary)


def rectangle(corpus, rows: np.ndarray, longest: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> tokens [B, T] int64, padded with 0 to the longest row (or to `longest`), length [B], target [B]."""
    length = corpus.length[rows]
    tokens = np.zeros((len(rows), longest or int(length.max())), np.int64)
    for line, row in enumerate(rows):
        tokens[line, : length[line]] = corpus.tokens[corpus.offset[row] : corpus.offset[row + 1]]
    return tokens, length, corpus.target[rows].astype(np.int64)


def weights(draw: np.random.Generator, vocabulary: int) -> dict[str, np.ndarray]:
    """First weights as jaxrnn draws them: table normal(0.1), W_xh and W_hy Glorot uniform, W_hh orthogonal."""

    def glorot(rows: int, columns: int) -> np.ndarray:
        return draw.uniform(-1, 1, (rows, columns)) * math.sqrt(6 / (rows + columns))

    q, r = np.linalg.qr(draw.standard_normal((SIZE, SIZE)))
    return {name: value.astype(np.float32) for name, value in {
        "table": 0.1 * draw.standard_normal((vocabulary, SIZE)), "W_xh": glorot(SIZE, SIZE),
        "W_hh": q * np.sign(np.diag(r)), "b_h": np.zeros(SIZE), "W_hy": glorot(2, SIZE), "b_y": np.zeros(2),
    }.items()}  # fmt: skip
