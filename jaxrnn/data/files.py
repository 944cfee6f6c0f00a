"""Your own data: CSV, TSV or JSON lines, plain or .gz, or a folder per class. Every row is used, or the run refuses.

TSV knows no quotes; CSV quotes as RFC 4180 does; a line of a .jsonl file is one object. Rows are read as they are
asked for, and again each time they are asked for. Lines that are empty are no rows.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from ..errors import ConfigurationError, DataError, unknown
from . import Splits
from .lines import Limits, blocks, lines, sound
from .tally import Tally

Row = tuple[str, str]


def files(
    *,
    path: str | None = None,
    valid_path: str | None = None,
    test_path: str | None = None,
    text: str = "text",
    label: str = "label",
    encoding: str = "utf-8",
    max_characters: int | None = 1_000_000,
    max_ratio: int = 200,
    max_gigabytes: int = 16,
    on_bad_row: str = "error",
    labels: Sequence[str] = (),
    strict: bool = False,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
) -> Splits:
    """The rows of your files; what has no file of its own is split off `path` by share and seed.

    A folder holds one folder of .txt files per class, or a `train` (and `valid` or `dev`, `test`) that does. Raises
    ConfigurationError for a setting that makes no sense, DataError (here, or while rows are read) for a file that is
    missing, damaged, not in `encoding`, without the columns, with more than `max_characters` in a field, or whose
    .gz unpacks to more than `max_gigabytes` or `max_ratio` times its size. A row that does not decode, has other
    columns, no label, or one that is not among `labels` (if there are any) is such damage too, or with
    on_bad_row="skip" left out, counted and named in `Splits.read`.
    """
    given = {"path": path, "valid_path": valid_path, "test_path": test_path, "text": text, "label": label}
    for key, value in given.items():
        if not (isinstance(value, str) and value) and not (value is None and key.endswith("_path")):
            raise ConfigurationError(
                "dataset.path is missing: expected a CSV, TSV or JSONL file (also .gz), or a folder per class"
                if key == "path" and not value
                else f"dataset.{key}={value!r}: expected a text"
            )
    if on_bad_row not in ("error", "skip"):
        raise ConfigurationError(f"dataset.on_bad_row={on_bad_row!r}: expected error or skip")
    limits = limits_of(encoding, max_characters, max_ratio, max_gigabytes)._replace(skip=on_bad_row == "skip")
    places = parts(Path(str(path))) | {
        name: Path(place) for name, place in (("valid", valid_path), ("test", test_path)) if place is not None
    }
    read: dict = {}
    rows = {name: reader(place, text, label, limits, frozenset(labels), read) for name, place in places.items()}
    shares = valid_share, test_share, seed
    return Splits(rows["train"], rows.get("valid"), rows.get("test"), *shares, strict=strict, read=read)


def limits_of(
    encoding: str = "utf-8",
    max_characters: int | None = 1_000_000,
    max_ratio: int = 200,
    max_gigabytes: int = 16,
) -> Limits:
    """How to decode a file; ConfigurationError for an encoding that there is not."""
    try:
        "a\n\0".encode(encoding).decode(encoding)
        codecs.getincrementaldecoder(encoding)
    except (LookupError, UnicodeError, TypeError, ValueError):
        raise ConfigurationError(f"dataset.encoding={encoding!r}: expected one that Python knows, as utf-8") from None
    return Limits(encoding, 1 << 40 if max_characters is None else max_characters, max_ratio, max_gigabytes)


class Reader:
    """Rows that can be iterated again: each time the file is read anew."""

    def __init__(self, read: Callable[..., Iterator[Row]], *arguments):
        self._read, self._arguments = read, arguments

    def __iter__(self) -> Iterator[Row]:
        return self._read(*self._arguments)


def reader(path: Path, text: str, label: str, limits: Limits, labels: frozenset, read: dict) -> Reader:
    """The rows of one file or folder; what can be refused before reading is refused here."""
    if path.is_dir():
        return Reader(folder_rows, path, class_folders(path), limits, labels, read)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.is_file():
        raise DataError(f"{path}: expected a regular file or a folder")
    records = records_of(path)
    next(blocks(path, limits), b"")  # permission and magic number
    return Reader(table_rows, path, records, text, label, limits, labels, read)


def ending(path: Path) -> str:
    """.csv of rows.csv and of rows.CSV.gz."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def records_of(path: Path) -> Callable:
    """What reads a file of that name; DataError where nothing does."""
    if ending(path) not in KINDS:
        raise DataError(f"{path}: {unknown('kind of file', ending(path), KINDS)}, each also as .gz")
    return KINDS[ending(path)]


