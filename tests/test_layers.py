"""Laws of layers: two ways are two passes side by side, noise keeps the mean and touches real words only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import CELLS, distance, drawn, member

from jaxrnn import layers

E, H, B, T = 3, 4, 5, 6
LENGTH = np.array([6, 1, 0, 4, 3], np.int32)


@pytest.mark.parametrize("cell_name", CELLS)
def test_bidirectional_is_two_one_way_passes_side_by_side(cell_name):
    cell, bptt = member("cells", cell_name)(E, H), member("unroll", "bptt")
    forward, backward = layers.recurrent(cell, bptt), layers.recurrent(cell, bptt, reverse=True)
    both = layers.bidirectional(forward, backward)
    assert both.output_size == 2 * H
    params = drawn(jax.eval_shape(both.init, jax.random.key(0)), 0, jnp.float32)
    xs = drawn(jax.ShapeDtypeStruct((T, B, E), jnp.float32), 1, jnp.float32, 1.0)

    @jax.jit
    def three(params, xs, length):
        one_way = [layer.apply(p, xs, length, None, 0.0) for layer, p in zip((forward, backward), params, strict=True)]
        return both.apply(params, xs, length, None, 0.0), one_way

    (end, ys), one_way = three(params, xs, LENGTH)
    assert distance(end, np.concatenate([end for end, _ in one_way], -1)) == 0.0
    assert distance(ys, np.concatenate([ys for _, ys in one_way], -1)) == 0.0
    np.testing.assert_array_equal(end[0, H:], ys[0, 0, H:])  # right to left: ends at the first word
    np.testing.assert_array_equal(end[0, :H], ys[LENGTH[0] - 1, 0, :H])


def test_dropout_keeps_the_mean():
    ones = jnp.ones((200, 200))
    for rate in (0.1, 0.5, 0.8):
        dropped = np.asarray(layers.dropout(jax.random.key(0), rate, ones))
        assert np.unique(dropped) == pytest.approx([0.0, 1 / (1 - rate)])
        assert dropped.mean() == pytest.approx(1.0, abs=5 * (rate / (1 - rate)) ** 0.5 / 200)
    assert layers.dropout(None, 0.5, ones) is ones
    assert distance(layers.dropout(jax.random.key(0), 0.0, ones), ones) == 0.0


def test_word_dropout_makes_real_words_unknown_and_nothing_else():
    tokens = np.full((100, 50), 7, np.int32)
    length = np.arange(100, dtype=np.int32) % 51
    real = np.arange(50) < length[:, None]
    tokens[~real] = 0
    dropped = np.asarray(layers.word_dropout(jax.random.key(0), 0.3, tokens, length))
    assert (dropped[~real] == 0).all() and np.isin(dropped[real], [1, 7]).all()
    assert (dropped[real] == 1).mean() == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / real.sum()) ** 0.5)
    np.testing.assert_array_equal(layers.word_dropout(jax.random.key(0), 1.0, tokens, length), np.where(real, 1, 0))
    np.testing.assert_array_equal(layers.word_dropout(jax.random.key(0), 0.0, tokens, length), tokens)
    assert layers.word_dropout(None, 0.3, tokens, length) is tokens


def test_a_key_folded_later_is_the_key_folded_at_once():
    key = jax.random.key(3)
    later = layers.fold_in(layers.fold_in(key, 7), jnp.int32(2))
    at_once = jax.random.fold_in(jax.random.fold_in(key, 7), 2)
    np.testing.assert_array_equal(jax.random.key_data(layers.folded(later)), jax.random.key_data(at_once))
    assert layers.folded(key) is key and layers.fold_in(None, 7) is None
