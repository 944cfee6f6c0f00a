"""Laws of the update rule: it is optax's, its numbers are arguments, and zero gradients only decay."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import optimizers, tables
from jaxrnn.errors import ConfigurationError
from jaxrnn.types import Hyper, TrainState
from tests.members import ROOT, distance, drawn

PARAMS = {"W": jnp.zeros((3, 4)), "b": jnp.zeros(4)}
NAMES = sorted(path.stem for path in (ROOT / "conf" / "optimizer").glob("*.yaml"))


def chain(transformation, factor, hyper, params, gradients):
    """Apply `gradients` one after another as fit does."""
    state = transformation.init(params)
    for step, g in enumerate(gradients):
        after = partial(lambda g, clip: optax.tree.norm(optimizers.limited(g, clip)), g)
        g = optimizers.clipped(g, optimizers.clipping(hyper, 1.0, optax.tree.norm(g), after))
        updates, state = transformation.update(g, state, params)
        params = optimizers.apply(params, updates, optimizers.rate(factor, step, hyper), hyper)
    return params


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_outside_of_the_program_is_the_rate_inside_optax(name):
    params = drawn(PARAMS, 0, jnp.float32)
    gradients = [drawn(PARAMS, seed, jnp.float32) for seed in (1, 2, 3)]
    got = chain(optimizers.transformation(name), optimizers.constant, Hyper(0.03), params, gradients)
    settings = {"weight_decay": 0.0} if name in ("adamw", "lion") else {}
    reference = getattr(optax, name)(0.03, **settings)
    state, expected = reference.init(params), params
    for g in gradients:
        updates, state = reference.update(g, state, expected)
        expected = optax.apply_updates(expected, updates)
    assert distance(got, expected) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients_shrink_matrices_by_the_decay_and_leave_vectors(name):
    params = drawn(PARAMS, 0, jnp.float32)
    zero = jax.tree.map(jnp.zeros_like, params)
    got = chain(optimizers.transformation(name), optimizers.constant, Hyper(0.1, weight_decay=0.5), params, [zero])
    np.testing.assert_allclose(got["W"], params["W"] * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(got["b"], params["b"])


@pytest.mark.parametrize("name", NAMES)
def test_an_update_that_leaves_the_finite_numbers_moves_nothing(name):
    params, gradients = drawn(PARAMS, 0, jnp.float32), drawn(PARAMS, 1, jnp.float32)
    rule = optimizers.transformation(name)
    state = TrainState(params, rule.update(gradients, rule.init(params), params)[1], jnp.int32(1), None)
    learn = tables.dense(rule).learn
    for rate, hopeful in ((jnp.float32(0.1), False), (jnp.float32(np.inf), True)):
        numbers = rate, Hyper(rate), jnp.array(hopeful)
        after, memory, _, finite = learn(state, gradients, None, None, None, 1.0, *numbers)
        assert not finite and distance((after, memory), (params, state.optimizer)) == 0
    after, *_, finite = learn(state, gradients, None, None, None, 1.0, jnp.float32(0.1), Hyper(0.1), jnp.array(True))
    assert finite and distance(after, params) > 0


def test_clipping_limits_the_elements_of_the_mean_then_the_norm():
    gradients = {"W": jnp.array([[6.0, -8.0]]), "b": jnp.array([1.0])}  # the sum over two rows
    norm = optax.tree.norm(gradients) / 2

    def clipped(hyper):
        clip = optimizers.clipping(hyper, 2.0, norm, lambda clip: optax.tree.norm(optimizers.limited(gradients, clip)))
        return optimizers.clipped(gradients, clip)

    np.testing.assert_array_equal(clipped(Hyper(0.1))["W"], [[3.0, -4.0]])
    np.testing.assert_array_equal(clipped(Hyper(0.1, clip_value=1.0))["W"], [[1.0, -1.0]])
    both = clipped(Hyper(0.1, clip_value=1.0, clip_global_norm=0.75))
    assert float(optax.tree.norm(both)) == pytest.approx(0.75)
    np.testing.assert_allclose(both["b"] / both["W"][0, 0], 0.5, rtol=1e-6)


def test_a_momentum_of_zero_is_none_and_remembers_nothing():
    gradients = [drawn(PARAMS, seed, jnp.float32) for seed in range(3)]
    rules = [optimizers.transformation("sgd", momentum=0.0, nesterov=False), optax.sgd(1.0, momentum=0.0)]
    with_none, with_zero = (chain(rule, optimizers.constant, Hyper(0.1), PARAMS, gradients) for rule in rules)
    assert distance(with_none, with_zero) == 0
    assert not jax.tree.leaves(rules[0].init(PARAMS))
    assert jax.tree.leaves(optimizers.transformation("sgd", momentum=0.5).init(PARAMS))


@pytest.mark.parametrize("name, middle", [("constant", 1.0), ("linear", 0.55), ("cosine", 0.55)])
def test_schedules_start_at_one_and_end_at_the_final_fraction(name, middle):
    hyper = Hyper(2.0, warmup_steps=4, decay_steps=104, final_fraction=0.1)
    rate = [float(optimizers.rate(optimizers.schedule(name), step, hyper)) for step in (0, 1, 3, 4, 54, 104, 1000)]
    end = 1.0 if name == "constant" else 0.1
    np.testing.assert_allclose(rate, [0.5, 1.0, 2.0, 2.0, 2 * middle, 2 * end, 2 * end], rtol=1e-6)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigurationError, match="did you mean 'adam'"):
        optimizers.transformation("adamm")
    with pytest.raises(ConfigurationError, match="momentun"):
        optimizers.transformation("sgd", momentun=0.9)
    with pytest.raises(ConfigurationError, match="did you mean 'cosine'"):
        optimizers.schedule("cosin")
