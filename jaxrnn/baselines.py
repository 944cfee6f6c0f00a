"""What a network must beat: always saying the commonest class, and a bag of words that does not see their order.

The bag of words is naive Bayes on the presence of tokens, with add-one smoothing:
w[v, c] = ln (n[v, c] + 1) / sum_v (n[v, c] + 1), n[v, c] = training rows of class c that hold token v;
the answer for a row is argmax_c ln P(c) + sum over its different tokens of w[v, c].
Wang & Manning 2012 ("Baselines and bigrams") call it multinomial naive Bayes with binarised counts.
"""

import numpy as np

from .types import Corpus

CHUNK = 1 << 21  # tokens sorted at once


def majority(corpus: Corpus, split: str = "test") -> dict[str, float]:
    """{"accuracy"} on a split of the class that training has most often; the first of equals."""
    rows = getattr(corpus, split)
    return {"accuracy": float((corpus.target[rows] == np.bincount(corpus.target[corpus.train]).argmax(0)).mean())}


def bag_of_words(corpus: Corpus, size: int, split: str = "test") -> dict[str, float]:
    """{"accuracy"} on a split of naive Bayes learned from the training rows; `size` is that of the vocabulary, V.

    Padding and unknown tokens are not words and count for nothing. Memory: one table V x C and a chunk of tokens.
    """
    classes = int(corpus.target.max()) + 1
    count = np.zeros(size * classes)
    for rows, row, token in _present(corpus, corpus.train, size):
        count += np.bincount(token * classes + corpus.target[rows[row]], minlength=len(count))
    weight = np.log(count.reshape(size, classes) + 1)
    weight -= np.log(np.exp(weight[2:]).sum(axis=0))
    weight[:2] = 0.0
    share = np.bincount(corpus.target[corpus.train], minlength=classes) / len(corpus.train)
    prior = np.log(np.maximum(share, np.finfo(float).tiny))
    right = 0
    for rows, row, token in _present(corpus, getattr(corpus, split), size):
        score = np.stack([np.bincount(row, weight[token, c], minlength=len(rows)) for c in range(classes)], axis=1)
        right += int(((score + prior).argmax(axis=1) == corpus.target[rows]).sum())
    return {"accuracy": right / len(getattr(corpus, split))}


def _present(corpus: Corpus, rows: np.ndarray, size: int):
    """For a piece of the rows at a time: the rows, and each pair (place of the row, token) once."""
    length = corpus.length[rows].astype(np.int64)
    piece = (np.cumsum(length) // CHUNK).astype(np.int64)
    for number in np.unique(piece):
        part = rows[piece == number]
        many = corpus.length[part].astype(np.int64)
        place = np.repeat(np.arange(len(part)), many)
        within = np.arange(len(place)) - np.repeat(np.cumsum(many) - many, many)
        token = corpus.tokens[corpus.offset[part].astype(np.int64)[place] + within]
        pairs = np.unique(place * size + token)
        yield part, pairs // size, pairs % size
