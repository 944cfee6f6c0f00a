"""Many runs of a group at once, in the programs of `vmapped`: on an accelerator an update of 256 networks costs little
more than one.

Each run keeps its thread and its own course: epochs, patience, checkpoints, its position in the data. Only its calls of
`segment` and `answers` meet those of the others, and a thread of their own makes one call of them:

    with population.member():                  from before the run begins until it trains no more
        with population.at_work.taken():       and after it
            ... population.programs.segment(state, ...)

A call waits until every member has one or has left, so that the same runs meet in the same calls whatever their
threads do. What measures goes before what trains: who has ended an epoch catches up with the rest; and who ends one is
measured with the call that ends it. A member that neither calls nor leaves, since its disk is slow, is waited for as
long as PATIENCE; it joins a later call.

A visit is a call about parameters that are not in the row of a member: the test of a run that has ended. It waits for
other visits, as long as one takes, and keeps no member waiting longer than that.

A member that leaves gives its place up; which of the programs are called for those that are left, `widths` says.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn.at_work import Answer, AtWork
from jaxrnn.compiling import Program
from jaxrnn.programs import Programs
from jaxrnn.stack import Place, Stack, real, repeated, written
from jaxrnn.types import Hyper
from jaxrnn.widths import Widths

PATIENCE = 2.0  # seconds without an arrival
AT_WORK = 4  # threads between two calls


@dataclass(frozen=True, eq=False)
class Call:
    """Of `segment` or `answers`; `place`: of the member, None for a visit."""

    name: str
    place: Place | None
    arguments: tuple[Any, ...]
    like: Any  # calls that are equal in this can be one
    answer: Answer


class Population:
    """Runs of one group, at most `widths.most` at once. `programs` is what they are given in place of `alone`."""

    def __init__(self, alone: Programs, most: int, say: Callable[[str], None]):
        self.alone, self.widths = alone, Widths(alone, most, say)
        readings = alone.readings and alone.readings._replace(program=Whole(alone.readings.program))
        self.programs: Programs = alone._replace(
            segment=self._segment, answers=self._answers, readings=readings, clock=self._clock
        )
        self.stack = Stack()
        self._door = threading.Condition()
        self._members: set[Place] = set()
        self._absent: set[Place] = set()  # of these: not waited for until they call
        self._calls: list[Call] = []  # that wait, of members
        self._visits: list[Call] = []
        self._came = self._visited = 0.0  # when the last member came or left, when the last visit did
        self._visit_seconds = 0.0  # that one takes
        self._conductor: threading.Thread | None = None
        self._here = threading.local()  # .place: of the member that this thread is
        self.at_work = AtWork(AT_WORK)  # entered by each thread, for all that it does

    @contextmanager
    def member(self) -> Iterator[None]:
        """While it lasts this thread is a member, and the others wait for its calls."""
        self._here.place = place = Place(self.stack)
        try:
            with self._door:
                self._members.add(place)
                self._changed()
                self._wake()  # now: later it may be kept on a core, and what it begins with it
            yield
        finally:
            self._here.place = place.ahead = None
            try:
                place.leave()
            finally:
                with self._door:
                    self._members.discard(place)
                    self._absent.discard(place)
                    if not self._members:
                        self.stack.clear()  # room for another group
                    self._changed()

    def _clock(self) -> float:
        place: Place | None = getattr(self._here, "place", None)
        return place.trained if place else 0.0

    def _segment(self, state: Any, hyper: Hyper, data: Any, order: Any, begin: Any, end: Any, last: Any) -> Any:
        place: Place | None = getattr(self._here, "place", None)
        if place is None:
            raise RuntimeError("expected a thread that trains within `member()`")
        if getattr(self._here, "hyper", None) is not hyper:  # nine arrays of one number each
            self._here.hyper, self._here.numbers = hyper, np.array([np.asarray(number) for number in hyper])
        place.ahead = None
        return self._called("segment", place, (state, self._here.numbers, order, begin, end, last))

    def _answers(self, params: Any, data: Any, order: Any, end: Any) -> Any:
        place: Place | None = getattr(self._here, "place", None)
        # The rows are given again at every epoch: what tells them from others is kept with the member.
        known = getattr(self._here, "known", (None, None))
        if known[0] is not order:
            self._here.known = known = order, (np.asarray(order).tobytes(), int(end))
        if place is None or not place.holds(params):
            return self._called("answers", None, (real(params), order, end), known[1])
        ahead, place.ahead = place.ahead, None
        if ahead and ahead[0] == known[1]:
            return ahead[1]
        place.rows = known[1], order, end
        return self._called("answers", place, (params, order, end), known[1])

    def _called(self, name: str, place: Place | None, arguments: tuple, like: Any = None) -> Any:
        call = Call(name, place, arguments, like, Answer())
        with self._door:
            if place:
                self._absent.discard(place)
                self._calls.append(call)
                self._changed()
            else:
                self._visits.append(call)
                self._visited = time.monotonic()
                self._wake()
        return self.at_work.wait(call.answer)

    def _changed(self) -> None:
        """A member came, called or left; with the door held."""
        self._came = time.monotonic()
        if self._complete():
            self._wake()

    def _complete(self) -> bool:
        """Has everybody called who is waited for."""
        return len(self._calls) == len(self._members) - len(self._absent)

    def _wake(self) -> None:
        if self._conductor is None and (self._members or self._visits):
            conductor = threading.Thread(target=self._conduct, name="conductor", daemon=True)
            conductor.start()
            self._conductor = conductor
        self._door.notify()

    def _conduct(self) -> None:
        """Makes the calls, until there are no members and no visits."""
        while True:
            with self._door:
                while not (calls := self._next()):
                    if not (self._members or self._visits):
                        self._conductor = None
                        return
                    patience = PATIENCE - (time.monotonic() - self._came) if self._calls else PATIENCE
                    self._door.wait(max(0.0, self._visit_seconds if self._visits else patience))
                chosen, members = set(calls), len(self._members)
                self._calls = [call for call in self._calls if call not in chosen]
                self._visits = [call for call in self._visits if call not in chosen]
            try:
                results = self._made(calls, members)
            except BaseException as error:  # each of them meets it
                results = [error] * len(calls)
            with self._door:
                self._came = time.monotonic()  # nobody could come while they waited for this
            for call, result in zip(calls, results, strict=True):
                self.at_work.give(call.answer, result, self.at_work.members if call.place else self.at_work.others)
            del calls, chosen, call, results, result  # arrays that nobody holds make room

    def _next(self) -> list[Call]:
        """The calls to be made as one, none where there is somebody to wait for."""
        now, found = time.monotonic(), []
        if self._visits and now - self._visited >= self._visit_seconds:
            found = self._visits
        elif self._complete() or now - self._came >= PATIENCE:
            if self._calls:
                self._absent = self._members - {call.place for call in self._calls if call.place}
            found = [call for call in self._calls if call.name == "answers"] or self._calls
        return [call for call in found if call.like == found[0].like]

    def _made(self, calls: list[Call], members: int) -> list[Any]:
        """What each call is answered with; an error is raised where the call was made."""
        if calls[0].name == "segment":
            results = self._train(calls, self.widths.ready(members))
            self._look_ahead(calls, results)
            return results
        if calls[0].place is not None:
            return self._measure(calls, self.stack.states and self.stack.states.params)
        began, results, width = time.monotonic(), [], self.widths.ready(len(calls), begin=False)
        for first in range(0, len(calls), width):
            some = calls[first : first + width]
            params = repeated(some[0].arguments[0], width)
            for at, call in enumerate(some[1:], 1):
                params = written(params, call.arguments[0], np.int32(at))
            results += self._measure(some, params)
        self._visit_seconds = min(PATIENCE, time.monotonic() - began)
        return results

    def _train(self, calls: list[Call], width: int) -> list[Any]:
        segment, stack, members = self.widths.of(width).segment.ready(), self.stack, len(calls)
        self.widths.compiled()
        began = time.monotonic()
        orders = np.full((width, *self.alone.pure.order), -1, np.int32)
        hypers = np.ones((len(Hyper._fields), width), np.float32)
        begin, end, last = np.zeros(width, np.int32), np.zeros(width, np.int32), np.zeros(width, bool)
        found: list[Any] = [_lost(call) for call in calls]
        calls = [call for call, error in zip(calls, found, strict=True) if error is None]
        if not calls:
            return found
        try:
            with stack.lock:
                given = [(call.place, call.arguments[0]) for call in calls]
                stack.seat(width, [(place, state) for place, state in given if place and not place.holds(state)])
                places = np.array([place.at for place, _ in given if place], int)
                for at, call in zip(places, calls, strict=True):
                    _, hypers[:, at], orders[at], begin[at], end[at], last[at] = call.arguments
                states, logs, made = segment(stack.states, Hyper(*hypers), self.alone.data, orders, begin, end, last)
                stack.put(states)
            logs, made = np.asarray(logs), np.asarray(made)  # waits for the device
            spent = time.monotonic() - began
            self.widths.trained(members, width, spent)
            for place, _ in given:
                if place:
                    place.trained += spent
        except BaseException as error:
            stack.lose(error)
            raise
        states = [place and place.state for place, _ in given]
        answers = zip(states, logs[places], made[places], strict=True)  # copies, so that no log keeps all of them
        return [next(answers) if error is None else error for error in found]

    def _look_ahead(self, calls: list[Call], results: list[Any]) -> None:
        """Who has ended an epoch asks for the rows that it asked for after the last one, and need not wait again."""
        ended: list[Place] = []
        for call, result in zip(calls, results, strict=True):
            *_, begin, end, last = call.arguments
            done = last and not isinstance(result, BaseException) and result[2] == end - begin
            if done and call.place and call.place.rows:
                ended.append(call.place)
        if not ended:
            return
        like, order, end = ended[0].rows
        ended = [place for place in ended if place.rows[0] == like]
        asked = [Call("answers", place, (None, order, end), like, Answer()) for place in ended]
        with suppress(Exception):  # whoever asks meets it again
            for place, result in zip(ended, self._measure(asked, self.stack.states.params), strict=True):
                place.ahead = like, result

    def _measure(self, calls: list[Call], params: Any) -> list[Any]:
        """Of rows of `params`: those of the members, or else the first ones."""
        found: list[Any] = [_lost(call) for call in calls]
        if params is None:
            return found
        width = jax.tree.leaves(params)[0].shape[0]
        _, order, end = calls[0].arguments
        sums, logits = self.widths.of(width).answers(params, self.alone.data, order, end)
        sums = np.asarray(sums)
        for n, call in enumerate(calls):
            at = call.place.at if call.place else n
            if at is not None:
                found[n] = sums[at], Answers(logits, at)
        return found


class Answers(NamedTuple):
    """The logits of one member [S, B, ...], read when they are asked for."""

    logits: Any
    at: int

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(np.asarray(self.logits)[self.at], dtype)


class Whole(Program):
    """A program of one run, which cannot be given Parts."""

    def __init__(self, program: Program):
        self._program = program

    def ready(self) -> Callable:
        compiled = self._program.ready()
        return lambda *arguments: compiled(*map(real, arguments))

    def done(self) -> bool:
        return self._program.done()

    def error(self) -> BaseException | None:
        return self._program.error()


def _lost(call: Call) -> BaseException | None:
    """Why there is no state any more for a call about it."""
    place = call.place
    return place.error if place and place.at is None and place.holds(call.arguments[0]) else None
