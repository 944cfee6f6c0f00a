"""Real rows for the ragged benchmarks: an .npz of tokens, offset, target and order [epochs, S, B] for all contestants.

The order is that of `jaxrnn.orders.plan`: sorted by length within pools of 50 batches, the batches shuffled.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tests.benchmarks.problem import Problem

FILES = {"sst": "sst/binary.train.tsv.gz", "imdb": "imdb/train.jsonl.gz"}
SIZES = {"sst": (128, 128, 64), "imdb": (128, 256, 64)}  # E, H, B
WORDS, LONGEST = 20_000, 400  # of IMDB
PART = 10  # batches of an IMDB epoch that are timed, spread evenly over its order


def splits(name: str, root: Path):
    """The rows of the training file; a few of them also as splits that nothing is measured on."""
    from jaxrnn.data import Splits

    rows: Iterable[tuple[str, str]]
    if name == "sst":
        from jaxrnn.data import sst2

        return sst2.sst2(root=str(root), train="sentences")
    from jaxrnn.data import files

    rows = files.files(path=str(root / FILES["imdb"]), text="text", label="label").train
    return Splits(rows, valid_share=0.001, test_share=0.001)


def prepare(name: str, root: Path, folder: str, *, epochs: int, part: int | None) -> tuple[Problem, dict]:
    """Encode, order, write the .npz into `folder`. -> the problem, and counts of it for the record."""
    from jaxrnn import orders, text

    tokenizer = text.words() if name == "sst" else text.words(size=WORDS)
    encoded = text.encode(splits(name, root), tokenizer, max_length=LONGEST)
    corpus, (E, H, B) = encoded.corpus, SIZES[name]
    length = corpus.length
    plan, taken = orders.plan(corpus.train, length, B, 0), []
    for epoch in range(epochs):
        order = plan(epoch)
        full = order[(order >= 0).all(1)]  # whole batches only: the same work for every contestant
        if part and part < len(full):
            full = full[np.linspace(0, len(full) - 1, part).astype(int)]
        taken.append(full)
    path = os.path.join(folder, f"{name}.npz")
    np.savez(path, tokens=corpus.tokens, offset=corpus.offset, target=corpus.target, order=np.stack(taken))
    rows = np.stack(taken)
    words = int(length[rows].sum() / epochs)
    padded = int((length[rows].max(2) * B).sum() / epochs)
    problem = Problem("vanilla", len(encoded.vocabulary), E, H, B, int(length.max()), rows.shape[1], corpus=path)
    return problem, {"batches": rows.shape[1], "words": words, "words_padded_to_the_batch": padded,
                     "longest": int(length.max()), "whole_epoch": not part or part >= len(order)}  # fmt: skip
