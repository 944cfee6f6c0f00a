"""Activations h = f(u), each with its slope f'(u) written from the output h, as the notes do: tanh' = 1 - h^2.

Writing the slope from the output is what lets the backward pass keep the states only and never the pre-activations.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.errors import ConfigurationError, unknown


class Activation(NamedTuple):
    """`apply(u)` and `slope(h)`, where h = apply(u); both elementwise, any shape.

    >>> float(tanh.slope(tanh(0.0)))
    1.0
    """

    name: str
    apply: Callable
    slope: Callable

    def __call__(self, u):
        return self.apply(u)


def _leaky(u):
    return jnp.where(u > 0, u, 0.01 * u)


tanh = Activation("tanh", jnp.tanh, lambda h: 1 - h * h)
sigmoid = Activation("sigmoid", jax.nn.sigmoid, lambda h: h * (1 - h))
relu = Activation("relu", jax.nn.relu, lambda h: (h > 0).astype(h.dtype))
leaky_relu = Activation("leaky_relu", _leaky, lambda h: jnp.where(h > 0, 1.0, 0.01).astype(h.dtype))
elu = Activation("elu", jax.nn.elu, lambda h: jnp.where(h > 0, 1, h + 1))
softplus = Activation("softplus", jax.nn.softplus, lambda h: -jnp.expm1(-h))
softsign = Activation("softsign", jax.nn.soft_sign, lambda h: jnp.square(1 - jnp.abs(h)))
hard_tanh = Activation("hard_tanh", lambda u: jnp.clip(u, -1, 1), lambda h: (jnp.abs(h) < 1).astype(h.dtype))
identity = Activation("identity", lambda u: u, jnp.ones_like)

MEMBERS = {
    member.name: member
    for member in (tanh, relu, sigmoid, softsign, identity, leaky_relu, elu, softplus, hard_tanh)
}


def named(name: str | Activation) -> Activation:
    """The activation of that name, or the one that is given; ConfigurationError lists the known ones."""
    if isinstance(name, Activation):
        return name
    if name not in MEMBERS:
        raise ConfigurationError(unknown("activation", name, MEMBERS))
    return MEMBERS[name]
