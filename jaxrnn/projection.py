"""The product W x of an input, and its transpose: x is a vector of features, or an integer naming a one-hot vector.

W e_v is column v of W, so a one-hot word is a gather and never a product as wide as the vocabulary.
"""

import jax.numpy as jnp


def project(W, x):
    """W [G, D] times every row of x [..., D], or of the one-hot rows that the integers x [...] name -> [..., G]."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return W.T[x]
    return x @ W.T


def transpose(W, x, a):
    """The pullback of `project` at x [N, D] or [N]: a [N, G] -> (dW [G, D], dx [N, D] or None for integers)."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.zeros_like(W.T).at[x].add(a).T, None
    return a.T @ x, a @ W
