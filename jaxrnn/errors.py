"""The refusals of jaxrnn: each class carries the exit code a command leaves with. Imports nothing.

A message is one or two lines: what was expected, what was found, what to do. Only the outermost entry point exits.
"""

import difflib
from collections.abc import Iterable


class JaxrnnError(Exception):
    """A refusal that a user can act on; `code` is the exit code of the process."""

    code = 1


class ConfigurationError(JaxrnnError):
    """An unknown key, value or type, found before anything is compiled."""

    code = 2


class DataError(JaxrnnError):
    """A data file that is missing, unreadable or not what it should be."""

    code = 3


class NumericalError(JaxrnnError):
    """A loss or gradient that is not finite."""

    code = 4


class ArtefactError(JaxrnnError):
    """A run folder, checkpoint or vocabulary that is damaged or does not match."""

    code = 5


class BusyError(JaxrnnError):
    """Another process holds the run, or the folder already holds one."""

    code = 6


class StorageError(JaxrnnError):
    """The disk is full, read-only or failing."""

    code = 7


class MemoryExceeded(JaxrnnError):
    """An allocation failed."""

    code = 8


def unknown(kind: str, given: object, known: Iterable[str]) -> str:
    """The message for a name that is not known: the nearest match, then every known name.

    >>> print(unknown("cell", "lstmm", ["vanilla", "gru", "lstm"]))
    unknown cell 'lstmm'; did you mean 'lstm'? known: gru, lstm, vanilla
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(given).lower(), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {given!r}{hint} known: {', '.join(names)}"


def many(count: int, what: str) -> str:
    """1 row, 2 rows"""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def too_large(needed: int, free: int) -> str:
    """The message for a job whose bytes are not there."""
    return f"a job needs {needed:,} bytes, {free:,} are free: lower batch_size, max_length or hidden_size"
