"""The run folder: made once, written aside and renamed, read back as a stranger's.

    config.yaml overrides.json environment.json vocabulary.json data_report.json metrics.jsonl summary.json plots/
    model/ params.safetensors model.json vocabulary.json manifest.json      {"files": {name: {"bytes", "sha256"}}}

Nothing here runs what it reads: JSON and safetensors only, sizes and sha256 compared before anything is parsed.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.errors import ArtefactError, BusyError, StorageError

ROOT = Path("runs")
MODEL_FILES = ("model.json", "params.safetensors", "vocabulary.json")
LARGEST_JSON = 64 << 20  # bytes of a JSON file that is worth parsing


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """OSError becomes StorageError: which path, why, how much room there is."""
    try:
        yield
    except OSError as error:
        room = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            held = next((p for p in (path, *path.parents) if p.exists()), Path())
            room = f"; {shutil.disk_usage(held).free:,} bytes are free there"
        why = error.strerror or str(error)
        raise StorageError(f"cannot write {path}: {why}{room}; another place is hydra.run.dir=DIR") from error


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


def claim(path: Path, name: str, content: str) -> Path:
    """Take a folder for one run (or sweep) by being who creates this file in it; BusyError where another did."""
    with storing(path):
        path.mkdir(parents=True, exist_ok=True)
        try:
            with (path / name).open("x", encoding="utf-8") as file:
                file.write(content)
        except FileExistsError:
            raise BusyError(f"{path} already holds a run: choose another folder, or give none") from None
    return path


def write(path: Path, content: bytes | str) -> None:
    """The whole file or none of it: written aside, synced, renamed."""
    aside = path.with_name(f"{path.name}.tmp-{secrets.token_hex(3)}")
    with storing(path):
        try:
            _write_synced(aside, content.encode() if isinstance(content, str) else content)
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    write(path, as_json(value))


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    held = os.open(path, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)


class Saved(NamedTuple):
    """What a model/ folder holds."""

    settings: dict  # model.json: what rebuilds the network, its labels, how text became tokens
    arrays: dict[str, np.ndarray]
    vocabulary: str  # the text of vocabulary.json, not parsed yet


def save_model(run: Path, saved: Saved) -> Path:
    """Write model/ aside, sync, rename, sync its parent, open it again and verify."""
    from safetensors.numpy import save

    content = {
        "model.json": json.dumps(saved.settings, indent=1, ensure_ascii=False, allow_nan=False).encode(),
        "params.safetensors": save({name: np.asarray(array, order="C") for name, array in saved.arrays.items()}),
        "vocabulary.json": saved.vocabulary.encode(),
    }
    files = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in content.items()}
    content["manifest.json"] = json.dumps({"files": files}, indent=1).encode()
    final = run / "model"
    aside = run / f"model.tmp-{secrets.token_hex(3)}"
    with storing(final):
        try:
            aside.mkdir()
            for name, data in content.items():
                _write_synced(aside / name, data)
            _sync_folder(aside)
            os.rename(aside, final)
            _sync_folder(run)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    load_model(run)
    return final


def load_model(run: Path) -> Saved:
    """The model of a run. Each file is compared with the manifest, then parsed; ArtefactError says what differs."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = run / "model"
    if not folder.is_dir():
        raise ArtefactError(f"{run} holds no model/: expected a run folder that jaxrnn.train has written")
    manifest = read_json(folder / "manifest.json")
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or sorted(files) != sorted(MODEL_FILES):
        raise ArtefactError(f"{folder / 'manifest.json'}: expected the files {', '.join(MODEL_FILES)}")
    content = {name: _verified(folder / name, files[name]) for name in MODEL_FILES}
    try:
        arrays = load(content["params.safetensors"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtefactError(f"{folder / 'params.safetensors'} is not a safetensors file: {error}") from None
    settings = _parsed(content["model.json"], folder / "model.json")
    if not isinstance(settings, dict):
        raise ArtefactError(f"{folder / 'model.json'}: expected a JSON object")
    try:
        vocabulary = content["vocabulary.json"].decode()
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{folder / 'vocabulary.json'}: not UTF-8: {error}") from None
    return Saved(settings, arrays, vocabulary)


def _verified(path: Path, expected: Any) -> bytes:
    size, sha256 = (expected.get("bytes"), expected.get("sha256")) if isinstance(expected, dict) else (None, None)
    try:
        found = path.stat().st_size
        if found != size:
            raise ArtefactError(f"{path} is damaged: {found:,} bytes, the manifest says {size}")
        content = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtefactError(f"{path} is damaged: its sha256 is not the manifest's")
    return content


def read_json(path: Path) -> Any:
    """A JSON file from a run folder; ArtefactError for anything else."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ArtefactError(f"{path}: {path.stat().st_size:,} bytes, expected at most {LARGEST_JSON:,}")
        return _parsed(path.read_bytes(), path)
    except OSError as error:
        raise ArtefactError(f"{path}: {error.strerror}") from None


def _parsed(content: bytes, path: Path) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is not JSON: {error}") from None


def flat(tree: Any) -> dict[str, np.ndarray]:
    """A tree of arrays by name: NamedTuple fields by theirs, positions by number, joined with dots."""
    import jax

    return {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def filled(template: Any, arrays: Mapping[str, np.ndarray], where: str) -> Any:
    """`template` (shapes) with its leaves from `arrays`; ArtefactError names a leaf that is missing, extra or other."""
    import jax

    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [_name(path) for path, _ in leaves]
    strange = sorted(set(arrays) - set(names))
    if strange:
        raise ArtefactError(f"{where}: array {strange[0]!r} is not part of the recorded network ({', '.join(names)})")
    values = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if name not in arrays:
            raise ArtefactError(f"{where}: array {name!r} of the recorded network is missing")
        found = arrays[name]
        if found.shape != leaf.shape or found.dtype != leaf.dtype:
            raise ArtefactError(
                f"{where}: array {name!r} is {found.dtype}{list(found.shape)}, "
                f"the recorded network has {leaf.dtype}{list(leaf.shape)}"
            )
        values.append(found)
    return jax.tree_util.tree_unflatten(structure, values)


def _name(path: Any) -> str:
    parts = (next(getattr(key, kind) for kind in ("name", "idx", "key") if hasattr(key, kind)) for key in path)
    return ".".join(map(str, parts))


def find(run: str, root: Path = ROOT) -> Path:
    """A run folder as a user names it: a path, or `latest` for the newest completed run below runs/."""
    if run != "latest":
        path = Path(run)
        if not path.is_dir():
            raise ArtefactError(f"{run!r} is not a folder: expected a run folder, or latest")
        if (path / "sweep.json").is_file():
            raise ArtefactError(f"{run} is a sweep: expected one of its jobs, as in {path / '0'}")
        return path
    for _, path in sorted(_summaries(root, 3), reverse=True):
        summary = read_json(path)
        if isinstance(summary, dict) and summary.get("status") == "completed":
            return path.parent
    raise ArtefactError(f"no completed run below {root}/: train one first, python -m jaxrnn.train")


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
