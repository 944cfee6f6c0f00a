"""One core for the threads that train in one program."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Core:
    """The one that its maker is on, for threads that hand Python's lock to each other; any, where it is not known.

    A thread that lets go of the lock to write a line has it back at once where no other core takes it, and a core that
    has nothing to do is slow to wake. The 256 runs of `at_work` took 30.5 s, with their threads on one core 21.8; with
    the whole process on one core 22.8, on two 31.4.
    """

    def __init__(self) -> None:
        self.every: set[int] = set()
        self.one: set[int] = set()
        if sys.platform.startswith("linux") and (ask := getattr(ctypes.CDLL(None), "sched_getcpu", None)):
            self.every = os.sched_getaffinity(0)
            self.one = {ask()} & self.every

    @contextmanager
    def kept(self) -> Iterator[None]:
        """This thread computes there, and so do those that it starts."""
        self._go(self.one)
        try:
            yield
        finally:
            self._go(self.every)

    def _go(self, where: set[int]) -> None:
        if where:
            with suppress(OSError):  # forbidden here: it is only slower
                os.sched_setaffinity(0, where)
