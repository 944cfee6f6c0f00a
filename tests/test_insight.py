"""Insight against NumPy, against autodiff, and against systems whose gradients are known in closed form."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from members import CELLS, distance, drawn

import jaxrnn
from jaxrnn import activations, attribution, flow, heads, insight
from jaxrnn.types import Batch

V, E, H, C = 9, 3, 4, 3
TEXT = np.array([2, 5, 3, 8, 1, 5, 7], np.int32)
pytestmark = pytest.mark.usefixtures("x64")


def made(seed=0, **settings):
    """A model, its parts, and float64 parameters drawn at random, biases too."""
    settings = {"vocabulary_size": V, "classes": C, "input_size": E, "hidden_size": H} | settings
    model = jaxrnn.rnn(**settings)
    params = drawn(jax.eval_shape(model.init, jax.random.key(0)), seed, jnp.float64)
    return model, model.parts, params


def target_of(parts, label=1):
    return jnp.full(len(TEXT), label) if parts.every else jnp.array(label)


def traced(model, parts, params, label=1):
    return insight.trace(model, params, jnp.asarray(TEXT), target_of(parts, label))


KINDS = [{"cell": name} for name in CELLS] + [
    {"cell": "gru", "layers": 2, "bidirectional": True, "head": "attention"},
    {"cell": "lstm", "bidirectional": True, "input": "one_hot"},
    {"head": "max", "activation": "relu", "layers": 2},
    {"head": "every", "output": "sigmoid", "classes": 2},
    {"head": "mean", "input": "one_hot", "output": "sigmoid", "classes": 2, "unroll": "scan"},
]


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: "-".join(map(str, s.values())))
def test_parts_put_together_are_the_model_and_shares_sum_to_its_gradients(settings):
    """Any cell, direction, depth and head: the model's logits and loss; sums of shares = autodiff of its own loss."""
    model, parts, params = made(**settings)
    seen = traced(model, parts, params)
    batch = Batch(TEXT[None], np.array([len(TEXT)]), np.asarray(target_of(parts))[None], np.ones(1))
    (loss, _), gradient = jax.value_and_grad(model.loss, has_aux=True)(params, batch)
    assert distance(seen.logits, model.apply(params, batch)[0]) < 1e-12
    assert seen.loss == pytest.approx(float(loss), rel=1e-12)
    sums = insight.each(lambda share: share.total, seen.shares)
    assert distance(sums, insight.cell_params(parts, gradient)) < 1e-10
    assert seen.error < 1e-10
    so_far = insight.so_far(model, params, jnp.asarray(TEXT))
    short = batch._replace(length=np.array([4]))
    expected = model.apply(params, short)[0]
    assert distance(so_far[3], expected[3] if parts.every else expected) < 1e-10


def test_every_head_is_among_the_kinds():
    assert {kind.get("head", "last") for kind in KINDS} == set(heads.MEMBERS)


def by_hand(p, tokens, label):
    """The notes' own formulas in NumPy: states, deltas and each step's share, for the vanilla tanh network."""
    xs, states = p["embedding"][tokens], [np.zeros(len(p["W_hh"]))]
    for x in xs:
        states.append(np.tanh(p["W_xh"] @ x + p["W_hh"] @ states[-1] + p["b_h"]))
    loss, dlogits = oracles.softmax_loss(p["W_hy"] @ states[-1] + p["b_y"], label)
    grad, steps = p["W_hy"].T @ dlogits, []
    for t in range(len(tokens), 0, -1):
        delta = (1 - states[t] ** 2) * grad
        steps.append((grad, delta, np.outer(delta, xs[t - 1]), np.outer(delta, states[t - 1])))
        grad = p["W_hh"].T @ delta
    return loss, states[1:], steps[::-1]


