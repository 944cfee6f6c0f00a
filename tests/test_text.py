"""Texts to numbers: the laws of tokenizers, vocabulary, corpus and order."""

import json
import time

import numpy as np
import pytest

from jaxrnn import orders, text
from jaxrnn.data import Splits
from jaxrnn.errors import ArtefactError, DataError

ODD = [
    "",
    " \t ",
    "...",
    "a\0b",
    "\u200b",
    "\u202eabc",
    "\U0001f468\u200d\U0001f469",
    "e\u0301 \u00e9",
    "x" * 5000,
    "\x85",
]
ROWS = [("the cat sat", "yes"), ("the dog ran", "no"), ("a cat ran off", "yes"), ("dogs!", "no")] * 10


def encoded(rows=ROWS, valid=ROWS[:4], test=ROWS[:4], tokenizer=None, **settings):
    return text.encode(Splits(rows, valid, test), tokenizer or text.words(), **settings)


def row(corpus, number):
    return corpus.tokens[corpus.offset[number] : corpus.offset[number + 1]].tolist()


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ("It isn't good, but I'm happy.", "it is n't good , but i 'm happy ."),
        ("We can't; they'll say so!!", "we ca n't ; they 'll say so !!"),
        (
            "Mr. O'Fallon's self-aware 1.8 (10,000) U.S. film...",
            "mr. o'fallon 's self-aware 1.8 ( 10,000 ) u.s. film ...",
        ),
        ("so am I.", "so am i ."),
        ("<br />and/or", "< br / > and/or"),
    ],
)
def test_words_and_marks_come_apart(written, tokens):
    split = text.words().split
    assert split(written) == tokens.split()
    assert split(tokens) == tokens.split()


@pytest.mark.parametrize("name", sorted(text.TOKENIZERS))
@pytest.mark.parametrize("end", [False, True])
def test_every_tokenizer_takes_every_text(name, end):
    tokenizer = text.TOKENIZERS[name](end=end)
    rows = [(odd, str(number % 2)) for number, odd in enumerate(ODD)] * 2
    found = encoded(rows, rows, rows, tokenizer)
    assert (found.corpus.length >= 1).all()
    assert found.corpus.tokens.min() >= 1
    assert found.corpus.tokens.max() < len(found.vocabulary)
    assert text.Vocabulary.from_json(found.vocabulary.to_json()) == found.vocabulary
    if end:
        assert found.vocabulary.end == 2
        assert (found.corpus.tokens[found.corpus.offset[1:] - 1] == 2).all()
    tokens, offset, _ = text.encode_texts([odd for odd, _ in rows], tokenizer, found.vocabulary)
    for number in range(len(rows)):
        mine = tokens[offset[number] : offset[number + 1]].tolist()
        assert mine == row(found.corpus, number) or (not mine and row(found.corpus, number)[0] == 1)


def test_the_vocabulary_is_of_the_training_rows_by_frequency_then_alphabet():
    found = encoded([("b a a", "0"), ("c b zz", "1")], [("q a", "0")], [("b q q", "1")])
    assert found.vocabulary.tokens == (text.PADDING, text.UNKNOWN, "a", "b", "c", "zz")
    assert [row(found.corpus, r) for r in range(4)] == [[3, 2, 2], [4, 3, 5], [1, 2], [3, 1, 1]]
    assert found.report["unknown_share"] == {"train": 0.0, "valid": 0.5, "test": 2 / 3}
    assert encoded(tokenizer=text.words(size=4)).vocabulary.tokens[2:] == ("cat", "ran")
    assert "off" in encoded(min_count=10).vocabulary.ids
    assert "off" not in encoded(min_count=11).vocabulary.ids


