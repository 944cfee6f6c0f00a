"""What a value may be: each kind says it in words, and reads a value or refuses it."""

import difflib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxrnn.errors import ConfigurationError


@dataclass(frozen=True)
class Allowed:
    """What a value may be: `text` says it, `read` returns the value to use, or raises ValueError; `names` are words."""

    text: str
    read: Callable[[Any], Any]
    names: tuple[str, ...] = ()

    def check(self, key: str, value: Any) -> Any:
        try:
            return self.read(value)
        except (ValueError, TypeError):
            near = difflib.get_close_matches(str(value), self.names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigurationError(f"{key}={value!r}: expected {self.text}{hint}") from None


def _require(true: bool) -> None:
    if not true:
        raise ValueError


def whole(low: int = 0, high: int = 2**31 - 1) -> Allowed:
    """Whole numbers from `low` on; 64.0 and true are none."""

    def read(value):
        _require(type(value) is int and low <= value <= high)
        return value

    bound = f"of at least {low}" if high == 2**31 - 1 else f"between {low} and {high}"
    return Allowed(f"a whole number {bound}", read)


def number(low: float = 0.0, high: float = math.inf, *, above: bool = False, below: bool = False) -> Allowed:
    """Finite numbers in [low, high]; `above` leaves out low, `below` leaves out high."""

    def read(value):
        _require(type(value) in (int, float) and math.isfinite(value) and low <= value <= high)
        _require(not (above and value == low) and not (below and value == high))
        return float(value)

    text = "a finite number"
    if math.isfinite(low):
        text += f" above {low:g}" if above else f" of at least {low:g}"
    if math.isfinite(high):
        text += f" and below {high:g}" if below else f" and at most {high:g}"
    return Allowed(text, read)


def one_of(*names: str) -> Allowed:
    def read(value):
        _require(value in names)
        return value

    return Allowed(" or ".join(names) if len(names) < 3 else "one of " + ", ".join(names), read, names)


def _read_switch(value):
    _require(type(value) is bool)
    return value


def _read_text(value):
    _require(isinstance(value, str) and value != "")
    return value


def _read_path(value):
    return os.path.expanduser(_read_text(value))


switch = Allowed("true or false", _read_switch)
path = Allowed("a path", _read_path)
words = Allowed("a word or a path", _read_text)
anything = Allowed("anything", lambda value: value)


def _read_names(value):
    _require(isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value))
    return tuple(value)


names = Allowed("a list of keys, as in [batch_size]", _read_names)


def _read_labels(value):
    _require(isinstance(value, list | tuple) and all(type(label) in (str, int) for label in value))
    return tuple(map(str, value))


labels = Allowed("a list of labels, as in [0,1] or ['1.0','2.0']", _read_labels)


def or_null(allowed: Allowed) -> Allowed:
    return Allowed(allowed.text + ", or null", lambda value: None if value is None else allowed.read(value))


def like(default: Any) -> Allowed:
    """What may replace a default of a member's yaml when nothing more is known: something of its type."""
    if type(default) is bool:
        return switch
    if type(default) is int:
        return whole(0)
    if type(default) is float:
        return number(-math.inf)
    return words if isinstance(default, str) else anything
