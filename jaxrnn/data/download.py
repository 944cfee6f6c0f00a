"""One file from the network, once: checked by sha256, kept in a private cache, put in place by a rename."""

import contextlib
import hashlib
import http.client
import os
import tempfile
import urllib.request
from pathlib import Path

from ..errors import DataError, StorageError

TIMEOUT_SECONDS = 30
LARGEST_BYTES = 1 << 30


def cache_folder() -> Path:
    """$JAXRNN_CACHE, else jaxrnn in $XDG_CACHE_HOME, else in ~/.cache."""
    own = os.environ.get("JAXRNN_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxrnn"


def download(url: str, sha256: str) -> Path:
    """The file at `url`, from the cache if it is there and whole.

    Raises DataError without network or where the content is another one, StorageError where it cannot be kept.
    """
    place = cache_folder() / "datasets" / f"{sha256[:16]}_{url.rpartition('/')[2]}"
    if place.is_file() and _sha256(place) == sha256:
        return place
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=".download-")
    except OSError as error:
        raise StorageError(f"{place.parent}: cannot be written: {error.strerror}; set JAXRNN_CACHE") from None
    try:
        with os.fdopen(handle, "wb") as file:
            _copy(url, file)
            file.flush()
            os.fsync(file.fileno())
        found = _sha256(Path(name))
        if found != sha256:
            raise DataError(f"{url}: expected the sha256 {sha256}, found {found}: not the published file")
        os.replace(name, place)
    except OSError as error:
        raise StorageError(f"{place}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    return place


def _copy(url: str, file) -> None:
    try:
        answer = urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, error) from None
    with answer:
        size = 0
        while True:
            try:
                piece = answer.read(1 << 18)
            except (OSError, http.client.HTTPException) as error:
                raise _unreachable(url, error) from None
            if not piece:
                return
            size += file.write(piece)
            if size > LARGEST_BYTES:
                raise DataError(f"{url}: more than {LARGEST_BYTES:,} bytes")


def _unreachable(url: str, error: Exception) -> DataError:
    reason = getattr(error, "reason", None) or error
    return DataError(f"{url}: cannot be downloaded: {reason}; give dataset.root, a folder with an offline copy")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