def test_a_chunk_of_a_corpus_is_invisible(monkeypatch):
    whole = encoded()
    monkeypatch.setattr(text, "CHUNK", 5)
    monkeypatch.setattr(text, "MEMORY", 2)
    pieces = encoded()
    assert pieces.vocabulary == whole.vocabulary
    assert pieces.report == whole.report
    for one, other in zip(pieces.corpus, whole.corpus, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("end", [False, True])
def test_long_texts_are_cut_and_counted(end):
    found = encoded(max_length=3, tokenizer=text.words(end=end))
    assert found.corpus.length.max() == 3
    assert found.report["cut"] == (count := 12 + 12 + 12 if end else 12)
    assert found.report["warnings"][-1] == f"{count} texts are longer than max_length=3 and were cut"
    texts = ["a cat ran off", "a cat ran", "a cat"]
    tokens, offset, cut = text.encode_texts(texts, text.words(end=end), found.vocabulary, 3)
    assert tokens[:3].tolist() == row(found.corpus, 2)
    assert offset.tolist() == [0, 3, 6, 8 + end]
    assert cut.tolist() == [True, end, False]


def test_an_empty_text_is_one_unknown_token_in_a_corpus_and_nothing_to_predict():
    found = encoded([*ROWS, (" ", "no")])
    assert found.report["empty"] == 1
    assert row(found.corpus, len(ROWS)) == [1]
    assert text.encode_texts([" "], text.words(end=True), found.vocabulary)[1].tolist() == [0, 0]


def test_splits_are_taken_by_class_and_seed():
    rows = [(f"w{number}", "many" if number % 10 else "few") for number in range(200)]
    found = [encoded(rows, None, None, seed=seed, valid_share=0.1, test_share=0.2) for seed in (0, 0, 1)]
    sizes = {"train": {"few": 14, "many": 126}, "valid": {"few": 2, "many": 18}, "test": {"few": 4, "many": 36}}
    for each in found:
        assert each.report["classes"] == sizes
        together = np.concatenate([each.corpus.train, each.corpus.valid, each.corpus.test])
        assert sorted(together.tolist()) == list(range(200))
    np.testing.assert_array_equal(found[0].corpus.test, found[1].corpus.test)
    assert (found[0].corpus.test != found[2].corpus.test).any()
    alone = encoded(rows, None, ROWS and [("w1", "few")], valid_share=0.1)
    assert alone.report["rows"] == {"train": 180, "valid": 20, "test": 1}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["10", "9", "-1"], ["-1", "9", "10"]), (["b", "10", "a"], ["10", "a", "b"]), (["1.5", "1"], ["1", "1.5"])],
)
def test_labels_are_sorted_as_numbers_where_all_are(labels, expected):
    rows = [("x", label) for label in labels]
    found = encoded(rows, rows, rows)
    assert found.labels == expected
    assert [found.labels[c] for c in found.corpus.target] == labels * 3


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (([("a", "0")] * 9, None, None), "two or more classes"),
        (([], None, None), "train split is empty"),
        ((ROWS, [], ROWS), "valid split is empty"),
        ((ROWS, ROWS, [("a", "maybe")]), "'maybe'"),
        ((ROWS[:4], None, None), "4 rows of 2 labels are too few of each to split"),
        (([("a", str(n)) for n in range(10_001)], ROWS, ROWS), "right column"),
    ],
)
def test_what_is_no_data_set_is_refused(splits, message):
    with pytest.raises(DataError, match=message):
        encoded(*splits)


def test_a_share_of_nothing_is_named():
    with pytest.raises(DataError, match=r"the test split is empty: dataset\.test_share=0 gives it no rows"):
        encoded(ROWS * 9, None, None, test_share=0.0)


def changed(**changes):
    ids = {text.PADDING: 0, text.UNKNOWN: 1, "a": 2, "b": 3} | changes
    return json.dumps(ids)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "null",
        '["a"]',
        "[" * 100_000,
        changed(c=3),
        changed(c=5),
        changed(c=-1),
        changed(c="4"),
        changed(c=True),
        changed(c=4.0),
        changed(c=None),
        changed(c={"a": 1}),
        changed(**{text.PADDING: 2, "a": 0}),
        changed(**{"a\0": 4}),
        '{"<padding>": 0, "<unknown>": 1, "a": 2, "a": 3}',
        '[["<padding>", 0], ["<unknown>", 1]]',
        b'{"\xff": 0}',
    ],
)
def test_a_damaged_vocabulary_is_refused(content):
    with pytest.raises(ArtefactError):
        text.Vocabulary.from_json(content)


def test_a_huge_vocabulary_is_refused_at_once():
    start = time.perf_counter()
    with pytest.raises(ArtefactError, match="at most"):
        text.Vocabulary.from_json("{" + '"a":1,' * 3_000_000 + '"b":2}')
    assert time.perf_counter() - start < 5


def one_order(rows, length, batch_size, seed, epoch):
    """As it was drawn when the first checkpoints were written: they are taken up in the middle of an epoch."""
    stream = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    shuffled = rows[np.argsort(stream.random_raw(len(rows)), kind="stable")]
    pool = np.arange(len(rows)) // (50 * batch_size)
    batches = orders.cut(shuffled[np.lexsort((length[shuffled], pool))], batch_size)
    return batches[np.argsort(stream.random_raw(len(batches)), kind="stable")]


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 1), (7, 8), (64, 8), (1000, 7)])
def test_an_epoch_has_every_row_once_in_an_order_of_seed_and_epoch(rows, batch_size):
    generator = np.random.default_rng(rows)
    length = generator.integers(1, 60, 2 * rows).astype(np.int32)
    mine = generator.permutation(2 * rows)[:rows].astype(np.int32)
    keys = [(0, 0), (0, 0), (0, 1), (1, 0), (3, 1000), (2**40, 65)]
    made = [orders.plan(mine, length, batch_size, seed)(epoch) for seed, epoch in keys]
    for each, (seed, epoch) in zip(made, keys, strict=True):
        np.testing.assert_array_equal(each, one_order(mine, length, batch_size, seed, epoch))
    for each in [*made, orders.plain(mine, length, batch_size)]:
        assert each.shape == (-(-rows // batch_size), batch_size)
        assert each.dtype == np.int32
        assert sorted(each[each >= 0].tolist()) == sorted(mine.tolist())
    np.testing.assert_array_equal(made[0], made[1])
    if rows > 10:
        assert (made[0] != made[2]).any()
        assert (made[0] != made[3]).any()
    following = orders.plan(mine, length, batch_size, 5)
    for epoch in (0, 1, 70, 2):  # in blocks of several
        np.testing.assert_array_equal(following(epoch), one_order(mine, length, batch_size, 5, epoch))


def test_batches_hold_little_padding():
    length = np.random.default_rng(0).integers(1, 50, 6920)
    batches = orders.plan(np.arange(6920, dtype=np.int32), length, 32, 0)(0)
    real = np.where(batches >= 0, length[batches], 0)
    assert 1 - real.sum() / (real.max(axis=1) * 32).sum() < 0.06
