"""The members of each family, found on disk, so that a new one is tested without an edit here."""

import functools
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import foreign, resuming
from jaxrnn.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent


def names(group, family):
    """The yaml files of conf/<group>; the modules of jaxrnn/<family> where there are none."""
    found = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    return found or sorted(path.stem for path in (ROOT / "jaxrnn" / family).glob("*.py") if path.stem != "__init__")


CELLS = names("cell", "cells")
UNROLLS = names("unroll", "unroll")


def member(family, name):
    """The function `name` of jaxrnn/<family>/<name>.py; a test of what this machine cannot compile is skipped."""
    if (family, name) == ("unroll", "kernel") and (reason := no_kernel()):
        pytest.skip(reason)
    return getattr(importlib.import_module(f"jaxrnn.{family}.{name}"), name)


@functools.cache
def no_kernel():
    """Why there is no kernel here; None where there is one, for float32 and float64. Code that a compiler refuses is no
    reason."""
    try:
        foreign.load()
        foreign.load("-DDOUBLE")
    except ConfigurationError as error:
        if "no C compiler" in str(error):
            return str(error)
        raise


def drawn(template, seed, dtype, scale=0.5):
    """Parameters of the template's structure, every array (biases too) drawn from a normal of that scale."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * generator.normal(size=leaf.shape), dtype), template)


def copied(programs, state):
    """The state as `resuming.kept` gives it, in memory of its own."""
    return jax.tree.map(np.array, resuming.kept(programs, state))


def distance(got, expected):
    """The largest difference over the largest number expected, the worst leaf; structures must agree."""
    got_leaves, got_tree = jax.tree.flatten(got)
    leaves, tree = jax.tree.flatten(expected)
    assert got_tree == tree or len(got_leaves) == len(leaves), (got_tree, tree)
    worst = 0.0
    for one, other in zip(got_leaves, leaves, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert one.shape == other.shape, (one.shape, other.shape)
        assert np.isfinite(one).all(), "not finite"
        scale = max(np.abs(other).max(initial=0.0), 1e-30)
        worst = max(worst, np.abs(one - other).max(initial=0.0) / scale)
    return worst
