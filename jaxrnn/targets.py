"""The C functions of `native/` as jax knows them.

`foreign` declares them, from when on programs that call them can be traced, and registers them, from when on compiled.
"""

from collections.abc import Callable
from typing import Any

import jax

FUNCTIONS = ("forward", "backward", "read", "learn", "settle", "threefry", "orthogonal", "batch", "rows", "score")

_targets: dict[tuple[str, str], str] = {}  # ("forward", "float32") -> the name that jax knows the function by


_registered: set[str] = set()


def declare(mark: str, dtype: str) -> None:
    """`mark` tells versions apart in cached programs, which hold the names only."""
    _targets.update({(name, dtype): f"jaxrnn_{name}_{mark}" for name in FUNCTIONS})


def forget(mark: str) -> None:
    """What was declared will not come."""
    for key in [key for key, target in _targets.items() if target.endswith(mark)]:
        del _targets[key]


def register(mark: str, dtype: str, library: Any) -> None:
    """Hand the functions of a ctypes library to jax; AttributeError where it lacks one."""
    functions = {name: getattr(library, f"jaxrnn_{name}") for name in FUNCTIONS}
    declare(mark, dtype)
    for name, function in functions.items():
        target = _targets[name, dtype]
        if target not in _registered:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(function), platform="cpu")
            _registered.add(target)


def dtypes() -> list[str]:
    """The types of number that there is code for."""
    return sorted({dtype for _, dtype in _targets})


def call(name: str, dtype: Any, results: list[jax.ShapeDtypeStruct], aliases: dict[int, int] | None = None) -> Callable:
    """The function `name` of numbers of that type; `aliases`: argument -> the result that takes its place in memory."""
    return jax.ffi.ffi_call(_targets[name, str(dtype)], results, vmap_method="sequential", input_output_aliases=aliases)
