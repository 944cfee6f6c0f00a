"""From logits to a loss: softmax with cross-entropy, sigmoid with binary cross-entropy, exact at any logit.

    softmax    p_c = exp(z_c) / sum exp(z)     L = -ln p_y = logsumexp(z) - z_y              dL/dz = p - onehot(y)
    sigmoid    p = 1 / (1 + exp(-z))           L = -y ln p - (1 - y) ln(1 - p)               dL/dz = p - y
                                                 = max(z, 0) - z y + ln(1 + exp(-|z|))
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.errors import ConfigurationError, unknown


class Output(NamedTuple):
    name: str
    width: Callable  # classes -> number of logits
    loss: Callable  # (logits [..., C], target [...]) -> -ln p of the target, in nats [...]
    answer: Callable  # logits [..., C] -> class [...]
    probabilities: Callable  # logits [..., C] -> [..., classes]


def _cross_entropy(logits, target):
    chosen = jnp.take_along_axis(logits, target[..., None], -1, mode="clip")[..., 0]  # ids are checked on the host
    return jax.nn.logsumexp(logits, -1) - chosen


def _binary_cross_entropy(logits, target):
    z = logits[..., 0]
    return jnp.logaddexp(z, 0) - z * target.astype(z.dtype)


def _one_logit(classes):
    if classes > 2:
        raise ConfigurationError(f"output=sigmoid answers between 2 classes, the data have {classes}; "
                                 "use output=softmax")  # fmt: skip
    return 1


def _both(logits):
    return jnp.concatenate([jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)], -1)


softmax = Output("softmax", lambda classes: classes, _cross_entropy, lambda z: jnp.argmax(z, -1), jax.nn.softmax)
sigmoid = Output("sigmoid", _one_logit, _binary_cross_entropy, lambda z: (z[..., 0] > 0).astype(jnp.int32), _both)
MEMBERS = {output.name: output for output in (softmax, sigmoid)}


def named(name: str) -> Output:
    """The output of that name; ConfigurationError lists the known ones."""
    if name not in MEMBERS:
        raise ConfigurationError(unknown("output", name, MEMBERS))
    return MEMBERS[name]
