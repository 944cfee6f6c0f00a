"""Parts of a network over whole sequences, xs [T, B, D] -> ys [T, B, K]. A stack of layers is a layer.

Noise is an argument: key None means none. Dropout draws one mask per row and layer, the same at every step (Gal and
Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural networks").
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import initializers
from jaxrnn.errors import ConfigurationError
from jaxrnn.types import Array, Cell, Layer


class Key(NamedTuple):
    """A random key that is computed where numbers are drawn with it: folding costs as much as a small layer."""

    root: Array
    path: tuple = ()  # folded into the root one after the other


def fold_in(key: Array | Key | None, number: Array | int) -> Key | None:
    """jax.random.fold_in, put off until `folded`; None stays None."""
    if key is None:
        return None
    root, path = key if isinstance(key, Key) else (key, ())
    return Key(root, (*path, number))


def folded(key: Array | Key) -> Array:
    """The key that a Key stands for; any other is what it is."""
    return reduce(jax.random.fold_in, key.path, key.root) if isinstance(key, Key) else key


def one_hot(vocabulary_size: int) -> Layer:
    """Words as one-hot vectors, named by their id: the cell's product W_xh x is then a gather of one column."""
    return Layer(
        init=lambda key: (),
        apply=lambda params, tokens, length, key, rate: (None, tokens),
        start=lambda params: (),
        step=lambda params, state, token: ((), token),
        output_size=vocabulary_size,
    )


class Rows(NamedTuple):
    """Rows of a table that were looked up already, in place of the table: its trainer looks up itself."""

    values: Array  # [T, B, E]


def embedding(vocabulary_size: int, size: int, *, initializer: str = "normal") -> Layer:
    """A table [V, E]: token ids [T, B] -> its rows [T, B, E], with one dropout mask [B, E] per text."""

    def init(key):
        return initializers.named(initializer)(key, (vocabulary_size, size), jnp.float32)

    def apply(table, tokens, length, key, rate):
        return None, _locked_dropout(key, rate, table.values if isinstance(table, Rows) else table[tokens])

    return Layer(init, apply, lambda table: (), lambda table, state, token: ((), table[token]), size)


def recurrent(cell: Cell, unroll, *, reverse: bool = False) -> Layer:
    """A cell carried over time by `unroll`; the last y is that of the final state."""

    def apply(params, xs, length, key, rate):
        state, ys = unroll(cell, params, xs, length, reverse=reverse)
        return cell.output(state), ys

    return Layer(cell.init, apply, cell.start, cell.step, cell.output_size)


def bidirectional(forward: Layer, backward: Layer) -> Layer:
    """Two layers over the same xs, one left to right and one right to left, side by side: K = K_f + K_b."""

    def init(key):
        return tuple(layer.init(k) for layer, k in zip((forward, backward), jax.random.split(key), strict=True))

    def apply(params, xs, length, key, rate):
        ends, ys = zip(*(layer.apply(p, xs, length, key, rate) for layer, p in zip((forward, backward), params,
                                                                                strict=True)), strict=True)  # fmt: skip
        return jnp.concatenate(ends, -1), jnp.concatenate(ys, -1)

    def refuse(*_):
        raise ConfigurationError("a bidirectional network reads the whole text before it answers: it has no `step`; "
                                 "use `apply`")  # fmt: skip

    return Layer(init, apply, refuse, refuse, forward.output_size + backward.output_size)


def stack(layers: list[Layer]) -> Layer:
    """Layers one above the other, with dropout between them (not on the way in, not on the way out)."""

    def init(key):
        return tuple(layer.init(jax.random.fold_in(key, i)) for i, layer in enumerate(layers))

    def apply(params, xs, length, key, rate):
        end = None
        for i, (layer, p) in enumerate(zip(layers, params, strict=True)):
            k = fold_in(key, i)
            if i > 0:
                xs = _locked_dropout(k, rate, xs)
            end, xs = layer.apply(p, xs, length, k, rate)
        return end, xs

    def start(params):
        return tuple(layer.start(p) for layer, p in zip(layers, params, strict=True))

    def step(params, state, x):
        after = []
        for layer, p, s in zip(layers, params, state, strict=True):
            s, x = layer.step(p, s, x)
            after.append(s)
        return tuple(after), x

    return Layer(init, apply, start, step, layers[-1].output_size)


def dropout(key: Array | Key | None, rate: Array | float, features: Array) -> Array:
    """Set each number to zero with probability `rate`, scale the rest by 1 / (1 - rate); key None changes nothing."""
    if key is None:
        return features

    def drop():
        kept = jax.random.uniform(folded(key), features.shape, features.dtype) >= rate
        return jnp.where(kept, features / (1 - rate), 0)

    return lax.cond(rate > 0, drop, lambda: features)  # the rate is a value: random numbers cost only where it asks


def word_dropout(key: Array | Key | None, rate: Array | float, tokens: Array, length: Array, unknown: int = 1) -> Array:
    """Replace each real token of tokens [B, T] with `unknown`, with probability `rate`; key None changes nothing."""
    if key is None:
        return tokens

    def drop():
        hit = jax.random.uniform(folded(key), tokens.shape) < rate
        return jnp.where(hit & (jnp.arange(tokens.shape[1]) < length[:, None]), unknown, tokens)

    return lax.cond(rate > 0, drop, lambda: tokens)


def _locked_dropout(key, rate, xs):
    if key is None:
        return xs

    def drop(xs):
        mask = dropout(key, rate, jnp.ones(xs.shape[1:], xs.dtype))
        return xs * mask  # [B, D], one mask for all steps

    return lax.cond(rate > 0, drop, lambda xs: xs, xs)
