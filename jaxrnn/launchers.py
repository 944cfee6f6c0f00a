"""Who runs the jobs of a sweep: launch(tasks, ended). `ended` hears how they went, in the calling thread.

basic       one after another
population  as many at once as there are cores, each job on a thread: XLA computes without Python's lock, and one
            compiled program serves all threads. On an accelerator as many as its memory holds, in one vmapped program

Launchers that are installed for Hydra itself are in `processes`.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from jaxrnn import command, devices, foreign
from jaxrnn.job import Halt
from jaxrnn.settings import Settings

WRITING = 1  # jobs beyond those that compute: while one writes its files, another takes its core
SHARE_WRITING = 8  # of this many that train together the files of one
ASKED_EVERY = 0.2  # seconds between two looks for a polite stop


class Outcome(NamedTuple):
    """How a job ended."""

    number: int
    status: str  # completed, pruned, failed, stopped, or waiting where a stop came before it began
    code: int  # what a run of its own would have exited with
    summary: dict[str, Any]  # its summary.json; empty where it failed before there was one
    error: BaseException | None = None


class Task(NamedTuple):
    """A job to run. `run`, in this process: it is given what to ask for a polite stop."""

    number: int
    settings: Settings
    run: Callable[[Halt | None], Outcome]


class AtOnce(KeyboardInterrupt):
    """A second Ctrl-C: threads are left at work, in a compilation perhaps, which nothing but the process's end ends."""


Ended = Callable[[Sequence[Outcome]], None]  # told of those that have ended since


def basic(tasks: Sequence[Task], ended: Ended) -> None:
    for task in tasks:
        outcome = task.run(None)
        ended([outcome])
        if isinstance(outcome.error, KeyboardInterrupt):
            raise outcome.error


def population(tasks: Sequence[Task], ended: Ended, members: int | Callable[[Sequence[Task]], int] = 1) -> None:
    """A polite stop is heard by every running job, which saves itself; those that wait do not start.

    AtOnce at a second SIGINT, which waits for none of them.

    `members`: how many train at once in one program, or what finds that out.
    """
    if not tasks:
        return
    # XLA deals the kernels of every update to a pool of threads and goes on where the last one ended. With a pool of
    # one each job stays on its own thread: 64 jobs on SST-2 sentences 38.1 -> 36.5 s. Read when the CPU is first used.
    if callable(members) or members == 1:
        os.environ.setdefault("PJRT_NPROC", "1")
    stop: KeyboardInterrupt | None = None
    with command.put_off() as arrived:
        try:
            together = min(members(tasks) if callable(members) else members, len(tasks))
        except KeyboardInterrupt:  # the first one waits to be asked for
            raise AtOnce from None
        if stop := arrived():
            raise stop
        threads = together + together // SHARE_WRITING if together > 1 else devices.cores()
        done: SimpleQueue[Future[Outcome]] = SimpleQueue()
        wide = partial(devices.large_pages, devices.PIECES_OF_THREAD) if together == 1 else None
        pool = ThreadPoolExecutor(threads + WRITING, initializer=wide)
        try:
            jobs = [pool.submit(task.run, lambda: stop) for task in tasks]
            for job in jobs:
                job.add_done_callback(done.put)
            left = len(jobs)
            while left:
                found = _taken(done)
                left -= len(found)
                if outcomes := [job.result() for job in found if not job.cancelled()]:
                    ended(outcomes)
                if stop is None and (stop := arrived()):
                    for job in jobs:
                        job.cancel()
            pool.shutdown()
        except KeyboardInterrupt as error:
            stop = error
            pool.shutdown(wait=False, cancel_futures=True)
            raise AtOnce from None
        except BaseException:
            stop = KeyboardInterrupt()
            pool.shutdown(cancel_futures=True)
            raise
    if stop:
        raise stop


def _taken(done: SimpleQueue) -> list[Any]:
    """All that is there; what comes first is waited for, ASKED_EVERY seconds at most."""
    found = []
    with suppress(Empty):
        found.append(done.get(timeout=ASKED_EVERY))
        while True:
            found.append(done.get_nowait())
    return found


OURS = {"basic": basic, "population": population}


class Turns:
    """Groups that fill the device take turns, of each as many jobs at once as fit."""

    def __init__(self) -> None:
        self.changed, self.group, self.jobs, self.most = threading.Condition(), object(), 0, 0

    @contextmanager
    def taken(self, group: object, fitting: Callable[[], int]) -> Iterator[None]:
        """`fitting`, called when the group has the device for itself: how many jobs of it fit."""
        with self.changed:
            self.changed.wait_for(lambda: not self.jobs or (self.group is group and self.jobs < self.most))
            if self.group is not group:
                self.most, self.group = fitting(), group
            self.jobs += 1
        try:
            yield
        finally:
            with self.changed:
                self.jobs -= 1
                self.changed.notify_all()


class Room:
    """So many cores, to be taken by jobs, each of which needs some of them at once."""

    def __init__(self, cores: int):
        self.cores, self.door, self.free = cores, threading.Lock(), threading.Semaphore(cores)
        self.counting, self.jobs = threading.Lock(), 0  # at work

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        count = min(count, self.cores)
        with self.door:  # one at a time takes, so two that wait for all cores do not hold a part each
            for _ in range(count):
                self.free.acquire()
        self._share(1)
        try:
            yield
        finally:
            self._share(-1)
            self.free.release(count)

    def _share(self, more: int) -> None:
        """Jobs at work divide the cores: a helper of one would only take the place of another."""
        with self.counting:
            self.jobs += more
            foreign.limit(max(1, self.cores // max(1, self.jobs)))
