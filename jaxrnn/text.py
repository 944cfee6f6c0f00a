"""Text to numbers: tokenizers, the vocabulary, the corpus.

A text becomes tokens, a token its place in the vocabulary: 0 padding, 1 unknown, 2 end of text (only with
`end=True`), then the tokens of the training split by falling frequency, equal ones alphabetically.
"""

import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from .data import Splits, quality
from .data.splitting import check_classes, share_out, sorted_labels
from .errors import ConfigurationError, DataError
from .types import Corpus
from .vocabulary import END, LARGEST, PADDING, UNKNOWN, Vocabulary

LONGEST = 200  # characters; a longer token never enters a vocabulary
CHUNK = 1 << 21  # tokens handled at once where a whole corpus would need a second copy
MEMORY = 400_000  # pieces of text whose ids are kept while reading: about 80 MB
WIDTH = array("i").itemsize
HEAD = 12  # numbers before the tokens: a large array lies 16 bytes past a page, the tokens so at a multiple of 64,
# where the compiled programs can use them as they are; elsewhere they would be copied
ONE_UNKNOWN = array("i", [1]).tobytes()
MOST_CLASSES = 10_000

WORD = re.compile(
    r"""
    (?:[^\W\d_]\.){2,} | \b[b-hj-z]\.(?!\w)                   # u.s.  j.  (but not the end of "so am i.")
  | (?:mr|mrs|ms|dr|jr|sr|st|vs|inc|bros|etc)\.
  | n't\b | '(?:s|m|re|ve|ll|d|em|\d0s)\b                     # contractions that stand apart already
  | \w+?(?=n't\b)                                             # is|n't
  | \w(?:[\w\u0300-\u036f]|(?<=\d)[.,](?=\d)|[-/&](?=\w)|'(?!(?:s|m|re|ve|ll|d)\b)(?=\w))*
  | \.{2,} | -{2,} | `{2} | '{2} | \*{2,} | [?!]{2,} | [^\w\s]
    """,
    re.VERBOSE,
)


class Tokenizer(NamedTuple):
    """How a text is cut, first into pieces, then each piece by itself; and how much of it is learned."""

    name: str
    pieces: Callable[[str], list[str]]  # the quick half: what recurs is cut once
    cut: Callable[[str], list[str]]
    end: bool = False  # every text closes with one more token
    size: int | None = None  # most tokens of a vocabulary, reserved ones included
    min_count: int = 1  # rarer tokens of the training split are unknown

    def split(self, text: str) -> list[str]:
        """The tokens of a text, without an end."""
        return [token for piece in self.pieces(text) for token in self.cut(piece)]


def words(
    *, lower: bool = True, end: bool = False, size: int | None = None, min_count: int = 1, unicode: str = "none"
) -> Tokenizer:
    """Words and punctuation marks; text that is tokenised already passes through (99.5 % of the SST-2 rows unchanged).

    >>> words().split("I'm not happy: it isn't good!")
    ['i', "'m", 'not', 'happy', ':', 'it', 'is', "n't", 'good', '!']
    """

    one_way = normal(unicode)

    def pieces(text: str) -> list[str]:
        text = clean(one_way(text))
        return text.lower().split() if lower else text.split()

    return Tokenizer("words", pieces, WORD.findall, end, size, min_count)


def characters(
    *, lower: bool = False, end: bool = False, size: int | None = None, min_count: int = 1, unicode: str = "none"
) -> Tokenizer:
    """One token per character (code point)."""

    one_way = normal(unicode)

    def pieces(text: str) -> list[str]:
        text = clean(one_way(text))
        return list(text.lower() if lower else text)

    return Tokenizer("characters", pieces, _itself, end, size, min_count)


def bytes(*, end: bool = False, size: int | None = None, min_count: int = 1, unicode: str = "none") -> Tokenizer:
    """One token per UTF-8 byte, written as two hexadecimal digits."""

    one_way = normal(unicode)

    def pieces(text: str) -> list[str]:
        return one_way(text).encode("utf-8", "replace").hex(" ").split()

    return Tokenizer("bytes", pieces, _itself, end, size, min_count)


FORMS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "NFC": partial(unicodedata.normalize, "NFC"),
    "NFKC": partial(unicodedata.normalize, "NFKC"),
}


