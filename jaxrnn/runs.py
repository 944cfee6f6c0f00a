"""The run folder: locked by who writes it, written aside and renamed, read back as a stranger's.

    config.yaml overrides.json environment.json vocabulary.json data_report.json metrics.jsonl summary.json plots/
    run.lock {"pid", "host", "since"}        held while a process writes here; the kernel lets go when it dies
    checkpoints/                             checkpoints.py
    model/                                   stored.py

Nothing here runs what it reads: JSON and safetensors only, sizes and sha256 compared before anything is parsed.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jaxrnn.checkpoints import (
    OF_A_RUN,
    parsed,
    plain_size,
    read_file,
    read_json,
    storing,
    write_synced,
)
from jaxrnn.errors import ArtefactError, BusyError, StorageError

ROOT = Path("runs")
SETTING = re.compile(r"( {2})?(\w+):(?: (.*))?")  # a line of config.yaml, perhaps one below another
SEAL = "# sha256 of what stands above: "
LARGEST_CONFIG = 1 << 20  # bytes
HELD = 0.05  # seconds that a line may wait for others
LONGEST_LINE = 1 << 20  # bytes of a record in a .jsonl file
FOLDERS = ("checkpoints", "model", "plots")  # of a run


def new_folder(experiment: str, *, prefix: str = "", root: Path = ROOT) -> Path:
    """runs/<experiment>/<prefix><date>_<time>[_<id>]: made by this call, so never shared.

    Runs carry a random id; a sweep has none unless its second is taken.
    """
    stamp = prefix + time.strftime("%Y-%m-%d_%H-%M-%S")
    with storing(root / experiment):
        (root / experiment).mkdir(parents=True, exist_ok=True)
        for attempt in range(100):
            path = root / experiment / (stamp if prefix and not attempt else f"{stamp}_{secrets.token_hex(3)}")
            try:
                path.mkdir()
                return path
            except FileExistsError:
                continue
    raise StorageError(f"cannot find a free name {path}")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Be the one process that writes into this folder, which is made if need be; BusyError names who is already."""
    import fcntl

    path = run / "run.lock"
    with storing(path):
        run.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            plain_size(path)
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = _holder(os.pread(held, 4096, 0))
            raise BusyError(f"{run} is being written by {who}: wait, or choose another folder") from None
        record = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        with storing(path):
            os.ftruncate(held, 0)
            os.pwrite(held, json.dumps(record).encode(), 0)
        check_kinds(run)
        yield
    finally:
        os.close(held)


def check_kinds(run: Path) -> None:
    """ArtefactError where a folder that is written to holds a link or a pipe: what is written there lands elsewhere."""
    with storing(run):
        places = (run, *(run / name for name in FOLDERS if (run / name).is_dir()))
        for entry in (entry for place in places for entry in list(os.scandir(place))):
            if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
                raise ArtefactError(f"{entry.path} is a link or no file: expected files and folders only")


def _holder(content: bytes) -> str:
    try:
        record = json.loads(content)
        return f"process {int(record['pid'])} on {str(record['host'])[:100]!r} since {str(record['since'])[:40]}"
    except (ValueError, KeyError, TypeError):
        return "another process"


class Lines:
    """A file that grows by whole lines, several in one write: those of another writer do not mix with them."""

    def __init__(self, path: Path):
        self.path, self.held, self.written = path, bytearray(), time.monotonic()
        with storing(path):
            self.file = path.open("ab", buffering=0)
            self.empty = self.file.tell() == 0

    def add(self, line: str) -> None:
        self.held += line.encode() + b"\n"
        if time.monotonic() - self.written >= HELD:
            self.flush()

    def flush(self, *_: Any) -> None:
        lines, self.held = self.held, bytearray()
        with storing(self.path):
            if lines and self.file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, "half a line was written")
        self.written = time.monotonic()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self.file.close()


