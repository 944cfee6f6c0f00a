"""docs/derivation.md: what it names exists, and the formulas that no other test holds."""

import ast
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from members import ROOT, distance, drawn

import jaxrnn
from jaxrnn import flow, outputs
from jaxrnn.types import Batch

PAGE = (ROOT / "docs" / "derivation.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:jaxrnn|tests)/[\w/]+\.py):(\w+)`", PAGE)))


@pytest.mark.parametrize("file, name", NAMED, ids=[":".join(pair) for pair in NAMED])
def test_what_the_derivation_names_exists(file, name):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.ClassDef
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_every_formula_has_code_and_a_test_and_every_figure_is_there():
    assert len(NAMED) > 20 and PAGE.count("**test**") >= 8
    for path in re.findall(r"\]\((figures/\w+\.png)\)", PAGE):
        assert (ROOT / "docs" / path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("x64")
def test_gradients_at_the_logits():
    """p - onehot(y), p - y; a sigmoid is a softmax over 0 and its logit."""
    z = jnp.array([0.3, -1.2, 2.0])
    got = jax.grad(lambda z: outputs.softmax.loss(z, jnp.array(1)))(z)
    assert distance(got, jax.nn.softmax(z) - jnp.array([0.0, 1.0, 0.0])) < 1e-12
    for y in (0, 1):
        one = jax.grad(lambda z, y=y: outputs.sigmoid.loss(z, jnp.array(y)))(z[:1])
        assert distance(one, jax.nn.sigmoid(z[:1]) - y) < 1e-12
        pair = jnp.array([0.0, z[0]])
        assert outputs.sigmoid.loss(z[:1], jnp.array(y)) == pytest.approx(
            float(outputs.softmax.loss(pair, jnp.array(y)))
        )


def test_the_slides_count_in_base_ten():
    assert -math.log(0.4995) == pytest.approx(0.6941, abs=1e-4)
    assert -math.log10(0.4995) == pytest.approx(0.3014, abs=1e-4)
    assert math.log(10) == pytest.approx(2.3026, abs=1e-4)


@pytest.mark.usefixtures("x64")
def test_many_to_many_adds_each_answer_on_the_way_back():
    """The recursion of section 6 in NumPy = the gradient of the model with head=every."""
    model = jaxrnn.rnn(vocabulary_size=7, classes=3, input_size=2, hidden_size=4, head="every")
    params = drawn(jax.eval_shape(model.init, jax.random.key(0)), 0, jnp.float64)
    tokens, target = np.array([2, 4, 3, 6, 5]), np.array([0, 2, 1, 1, 0])
    batch = Batch(tokens[None], np.array([5]), target[None], np.ones(1))
    (loss, _), gradient = jax.value_and_grad(model.loss, has_aux=True)(params, batch)

    p = {key: np.asarray(leaf) for key, leaf in params.layers[0]._asdict().items()}
    W_hy, b_y, xs, T = np.asarray(params.W_hy), np.asarray(params.b_y), np.asarray(params.input)[tokens], len(tokens)
    h = [np.zeros(4)]
    for x in xs:
        h.append(np.tanh(p["W_xh"] @ x + p["W_hh"] @ h[-1] + p["b_h"]))
    answers = [oracles.softmax_loss(W_hy @ h[t + 1] + b_y, target[t]) for t in range(T)]
    assert loss == pytest.approx(np.mean([one for one, _ in answers]))
    dW_hy, dW_hh, dW_xh, db_h, back = np.zeros((3, 4)), np.zeros((4, 4)), np.zeros((4, 2)), np.zeros(4), np.zeros(4)
    for t in range(T, 0, -1):
        dz = answers[t - 1][1] / T
        delta = (1 - h[t] ** 2) * (W_hy.T @ dz + back)
        back = p["W_hh"].T @ delta
        dW_hy, dW_hh = dW_hy + np.outer(dz, h[t]), dW_hh + np.outer(delta, h[t - 1])
        dW_xh, db_h = dW_xh + np.outer(delta, xs[t - 1]), db_h + delta
    assert distance((gradient.W_hy, *gradient.layers[0]), (dW_hy, dW_xh, dW_hh, db_h)) < 1e-10


def test_the_figures_are_measurements():
    """The script of the figures measures ln g for the identity, and less for tanh; it draws where it is told."""
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    for scale in (0.8, 1.2):
        assert figures.log_norms(scale, "identity").log_slope == pytest.approx(math.log(scale), rel=0.01)
        assert figures.log_norms(scale, "tanh").log_slope < math.log(scale)
    assert flow.verdict(math.log(0.8), figures.STEPS) == "vanishing"
