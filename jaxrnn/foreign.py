"""The C code of `native/`, compiled for this machine when it is first asked for and kept beside the XLA programs.

Compiled here and not in a wheel: so it uses every instruction this processor has, and a machine without a C compiler
still runs everything else.
"""

import ctypes
import hashlib
import importlib.util
import os
import platform
import secrets
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from jaxrnn import devices
from jaxrnn.errors import ConfigurationError

NATIVE = Path(__file__).resolve().parent / "native"
SOURCES = [NATIVE / name for name in ("recurrence.c", "adam.c", "batch.c", "threads.c", "threefry.c")]
FLAGS = ("-O2", "-std=gnu11", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
COMPILERS = ("cc", "gcc", "clang")  # after $CC

UNUSABLE = (OSError, RuntimeError, AttributeError)

_limits: list[ctypes.c_int] = []  # of each library that is loaded


class NotCompiled(ConfigurationError):
    """Why there is no C code on this machine."""


_compiling = threading.Lock()  # a `load` that comes while `begin` is at it finds the library afterwards
_loading = threading.Lock()
_loaded: set[str] = set()  # marks
_failed: dict[str, str] = {}  # mark -> why: not tried again


def begin() -> None:
    """Start to compile it, unless that has been done, while other things are made ready for the `load` to come."""

    def ahead() -> None:
        with suppress(NotCompiled, OSError, RuntimeError):  # `load` meets the same, and says so
            _kept(_command())

    threading.Thread(target=ahead).start()


def expect() -> bool:
    """Let programs be traced that will call it. Is it there; NotCompiled where it can be seen that it never will be.

    Where it is not there, `load` must have been called before such a program is compiled.
    """
    from jaxrnn import targets

    mark = _mark(_command())
    targets.declare(mark, "float32")
    try:
        return _found(_folder(), mark) is not None
    except (OSError, RuntimeError):  # a folder that cannot be looked into, or no home
        return False


def mark() -> str:
    """Tells apart C code of other sources, by another compiler, or for another processor."""
    return _mark(_command())


def give_up() -> None:
    """Take back what `expect` let be traced, once nothing is."""
    from jaxrnn import targets

    targets.forget(_mark(_command()))


def load(*flags: str) -> None:
    """Compile it, unless that has been done, and hand it to jax; NotCompiled says why it cannot be.

    `flags` go to the compiler last: -DDOUBLE makes code for float64, -mno-avx512f for vectors of 8 floats.
    """
    command = _command(*flags)
    mark = _mark(command)
    with _loading:
        if mark in _loaded:
            return
        try:
            _register(command, _kept(command))
        except UNUSABLE:  # no folder that is this user's alone, or one that nothing may be run from
            try:
                with tempfile.TemporaryDirectory() as place:
                    _register(command, _compile(command, Path(place)))
            except UNUSABLE as error:
                _failed[mark] = f"what {command[0]} makes of {NATIVE.name}/*.c cannot be used here: {error}"
                raise NotCompiled(_failed[mark]) from None
        _loaded.add(mark)


def _command(*flags: str) -> list[str]:
    """The call of the compiler, but for its files."""
    names = [shlex.split(os.environ.get("CC", "")), *([name] for name in COMPILERS)]
    compiler = next(([path, *name[1:]] for name in names if name and (path := shutil.which(name[0]))), None)
    if compiler is None:
        raise NotCompiled(f"no C compiler: expected $CC or one of {', '.join(COMPILERS)} on the path")
    spec = importlib.util.find_spec("jaxlib")
    headers = Path(next(iter(spec.submodule_search_locations or [""]))) / "include" if spec else Path()
    native = "-mcpu=native" if platform.machine() == "arm64" else "-march=native"
    return [*compiler, *FLAGS, native, *flags, f"-I{headers}"]


def _kept(command: list[str]) -> Path:
    """The library in the cache, compiled if need be."""
    folder = devices.private(_folder())
    with _compiling:
        return _found(folder, _mark(command)) or _compile(command, folder)


def _found(folder: Path, mark: str) -> Path | None:
    """The library of that mark, if nobody else could write it and it is what its name says, else removed.

    A damaged one cannot be tried: it takes the process with it.
    """
    for library in folder.glob(f"{mark}.*.so"):
        held = library.lstat()
        own = stat.S_ISREG(held.st_mode) and held.st_uid == os.getuid() and not held.st_mode & 0o022
        if own and library == _named(folder, mark, library.read_bytes()):
            return library
        library.unlink(missing_ok=True)
    return None


def _named(folder: Path, mark: str, content: bytes) -> Path:
    return folder / f"{mark}.{hashlib.sha256(content).hexdigest()[:32]}.so"


def _folder() -> Path:
    return devices.cache_folder().parent / "native"


def limit(threads: int) -> None:
    """A call may work with so many threads from now on, where others want the cores; its numbers stay the same."""
    for held in _limits:
        held.value = threads


def _compile(command: list[str], folder: Path) -> Path:
    """All sources at once, then one library, written aside and renamed: another process may be at the same."""
    mark = _mark(command)
    if mark in _failed:
        raise NotCompiled(_failed[mark])
    aside = folder / f"{mark}.{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(len(SOURCES)) as pool:
        objects = [str(Path(place) / f"{source.stem}.o") for source in SOURCES]
        calls = [[*command, "-c", str(source), "-o", out] for source, out in zip(SOURCES, objects, strict=True)]
        begun = pool.submit(_call, calls[0])  # the longest, and Python, which goes on importing, come first
        try:
            list(pool.map(partial(_call, behind=True), calls[1:]))
            begun.result()
            _call([*command, *objects, "-o", str(aside)])
        except NotCompiled as error:
            _failed[mark] = str(error)
            raise
    aside.chmod(0o700)
    return aside.rename(_named(folder, mark, aside.read_bytes()))


def _call(command: list[str], behind: bool = False) -> None:
    before = ["nice"] if behind and shutil.which("nice") else []
    made = subprocess.run([*before, *command], capture_output=True, text=True, check=False)
    if made.returncode:
        first = next((line for line in made.stderr.splitlines() if "error" in line), f"exit code {made.returncode}")
        raise NotCompiled(f"{command[0]} cannot compile {NATIVE.name}/*.c: {first.strip()}")


def _register(command: list[str], library: Path) -> None:
    from jaxrnn import targets

    held = ctypes.CDLL(str(library))
    dtype = "float64" if "-DDOUBLE" in command else "float32"
    targets.register(_mark(command), dtype, held)
    ctypes.c_int.in_dll(held, "jaxrnn_cores").value = devices.cores()
    _limits.append(ctypes.c_int.in_dll(held, "jaxrnn_threads"))


def _mark(command: list[str]) -> str:
    found = hashlib.sha256()
    for path in sorted(NATIVE.iterdir()):
        found.update(path.read_bytes())
    compiler = os.stat(command[0])  # another version has another size, or another time
    known = [*command, f"{compiler.st_size} {compiler.st_mtime_ns}", devices.version("jaxlib") or "", _processor()]
    found.update("\0".join(known).encode())
    return found.hexdigest()[:16]


def _processor() -> str:
    """What decides the instructions of -march=native: a cache may be shared by machines."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line for line in file if line.startswith(("model name", "flags", "Features"))]
            return "".join(sorted(set(lines)))
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