def test_the_vanilla_trace_is_the_notes_by_hand():
    model, parts, params = made()
    seen = traced(model, parts, params)
    p = {key: np.asarray(leaf) for key, leaf in params.layers[0]._asdict().items()}
    p |= {"embedding": np.asarray(params.input), "W_hy": np.asarray(params.W_hy), "b_y": np.asarray(params.b_y)}
    loss, states, steps = by_hand(p, TEXT, 1)
    run, share = seen.passes[0][0], seen.shares[0][0]
    assert seen.loss == pytest.approx(loss, rel=1e-12)
    assert distance(run.outputs, np.stack(states)) < 1e-12
    assert distance(share.delta, np.stack([delta for _, delta, _, _ in steps])) < 1e-10
    for got, part in ((share.grad_state, 0), (share.norms.b_h, 1), (share.norms.W_xh, 2), (share.norms.W_hh, 3)):
        assert distance(got, np.array([np.linalg.norm(step[part]) for step in steps])) < 1e-10
    from_input, from_state = insight.products(params.layers[0], run)
    assert distance(jnp.tanh(from_input + from_state + p["b_h"]), run.outputs) < 1e-12


@pytest.mark.parametrize("cell_name", CELLS)
def test_saturation_counts_the_units_that_no_longer_answer(cell_name):
    """Biases of 50 drive every unit to its limit; of 0 with small weights, none is. For the vanilla cell: f' < 0.1."""
    model, parts, params = made(cell=cell_name)
    small = jax.tree.map(lambda leaf: 0.01 * leaf, params)
    cell = small.layers[0]
    stuck = small._replace(layers=(cell._replace(b_h=jnp.full_like(cell.b_h, 50.0)),))
    assert (traced(model, parts, small).shares[0][0].saturation == 0).all()
    last = traced(model, parts, stuck).shares[0][0].saturation[-1]
    assert last == 1
    if cell_name == "vanilla":
        big = jax.tree.map(lambda leaf: 3 * leaf, params)
        seen = traced(model, parts, big)
        expected = (1 - np.asarray(seen.passes[0][0].outputs) ** 2 < 0.1).mean(1)
        assert distance(seen.shares[0][0].saturation, expected) < 1e-12


# --- the flow of the gradient


