"""Of many threads a few at a time do something; the others wait for an answer, or for their turn.

Every thread that waits for Python's lock asks for it 200 times a second: 256 that are answered at once are long on the
way. 256 runs of a tiny network, 200 epochs, on an H100 and 16 cores (2026-11-26, one run each): 32.2 s where 4 threads
are at work at a time, 34.2 with 2, 35.0 with 16, 37.4 with all.

A turn ends when its thread asks for something, or when it is LONG: who waits for a disk, or for another thread, needs
no lock of Python's and keeps nobody waiting.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

LONG = 0.05  # seconds of a turn


class Answer:
    """What a thread waits for. A lock and no Future, which takes three times as long."""

    def __init__(self) -> None:
        self._given = threading.Lock()
        self._result: Any = None
        self._given.acquire()

    def give(self, result: Any) -> None:
        self._result = result
        self._given.release()

    def wait(self) -> Any:
        """The result; raised where it is an exception."""
        self._given.acquire()
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result


Queue = deque[tuple[Answer, Any]]


class AtWork:
    """At most `most` threads have a turn; those that wait among the `members` come before the `others`."""

    def __init__(self, most: int):
        self.most, self.lock = most, threading.Lock()
        self.members, self.others = Queue(), Queue()
        self.turns: dict[Answer, float] = {}  # what each began with, and when
        self._mine = threading.local()  # .turn: of this thread, whether or not it has become too long
        self._watching = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Around all that a thread does."""
        self._mine.turn = None
        self.again(self.members)
        try:
            yield
        finally:
            self.leave()
            del self._mine.turn

    def again(self, queue: Queue) -> None:
        """End the turn of this thread and wait in that queue for another, if it is within `taken`."""
        if hasattr(self._mine, "turn"):
            turn = Answer()
            self.give(turn, None, queue)
            self.wait(turn)

    def wait(self, answer: Answer) -> Any:
        """For the answer, with which a turn begins; the one that this thread has ends."""
        self.leave()
        self._mine.turn = answer
        return answer.wait()

    def give(self, answer: Answer, result: Any, queue: Queue) -> None:
        """An answer to a thread that waits for it, or will."""
        with self.lock:
            queue.append((answer, result))
            self._next()

    def leave(self) -> None:
        turn: Answer | None = getattr(self._mine, "turn", None)
        with self.lock:
            if turn is not None:
                self.turns.pop(turn, None)
            self._next()

    def _next(self) -> None:
        """Hand out what turns there are; with the lock held."""
        while len(self.turns) < self.most and (queue := self.members or self.others):
            answer, result = queue.popleft()
            self.turns[answer] = time.monotonic()
            answer.give(result)
        if not self._watching and (self.members or self.others):
            with suppress(RuntimeError):  # no more threads here: turns end when they are done
                threading.Thread(target=self._watch, name="turns", daemon=True).start()
                self._watching = True

    def _watch(self) -> None:
        """End turns that are too long, as long as somebody waits."""
        while True:
            time.sleep(LONG / 2)
            with self.lock:
                if not (self.members or self.others):
                    self._watching = False
                    return
                now = time.monotonic()
                self.turns = {turn: since for turn, since in self.turns.items() if now - since < LONG}
                self._next()