def table(path: Path, text: str, label: str | None, limits: Limits) -> Iterator[Row]:
    """Text and label of every row of a file to answer, none where no column of labels is asked for.

    DataError at the first row that cannot be used.
    """
    for number, found, name, problem in records_of(path)(path, text, label, limits):
        if problem is None and label is not None and not name:
            problem = f"an empty {label!r}"
        if problem is not None:
            raise DataError(f"{path}: line {number}: {problem}")
        yield found, name


def table_rows(
    path: Path, records: Callable, text: str, label: str, limits: Limits, labels: frozenset, read: dict
) -> Iterator[Row]:
    """Text and label of every record; the file is read to its end before rows that are none are refused."""
    tally, used = Tally(path, skip=limits.skip, report=read), 0
    for number, found, name, problem in records(path, text, label, limits):
        if problem is None and len(found) > limits.max_characters:
            problem = f"more than dataset.max_characters={limits.max_characters:,}"
            if not limits.skip:
                raise DataError(f"{path}: line {number}: a text of {len(found):,} characters, {problem}")
        if problem is None and not name:
            problem = f"an empty {label!r}"
        if problem is None and labels and name not in labels:
            problem = f"a {label!r} that is not in dataset.labels"
        if problem is None:
            used += 1
            yield found, name
        else:
            tally.note(problem, number)
    tally.close(used)


def _tsv(path: Path, limits: Limits) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines(path, limits):
        if line:
            yield number, line.split("\t")


def _csv(path: Path, limits: Limits) -> Iterator[tuple[int, list[str]]]:
    source = lines(path, limits)
    for number, line in source:
        if line:
            yield number, _quoted(path, number, line, source, limits) if '"' in line else line.split(",")


def _quoted(path: Path, number: int, line: str, source: Iterator, limits: Limits) -> list[str]:
    """The fields of a record with quotes, which may go on over the next lines (RFC 4180)."""
    fields, at = [], 0
    while True:
        if line[at : at + 1] != '"':
            stop = line.find(",", at)
            fields.append(line[at:] if stop < 0 else line[at:stop])
            if stop < 0:
                return fields
            at = stop + 1
            continue
        pieces, held, at = [], 0, at + 1
        while True:
            stop = line.find('"', at)
            pieces.append(line[at:] + "\n" if stop < 0 else line[at:stop])
            held += len(pieces[-1])
            if held > limits.max_characters:
                raise DataError(
                    f"{path}: line {number}: a quoted field of more than dataset.max_characters="
                    f"{limits.max_characters:,} characters; is a closing quote missing?"
                )
            if stop < 0:
                following = next(source, None)
                if following is None:
                    raise DataError(f"{path}: line {number}: a quote opens that never closes")
                line, at = following[1], 0
            elif line[stop + 1 : stop + 2] == '"':
                pieces.append('"')
                at = stop + 2
            else:
                at = stop + 1
                break
        fields.append("".join(pieces))
        if at == len(line):
            return fields
        if line[at] != ",":
            raise DataError(f"{path}: line {number}: {line[at]!r} after a closing quote, expected a comma or the end")
        at += 1


def _columns(read: Callable) -> Callable:
    """Records of a kind of file whose first line names the columns."""

    def records(path: Path, text: str, label: str | None, limits: Limits) -> Iterator[tuple]:
        source = read(path, limits)
        first = next(source, None)
        if first is None:
            raise DataError(f"{path}: is empty, expected a line of column names and rows")
        columns = [name.strip() for name in first[1]]
        for key, name in _wanted(text, label):
            if columns.count(name) != 1:
                problem = (
                    unknown("column", name, _shown(columns)) if name not in columns else f"column {name!r} stands twice"
                )
                raise DataError(f"{path}: {problem}; {limits.ask}{key}")
        at_text, at_label, wide = columns.index(text), columns.index(text if label is None else label), len(columns)
        for number, fields in source:
            if len(fields) != wide:
                yield number, None, None, f"{len(fields)} column{'s' * (len(fields) > 1)} instead of {wide}"
            elif limits.skip and not all(map(sound, fields)):
                yield number, None, None, f"bytes that are not {limits.encoding}"
            else:
                yield number, fields[at_text], "" if label is None else fields[at_label].strip(), None

    return records