def run_of(cell_name="vanilla", scale=1.0, steps=60, size=16, activation="identity", reverse=False):
    """A cell whose W_hh is scale times an orthogonal matrix, and its run over `steps` small inputs."""
    _, parts, params = made(cell=cell_name, hidden_size=size, activation=activation, bidirectional=reverse)
    one = insight.cell_params(parts, params)[0][int(reverse)]
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(size, size)))[0]
    one = one._replace(W_hh=jnp.asarray(scale * np.tile(Q, (len(one.W_hh) // size, 1))))
    xs = 0.1 * np.random.default_rng(2).normal(size=(steps, E))
    return parts.cells[0][0], one, insight.carried(parts.cells[0][0], one, jnp.asarray(xs), reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True], ids=["left to right", "right to left"])
@pytest.mark.parametrize("scale, verdict", [(0.8, "vanishing"), (1.0, "healthy"), (1.2, "exploding")])
def test_the_slope_of_a_scaled_orthogonal_matrix_is_the_logarithm_of_the_scale(scale, verdict, reverse):
    found = flow.gradient_flow(*run_of(scale=scale, reverse=reverse))
    assert found.log_slope == pytest.approx(np.log(scale), rel=0.01, abs=1e-6)
    assert found.verdict == verdict and found.exact
    assert found.log_norm[0 if reverse else -1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("cell_name", CELLS)
def test_log_norms_are_those_of_the_jacobian_by_autodiff(cell_name):
    """ds_T/ds_t of the whole rest of the text, as one function, differentiated at once."""
    cell, params, run = run_of(cell_name, scale=0.9, steps=6, size=3, activation="tanh")
    for t in (0, 3):

        def rest(state, t=t):
            for x in run.inputs[t + 1 :]:
                state, _ = cell.step(params, state, x)
            return jax.flatten_util.ravel_pytree(state)[0]

        state = jax.tree.map(lambda s, t=t: s[t], run.after)
        jacobian = jnp.concatenate([j.reshape(j.shape[0], -1) for j in jax.tree.leaves(jax.jacrev(rest)(state))], 1)
        expected = np.log(np.linalg.norm(np.asarray(jacobian), 2))
        assert flow.gradient_flow(cell, params, run).log_norm[t] == pytest.approx(expected, rel=1e-6)


def test_random_directions_are_a_lower_bound_and_find_the_same_slope(monkeypatch):
    whole = flow.gradient_flow(*run_of(scale=1.1, size=32, activation="tanh"))
    monkeypatch.setattr(flow, "EXACT", 0)
    probed = flow.gradient_flow(*run_of(scale=1.1, size=32, activation="tanh"))
    assert not probed.exact and (probed.log_norm <= whole.log_norm + 1e-9).all()
    assert probed.log_slope == pytest.approx(whole.log_slope, abs=0.02)


def test_norms_far_beyond_floating_point_are_still_numbers():
    found = flow.gradient_flow(*run_of(scale=0.01, steps=400))
    assert found.log_norm[0] == pytest.approx(399 * np.log(0.01), rel=1e-6)
    dead = flow.gradient_flow(*run_of(scale=0.0, steps=5))
    assert dead.verdict == "vanishing" and dead.log_norm[0] == -np.inf
    single = flow.gradient_flow(*run_of(steps=1))
    assert single.log_slope is None and single.verdict == "healthy"


def test_spectral_radius_is_the_largest_of_any_gate():
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    assert flow.spectral_radius(1.3 * Q) == pytest.approx(1.3)
    assert flow.spectral_radius(np.concatenate([0.2 * Q, 0.7 * Q, Q])) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "identity", "softplus"])
@pytest.mark.parametrize("w", [-2.0, 0.3, 1.0, 4.0])
def test_the_scalar_system_of_the_slides(name, w):
    """w^(t'-t) times the product of the slopes = autodiff = central differences."""
    activation = activations.named(name)
    found = flow.scalar_flow(w, 0.3, 6, activation)
    assert found.exact == pytest.approx(float(found.measured), rel=1e-10)
    near = [float(flow.scalar_flow(w, 0.3 + e, 6, activation).states[-1]) for e in (1e-5, -1e-5)]
    assert found.exact == pytest.approx((near[0] - near[1]) / 2e-5, rel=1e-6, abs=1e-9)


# --- initialised to vanish, to explode, and as advised: remember the first of 60 words

STEPS, ROWS = 60, 32


def remember(seed):
    """Texts of 60 words that end in nothing of use; the first word is the answer."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(4, V, size=(ROWS, STEPS)).astype(np.int32)
    tokens[:, 0] = generator.integers(2, 4, size=ROWS)
    return Batch(tokens, np.full(ROWS, STEPS, np.int32), tokens[:, 0] - 2, np.ones(ROWS, np.float32))


def learned(model, params, updates, clip):
    """The accuracy on new texts after some updates."""
    optimizer = optax.chain(optax.clip_by_global_norm(clip), optax.adam(1e-3))
    batches = jax.tree.map(lambda *leaves: np.stack(leaves), *map(remember, range(1, updates + 1)))

    def one(carry, batch):
        params, memory = carry
        gradient = jax.grad(lambda p: model.loss(p, batch)[0])(params)
        change, memory = optimizer.update(gradient, memory)
        return (optax.apply_updates(params, change), memory), None

    (params, _), _ = jax.jit(lambda p: jax.lax.scan(one, (p, optimizer.init(p)), batches))(params)
    _, sums = model.loss(params, remember(0))
    return float(sums.correct) / ROWS


def started(init_scale, recurrent="orthogonal"):
    settings = {"vocabulary_size": V, "classes": 2, "input_size": 8, "hidden_size": 24, "unroll": "scan"}
    settings |= {"initializer": {"recurrent": recurrent}}
    model = jaxrnn.rnn(**settings)
    with jax.enable_x64(False):
        return model, model.parts, model.init(jax.random.key(0), init_scale)


@pytest.mark.parametrize("init_scale, verdict", [(0.3, "vanishing"), (4.0, "exploding")])
def test_a_sixty_step_network_is_called_rightly_and_learns_only_as_advised(init_scale, verdict):
    """What is advised first for W_hh, and every other key of the settings of training that is named: nothing else."""
    with jax.enable_x64(False):
        model, parts, params = started(init_scale)
        tokens = jnp.asarray(remember(9).inputs[0])
        seen = insight.trace(model, params, tokens, jnp.array(0))
        found = flow.gradient_flow(parts.cells[0][0], params.layers[0], seen.passes[0][0])
        assert found.verdict == verdict
        assert learned(model, params, 100, 1e9) < 0.8
        settings = {"cell": "vanilla", "activation": "tanh", "init_scale": init_scale, "clip_global_norm": None}
        keys = dict(re.findall(r"([\w.]+)=(\S+)", " ".join(flow.advice(verdict, settings, None))))
        model, _, params = started(float(keys["init_scale"]), recurrent=keys["initializer.recurrent"])
        assert learned(model, params, 400, float(keys.get("clip_global_norm", "inf"))) > 0.95


def test_advice_leaves_out_what_is_set_already():
    settings = {"cell": "vanilla", "activation": "tanh", "head": "last"}
    assert [line.rpartition(": ")[2] for line in flow.advice("exploding", settings, None)] == ["cell=gru"], "may be set"
    settings |= {"init_scale": 1.0, "clip_global_norm": None, "learning_rate": 0.01}
    assert flow.advice("healthy", settings, 0.9) == []
    assert [line.rpartition(": ")[2] for line in flow.advice("exploding", settings, None)] == [
        "clip_global_norm=1", "optimizer.learning_rate=0.001", "cell=gru"]  # fmt: skip
    settings |= {"cell": "gru", "clip_global_norm": 0.5, "bidirectional": True}
    assert [line.rpartition(": ")[2] for line in flow.advice("vanishing", settings, None)] == ["head=mean"]
    assert "saturated" in flow.advice("exploding", settings | {"init_scale": 9.0}, 0.8)[0]


# --- attribution


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: "-".join(map(str, s.values())))
def test_integrated_gradients_are_complete_and_leaving_out_is_leaving_out(settings):
    model, parts, params = made(**settings)
    found = attribution.attributions(model, params, jnp.asarray(TEXT), target_of(parts))
    assert found.complete and found.completeness_error < 1e-3

    def score(tokens):
        target = np.full((1, len(tokens)), 1) if parts.every else np.array([1])
        return -float(model.loss(params, Batch(tokens[None], np.array([len(tokens)]), target, np.ones(1)))[0])

    for t in (0, 3, 6):
        expected = score(TEXT) - score(np.delete(TEXT, t))
        assert found.leave_one_out[t] == pytest.approx(expected, abs=1e-9)


def test_the_three_methods_agree_where_the_network_is_linear_in_the_words():
    """A mean of words, one logit, small weights: F is nearly linear, so all three give x_t . dF/dx_t."""
    model, parts, params = made(activation="identity", head="mean", output="sigmoid", classes=2)
    cell = params.layers[0]
    params = params._replace(layers=(cell._replace(W_hh=0 * cell.W_hh),), W_hy=1e-3 * params.W_hy)
    found = attribution.attributions(model, params, jnp.asarray(TEXT), target_of(parts))
    assert distance(found.gradient_input, found.integrated) < 1e-2
    assert attribution.rank_correlation(found.gradient_input, found.integrated) == pytest.approx(1)


def test_rank_correlation_shares_the_ranks_of_equals():
    one, other = np.array([1.0, 1.0, 2.0, 3.0]), np.array([2.0, 1.0, 3.0, 3.0])
    ranks = np.array([1.5, 1.5, 3, 4]), np.array([2, 1, 3.5, 3.5])
    assert attribution.rank_correlation(one, other) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert attribution.rank_correlation(one, np.ones(4)) is None


def test_a_text_too_long_for_leaving_out_is_left_out():
    model, _, params = made()
    tokens = jnp.full(attribution.LONGEST + 1, 2)
    assert attribution.attributions(model, params, tokens, jnp.array(1)) is None
