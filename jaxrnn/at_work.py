"""Of many threads a few at a time do something; the others wait for an answer, or for their turn.

Every thread that waits for Python's lock asks for it 200 times a second: 256 that are answered at once are long on the
way. 256 runs of a tiny network, 200 epochs, on an H100 and 16 cores (2026-11-26, one run each): 32.2 s where 4 threads
are at work at a time, 34.2 with 2, 35.0 with 16, 37.4 with all.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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


class AtWork:
    """At most `most` threads; those that wait among the `members` come before the `others`, for which nobody waits."""

    def __init__(self, most: int):
        self.lock, self.free = threading.Lock(), most
        self.members, self.others = deque[tuple[Answer, Any]](), deque[tuple[Answer, Any]]()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Around all that a thread does: it takes its turn, and leaves while it waits for the answer to a call."""
        self.wait(self.members)
        try:
            yield
        finally:
            self.leave()

    def wait(self, queue: deque[tuple[Answer, Any]]) -> None:
        turn = Answer()
        self.give(turn, None, queue)
        turn.wait()

    def leave(self) -> None:
        with self.lock:
            queue = self.members or self.others
            if not queue:
                self.free += 1
                return
            answer, result = queue.popleft()
        answer.give(result)

    def give(self, answer: Answer, result: Any, queue: deque[tuple[Answer, Any]]) -> None:
        """To a thread that has left, which takes its turn with it."""
        with self.lock:
            if not self.free:
                queue.append((answer, result))
                return
            self.free -= 1
        answer.give(result)
