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
import shutil
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
        return (_folder() / f"{mark}.so").exists()
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
        except (OSError, RuntimeError):  # no folder that is this user's alone, or a library that does not open
            with tempfile.TemporaryDirectory() as place:
                library = Path(place) / "native.so"
                _compile(command, library)
                _register(command, library)
        _loaded.add(mark)


def _command(*flags: str) -> list[str]:
    """The call of the compiler, but for its files."""
    names = filter(None, (os.environ.get("CC"), *COMPILERS))
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise NotCompiled(f"no C compiler: expected $CC or one of {', '.join(COMPILERS)} on the path")
    spec = importlib.util.find_spec("jaxlib")
    headers = Path(next(iter(spec.submodule_search_locations or [""]))) / "include" if spec else Path()
    native = "-mcpu=native" if platform.machine() == "arm64" else "-march=native"
    return [compiler, *FLAGS, native, *flags, f"-I{headers}"]


def _kept(command: list[str]) -> Path:
    """The library in the cache, compiled if need be."""
    library = devices.private(_folder()) / f"{_mark(command)}.so"
    with _compiling:
        if not library.exists():
            _compile(command, library)
    return library


def _folder() -> Path:
    return devices.cache_folder().parent / "native"


def limit(threads: int) -> None:
    """A call may work with so many threads from now on, where others want the cores; its numbers stay the same."""
    for held in _limits:
        held.value = threads


def _compile(command: list[str], library: Path) -> None:
    """All sources at once, then one library, written aside and renamed: another process may be at the same."""
    mark = _mark(command)
    if mark in _failed:
        raise NotCompiled(_failed[mark])
    aside = library.with_name(f"{library.name}.{secrets.token_hex(4)}")
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
    aside.rename(library)


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
    found.update("\0".join([*command, devices.version("jaxlib") or "", _processor()]).encode())
    return found.hexdigest()[:16]


def _processor() -> str:
    """What decides the instructions of -march=native: a cache may be shared by machines."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line for line in file if line.startswith(("model name", "flags", "Features"))]
            return "".join(sorted(set(lines)))
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
