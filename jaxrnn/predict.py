"""python -m jaxrnn.predict RUN [TEXT ...] [--file F [--text C]] [--json]: labels, one line out for each text.

An empty text is answered from the state that nothing has moved yet, at length zero, and marked.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxrnn import artefact, command, devices, runs
from jaxrnn.data import files
from jaxrnn.errors import ConfigurationError, DataError, many

ROWS = 256  # texts answered at once
LONGEST = 1 << 22  # bytes of a text
BLANKS = str.maketrans("\t\r\n", "   ")  # of a label, which would end its column or line; --json keeps them


def lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Lines of a stream, cut at \\n alone, decoded strictly; DataError names one without end, or that is no UTF-8."""
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST + 1), b""), 1):
        if len(line) > LONGEST:
            raise DataError(f"{name}, line {number}: more than {LONGEST:,} bytes, expected a text per line")
        try:
            yield line.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}, line {number}: byte {error.start + 1} is not UTF-8: {line[:40]!r}") from None


def _at_least(count: int, floor: int = 1) -> int:
    """The next power of two: few shapes, few compilations."""
    return max(floor, 1 << max(count - 1, 0).bit_length())


class Answers(NamedTuple):
    """What the network answers to R texts, and how much of them it read."""

    probabilities: np.ndarray  # [R, classes]
    length: np.ndarray  # [R] tokens read, an end included
    unknown: np.ndarray  # [R] of them that the vocabulary has not
    cut: np.ndarray  # [R] bool: the text is longer than max_length


def predictor(trained: artefact.Loaded) -> Callable[[Sequence[str]], Answers]:
    """-> texts -> Answers."""
    import jax

    from jaxrnn import metrics, text
    from jaxrnn.types import Batch

    apply = jax.jit(trained.model.apply)

    def answer(texts: Sequence[str]) -> Answers:
        tokens, offset, cut = text.encode_texts(
            texts, trained.tokenizer, trained.vocabulary, trained.record["max_length"]
        )
        length = np.diff(offset)
        rows, steps = _at_least(len(texts)), _at_least(int(length.max()), 8)
        real = np.arange(steps) < length[:, None]
        inputs = np.zeros((rows, steps), np.int32)
        inputs[: len(texts)][real] = tokens
        whole = np.zeros(rows, np.int32)
        whole[: len(texts)] = length
        batch = Batch(inputs, whole, np.zeros(rows, np.int32), np.ones(rows, np.float32))
        logits = metrics.finite(np.asarray(apply(trained.params, batch))[: len(texts)])
        return Answers(metrics.probabilities(logits), length, (inputs[: len(texts)] == 1).sum(axis=1), cut)

    return answer


def told(text: str, p: np.ndarray, marks: Mapping[str, Any], labels: Sequence[str], as_json: bool) -> str:
    """One line of output; the marks that hold, as empty, stand in --json alone."""
    best = int(p.argmax(0))
    if as_json:
        found = {"text": text, "label": labels[best], "probabilities": dict(zip(labels, p.tolist(), strict=True))}
        return json.dumps(found | {name: mark for name, mark in marks.items() if mark}, ensure_ascii=False)
    label = labels[best].translate(BLANKS)
    return f"{label}\t{p[best]:.4f}\t{text.replace(chr(10), ' ')}"


def predict(trained: artefact.Loaded, texts: Iterable[str], rows: int = ROWS, as_json: bool = False) -> Iterator[str]:
    """Lines of output, in the order of the texts; at the end it is said which were not read whole."""
    answer, rest, number, cut, strange = predictor(trained), iter(texts), 0, 0, 0
    while chunk := list(islice(rest, rows)):
        found = answer(chunk)
        cut += int(found.cut.sum())
        strange += int(((found.unknown > 0) & (found.unknown + trained.tokenizer.end == found.length)).sum())
        for text, p, length, unknown, longer in zip(chunk, *found, strict=True):
            number += 1
            if not length and not as_json:
                print(f"jaxrnn.predict: text {number} is empty: answered at length zero", file=sys.stderr)
            marks = {"empty": not length, "unknown": int(unknown), "cut": bool(longer)}
            yield told(text, p, marks, trained.labels, as_json)
    for line in not_whole(cut, strange, trained.record["max_length"]):
        print(f"jaxrnn.predict: {line}", file=sys.stderr)


def not_whole(cut: int, strange: int, max_length: int) -> Iterator[str]:
    """What is said at the end of texts that were cut, and of those without a known token."""
    if cut:
        are, were = ("is", "was") if cut == 1 else ("are", "were")
        yield f"{many(cut, 'text')} {are} longer than max_length={max_length} and {were} cut"
    if strange:
        yield f"{many(strange, 'text')} {'has' if strange == 1 else 'have'} no token that the vocabulary knows"


def main(arguments: Sequence[str]) -> int:
    """The command: -> exit code."""
    parser = command.Parser(prog="jaxrnn-predict", description="Label texts: arguments, a file, or standard input.")
    parser.add_argument("run", metavar="RUN", help="a run folder, a job folder of a sweep, or latest")
    parser.add_argument(
        "texts", metavar="TEXT", nargs="*", default=[], help="none, or -, and no --file: standard input"
    )
    parser.add_argument("--file", metavar="F", help="a file of texts, one per line, or a .csv, .tsv or .jsonl")
    parser.add_argument(
        "--text", metavar="COLUMN", help="which column of F; default: that of the run's own files, or text"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="default: auto")
    parser.add_argument("--json", action="store_true", help="a JSON object per line: text, label, probabilities")
    given = parser.parse_intermixed_args(arguments)
    if given.file is not None and given.texts:
        raise ConfigurationError("expected texts or --file, found both")
    if given.text is not None and not is_table(given.file):
        raise ConfigurationError(
            f"--text {given.text}: expected --file with a file of columns: {', '.join(files.KINDS)}"
        )
    if given.texts == ["-"] or given.file == "-":
        given.texts, given.file = [], None
    devices.set_flags()
    trained = artefact.load(runs.find(given.run))
    import jax

    devices.open_cache(lambda line: None)
    with jax.default_device(*devices.choose(given.device)):
        rows = 1 if not given.texts and given.file is None and sys.stdin and sys.stdin.isatty() else ROWS
        if rows == 1:
            print("jaxrnn.predict: reading texts from the terminal, one per line; Ctrl-D ends", file=sys.stderr)
        texts = column(trained, given.file, given.text) if is_table(given.file) else source(given.texts, given.file)
        for line in predict(trained, texts, rows, given.json):
            print(line, flush=rows == 1)
    return 0


def source(texts: Sequence[str], file: str | None) -> Iterator[str]:
    """Where the texts come from."""
    if texts:
        yield from texts
    elif file is None and sys.stdin is None:
        raise ConfigurationError("expected texts, --file, or an open standard input")
    elif file is None:
        yield from lines(sys.stdin.buffer, "standard input")
    else:
        try:
            with open(file, "rb") as stream:
                yield from lines(stream, file)
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}") from None


def is_table(file: str | None) -> bool:
    """A file of columns, by its name."""
    return file is not None and files.ending(Path(file)) in files.KINDS


def column(trained: artefact.Loaded, file: str, name: str | None) -> Iterator[str]:
    """The texts of a file of columns, one for each row."""
    own, _, limits = artefact.reading(trained.record["dataset"])
    return (text for text, _ in files.table(Path(file), own if name is None else name, None, limits))


def entry() -> None:
    command.run("predict", main)


if __name__ == "__main__":
    entry()
