"""The nouns. Arrays live in NamedTuples, settings in frozen dataclasses, behaviour in NamedTuples of functions.

Axes, everywhere: B rows, T time, D input features, E embedding, H hidden, G gate rows (a multiple of H), V vocabulary,
C classes, S steps per epoch, N tokens of a corpus, R its rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any  # a numpy or a jax array; the shape stands in the docstring of whoever takes it


class Corpus(NamedTuple):
    """All rows of all splits, their tokens end to end. Row r is tokens[offset[r]:offset[r + 1]]."""

    tokens: np.ndarray  # [N] int32
    offset: np.ndarray  # [R + 1] int32
    target: np.ndarray  # [R] int32, the class of each row
    train: np.ndarray  # row numbers, int32
    valid: np.ndarray
    test: np.ndarray

    @property
    def length(self) -> np.ndarray:
        """Tokens of each row, [R] int32."""
        return np.diff(self.offset)


class Batch(NamedTuple):
    """A rectangle and what is real in it. Padding is to the right."""

    inputs: Array  # [B, T] int32 token ids
    length: Array  # [B] int32
    target: Array  # [B] int32, or [B, T] for one target per step
    weight: Array  # [B] float, 0 for filler rows


class Noise(NamedTuple):
    """Rates of the noise that training adds; traced numbers, so that changing one compiles nothing."""

    dropout_rate: Array | float = 0.0
    word_dropout_rate: Array | float = 0.0


class Cell(NamedTuple):
    """One recurrent cell: pure functions of one sequence, carry first.

    `step(params, state, x)` is one tick; x is a vector [D], or an integer that names a one-hot vector. `split` is what
    a hand-derived backward pass needs; a cell without it is for `unroll=scan`.

        init(key) -> params, a NamedTuple
        start(params) -> state, zeros
        step(params, state, x [D]) -> (state, y [H])
        output(state) -> y [H]
    """

    name: str
    init: Callable
    start: Callable
    step: Callable
    output: Callable
    output_size: int
    split: "Split | None" = None
    activation: Any = None  # activations.Activation, for an unroll that computes the cell by name


class Split(NamedTuple):
    """A step cut in two: what needs no state is one product for all time, the rest runs in the loop.

    The functions act on the last axis and take any leading axes; `after_loop` takes all steps of all rows as N.
    """

    before_loop: Callable  # (params, x [..., D]) -> p [..., G]
    advance: Callable  # (params, state, p) -> (state, kept): kept is all that the backward pass needs of this step
    state: Callable  # kept -> state after the step
    pullback: Callable  # (params, kept, state before, gradient at state) -> (gradient at state before, a [..., A])
    after_loop: Callable  # (params, x [N, D], state before [N, ...], a [N, A]) -> (dparams, dx [N, D])


class Layer(NamedTuple):
    """A part of the network over whole sequences. A stack of layers is a layer."""

    init: Callable  # key -> params
    apply: Callable  # (params, xs [T, B, D], length [B], key | None, rate) -> (last y [B, K], ys [T, B, K])
    start: Callable  # params -> state
    step: Callable  # (params, state, x [D]) -> (state, y [K])
    output_size: int


class Head(NamedTuple):
    """What becomes of the states of a sequence: one vector per row, or one per step."""

    init: Callable  # key -> params
    apply: Callable  # (params, last y [B, K], ys [T, B, K], length [B]) -> features [B, F], or [T, B, F]
    start: Callable  # params -> summary of nothing
    tick: Callable  # (params, summary, y [K]) -> (summary, features [F]): the answer after this step
    output_size: int


class Parts(NamedTuple):
    """What a recurrent classifier is put together from."""

    cells: tuple[tuple[Cell, ...], ...]  # layers, then directions: left to right, right to left
    head: Head
    output: Any  # an outputs.Output
    every: bool  # one answer per step
    one_hot: int | None  # V, where words are one-hot vectors


class Model(NamedTuple):
    """A recurrent classifier as pure functions, of a Batch and, for noise, a key and its rates.

    init(key, init_scale=1.0) -> params
    apply(params, batch, key=None, noise=Noise()) -> logits [B, C] or [B, T, C]
    loss(params, batch, key=None, noise=Noise()) -> (mean loss in nats, Sums): score of apply
    score(logits, batch) -> (mean loss, Sums)
    start(params) -> state, zeros
    step(params, state, token) -> (state, logits [C]): one token of one sequence
    tokens(batch, key=None, noise=Noise()) -> the ids [T, B] that apply reads with that key
    summed(params, batch, key=None, noise=Noise()) -> Sums: what training differentiates
    """

    init: Callable
    step: Callable
    apply: Callable
    score: Callable
    loss: Callable
    summed: Callable  # by the fastest way to the same numbers
    start: Callable
    tokens: Callable
    has_table: bool  # params.input is a table [V, E] of embeddings; `apply` takes layers.Rows in its place
    outputs: int  # C: logits per answer, 1 for a sigmoid
    parts: Parts  # for whoever looks inside


class Sums(NamedTuple):
    """What a batch adds to a measurement; only the end divides."""

    loss: Array  # weighted sum of -ln p over real answers
    correct: Array
    weight: Array  # number of real answers


class Hyper(NamedTuple):
    """Every number of training that a sweep may vary: arguments of the compiled step, never constants in it."""

    learning_rate: Array | float
    weight_decay: Array | float = 0.0
    clip_global_norm: Array | float = np.inf
    clip_value: Array | float = np.inf
    dropout_rate: Array | float = 0.0
    word_dropout_rate: Array | float = 0.0
    warmup_steps: Array | float = 0.0
    decay_steps: Array | float = np.inf
    final_fraction: Array | float = 0.0


class TrainState(NamedTuple):
    """Everything a run must remember. The key is never split: the randomness of step n is fold_in(key, n)."""

    params: Any
    optimizer: Any
    step: Array  # int32
    key: Array
