"""A folder that is there wholly or not at all, and the checkpoints of a run made of such folders.

    checkpoints/step_<n>/  state.safetensors  best.safetensors  position.json  manifest.json
    manifest.json          {"step", "epoch", "batch", "files": {name: {"bytes", "sha256"}}, "fingerprint": {...}}

Written aside, every file synced, renamed, the parent synced, opened again and compared; only then is an older one
deleted. There is no pointer to the newest: it is the one of the highest step that compares well.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.errors import ArtefactError, StorageError
from jaxrnn.packing import Piece, arrays, packed

OF_A_RUN = "another place is hydra.run.dir=DIR, of a sweep hydra.sweep.dir=DIR"  # where a run cannot be written
LARGEST_JSON = 64 << 20  # bytes of a JSON file that is worth parsing
STEP = re.compile(r"step_(0|[1-9]\d{0,17})")
COMPARED = 1 << 18  # bytes at a time, which stay in the cache of a core
NEEDED, OPTIONAL = {"state.safetensors", "position.json"}, {"best.safetensors"}


class Checkpoint(NamedTuple):
    """What one folder step_<n>/ holds."""

    step: int
    epoch: int
    batch: int
    fingerprint: dict[str, Any]  # of everything that decides the arithmetic
    position: dict[str, Any]
    state: dict[str, np.ndarray]
    best: dict[str, np.ndarray] | None  # the parameters that did best so far


@contextmanager
def storing(path: Path, elsewhere: str = OF_A_RUN) -> Iterator[None]:
    """OSError becomes StorageError: which path, why, how much room there is, and `elsewhere`, what to do."""
    try:
        yield
    except OSError as error:
        room = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            held = next((p for p in (path, *path.parents) if p.exists()), Path())
            room = f"; {shutil.disk_usage(held).free:,} bytes are free there"
        why = error.strerror or str(error)
        raise StorageError(f"cannot write {path}: {why}{room}; {elsewhere}") from error


def write_synced(path: Path, *pieces: Piece) -> None:
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    held = os.open(path, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)


def commit(final: Path, content: Mapping[str, Sequence[Piece]], record: Mapping[str, Any]) -> None:
    """Make the folder `final` of these files, each in pieces, and a manifest.json: `record`, their sizes and sha256.

    StorageError says how many bytes were needed, and leaves nothing behind but what was there before. ArtefactError
    where what is read again is not what was to be written.
    """
    files = {name: {"bytes": sum(map(len, pieces)), "sha256": _sha256(pieces)} for name, pieces in content.items()}
    whole = {**content, "manifest.json": [json.dumps({**record, "files": files}, indent=1, allow_nan=False).encode()]}
    mark = secrets.token_hex(3)
    aside, old = final.with_name(f"{final.name}.tmp-{mark}"), final.with_name(f"{final.name}.old.tmp-{mark}")
    try:
        with storing(final):
            try:
                if not final.parent.exists():
                    final.parent.mkdir(parents=True)
                    sync_folder(final.parent.parent)
                aside.mkdir()
                for name, pieces in whole.items():
                    write_synced(aside / name, *pieces)
                sync_folder(aside)
                if final.exists():
                    os.rename(final, old)
                os.rename(aside, final)
                sync_folder(final.parent)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                if old.exists() and not final.exists():
                    os.rename(old, final)
                raise
    except StorageError as error:
        needed = sum(len(piece) for pieces in whole.values() for piece in pieces)
        raise StorageError(f"{error} ({needed:,} bytes to write)") from error
    _check_listed(final, whole)
    for name, pieces in whole.items():
        _check_written(final / name, pieces)
    shutil.rmtree(old, ignore_errors=True)


def _sha256(pieces):
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def _check_written(path: Path, pieces: Sequence[Piece]) -> None:
    """ArtefactError where the file, opened again, does not hold these bytes: comparing takes a sixth of hashing.

    Afterwards it leaves the memory of the system to others: nobody reads a checkpoint soon, and the 20 MB of the next
    job go where these were. Memory that a virtual machine has never used costs six times the write.
    """
    if (found := plain_size(path)) != (size := sum(map(len, pieces))):
        raise ArtefactError(f"{path} is damaged: {found:,} bytes, {size:,} were written")
    try:
        with path.open("rb") as file:
            for part in (piece[at : at + COMPARED] for piece in pieces for at in range(0, len(piece), COMPARED)):
                again = bytearray(len(part))
                if file.readinto(again) != len(part) or again != part:
                    raise ArtefactError(f"{path} is damaged: it does not hold what was written")
            if hasattr(os, "posix_fadvise"):
                with suppress(OSError):  # advice that is not taken costs nothing
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise ArtefactError(f"{path}: {error.strerror}") from None


def verified(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Manifest and files of such a folder, each compared with the manifest before use; ArtefactError what differs."""
    manifest = read_json(folder / "manifest.json")
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise ArtefactError(f"{folder / 'manifest.json'}: expected a list of files")
    _check_listed(folder, {*files, "manifest.json"})
    return manifest, {name: _compared(folder / name, files[name]) for name in files}


def _check_listed(folder, names):
    try:
        found = set(os.listdir(folder))
    except OSError as error:
        raise ArtefactError(f"{folder}: {error.strerror}") from None
    if found != set(names):
        raise ArtefactError(f"{folder}: holds {_listed(found)}, its manifest.json says {_listed(names)}")