def normal(form: str) -> Callable[[str], str]:
    """What writes in one way what looks the same, so that it gets the same tokens; none leaves a text as it is.

    >>> normal("NFC")("e\u0301") == "\u00e9"
    True
    """
    if form not in FORMS:
        raise ConfigurationError(f"tokenizer.unicode={form!r}: expected {', '.join(FORMS)}")
    return FORMS[form]


def _itself(piece: str) -> list[str]:
    return [piece]


TOKENIZERS = {"words": words, "characters": characters, "bytes": bytes}


def clean(text: str) -> str:
    """NUL becomes the replacement character: no file of ours may hold one."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


class Numbers(dict):
    """Numbers what it is asked for, in the order of asking."""

    def __missing__(self, key: str) -> int:
        number = self[key] = len(self)
        return number


class Cut(dict):
    """piece -> the bytes of its provisional ids; remembers the first MEMORY short pieces."""

    def __init__(self, cut: Callable[[str], list[str]], numbers: Numbers):
        super().__init__()
        self._cut, self._numbers = cut, numbers

    def __missing__(self, piece: str):
        ids = array("i", map(self._numbers.__getitem__, self._cut(piece))).tobytes()
        if len(self) < MEMORY and len(piece) <= LONGEST:
            self[piece] = ids
        return ids


class Encoded(NamedTuple):
    """What `encode` makes of a data set."""

    corpus: Corpus
    vocabulary: Vocabulary
    labels: list[str]  # class number -> label
    report: dict  # counts for people and for data_report.json


def encode(
    splits: Splits,
    tokenizer: Tokenizer,
    *,
    seed: int | None = None,
    valid_share: float | None = None,
    test_share: float | None = None,
    max_length: int | None = None,
    size: int | None = None,
    min_count: int | None = None,
) -> Encoded:
    """Reads every row once and numbers it: corpus, vocabulary, labels, report.

    What is None here is as `splits` and `tokenizer` say. A split that is not given is taken from the training rows,
    class by class. Texts are cut at `max_length` tokens, an empty one is kept as one unknown token. The vocabulary
    holds the tokens that the training rows have `min_count` times, at most `size` with the reserved ones.
    Raises DataError for an empty split, fewer than two classes, a label that training has not, too many tokens, and
    with `splits.strict` for what the report would only warn of.
    """
    limit = WIDTH * ((1 << 31 if max_length is None else max_length) - tokenizer.end)
    seed = splits.seed if seed is None else seed
    shares = (
        splits.valid_share if valid_share is None else valid_share,
        splits.test_share if test_share is None else test_share,
    )
    size = tokenizer.size if size is None else size
    min_count = tokenizer.min_count if min_count is None else min_count
    reserved = (PADDING, UNKNOWN, END) if tokenizer.end else (PADDING, UNKNOWN)
    provisional = Numbers({token: number for number, token in enumerate(reserved)})
    classes = Numbers({label: number for number, label in enumerate(splits.labels)})
    cut = Cut(tokenizer.cut, provisional)
    tokens, offset, target, key = array("i", [0] * HEAD), array("i", [0]), array("i"), array("q")
    report: dict = {"cut": 0, "empty": 0}
    given: dict[str, np.ndarray] = {}
    for name, rows in zip(("train", "valid", "test"), splits[:3], strict=True):
        if rows is None:
            continue
        first = len(target)
        for text, label in rows:
            found = b"".join(map(cut.__getitem__, tokenizer.pieces(text)))
            if not found:
                report["empty"] += 1
                found = ONE_UNKNOWN
            if len(found) > limit:
                report["cut"] += 1
                found = found[:limit]
            tokens.frombytes(found)
            key.append(hash(found))
            if tokenizer.end:
                tokens.append(2)
            if len(tokens) >= 1 << 31:
                raise DataError(f"row {len(target) + 1:,} is past 2,147,483,647 tokens; use max_length or fewer rows")
            offset.append(len(tokens) - HEAD)
            target.append(classes[label])
        given[name] = np.arange(first, len(target), dtype=np.int32)
        if not len(given[name]):
            raise DataError(f"the {name} split is empty, expected at least one row")
    if len(classes) > MOST_CLASSES:
        raise DataError(
            f"{len(classes):,} different labels, expected at most {MOST_CLASSES:,}; is it the right column?"
        )
    names = sorted_labels(classes)
    class_of = {label: number for number, label in enumerate(names)}
    place = np.array([class_of[label] for label in classes], np.int32)
    corpus = Corpus(
        np.frombuffer(tokens, np.int32)[HEAD:],
        np.frombuffer(offset, np.int32),
        place[np.frombuffer(target, np.int32)],
        *share_out(given, place[np.frombuffer(target, np.int32)], shares, seed),
    )
    if not splits.labels:
        check_classes(corpus, names)
    vocabulary = learn_vocabulary(corpus, list(provisional), reserved, size, min_count)
    renumber(corpus.tokens, provisional, vocabulary)
    report |= quality.described(corpus, np.frombuffer(key, np.int64), names)
    report["unknown_share"] = {name: unknown_share(corpus, getattr(corpus, name)) for name in report["rows"]}
    report |= {"tokens": len(corpus.tokens), "vocabulary": len(vocabulary), "files": splits.read or {}}
    report["warnings"] = [] if splits.labels else quality.warnings(report)
    if splits.strict and report["warnings"]:
        raise DataError(f"dataset.strict=true: {'; '.join(report['warnings'])}")
    report["warnings"] += quality.left_out(report["files"])
    if report["cut"]:
        report["warnings"].append(f"{report['cut']:,} texts are longer than max_length={max_length} and were cut")
    return Encoded(corpus, vocabulary, names, report)


def chunks(corpus: Corpus, rows: np.ndarray) -> Iterable[np.ndarray]:
    """The tokens of some rows in pieces of about CHUNK: what needs a second array needs only a small one."""
    wanted = np.zeros(len(corpus.offset) - 1, bool)
    wanted[rows] = True
    start = 0
    while start < len(wanted):
        stop = max(start + 1, int(np.searchsorted(corpus.offset, corpus.offset[start] + CHUNK, side="right")) - 1)
        begin, end = corpus.offset[start], corpus.offset[stop]
        yield corpus.tokens[begin:end][np.repeat(wanted[start:stop], np.diff(corpus.offset[start : stop + 1]))]
        start = stop


def learn_vocabulary(
    corpus: Corpus, tokens: list[str], reserved: tuple[str, ...], size: int | None, min_count: int
) -> Vocabulary:
    """The tokens of the training rows, frequent ones first; `tokens` are those of the provisional ids."""
    count = np.zeros(len(tokens), np.int64)
    for piece in chunks(corpus, corpus.train):
        part = np.bincount(piece)
        count[: len(part)] += part
    count[: len(reserved)] = 0
    candidates = [number for number in np.flatnonzero(count >= max(min_count, 1)) if len(tokens[number]) <= LONGEST]
    candidates.sort(key=lambda number: (-count[number], tokens[number]))
    room = min(LARGEST if size is None else size, LARGEST) - len(reserved)
    return Vocabulary(reserved + tuple(tokens[number] for number in candidates[: max(room, 0)]))


def renumber(ids: np.ndarray, provisional: dict[str, int], vocabulary: Vocabulary) -> None:
    """Provisional ids to those of the vocabulary, in place and piece by piece."""
    known = vocabulary.ids
    new = np.array([known.get(token, 1) for token in provisional], np.int32)
    for start in range(0, len(ids), CHUNK):
        ids[start : start + CHUNK] = new[ids[start : start + CHUNK]]


def unknown_share(corpus: Corpus, rows: np.ndarray) -> float:
    """How many of the tokens of some rows are unknown, 0 to 1."""
    met = unseen = 0
    for piece in chunks(corpus, rows):
        met, unseen = met + len(piece), unseen + int((piece == 1).sum())
    return unseen / max(met, 1)


def encode_texts(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    max_length: int | None = None,
    empty: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [N] int32 end to end and offset [R + 1] int32 of texts to predict; [R] bool, which were cut.

    A text without tokens is `empty`: of length zero, or (1,) as in a corpus.
    """
    limit = (max_length if max_length is not None else 1 << 31) - tokenizer.end
    known, tokens, offset, cut = vocabulary.ids, array("i"), array("i", [0]), bytearray()
    for text in texts:
        found = tokenizer.split(text)
        cut.append(len(found) > limit)
        if ids := [known.get(token, 1) for token in found[:limit]] or empty:
            tokens.extend(ids)
            if tokenizer.end:
                tokens.append(2)
        offset.append(len(tokens))
    flat = np.frombuffer(tokens, np.int32) if tokens else np.zeros(0, np.int32)
    return flat, np.frombuffer(offset, np.int32), np.array(cut, bool)
