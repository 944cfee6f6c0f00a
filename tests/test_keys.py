"""The C code's random numbers are those of jax.random, bit for bit; its orthogonal matrices to rounding."""

import jax
import numpy as np
import pytest

from jaxrnn import foreign, initializers, keys
from tests.members import no_kernel

pytestmark = pytest.mark.skipif(no_kernel() is not None, reason=str(no_kernel()))


def drawn(key):
    """What a network and its noise draw: keys of keys, numbers of every count, more than one task of the C code."""
    later = jax.random.fold_in(jax.random.split(key, (2, 3))[1, 2], 2**31 + 5)
    return {
        "split": jax.random.key_data(jax.random.split(key, 5)),
        "folded": jax.random.key_data(later),
        "one": jax.random.uniform(later),
        "none": jax.random.uniform(later, (0, 3)),
        "many": jax.random.bits(key, (3, 20_001)),
        "normal": jax.random.normal(key, (7, 5)),
        "at once": jax.vmap(lambda number: jax.random.uniform(jax.random.fold_in(key, number), (3,)))(np.arange(4)),
    }


def both(function, seed=3):
    foreign.load()
    key = jax.random.key(seed)
    return jax.jit(function)(key), jax.jit(lambda key: function(keys.in_c(key)))(key)


@pytest.mark.parametrize("seed", [0, 3, 2**32 - 1])
def test_every_number_is_jaxs(seed):
    expected, found = both(drawn, seed)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_every_width_is_jaxs(width):
    np.testing.assert_array_equal(*both(lambda key: jax.random.bits(key, (3, 11), f"uint{width}")))


def test_a_key_comes_back_as_it_was():
    key = jax.random.key(5)
    back = jax.jit(lambda key: keys.plain(keys.in_c(key)))(key)
    assert back.dtype == key.dtype
    np.testing.assert_array_equal(jax.random.key_data(back), jax.random.key_data(key))


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (17, 64), (100, 37), (256, 256)], ids=str)
def test_orthogonal_weights_are_jaxs(shape):
    expected, found = both(lambda key: initializers.named("orthogonal")(key, shape, np.float32))
    rows = np.asarray(found if shape[0] <= shape[1] else found.T, np.float64)
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-6)
    np.testing.assert_allclose(found, expected, atol=3e-5)
    assert "orthogonal" in orthogonal_program(shape, jax.random.key(0))
    assert "qr" in orthogonal_program((keys.MOST_ORTHOGONAL + 1, 2), jax.random.key(0))


def orthogonal_program(shape, key):
    return jax.jit(lambda key: initializers.named("orthogonal")(keys.in_c(key), shape, np.float32)).lower(key).as_text()


@pytest.mark.usefixtures("x64")
def test_orthogonal_weights_in_double_precision():
    shape = (33, 20)
    expected, found = both(lambda key: initializers.named("orthogonal")(key, shape, np.float64))
    np.testing.assert_allclose(found, expected, atol=1e-12)
