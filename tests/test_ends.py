"""The C code's ends of a network are what jax computes: the same rectangle and rows, the same loss and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import ends, outputs, programs
from jaxrnn.types import Sums
from tests.members import distance, no_kernel

pytestmark = pytest.mark.skipif(no_kernel() is not None, reason=str(no_kernel()))


def of_jax(features, W_hy, b_y, target, weight):
    logits = features @ W_hy.T + b_y
    loss = jnp.sum(weight * outputs.softmax.loss(logits, target))
    return Sums(loss, jnp.sum(weight * (outputs.softmax.answer(logits) == target)), jnp.sum(weight))


def both(B, F, C, dtype, scale=1.0):
    """Sums and gradients by C and by jax, of drawn numbers and rows of which every third is filler."""
    draw = np.random.default_rng(B + F + C)
    given = [jnp.asarray(scale * draw.normal(size=size), dtype) for size in ((B, F), (C, F), C)]
    rest = jnp.asarray(draw.integers(0, C, B), jnp.int32), jnp.asarray(np.arange(B) % 3 > 0, jnp.float32)

    def answered(score):
        def loss(*given):
            sums = score(*given, *rest)
            return 3 * sums.loss, sums

        (_, sums), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*given)
        return sums, gradients

    return answered(ends.score), answered(of_jax)


@pytest.mark.parametrize("size", [(1, 1, 1), (7, 20, 2), (64, 33, 5), (9, 128, ends.MOST_CLASSES)], ids=str)
@pytest.mark.usefixtures("x64")
def test_score_is_the_softmaxs(size):
    found, expected = both(*size, jnp.float64)
    assert distance(found, expected) < 1e-13


def test_score_in_single_precision():
    found, expected = both(32, 67, 3, jnp.float32)
    assert distance(found, expected) < 1e-5


def test_a_loss_too_large_for_exp_is_exact():
    (sums, gradients), expected = both(32, 8, 3, jnp.float32, scale=300.0)
    assert float(sums.loss) > 1000
    assert distance((sums, gradients), expected) < 1e-5


def test_it_is_for_few_classes_and_small_products():
    W = np.zeros((ends.MOST_CLASSES, 8))
    assert ends.scores(np.zeros((4, 8)), W)
    assert not ends.scores(np.zeros((4, 8)), np.zeros((ends.MOST_CLASSES + 1, 8)))
    assert not ends.scores(np.zeros((ends.MOST_PRODUCTS // W.size + 1, 8)), W)


def test_a_batch_is_the_rectangle_of_its_rows():
    offset = np.array([0, 3, 3, 8, 9], np.int32)
    data = programs.Data(np.arange(1, 10, dtype=np.int32), offset, np.array([1, 0, 1, 1], np.int32))
    order = np.array([[0, 1, 2], [3, -1, 0]], np.int32)
    for step in range(2):
        found, expected = (jax.jit(gather, static_argnums=3)(data, order, jnp.int32(step), 5)
                           for gather in (lambda data, *rest: ends.gather(*data, *rest), programs.gather))  # fmt: skip
        real = order[step] >= 0
        for name, array in found._asdict().items():
            use = real if name == "target" else slice(None)  # a filler row has any target
            np.testing.assert_array_equal(array[use], getattr(expected, name)[use], err_msg=name)


@pytest.mark.parametrize("size", [(1, 1, 3), (5, 7, 20), (40, 64, 48)], ids=str)
def test_rows_are_those_of_the_words_that_exist(size):
    T, B, E = size
    draw = np.random.default_rng(T)
    table, ids = draw.normal(size=(9, E)).astype(np.float32), draw.integers(0, 9, (T, B)).astype(np.int32)
    length = draw.integers(0, T + 1, B).astype(np.int32)
    found = jax.jit(ends.rows)(table, ids, length)
    np.testing.assert_array_equal(found, np.where((np.arange(T)[:, None] < length)[..., None], table[ids], 0))
