"""Programs that are traced and compiled in the background, several at once, while their maker goes on.

XLA compiles without Python's lock and runs without it: tracing the next program, and training with the first, take the
time that the others need.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

AT_ONCE = 2  # XLA deals the work of one program to all cores too, but not from its first to its last pass


class Program:
    """A compiled program, or one that is on the way: who uses it waits, and meets the error of its compilation."""

    def __init__(self, compiling: Future[Any]):
        self._compiling = compiling

    def __call__(self, *arguments: Any) -> Any:
        return self.ready()(*arguments)

    def done(self) -> bool:
        """Would `ready` not wait."""
        return self._compiling.done()

    def ready(self) -> Any:
        """What jax compiled."""
        return self._compiling.result()

    def error(self) -> BaseException | None:
        """What `ready` would raise; waits as it does."""
        return self._compiling.exception()


class Asked(Program):
    """A program that may never be needed: traced and compiled by who first uses it."""

    def __init__(self, trace: Callable[[], Any]):
        super().__init__(Future())
        self._trace, self._one = trace, threading.Lock()

    def ready(self) -> Any:
        with self._one:
            if not self.done():
                self._compiling.set_result(self._trace().compile())
        return super().ready()


class Compiler:
    """Compiles what it is given in that order; as a context it takes nothing more after its end, and does not wait.

    `before` is waited for first: what the programs call may still be on its way while they are traced.
    """

    def __init__(self, before: Callable[[], None] | None = None) -> None:
        self._before = before
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="compiler")
        self._later = ThreadPoolExecutor(1, thread_name_prefix="compiler")
        self._begun: list[Future[Any]] = []

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(wait=False)
        self._later.shutdown(wait=False)

    def begin(self, lowered: Any) -> Program:
        """`lowered` is a traced program, a jax.stages.Lowered, that somebody waits for."""

        def made() -> Any:
            if self._before:
                self._before()
            return lowered.compile()

        self._begun.append(self._pool.submit(made))
        return Program(self._begun[-1])

    def asked(self, trace: Callable[[], Any]) -> Program:
        """For a program that nobody may come for: `trace`, as in `later`, is called by who does."""
        return Asked(trace)

    def later(self, trace: Callable[[], Any]) -> Program:
        """For a program that nobody waits for yet: compiled when those that were begun are there, one after the other.

        `trace` gives the Lowered; it is called while those are compiled, which takes little of Python's time.
        """
        begun = list(self._begun)

        def made() -> Any:
            lowered = trace()
            for one in begun:
                one.result()  # where one failed there is nobody to come later for
            return lowered.compile()

        return Program(self._later.submit(made))