def json_records(path: Path, text: str, label: str | None, limits: Limits) -> Iterator[tuple]:
    """One JSON object a line; a label may be a string, a whole number, or true or false."""
    for number, line in lines(path, limits):
        if not line.strip():
            continue
        if limits.skip and not sound(line):
            yield number, None, None, f"bytes that are not {limits.encoding}"
            continue
        try:
            row = _object(line, text, label, limits)
        except DataError as error:
            if not limits.skip:
                raise DataError(f"{path}: line {number}: {error}") from None
            yield number, None, None, f"no JSON object of {text!r} and {label!r}"
            continue
        found, name = row[text], "" if label is None else row[label]
        name = json.dumps(name) if isinstance(name, (int, float)) else name
        if not isinstance(found, str) or not sound(found):
            yield number, None, None, f"a {text!r} that is no text"
        elif not isinstance(name, str) or not sound(name):
            yield number, None, None, f"a {label!r} that is no text or number"
        else:
            yield number, found, name.strip(), None


def _object(line: str, text: str, label: str | None, limits: Limits) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error!s:.200}") from None
    if not isinstance(row, dict):
        raise DataError(f"expected a JSON object, found {line!r:.40}")
    for key, name in _wanted(text, label):
        if name not in row:
            raise DataError(f"{unknown('key', name, _shown(row))}; {limits.ask}{key}")
    return row


def _wanted(text: str, label: str | None) -> list[tuple[str, str]]:
    """Setting and name of each column that must be there."""
    return [("text", text)] + ([("label", label)] if label is not None else [])


def _shown(names: Iterable[str]) -> list[str]:
    """Names for a message: a file that is no table may have a long one, or many."""
    return [name[:40] for name in islice(names, 40)]


KINDS = {".tsv": _columns(_tsv), ".csv": _columns(_csv), ".jsonl": json_records, ".ndjson": json_records}


def parts(path: Path) -> dict[str, Path]:
    """The splits that a path brings: of a folder its train, valid or dev, and test, where it has a train."""
    if not (path / "train").is_dir() or any((path / "train").glob("*.txt")):
        return {"train": path}
    names = {"train": ("train",), "valid": ("valid", "dev"), "test": ("test",)}
    found = {split: [path / name for name in names[split] if (path / name).is_dir()] for split in names}
    return {split: folders[0] for split, folders in found.items() if folders}


def class_folders(path: Path) -> list[Path]:
    """The folders of the classes in a folder, by name."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"{path}: is a folder without folders; expected one per class, holding .txt files")
    for folder in folders:
        if not any(folder.glob("*.txt")):
            raise DataError(f"{folder}: holds no .txt file; {path} was read as one folder per class")
    return folders


def folder_rows(path: Path, folders: list[Path], limits: Limits, labels: frozenset, read: dict) -> Iterator[Row]:
    """The text of every file, with the name of its folder as the label."""
    tally, used = Tally(path, skip=limits.skip, report=read), 0
    for folder in folders:
        for place in sorted(folder.iterdir()):
            if place.name.startswith("."):
                continue
            if place.suffix.lower() != ".txt" or not place.is_file():
                raise DataError(f"{place}: expected only .txt files in the folder of a class")
            problem, text = _whole(place, limits)
            if problem is None and labels and folder.name not in labels:
                problem = "a folder that is not in dataset.labels"
            if problem is None:
                used += 1
                yield text, folder.name
            else:
                tally.note(problem, f"{folder.name}/{place.name}")
    tally.close(used)


def _whole(place: Path, limits: Limits) -> tuple[str | None, str]:
    """-> what is wrong with a file of text, and the text."""
    small = place.stat().st_size <= 4 * limits.max_characters + 4
    text = "\n".join(line for _, line in lines(place, limits)) if small else ""
    if not small or len(text) > limits.max_characters:
        if not limits.skip:
            raise DataError(f"{place}: more than dataset.max_characters={limits.max_characters:,}")
        return f"more than dataset.max_characters={limits.max_characters:,}", ""
    return None if not limits.skip or sound(text) else f"bytes that are not {limits.encoding}", text
