"""Random keys whose numbers the C code draws (native/threefry.c): bit for bit those of jax.random.

A call of jax.random is some ten kernels of XLA:CPU, and it compiles each of them for 12 ms; in C it is one call. The
keys of a state stay what they are: `in_c` is put around them inside of a compiled program, `plain` takes it off again.
"""

import functools
import math
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jaxrnn import targets
from jaxrnn.types import Array

MOST_ORTHOGONAL = 1024  # rows or columns: LAPACK is faster beyond that


def usable() -> bool:
    """Are the numbers of jax's keys, as it is set, those that the C code draws."""
    config: Any = jax.config
    return config.jax_threefry_partitionable and config.jax_default_prng_impl == "threefry2x32"


def in_c(key: Array) -> Array:
    """The key with the numbers of `key`, a key of jax's own Threefry, where `foreign.load` has loaded the C code."""
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_implementation())


def plain(key: Array) -> Array:
    """The key that was given to `in_c`."""
    return jax.random.wrap_key_data(jax.random.key_data(key), impl="threefry2x32")


def orthogonalizes(key: Array, shape: tuple[int, int], dtype: Any) -> bool:
    """Does the C code draw the numbers of this key, and is `orthogonal` worth calling for such a matrix of them."""
    ours = jax.random.key_impl(key) == _implementation()
    return ours and np.dtype(dtype).name in targets.dtypes() and max(shape) <= MOST_ORTHOGONAL


def orthogonal(matrix: Array) -> Array:
    """Q [n, k] of a matrix [n, k] = Q R, n >= k: orthonormal columns, the diagonal of R positive; by the C code.

    For the LAPACK of jax SciPy's linear algebra would be imported, which takes 0.09 s.
    """
    return targets.call("orthogonal", matrix.dtype, [jax.ShapeDtypeStruct(matrix.shape, matrix.dtype)])(matrix)[0]


@functools.cache
def _implementation() -> Any:
    return jax.extend.random.define_prng_impl(
        key_shape=(2,), seed=_seed, split=_split, random_bits=_bits, fold_in=_fold_in, name="jaxrnn_threefry", tag="c"
    )


def _drawn(key, start, *shape):
    like = jax.ShapeDtypeStruct(shape, np.uint32)
    (found,) = targets.call("threefry", "float32", [like])(key, jnp.asarray(start).astype(jnp.uint32).reshape(1))
    return found


def _seed(seed):
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _split(key, shape):
    return _drawn(key, 0, math.prod(shape), 2).reshape(*shape, 2)


def _fold_in(key, number):
    return _drawn(key, number, 1, 2).reshape(2)


def _bits(key, width, shape):
    count = math.prod(shape)
    if width == 64:
        high, low = jnp.moveaxis(_drawn(key, 0, count, 2).astype(jnp.uint64), 1, 0)
        return (high << 32 | low).reshape(shape)
    return _drawn(key, 0, count).astype(f"uint{width}").reshape(shape)
