"""Initial weights by name: (key, shape [rows, columns], dtype) -> array; a product sums over the columns.

Glorot and Bengio 2010 (glorot), LeCun 1998 (lecun), He 2015 (he), Saxe 2014 (orthogonal), Le, Jaitly and Hinton 2015
(identity, for relu). `notes` is the scale of this project's teaching notes: randn / 1000.
"""

import jax
import jax.numpy as jnp

from jaxrnn import keys
from jaxrnn.errors import ConfigurationError, unknown


def _identity(key, shape, dtype=jnp.float32):
    return jnp.eye(shape[0], shape[1], dtype=dtype)


def _zeros(key, shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


def _notes(key, shape, dtype=jnp.float32):
    return jax.random.normal(key, shape, dtype) / 1000


def _orthogonal(key, shape, dtype=jnp.float32):
    """Q of a normal matrix, as jax.nn.initializers.orthogonal makes it."""
    if not keys.orthogonalizes(key, shape, dtype):
        return jax.nn.initializers.orthogonal()(key, shape, dtype)
    tall = max(shape), min(shape)
    found = keys.orthogonal(jax.random.normal(key, tall, dtype))
    return found if shape == tall else found.T


_AXES = {"in_axis": -1, "out_axis": -2}
MEMBERS = {
    "orthogonal": _orthogonal,
    "identity": _identity,
    "glorot_uniform": jax.nn.initializers.glorot_uniform(**_AXES),
    "glorot_normal": jax.nn.initializers.glorot_normal(**_AXES),
    "lecun_normal": jax.nn.initializers.lecun_normal(**_AXES),
    "he_normal": jax.nn.initializers.he_normal(**_AXES),
    "normal": jax.nn.initializers.normal(0.1),
    "notes": _notes,
    "zeros": _zeros,
}


def named(name: str):
    """The initialiser of that name; ConfigurationError lists the known ones."""
    if name not in MEMBERS:
        raise ConfigurationError(unknown("initializer", name, MEMBERS))
    return MEMBERS[name]


def gates(initializer, key, count: int, rows: int, columns: int, dtype=jnp.float32):
    """One matrix [count * rows, columns] whose blocks of rows, one per gate, are drawn independently."""
    keys = jax.random.split(key, count)
    return jnp.concatenate([initializer(k, (rows, columns), dtype) for k in keys])
