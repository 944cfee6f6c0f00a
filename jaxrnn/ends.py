"""The ends of a network as calls in C (native/batch.c), each in place of many small kernels of XLA: the rows of a batch
as a rectangle, the embeddings of its words, the loss of its answers with all gradients of the readout. For one device,
a CPU."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import targets
from jaxrnn.types import Array, Batch, Sums

MOST_CLASSES = 64  # that the C code knows
MOST_PRODUCTS = 1 << 17  # B C F: XLA cuts larger products in pieces for all cores


def gather(tokens: Array, offset: Array, target: Array, order: Array, step: Array, max_length: int) -> Batch:
    """The rectangle [B, max_length] of the rows order[step], of a corpus as in `programs.Data`, order [S, B]."""
    B = order.shape[1]
    results = [_like(jnp.int32, B, max_length), _like(jnp.int32, B), _like(jnp.int32, B), _like(jnp.float32, B)]
    return Batch(*targets.call("batch", jnp.float32.dtype, results)(tokens, offset, target, order, step))


def rows(table: Array, ids: Array, length: Array) -> Array:
    """The rows [T, B, E] of a table [V, E] for ids [T, B] of texts of `length` [B]; past the end of a text zeros."""
    call = targets.call("rows", table.dtype, [_like(table.dtype, *ids.shape, table.shape[1])])
    return call(table, ids, length)[0]


def scores(features: Any, W_hy: Any) -> bool:
    """Is `score` worth calling for features [B, F] and W_hy [C, F]."""
    B, F = features.shape
    return len(W_hy) <= MOST_CLASSES and B * len(W_hy) * F <= MOST_PRODUCTS


@jax.custom_vjp
def score(features: Array, W_hy: Array, b_y: Array, target: Array, weight: Array) -> Sums:
    """The sums of the softmax of W_hy f + b_y over the rows of features [B, F]: outputs.softmax."""
    return _score(features, W_hy, b_y, target, weight)[0]


def _score(features, W_hy, b_y, target, weight):
    shapes = [(), (), (), features.shape, W_hy.shape, b_y.shape]
    call = targets.call("score", features.dtype, [_like(features.dtype, *shape) for shape in shapes])
    loss, correct, rows, *gradients = call(features, W_hy, b_y, target.astype(jnp.int32), weight.astype(features.dtype))
    return Sums(loss, correct, rows), gradients


def _pulled_back(gradients, sums):
    return *(sums.loss * gradient for gradient in gradients), None, None


score.defvjp(_score, _pulled_back)


def _like(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)
