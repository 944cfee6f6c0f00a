"""The whole network: tokens -> input layer -> stack of recurrent layers -> head -> logits.

logits = W_hy features + b_y          W_hy [C, F]   b_y [C]
"""

import importlib
import inspect
import pkgutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import activations, ends, heads, initializers, outputs
from jaxrnn import layers as parts
from jaxrnn.errors import ConfigurationError, unknown
from jaxrnn.types import Array, Batch, Model, Noise, Parts, Sums

SILENCE = Noise()
INITIALIZER = {"recurrent": None, "input": "glorot_uniform", "embedding": "normal", "readout": "glorot_uniform"}


class Params(NamedTuple):
    input: Any  # the table [V, E] of an embedding, or nothing
    layers: tuple
    head: Any
    W_hy: Array  # [C, F]
    b_y: Array  # [C]


def rnn(
    *,
    vocabulary_size: int,
    classes: int,
    cell: str = "vanilla",
    activation: str = "tanh",
    input: str = "embedding",
    input_size: int = 128,
    hidden_size: int = 128,
    layers: int = 1,
    bidirectional: bool = False,
    head: str = "last",
    output: str = "softmax",
    unroll: str = "bptt",
    initializer: dict | None = None,
) -> Model:
    """A classifier of token sequences. A name is a member of its group; ConfigurationError lists them.

    The loss is the mean over real rows (over real steps for head=every) of -ln p, in nats; its second value are exact
    sums. `init(key, init_scale)` multiplies every initial weight matrix by `init_scale`.
    """
    for key, value, least in (
        ("vocabulary_size", vocabulary_size, 1), ("classes", classes, 2), ("input_size", input_size, 1),
        ("hidden_size", hidden_size, 1), ("layers", layers, 1),
    ):  # fmt: skip
        if value < least:
            raise ConfigurationError(f"{key}={value}: expected at least {least}")
    names = INITIALIZER | {k: v for k, v in (initializer or {}).items() if v not in (None, "default")}
    first = _input(input, vocabulary_size, input_size, names["embedding"])
    sizes = [first.output_size] + [hidden_size * (2 if bidirectional else 1)] * (layers - 1)
    cells = _cells(cell, activation, sizes, hidden_size, bidirectional, names)
    body = _body(cells, member("unroll", unroll))
    summary = heads.named(head)(body.output_size)
    answer = outputs.named(output)
    one_hot = vocabulary_size if input == "one_hot" else None
    C = answer.width(classes)

    def init(key, init_scale=1.0) -> Params:
        keys = jax.random.split(key, 4)
        W_hy = initializers.named(names["readout"])(keys[3], (C, summary.output_size), jnp.float32)
        params = Params(first.init(keys[0]), body.init(keys[1]), summary.init(keys[2]), W_hy, jnp.zeros(C))
        return jax.tree.map(lambda p: p * init_scale if p.ndim > 1 else p, params)

    def readout(params, features):
        return _logits(params.W_hy, features) + params.b_y

    def tokens(batch: Batch, key=None, noise=SILENCE) -> Array:
        return parts.word_dropout(parts.fold_in(key, 0), noise.word_dropout_rate, batch.inputs, batch.length).T

    def features_of(params: Params, batch: Batch, key=None, noise=SILENCE) -> Array:
        keys = [parts.fold_in(key, i) for i in range(4)]
        _, xs = first.apply(params.input, tokens(batch, key, noise), batch.length, keys[1], noise.dropout_rate)
        end, ys = body.apply(params.layers, xs, batch.length, keys[2], noise.dropout_rate)
        return parts.dropout(keys[3], noise.dropout_rate, summary.apply(params.head, end, ys, batch.length))

    def apply(params: Params, batch: Batch, key=None, noise=SILENCE) -> Array:
        logits = readout(params, features_of(params, batch, key, noise))
        return jnp.swapaxes(logits, 0, 1) if head == "every" else logits

    def score(logits: Array, batch: Batch) -> tuple[Array, Sums]:
        weight = batch.weight
        if head == "every":
            weight = weight[:, None] * (jnp.arange(batch.inputs.shape[1]) < batch.length[:, None])
        each = answer.loss(logits, batch.target)
        right = answer.answer(logits) == batch.target
        sums = Sums(
            loss=jnp.sum(jnp.where(weight > 0, weight * each, 0)),
            correct=jnp.sum(weight * right),
            weight=jnp.sum(weight),
        )
        return sums.loss / jnp.maximum(sums.weight, 1), sums

    def loss(params: Params, batch: Batch, key=None, noise=SILENCE) -> tuple[Array, Sums]:
        return score(apply(params, batch, key, noise), batch)

    def summed(params: Params, batch: Batch, key=None, noise=SILENCE) -> Sums:
        if unroll == "kernel" and output == "softmax" and head != "every":
            features = features_of(params, batch, key, noise)
            if ends.scores(features, params.W_hy):
                return ends.score(features, params.W_hy, params.b_y, batch.target, batch.weight)
        return loss(params, batch, key, noise)[1]

    def start(params: Params):
        return body.start(params.layers), summary.start(params.head)

    def step(params: Params, state, token):
        state, seen = state
        _, x = first.step(params.input, (), token)
        state, y = body.step(params.layers, state, x)
        seen, features = summary.tick(params.head, seen, y)
        return (state, seen), readout(params, features)

    made_of = Parts(cells, summary, answer, head == "every", one_hot)
    return Model(init, step, apply, score, loss, summed, start, tokens, input == "embedding", C, made_of)


def _logits(W_hy, features):
    """features [..., F] -> W_hy features [..., C]. For two classes as two products with a vector: one with a matrix
    [F, 2] goes to a library for large ones in XLA:CPU, and takes ten times as long (58 x 64: 3 in place of 0.3 us)."""
    if len(W_hy) > 2:
        return features @ W_hy.T
    return jnp.stack([features @ w for w in W_hy], -1)


def _input(name, vocabulary_size, size, initializer):
    if name == "one_hot":
        return parts.one_hot(vocabulary_size)
    if name == "embedding":
        return parts.embedding(vocabulary_size, size, initializer=initializer)
    raise ConfigurationError(unknown("input", name, ["embedding", "one_hot"]))


def _cells(name, activation, sizes, hidden_size, two_way, initializer):
    """Of every layer, one cell for each direction."""
    make = member("cells", name)
    settings = {"activation": activations.named(activation), "recurrent_init": initializer["recurrent"],
                "input_init": initializer["input"]}  # fmt: skip
    settings = {k: v for k, v in settings.items() if k in inspect.signature(make).parameters}
    return tuple(tuple(make(size, hidden_size, **settings) for _ in range(1 + two_way)) for size in sizes)


def _body(cells, unroll):
    """The stack of recurrent layers."""

    def one(ways):
        layers = [parts.recurrent(cell, unroll, reverse=bool(way)) for way, cell in enumerate(ways)]
        return layers[0] if len(layers) == 1 else parts.bidirectional(*layers)

    return parts.stack([one(ways) for ways in cells])


def member(family: str, name: str):
    """The function `name` of the module jaxrnn.<family>.<name>: cells and unrolls are found by their file."""
    package = importlib.import_module(f"jaxrnn.{family}")
    known = [m.name for m in pkgutil.iter_modules(package.__path__)]
    if name not in known:
        raise ConfigurationError(unknown({"cells": "cell"}.get(family, family), name, known))
    return getattr(importlib.import_module(f"jaxrnn.{family}.{name}"), name)
