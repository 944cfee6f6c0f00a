"""Laws of one tick: every cell, every activation, every initializer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from members import CELLS, distance, drawn, member

from jaxrnn import activations, initializers
from jaxrnn.errors import ConfigurationError

D, H = 3, 4
ACTIVATIONS = sorted(activations.MEMBERS)
cells = pytest.mark.parametrize("cell_name", CELLS)


@functools.cache
def cell_of(name, activation="tanh"):
    return member("cells", name)(D, H, activation=activations.MEMBERS[activation])


def a_step(name, dtype=jnp.float64):
    """Parameters, a state and an input of one sequence, all drawn."""
    cell = cell_of(name)
    params = drawn(jax.eval_shape(cell.init, jax.random.key(0)), 0, dtype)
    state = drawn(jax.eval_shape(cell.start, params), 1, dtype)
    return params, state, drawn(jax.ShapeDtypeStruct((D,), dtype), 2, dtype, 1.0)


@cells
def test_params_are_named_arrays(cell_name):
    params = cell_of(cell_name).init(jax.random.key(0))
    shapes = {name: leaf.shape for name, leaf in params._asdict().items()}
    gates = {"vanilla": 1, "gru": 3, "lstm": 4}.get(cell_name)
    if gates is None:
        pytest.skip("the arrays of this cell are named in its own docstring")
    expected = {"W_xh": (gates * H, D), "W_hh": (gates * H, H), "b_h": (gates * H,)}
    assert shapes == expected | ({"b_hn": (H,)} if cell_name == "gru" else {})
    assert {leaf.dtype for leaf in params} == {np.dtype("float32")}


@cells
def test_init_is_a_function_of_the_key(cell_name):
    cell = cell_of(cell_name)
    one, same, other = (cell.init(jax.random.key(seed)) for seed in (1, 1, 2))
    assert distance(one, same) == 0.0
    assert distance(one, other) > 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one))


@cells
def test_start_is_zero_and_output_reads_it(cell_name):
    cell = cell_of(cell_name)
    params = cell.init(jax.random.key(0))
    start = cell.start(params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(start))
    assert cell.output(start).shape == (cell.output_size,) == (H,)


@cells
@pytest.mark.usefixtures("x64")
def test_step_is_the_oracle(cell_name):
    if cell_name not in oracles.CELLS:
        pytest.skip("no NumPy oracle for this cell yet")
    params, state, x = a_step(cell_name)
    known = [name for name in ACTIVATIONS if name in oracles.ACTIVATIONS]

    @jax.jit
    def all_of_them(params, state, x):
        return {name: cell_of(cell_name, name).step(params, state, x) for name in known}

    got = all_of_them(params, state, x)
    p = {key: np.asarray(leaf) for key, leaf in params._asdict().items()}
    before = tuple(np.asarray(leaf) for leaf in jax.tree.leaves(state))
    for name in known:
        new, y, _ = oracles.CELLS[cell_name][0](p, before, np.asarray(x), name)
        assert distance([jax.tree.leaves(got[name][0]), got[name][1]], [list(new), y]) < 1e-12, name


@cells
@pytest.mark.usefixtures("x64")
def test_pullback_is_the_transpose_of_the_step(cell_name):
    """The hand-derived half of the step against autodiff of the step. One slope reads the sign of h, one its value,
    one its exponential; that each slope is right is a law of the activations."""
    if cell_of(cell_name).split is None:
        pytest.skip("this cell gives no pullback and is unrolled by scan")
    params, state, x = a_step(cell_name)
    dstate = drawn(state, 3, jnp.float64)

    @jax.jit
    def both(params, state, x, dstate):
        answers = {}
        for name in ("tanh", "relu", "softplus"):
            cell = cell_of(cell_name, name)
            _, autodiff = jax.vjp(lambda p, s, x, step=cell.step: step(p, s, x)[0], params, state, x)
            split = cell.split
            after, kept = split.advance(params, state, split.before_loop(params, x))
            before, a = split.pullback(params, kept, state, dstate)
            dparams, dx = split.after_loop(params, x[None], jax.tree.map(lambda leaf: leaf[None], state), a[None])
            answers[name] = (dparams, before, dx[0]), autodiff(dstate), split.state(kept), after
        return answers

    for name, (ours, autodiff, state_kept, after) in both(params, state, x, dstate).items():
        assert distance(ours, autodiff) < 1e-12, name
        assert distance(state_kept, after) == 0.0, name


@cells
def test_step_of_an_integer_is_the_step_of_its_one_hot_vector(cell_name):
    cell = cell_of(cell_name)
    params, state, _ = a_step(cell_name, jnp.float32)
    step = jax.jit(cell.step)
    assert distance(step(params, state, jnp.int32(2)), step(params, state, jnp.eye(D)[2])) < 1e-6


@cells
def test_vmap_is_a_loop_over_rows(cell_name):
    cell = cell_of(cell_name)
    params, state, _ = a_step(cell_name, jnp.float32)
    rows = drawn(jax.ShapeDtypeStruct((5, D), jnp.float32), 4, jnp.float32)
    many = jax.jit(jax.vmap(lambda x: cell.step(params, state, x)[1]))(rows)
    one = jax.jit(lambda x: cell.step(params, state, x)[1])
    assert distance(many, np.stack([one(x) for x in rows])) < 1e-6


# --- how the weights start


def test_the_sound_defaults():
    square = member("cells", "vanilla")(D, H).init(jax.random.key(0)).W_hh
    assert distance(square @ square.T, np.eye(H)) < 1e-6
    relu = member("cells", "vanilla")(D, H, activation=activations.relu).init(jax.random.key(0)).W_hh
    assert distance(relu, np.eye(H)) == 0.0
    forget = member("cells", "lstm")(D, H).init(jax.random.key(0)).b_h[H : 2 * H]
    assert (forget == 1).all()


@pytest.mark.parametrize("cell_name", [name for name in ("gru", "lstm") if name in CELLS])
def test_each_gate_starts_orthogonal_on_its_own(cell_name):
    W_hh = np.asarray(cell_of(cell_name).init(jax.random.key(0)).W_hh).reshape(-1, H, H)
    for block in W_hh:
        assert distance(block @ block.T, np.eye(H)) < 1e-6
    assert len(np.unique(W_hh[:, 0, 0])) == len(W_hh), "two gates were drawn with one key"


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)], ids=str)
def test_initializers_give_finite_arrays_of_the_shape(shape):
    @jax.jit
    def every_one(key):
        return {name: initializers.named(name)(key, shape, jnp.float32) for name in initializers.MEMBERS}

    for name, matrix in every_one(jax.random.key(0)).items():
        assert matrix.shape == shape and matrix.dtype == jnp.float32, name
        assert np.isfinite(matrix).all(), name


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)], ids=str)
def test_orthogonal_is_orthogonal(shape):
    W = np.asarray(initializers.named("orthogonal")(jax.random.key(3), shape, jnp.float32))
    product = W @ W.T if shape[0] <= shape[1] else W.T @ W
    assert distance(product, np.eye(min(shape))) < 1e-6


def test_initializers_have_the_scale_of_their_papers():
    """Columns are what a product sums over (fan in), rows what it makes (fan out)."""
    rows, columns = 300, 100
    expected = {
        "glorot_uniform": (2 / (rows + columns)) ** 0.5,
        "glorot_normal": (2 / (rows + columns)) ** 0.5,
        "lecun_normal": (1 / columns) ** 0.5,
        "he_normal": (2 / columns) ** 0.5,
        "notes": 1e-3,
        "zeros": 0.0,
    }
    for name in expected.keys() & initializers.MEMBERS.keys():
        matrix = initializers.named(name)(jax.random.key(0), (rows, columns), jnp.float32)
        assert float(np.std(matrix)) == pytest.approx(expected[name], rel=0.03), name


@pytest.mark.parametrize("given, meant", [("orthogonl", "orthogonal"), ("glorot", "glorot_"), ("", "known:")])
def test_an_unknown_initializer_is_refused_with_the_nearest_name(given, meant):
    with pytest.raises(ConfigurationError, match=meant):
        initializers.named(given)


# --- activations


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.usefixtures("x64")
def test_slope_of_the_output_is_the_derivative(name):
    activation = activations.named(name)
    u = jnp.asarray(np.concatenate([np.random.default_rng(0).normal(size=40) * 2, [-30.0, -5.0, 5.0, 30.0]]))
    derivative = jax.jit(jax.vmap(jax.grad(activation.apply)))(u)
    slope = activation.slope(activation.apply(u))
    assert slope.dtype == u.dtype
    np.testing.assert_allclose(slope, derivative, rtol=1e-9, atol=1e-12)
    if name in oracles.ACTIVATIONS:
        value, oracle_slope = oracles.ACTIVATIONS[name]
        np.testing.assert_allclose(activation.apply(u), value(np.asarray(u)), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(slope, oracle_slope(np.asarray(u)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_finite_and_keep_their_type_far_out(name):
    activation = activations.named(name)
    u = jnp.asarray([-1e4, -1.0, 0.0, 1.0, 1e4], jnp.float32)
    h = activation.apply(u)
    assert h.dtype == u.dtype == activation.slope(h).dtype
    assert np.isfinite(h).all() and np.isfinite(activation.slope(h)).all()


def test_an_unknown_activation_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigurationError, match="did you mean 'tanh'"):
        activations.named("tahn")


def test_no_matrix_of_a_vocabulary_is_multiplied_for_a_one_hot_word():
    """A one-hot word is a gather of a column: no product in the compiled step is as wide as the vocabulary."""
    V = 1000
    cell = member("cells", "vanilla")(V, H)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    jaxpr = jax.make_jaxpr(cell.step)(params, jax.eval_shape(cell.start, params), jnp.int32(7))
    widths = [size for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "dot_general"
              for variable in equation.invars for size in variable.aval.shape]  # fmt: skip
    assert widths and max(widths) < V


@pytest.mark.parametrize("cell_name", CELLS)
def test_an_activation_is_given_or_named(cell_name):
    make = member("cells", cell_name)
    for given in ("relu", activations.relu):
        assert make(3, 2, activation=given).activation is activations.relu
    for wrong in ("than", jnp.tanh):
        with pytest.raises(ConfigurationError, match="unknown activation"):
            make(3, 2, activation=wrong)
