"""Laws of heads and outputs: their formulas in NumPy, padding, streams of steps, losses at any logit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from members import distance, drawn

from jaxrnn import heads, outputs

H, B, T = 4, 5, 6
LENGTH = np.array([6, 1, 0, 4, 3], np.int32)
HEADS = sorted(heads.MEMBERS)


def in_numpy(name, p, end, ys, length):
    if name in ("last", "every"):
        return end if name == "last" else ys
    if name == "attention":
        scores = np.tanh(ys @ p.W_a.T + p.b_a) @ p.w  # [T, B]
        rows = [oracles.softmax(scores[:n, b]) @ ys[:n, b] if n else np.zeros(H) for b, n in enumerate(length)]
        return np.array(rows)
    oracle = {"mean": oracles.mean_head, "max": oracles.max_head}.get(name)
    return oracle(ys, length) if oracle else pytest.skip(f"no NumPy oracle for head {name} yet")


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.usefixtures("x64")
def test_heads_are_their_formulas_and_ignore_padding(name):
    head = heads.named(name)(H)
    params = drawn(jax.eval_shape(head.init, jax.random.key(0)), 0, jnp.float64)
    generator = np.random.default_rng(1)
    ys = generator.normal(size=(T, B, H)) - 1.0  # mostly negative: a max that looks at padding answers 0
    padded = np.arange(T)[:, None] >= LENGTH
    ys[padded] = 0.0
    end = ys[np.maximum(LENGTH - 1, 0), np.arange(B)]
    apply = jax.jit(head.apply)
    features = apply(params, end, ys, LENGTH)
    expected = in_numpy(name, jax.tree.map(np.asarray, params), end, ys, LENGTH)
    assert distance(features, expected) < 1e-12
    assert features.shape[-1] == head.output_size
    assert (np.asarray(features)[..., 2, :] == 0).all(), "a text of length zero has features zero"
    if name != "every":  # its padded steps are left out by the loss
        seen = jax.jit(jax.grad(lambda ys: jnp.sum(jnp.sin(head.apply(params, end, ys, LENGTH)))))(ys)
        assert np.isfinite(seen).all() and (np.asarray(seen)[padded] == 0).all()
        junk = np.where(padded[:, :, None], 1e3, ys)
        assert distance(apply(params, end, junk, LENGTH), features) < 1e-12


@pytest.mark.parametrize("name", HEADS)
def test_ticks_of_a_head_are_its_answers_on_prefixes(name):
    head = heads.named(name)(H)
    params = drawn(jax.eval_shape(head.init, jax.random.key(0)), 0, jnp.float32)
    ys = drawn(jax.ShapeDtypeStruct((T, H), jnp.float32), 1, jnp.float32, 20.0)  # scores far apart
    _, streamed = jax.jit(lambda ys: jax.lax.scan(functools.partial(head.tick, params), head.start(params), ys))(ys)
    rows = jnp.where(jnp.arange(T)[:, None, None] < jnp.arange(1, T + 1)[:, None], ys[:, None], 0)  # row n: n steps
    answers = jax.jit(head.apply)(params, ys, rows, jnp.arange(1, T + 1))
    assert distance(streamed, ys if name == "every" else answers) < 1e-6


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.usefixtures("x64")
def test_cross_entropies_are_exact_at_any_logit(size):
    logits = np.array([[1.0, -1.0, 0.5], [-1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -0.5]]) * size
    target = np.array([1, 0, 2, 2])
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
        loss, backward = jax.vjp(lambda z: outputs.softmax.loss(z, target), jnp.asarray(logits, dtype))
        expected, gradient = zip(*map(oracles.softmax_loss, logits.astype(dtype).astype(float), target), strict=True)
        assert distance(loss, np.array(expected)) < tolerance
        assert distance(backward(jnp.ones(4, dtype))[0], np.array(gradient)) < tolerance
        np.testing.assert_array_equal(outputs.softmax.answer(logits), logits.argmax(-1))
        assert distance(outputs.softmax.probabilities(logits), oracles.softmax(logits)) < 1e-12

        z, y = logits[:, :1], np.array([1, 0, 1, 0])
        loss, backward = jax.vjp(lambda z: outputs.sigmoid.loss(z, y), jnp.asarray(z, dtype))  # noqa: B023
        expected, gradient = zip(*map(oracles.sigmoid_loss, z.astype(dtype).astype(float), y), strict=True)
        assert distance(loss, np.array(expected)) < tolerance
        assert distance(backward(jnp.ones(4, dtype))[0], np.array(gradient)) < tolerance
        both = outputs.sigmoid.probabilities(z)
        assert distance(both, np.concatenate([oracles.sigmoid(-z), oracles.sigmoid(z)], -1)) < 1e-12
