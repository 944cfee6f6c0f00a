"""Where a run computes, and what must stand before jax starts: XLA's flags, the platform, the compile cache."""

import ctypes
import functools
import importlib.metadata
import importlib.util
import math
import mmap
import os
import platform
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxrnn.errors import ConfigurationError

# XLA:CPU's YNN fusions sum wrongly in silence (jax-ml/jax#39103: 266342400 for 268435456): off, with an empty value.
FUSIONS = "xla_cpu_experimental_ynn_fusion_type"

# Multiplications of an update from which one part per core gained on 2 cores: 400 M 1.1 times, 3 G 1.3 times as fast;
# at 16 M adding up the gradients of the parts cost more than it saved.
WORTH_DIVIDING = 2e8
# Options of mallopt (malloc.h): M_MMAP_THRESHOLD, above which memory is the system's own, at its largest, and
# M_TRIM_THRESHOLD, above which what is free at an end is given back. Bytes.
KEPT = {-3: 32 << 20, -1: 256 << 20}
LARGE, PIECE = 2 << 20, 16 << 20  # bytes of a large page; of what is asked for at once, small enough for the heap
PIECES, PIECES_OF_THREAD = 12, 3  # less than is given back; less than the 64 MB of the first heap of a thread
MADV_HUGEPAGE = 14


def set_flags(environ: Any = os.environ) -> None:
    """Switch off what is known to be wrong, unless the user chose. Call before jax is imported.

    A flag that XLA does not know ends the process, so the library is asked first whether it holds the name.
    """
    flags = environ.get("XLA_FLAGS", "")
    if FUSIONS not in flags and _library_holds(FUSIONS):
        environ["XLA_FLAGS"] = f"{flags} --{FUSIONS}=".strip()


def keep_memory(environ: Mapping[str, str] = os.environ) -> bool:
    """Let the C library keep memory that was freed for what is asked for next; was it told to.

    It gives the arrays of an ended epoch or job back to the system, and every page of the next ones is asked for again:
    64 jobs on SST-2 sentences met 311,000 faults in place of 69,000, and took 15.8 in place of 15.1 s (2 cores of an
    Intel Xeon, glibc 2.36, 2026-11-26). Left alone where it has been told something, and where it is not glibc.
    """
    if not sys.platform.startswith("linux") or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in environ):
        return False
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    return tell is not None and all(tell(option, size) for option, size in KEPT.items())


def large_pages(pieces: int = PIECES) -> None:
    """Pages of 2 MB where the heap of this thread will grow, if the system has them on request, as most have.

    The rows of a table lie on many small pages, each of which the processor has to find. The heap grows, is told so,
    and is free again, untouched. Where `keep_memory` cannot be sure of the C library nothing is done.
    """
    if not keep_memory():
        return
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    held = [place for _ in range(pieces) if (place := library.malloc(PIECE))]
    if held:
        first, end = -(-min(held) // LARGE) * LARGE, (max(held) + PIECE) // LARGE * LARGE
        if end - first <= (pieces + 1) * PIECE:  # all of it the heap's
            library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), MADV_HUGEPAGE)
    for place in held:
        library.free(place)


def _library_holds(name: str) -> bool:
    spec = importlib.util.find_spec("jaxlib")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for library in sorted(Path(place).glob("*jax_common*")):
            with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
                if held.find(name.encode()) >= 0:
                    return True
    return False


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where compiled programs are kept: $XDG_CACHE_HOME/jaxrnn/xla, or ~/.cache/jaxrnn/xla."""
    root = environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "jaxrnn" / "xla"


def open_cache(say: Callable[[str], None]) -> Path | None:
    """Keep compiled programs in a folder that only this user can write: an entry runs code in whoever reads it.

    None, and a line said, where there can be no such folder. A folder of the user's own (JAX_COMPILATION_CACHE_DIR)
    is left as it is.
    """
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    try:
        folder = private(cache_folder())
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        say(f"compile cache: off ({error})")
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def private(folder: Path) -> Path:
    """The folder, made if need be, that only this user can write. OSError where there can be none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = folder.lstat()
    if not stat.S_ISDIR(held.st_mode) or held.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user")
    if stat.S_IMODE(held.st_mode) != 0o700:
        folder.chmod(0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} is not writable")
    return folder


def choose(name: str, count: int | None = 1, *, work: float = 0.0, rows: int = 1) -> list[Any]:
    """`count` jax devices of that name; "auto" is the best kind there is.

    Several on a CPU are parts of it that jax makes when asked before its first use. For None it is one part per core
    where an update of `rows` rows is at least WORTH_DIVIDING multiplications of `work`, else one: a rule and not a
    measurement, so that the same command gives the same numbers. ConfigurationError lists what is there instead.
    """
    import jax

    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")  # a GPU beside it is not even opened
    # We wait for what we call: on the CPU a thread of its own would cost each call 40 us and gain nothing.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if count is None or count > 1:
        _divide(count or cores(), must=count is not None)
    try:
        devices = jax.devices() if name == "auto" else jax.devices(name)
    except RuntimeError as error:
        raise ConfigurationError(f"device={name}: {_there(error)}") from None
    if devices[0].platform != "cpu" and jax.config.jax_default_matmul_precision is None:  # type: ignore[attr-defined]
        # XLA would keep 10 bits of each factor on a GPU (TF32) and 7 on a TPU (bfloat16). Losses on an H100 were then
        # 3e-5 from those of the CPU after 96 updates, and from one run to the next; with all bits 2e-7, and no slower.
        jax.config.update("jax_default_matmul_precision", "highest")
    if count is None:
        divided = devices[0].platform == "cpu" and work >= WORTH_DIVIDING and rows % len(devices) == 0
        return devices if divided else devices[:1]
    if count > len(devices):
        found = ", ".join(map(str, devices))
        raise ConfigurationError(f"device.count={count}: expected at most {len(devices)}, there is: {found}")
    return devices[:count]