def _listed(names):
    return ", ".join(sorted(names)[:9]) or "nothing"


def _compared(path: Path, expected: Any) -> bytes:
    size, sha256 = (expected.get("bytes"), expected.get("sha256")) if isinstance(expected, dict) else (None, None)
    if (found := plain_size(path)) != size:
        raise ArtefactError(f"{path} is damaged: {found:,} bytes, the manifest says {size}")
    content = read_file(path, found)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtefactError(f"{path} is damaged: its sha256 is not the manifest's")
    return content


def plain_size(path: Path) -> int:
    """Bytes of a file; ArtefactError for a link, which leads elsewhere, and a pipe, which is waited for without end."""
    try:
        found = path.lstat()
    except OSError as error:
        raise ArtefactError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ArtefactError(f"{path} is not a file: expected one, and no link")
    return found.st_size


def read_file(path: Path, most: int) -> bytes:
    """The content of a file from a run folder; ArtefactError where it is none, or has more than `most` bytes."""
    if (size := plain_size(path)) > most:
        raise ArtefactError(f"{path}: {size:,} bytes, expected at most {most:,}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path}: {error.strerror}") from None


def read_json(path: Path) -> Any:
    """A JSON file from a run folder; ArtefactError for anything else."""
    return parsed(read_file(path, LARGEST_JSON), path)


def parsed(content: bytes, path: Path) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is not JSON: {error}") from None


def save(run: Path, now: Checkpoint, keep: int) -> Path:
    """Commit a checkpoint, then delete all but the newest `keep`."""
    content: dict[str, list[Piece]] = {"state.safetensors": packed(now.state)}
    content["position.json"] = [json.dumps(now.position).encode()]
    if now.best is not None:
        content["best.safetensors"] = packed(now.best)
    final = run / "checkpoints" / f"step_{now.step}"
    record = {"step": now.step, "epoch": now.epoch, "batch": now.batch, "fingerprint": now.fingerprint}
    commit(final, content, record)
    for step in steps(run)[keep:]:
        if step < now.step:
            _remove(run / "checkpoints" / f"step_{step}")
    return final


def _remove(folder: Path) -> None:
    """Renamed first: a kill meanwhile leaves no checkpoint with files missing. What cannot be removed stays whole."""
    aside = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(3)}")
    with suppress(OSError):
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def steps(run: Path) -> list[int]:
    """The steps there are folders of, newest first."""
    try:
        found = [match for entry in os.listdir(run / "checkpoints") if (match := STEP.fullmatch(entry))]
    except OSError:
        return []
    return sorted((int(match[1]) for match in found), reverse=True)


def load(run: Path, step: int) -> Checkpoint:
    """The checkpoint of that step; ArtefactError says what is damaged, or which there are."""
    folder = run / "checkpoints" / f"step_{step}"
    if not folder.exists():
        there = ", ".join(map(str, reversed(steps(run)))) or "none"
        raise ArtefactError(f"no checkpoint of step {step} in {run}; there are: {there}")
    manifest, content = verified(folder)
    if not NEEDED <= set(content) <= NEEDED | OPTIONAL:
        raise ArtefactError(f"{folder / 'manifest.json'}: expected the files {_listed(NEEDED | OPTIONAL)}")
    at, epoch, batch = (manifest.get(key) for key in ("step", "epoch", "batch"))
    fingerprint, position = manifest.get("fingerprint"), parsed(content["position.json"], folder / "position.json")
    if not all(type(n) is int and n >= 0 for n in (at, epoch, batch)) or at != step:
        raise ArtefactError(f"{folder / 'manifest.json'}: expected step {step}, an epoch and a batch")
    if not isinstance(fingerprint, dict) or not isinstance(position, dict):
        raise ArtefactError(f"{folder}: expected a fingerprint and a position, each a JSON object")
    files = {name: arrays(content[name], folder / name) for name in content if name.endswith(".safetensors")}
    state, best = files["state.safetensors"], files.get("best.safetensors")
    return Checkpoint(step, int(epoch or 0), int(batch or 0), fingerprint, position, state, best)


def newest(run: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that compares well; the damaged ones before it are said aloud and renamed, not deleted.

    None where there are no checkpoints; ArtefactError where there are only damaged ones. Call with the run locked.
    """
    there = steps(run)
    for step in there:
        try:
            return load(run, step)
        except ArtefactError as error:
            name = f"step_{step}.damaged-{secrets.token_hex(3)}"
            with storing(run):
                os.rename(run / "checkpoints" / f"step_{step}", run / "checkpoints" / name)
            say(f"checkpoint step_{step} is not used, kept as {name}: {error}")
    if there or any(run.glob("checkpoints/step_*.damaged-*")):
        raise ArtefactError(f"{run / 'checkpoints'}: every checkpoint is damaged; start again in another folder")
    return None


def tidied(run: Path, say: Callable[[str], None]) -> None:
    """Remove what a killed process left half-written. Call with the run locked."""
    for path in [*run.glob("*.tmp-*"), *run.glob("checkpoints/*.tmp-*")]:
        say(f"half-written and ignored: {path.name}")
        with storing(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
