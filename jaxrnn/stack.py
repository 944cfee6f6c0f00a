"""The states of many members side by side on the device, arrays [W, ...], and what each member holds of them.

A member is given its own state as a tree of `Part`s, which name an array of its `Place` and are read by numpy alone.
Its state is the one that stands in its row now: one that it was given before is no more, as where a program takes it
over. So nothing is copied between two calls, and rows move only when the stack is made wider or narrower.
"""

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn.types import Array, TrainState


@partial(jax.jit, static_argnums=1)
def repeated(tree: Any, width: int) -> Any:
    """The same arrays [...] in all of `width` rows."""
    return jax.tree.map(lambda one: jnp.broadcast_to(one, (width, *one.shape)), tree)


@partial(jax.jit, donate_argnums=0)
def written(tree: Any, one: Any, at: Array) -> Any:
    """The arrays `one` written over row `at`, in place."""
    return jax.tree.map(lambda rows, row: lax.dynamic_update_index_in_dim(rows, row, at, 0), tree, one)


@jax.jit
def _taken(tree, at):
    return jax.tree.map(lambda rows: rows[at], tree)


@jax.jit
def _picked(tree, at):
    return jax.tree.map(lambda rows: lax.dynamic_index_in_dim(rows, at, keepdims=False), tree)


class Stack:
    """Whoever reads or changes `states` holds the `lock`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.states: Any = None  # a TrainState of arrays [W, ...]
        self.places: list[Place | None] = []  # whose each row is
        self.version = 0

    def put(self, states: Any) -> None:
        self.states, self.version = states, self.version + 1

    def seat(self, width: int, given: Sequence[tuple["Place", TrainState]]) -> None:
        """Make it so wide, enough for all rows that are taken, and write the states given into those they belong to."""
        if self.states is None:
            self.put(repeated(given[0][1], width))
            self.places = [None] * width
        if width != len(self.places):
            held = [place for place in self.places if place]
            empty = width - len(held)
            self.put(_taken(self.states, np.array([*(place.at for place in held), *[0] * empty], np.int32)))
            self.places = [*held, *[None] * empty]
            for at, place in enumerate(held):
                place.at = at
        for place, state in given:
            if place.at is None:
                place.at, place.error = self.places.index(None), None
                self.places[place.at] = place
            place.state = place.named(state)
            self.put(written(self.states, state, np.int32(place.at)))

    def clear(self) -> None:
        with self.lock:
            self.put(None)
            self.places = []

    def lose(self, error: BaseException) -> None:
        """A call that failed has taken all states with it."""
        for place in self.places:
            if place is not None:
                place.at, place.error = None, error
        self.clear()


class Place:
    """The place of one member, and after it has left what stood there."""

    def __init__(self, stack: Stack):
        self.stack = stack
        self.at: int | None = None
        self.state: TrainState | None = None  # in Parts; the key, which never changes, is itself
        self.error: BaseException | None = None  # that took it away
        self.trained = 0.0  # seconds of the calls that it took part in
        self.rows: Any = None  # what they are like, order and end: that it was measured on after an epoch
        self.ahead: Any = None  # what they are like, and what they give for the state that stands here now
        self._left: dict[int, Any] = {}
        self._asked: tuple[int, dict[int, Any]] = -1, {}  # picked from that version, and not read yet

    def named(self, state: TrainState) -> TrainState:
        """The tree of that shape that stands for the row."""
        leaves, structure = jax.tree.flatten(state)
        parts = [Part(self, number, leaf) for number, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, parts)._replace(key=state.key)

    def holds(self, tree: Any) -> bool:
        """Is it a part of the state in this row."""
        first = jax.tree.leaves(tree)[0]
        return isinstance(first, Part) and first.place is self

    def read(self, number: int) -> np.ndarray:
        """One array. Those beside it are asked for with it: few programs, and each of them a call."""
        with self.stack.lock:
            if number in self._left:
                return self._left[number]
            version, asked = self._asked
            if version != self.stack.version or number not in asked:
                asked = self._pick(number)
                self._asked = self.stack.version, asked
            found = asked.pop(number)
        return np.asarray(found)

    def leave(self) -> None:
        """Give the row up, and keep its state in host memory."""
        found: dict[int, Any] = {}
        with self.stack.lock:
            if self.at is None:
                return
            last = len(jax.tree.leaves(self.state)) - 1  # the key
            try:
                found = self._pick(0) | self._pick(last)
            except Exception as error:  # who reads it meets the same
                self.error = error
            self.stack.places[self.at] = None
            self.at = None
        self._left = {number: np.asarray(array) for number, array in found.items() if number < last}

    def _pick(self, number: int) -> dict[int, Array]:
        """The parameters, or else the rest, by their numbers in the whole state."""
        if self.at is None:
            raise self.error or RuntimeError("a state that was never given to a program")
        states = self.stack.states
        params = len(jax.tree.leaves(states.params))
        tree, first = (states.params, 0) if number < params else ((states.optimizer, states.step, states.key), params)
        return dict(enumerate(jax.tree.leaves(_picked(tree, np.int32(self.at))), first))


class Part:
    """One array of a member's state: numpy reads it as it stands."""

    def __init__(self, place: Place, number: int, like: Any):
        self.place, self.number, self.shape, self.dtype = place, number, like.shape, like.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.place.read(self.number), dtype)

    def __int__(self) -> int:
        return int(self.place.read(self.number))


def real(tree: Any) -> Any:
    """The tree with numpy arrays in place of Parts."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, Part) else leaf, tree)