def read_lines(path: Path) -> Iterator[Any]:
    """The records of a .jsonl file; half a line at its end is ignored, anywhere else it is an ArtefactError."""
    plain_size(path)
    try:
        with path.open("rb") as file:
            while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
                yield parsed(line, path)
    except OSError as error:
        raise ArtefactError(f"{path}: {error.strerror}") from None
    if len(line) == LONGEST_LINE:
        raise ArtefactError(f"{path}: a line of more than {LONGEST_LINE:,} bytes")


def ends_line(path: Path, size: int) -> bool:
    """Is a line complete with the first `size` bytes of a file."""
    with storing(path), path.open("rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"


def write(path: Path, content: bytes | str, elsewhere: str = OF_A_RUN) -> None:
    """The whole file or none of it: written aside, synced, renamed."""
    aside = path.with_name(f"{path.name}.tmp-{secrets.token_hex(3)}")
    with storing(path, elsewhere):
        try:
            write_synced(aside, content.encode() if isinstance(content, str) else content)
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    write(path, as_json(value))


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def sealed(text: str) -> str:
    """The text and, as its last line, its sha256: config.yaml is for people, programs compare it or its lines."""
    return f"{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"


def check_config(run: Path) -> str:
    """The text of config.yaml, none where there is no such file; ArtefactError where it is not what was recorded."""
    path = run / "config.yaml"
    if not os.path.lexists(path):
        return ""
    text, _, seal = read_file(path, LARGEST_CONFIG).rpartition(SEAL.encode())
    if seal != f"{hashlib.sha256(text).hexdigest()}\n".encode():
        raise ArtefactError(f"{path} is not the file that was recorded: bring it back, or train in another folder")
    return text.decode(errors="replace")


def settings(run: Path) -> dict[str, str]:
    """The settings that config.yaml records, as text by dotted key, a member's name by that of its group.

    Read line by line, as `config.to_yaml` writes them, and never parsed: {"cell": "gru", "checkpoint.keep": "2", ...}.
    """
    found: dict[str, list[str]] = {}
    key = group = ""
    for line in check_config(run).split("\n"):
        if part := SETTING.fullmatch(line):
            inner, name, value = part.groups("")
            group = group if inner else name
            key = f"{group}.{name}" if inner and name != "name" else group
            found[key] = [value] if value else []
        elif key and line:  # of a list, or of a text that is longer than a line
            found[key].append(line.strip())
    return {key: _joined(lines) for key, lines in found.items() if lines}


def _joined(lines: list[str]) -> str:
    items = all(line.startswith("- ") for line in lines)
    return "[" + ",".join(line[2:] for line in lines) + "]" if items else " ".join(lines)


def find(run: str, root: Path = ROOT) -> Path:
    """A run folder as a user names it: a path, or `latest` for the newest completed run below runs/."""
    if run != "latest":
        path = Path(run)
        if not path.is_dir():
            raise ArtefactError(f"{run!r} is not a folder: expected a run folder, or latest")
        if (path / "sweep.json").is_file():
            raise ArtefactError(f"{run} is a sweep: expected one of its jobs, as in {path / '0'}")
        return path
    if (found := newest(root)) is None:
        raise ArtefactError(f"no completed run below {root}/: train one first, python -m jaxrnn.train")
    return found


def newest(root: Path) -> Path | None:
    """The newest completed run below a folder."""
    for _, path in sorted(_summaries(root, 3), reverse=True):
        with suppress(ArtefactError):  # a damaged run is not one that was asked for
            summary = read_json(path)
            if isinstance(summary, dict) and summary.get("status") == "completed":
                return path.parent
    return None


def _summaries(folder: Path, depth: int) -> Iterator[tuple[int, Path]]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            path = Path(entry.path, "summary.json")
            try:
                yield path.stat().st_mtime_ns, path
            except OSError:
                if depth > 1:
                    yield from _summaries(Path(entry.path), depth - 1)
