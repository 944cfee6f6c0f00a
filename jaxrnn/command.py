"""The one exit point of every command: typed refusals become exit codes, everything else keeps its traceback.

0 ok, 2 configuration, 3 data, 4 numerical, 5 artefact, 6 busy, 7 storage, 8 memory, 130 and 143 interrupted; 1: a bug.
"""

import argparse
import errno
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from jaxrnn.errors import ConfigurationError, JaxrnnError, MemoryExceeded, StorageError

STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
CLOSED = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}  # where it was not asked before: a name that leads nowhere
# jaxlib's errors are known by their text, so that nothing has to be imported to ask; the last two: a library that
# found no room to be loaded
MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "failed to map segment", "annot allocate memory")


class Terminated(KeyboardInterrupt):
    """SIGTERM: a polite stop, as Ctrl-C is, with a code of its own."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


NOTICES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # the last two: schedulers, some time before their limit


@contextmanager
def put_off(heard: Callable[[], None] = lambda: None) -> Iterator[Callable[[], KeyboardInterrupt | None]]:
    """Inside, a polite stop waits to be asked for: the function given returns it once it has come, to be raised.

    A second SIGINT does not wait. A handler of USR1 or USR2 that was there is called too, when it is asked for.
    `heard` is called at once.
    """
    seen: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and number in seen:
            raise KeyboardInterrupt
        seen.append(number)
        heard()

    def arrived() -> KeyboardInterrupt | None:
        for number in seen:
            if number not in (signal.SIGINT, signal.SIGTERM) and callable(before.get(number)):
                before[number](number, None)
        return None if not seen else KeyboardInterrupt() if seen[0] == signal.SIGINT else Terminated()

    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in NOTICES if hasattr(signal, name)):
            before[number] = signal.signal(number, note)
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see python -m jaxrnn.{self.prog.removeprefix('jaxrnn-')} --help")


def check_outputs(*files: Path | None) -> None:
    """ConfigurationError for a file that could not be made: asked before anything is computed for it.

    A device, a pipe or a link would be replaced by a file.
    """
    given = [file for file in files if file]
    for n, file in enumerate(given):
        if os.path.isdir(file):
            raise ConfigurationError(f"cannot write {file}: it is a folder; expected a file")
        if not os.path.isdir(file.parent):
            raise ConfigurationError(f"cannot write {file}: no folder {file.parent}; expected one that is there")
        if os.path.lexists(file) and (os.path.islink(file) or not os.path.isfile(file)):
            raise ConfigurationError(f"cannot write {file}: it is a link, a pipe or a device; expected a file")
        if os.path.realpath(file) in map(os.path.realpath, given[:n]):
            raise ConfigurationError(f"cannot write {file} twice: expected another file for each output")


def code_of(stopped: KeyboardInterrupt) -> int:
    return 143 if isinstance(stopped, Terminated) else 130


def typed(error: BaseException) -> JaxrnnError | None:
    """The refusal that an error of a library stands for; None where it is a bug."""
    if isinstance(error, JaxrnnError):
        return error
    known = isinstance(error, RuntimeError | ImportError | OSError) and any(text in str(error) for text in MEMORY)
    if known or isinstance(error, MemoryError):
        first = str(error).partition("\n")[0] or "an allocation failed"
        return MemoryExceeded(
            f"out of memory: {first}; lower batch_size, max_length or hidden_size; a GPU that others use: "
            "XLA_PYTHON_CLIENT_PREALLOCATE=false"
        )
    if isinstance(error, OSError) and error.errno in STORAGE:
        return StorageError(f"cannot write {error.filename or 'the output'}: {error.strerror}")
    if isinstance(error, OSError) and error.errno in CLOSED and error.filename is not None:
        return StorageError(f"cannot open {error.filename!s:.200}: {error.strerror}")
    return None


class Unread(io.FileIO):
    """A stream that goes on nowhere once its reader has closed it."""

    def write(self, content: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(content)
        except BrokenPipeError:
            to_nowhere(self.fileno())
            return super().write(content)


def to_nowhere(number: int) -> None:
    """Let what is written there be gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def lasting(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """The same stream, over Unread."""
    raw = Unread(stream.fileno(), "wb", closefd=False)
    buffer: Any = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)
    by_line, through = stream.line_buffering, stream.write_through
    return io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=by_line, write_through=through)


def run(name: str, main: Callable[[Sequence[str]], int | None], unread: bool = False) -> NoReturn:
    """Call `main` with the command line and exit with the code of what happened.

    What the terminal's encoding has no character for is written as an escape, not refused. `unread`: go on where
    whoever read the output has closed it.
    """
    for stream in ("stdout", "stderr"):
        if (found := getattr(sys, stream)) is None:  # closed before the command began
            setattr(sys, stream, open(os.devnull, "w", errors="backslashreplace"))  # noqa: SIM115
        elif isinstance(found, io.TextIOWrapper):
            found.reconfigure(errors="backslashreplace")
            if unread:
                setattr(sys, stream, lasting(found))
    code = exit_code(name, main, sys.argv[1:])
    gc.freeze()  # the interpreter would look through all that jax has made once more, for 0.05 s
    sys.exit(code)


def exit_code(name: str, main: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    """What `run` exits with. A refusal is printed on standard error, in its own few lines."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = main(arguments) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has seen enough
        to_nowhere(sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        print(f"jaxrnn.{name}: {str(error) or 'interrupted'}", file=sys.stderr)
        return code_of(error)
    except Exception as error:
        refusal = typed(error)
        if refusal is None:
            raise
        print(f"jaxrnn.{name}: {refusal}", file=sys.stderr)
        return refusal.code
