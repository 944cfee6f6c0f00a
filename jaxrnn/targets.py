"""The C functions of `native/` as jax knows them, from the moment that `foreign.load` has registered them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

FUNCTIONS = ("forward", "backward", "read", "learn", "settle", "threefry", "batch", "score")

_targets: dict[tuple[str, str], str] = {}  # ("forward", "float32") -> the name that jax knows the function by


def register(mark: str, dtype: str, functions: Mapping[str, Any]) -> None:
    """Hand the functions to jax; `mark` tells versions apart in cached programs, which hold the names only."""
    for name, function in functions.items():
        target = f"jaxrnn_{name}_{mark}"
        if _targets.get((name, dtype)) != target:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(function), platform="cpu")
            _targets[name, dtype] = target


def dtypes() -> list[str]:
    """The types of number that there is code for."""
    return sorted({dtype for _, dtype in _targets})


def call(name: str, dtype: Any, results: list[jax.ShapeDtypeStruct], aliases: dict[int, int] | None = None) -> Callable:
    """The function `name` of numbers of that type; `aliases`: argument -> the result that takes its place in memory."""
    return jax.ffi.ffi_call(_targets[name, str(dtype)], results, vmap_method="sequential", input_output_aliases=aliases)