def repeatable(device: Any, environ: Mapping[str, str] = os.environ) -> bool:
    """Does a program give the same bits every time: on a GPU the order of sums is left to its threads, unless XLA is
    told otherwise (XLA_FLAGS=--xla_gpu_deterministic_ops=true)."""
    told = [word for word in environ.get("XLA_FLAGS", "").split() if word.startswith("--xla_gpu_deterministic_ops")]
    return device.platform != "gpu" or told[-1:] == ["--xla_gpu_deterministic_ops=true"]


def products(device: Any) -> str:
    """How an accelerator multiplies, where that is not as `choose` has it."""
    import jax

    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return "" if device.platform == "cpu" or chosen == "highest" else f", products {chosen}"


def free_memory(device: Any) -> int | None:
    """Bytes that this process could still take there; None where that cannot be known."""
    if device.platform != "cpu":
        held = device.memory_stats() or {}
        return held["bytes_limit"] - held["bytes_in_use"] if {"bytes_limit", "bytes_in_use"} <= held.keys() else None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return max(0, int(min(memory_granted(), free)))


def cores() -> int:
    """The cores that this process may use: those it may run on, or fewer where a container grants less time."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(there, math.ceil(min(granted(), there))))


def granted(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Seconds of computing that control groups (cgroup v2, v1) grant this process for each second; may be infinite."""
    found = [math.inf]
    with suppress(OSError, ValueError):  # no such group, or "max"
        time, period = (int((groups / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        found += [time / period] if time > 0 else []
    for folder in _control_groups(groups, own):
        with suppress(OSError, ValueError):
            time, period = map(int, (folder / "cpu.max").read_text().split())
            found.append(time / period)
    return min(found)


def memory_granted(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Bytes that control groups (cgroup v2, v1) would still give this process, file caches aside; may be infinite."""
    found = [math.inf]
    names = dict.fromkeys(_control_groups(groups, own), ("memory.max", "memory.current", "inactive_file"))
    names[groups / "memory"] = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    for folder, (most, used, cache) in names.items():
        with suppress(OSError, ValueError):  # no such group, or "max"
            given, taken = (int((folder / name).read_text()) for name in (most, used))
            held = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            found.append(given - taken + int(held.get(cache, 0)))
    return min(found)


def _control_groups(groups: Path, own: Path) -> list[Path]:
    """The folders of the groups (v2) that this process is in, innermost first."""
    lines = own.read_text().splitlines() if own.is_file() else []
    inner = Path(next((line[3:] for line in lines if line.startswith("0::")), "/").lstrip("/"))
    return [groups / folder for folder in (inner, *inner.parents)]


def _divide(count: int, *, must: bool) -> None:
    """Ask for the CPU in so many parts; possible only before jax has looked at its devices."""
    import jax

    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if must and len(jax.devices()) < count:
            raise ConfigurationError(
                f"device.count={count}: this process has started with {len(jax.devices())}; give the count to a run of "
                "its own, or all jobs of a sweep the same"
            ) from error


def _there(error: RuntimeError) -> str:
    import jax

    platforms = os.environ.get("JAX_PLATFORMS")
    asked = f" (JAX_PLATFORMS={platforms} hides all others)" if platforms else ""
    try:
        found = ", ".join(described([device]) for device in jax.devices())
    except RuntimeError:
        return str(error).partition("\n")[0]
    return f"no such device here; there is: {found}{asked}"


def described(devices: Sequence[Any]) -> str:
    """cpu, or gpu (NVIDIA H200), or 2 x cpu."""
    platform, kind = devices[0].platform, devices[0].device_kind
    text = platform if kind == platform else f"{platform} ({kind})"
    return text if len(devices) == 1 else f"{len(devices)} x {text}"


def environment(devices: Sequence[Any], cache: Path | None) -> dict[str, Any]:
    """What a run ran on: environment.json."""
    packages = ("jaxrnn", "jax", "jaxlib", "optax", "numpy", "hydra-core", "safetensors")
    return {
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",  # platform() asks a process
        "cores": cores(),
        "device": described(devices),
        "git_commit": _commit(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "compile_cache": cache is not None,
    }


@functools.cache
def version(name: str) -> str | None:
    """Of a package; a module that is there says it at once, its metadata are a file of up to 100 kB."""
    known = getattr(sys.modules.get({"hydra-core": "hydra"}.get(name, name)), "__version__", None)
    if known:
        return known
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this package is in; None in an installed one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
