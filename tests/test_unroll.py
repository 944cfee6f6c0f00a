"""Laws of time: every unroll of every cell against NumPy, against finite differences and against each other."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads
from members import CELLS, UNROLLS, distance, drawn, member

T, B, D, H = 6, 5, 3, 4
LENGTH = np.array([6, 1, 0, 4, 3], np.int32)
TRACES = []  # one entry per tracing of a function below

cells = pytest.mark.parametrize("cell_name", CELLS)
unrolls = pytest.mark.parametrize("unroll_name", UNROLLS)
others = pytest.mark.parametrize("unroll_name", [name for name in UNROLLS if name != "scan"])
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@functools.cache
def cell_of(name):
    return member("cells", name)(D, H)


@functools.cache
def graded(cell_name, unroll_name, reverse):
    """One function for every law: (params, xs, length, dstate, dys) -> state, ys and the gradients of params and xs."""
    return jax.jit(plain(cell_name, unroll_name, reverse))


def plain(cell_name, unroll_name, reverse):
    cell, unroll = cell_of(cell_name), member("unroll", unroll_name)
    if unroll_name != "scan" and cell.split is None:
        pytest.skip(f"{cell_name} gives no pullback and is unrolled by scan")

    def run(params, xs, length, dstate, dys):
        TRACES.append(cell_name)
        answer, backward = jax.vjp(lambda params, xs: unroll(cell, params, xs, length, reverse=reverse), params, xs)
        return answer, backward((dstate, dys))

    return run


def problem(cell_name, dtype=jnp.float32, *, steps=T, rows=B, length=LENGTH, seed=0):
    """Arguments of `graded`, all drawn; the gradient that comes in at padded steps is drawn too, and must not count."""
    cell = cell_of(cell_name)
    params = drawn(jax.eval_shape(cell.init, jax.random.key(0)), seed, dtype)
    state = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape)), jax.eval_shape(cell.start, params))
    xs, dys = jnp.zeros((steps, rows, D)), jnp.zeros((steps, rows, cell.output_size))
    xs, dstate, dys = drawn((xs, state, dys), seed + 1, dtype, 1.0)
    return params, xs, None if length is None else jnp.asarray(length), dstate, dys


def by_numpy(cell_name, arguments, reverse):
    """The same, from oracles.py."""
    if cell_name not in oracles.CELLS:
        pytest.skip("no NumPy oracle for this cell yet")
    params, xs, length, dstate, dys = jax.tree.map(lambda leaf: np.asarray(leaf, leaf.dtype), arguments)
    p = {key: np.asarray(leaf, np.float64) for key, leaf in params._asdict().items()}
    xs, dys = xs.astype(np.float64), dys.astype(np.float64)
    dstate = tuple(leaf.astype(np.float64) for leaf in jax.tree.leaves(dstate))
    state, ys, tapes = oracles.unroll(cell_name, p, xs, length, reverse=reverse)
    dp, dxs = oracles.unroll_back(cell_name, p, tapes, xs, length, dstate, dys, reverse=reverse)
    return [*state, ys, *(dp[key] for key in params._fields), dxs]


def flat(answer):
    return jax.tree.leaves(answer)


# --- right: NumPy, finite differences, each other


@cells
@unrolls
@directions
@pytest.mark.usefixtures("x64")
def test_values_and_gradients_are_the_oracles_in_float64(cell_name, unroll_name, reverse):
    arguments = problem(cell_name, jnp.float64)
    got = graded(cell_name, unroll_name, reverse)(*arguments)
    assert {leaf.dtype for leaf in flat(got)} == {np.dtype("float64")}
    assert distance(flat(got), by_numpy(cell_name, arguments, reverse)) < 1e-9


@cells
@pytest.mark.parametrize(
    "unroll_name, reverse", [(u, r) for u in UNROLLS for r in (False, True) if u != "scan" or not r]
)
def test_values_and_gradients_are_the_oracles_in_float32(cell_name, unroll_name, reverse):
    arguments = problem(cell_name)
    got = graded(cell_name, unroll_name, reverse)(*arguments)
    assert {leaf.dtype for leaf in flat(got)} == {np.dtype("float32")}
    assert distance(flat(got), by_numpy(cell_name, arguments, reverse)) < 1e-5


@cells
@others
@directions
@pytest.mark.usefixtures("x64")
def test_every_unroll_is_scan(cell_name, unroll_name, reverse):
    arguments = problem(cell_name, jnp.float64, seed=7)
    fast = graded(cell_name, unroll_name, reverse)(*arguments)
    assert distance(fast, graded(cell_name, "scan", reverse)(*arguments)) < 1e-9


@cells
@directions
@pytest.mark.usefixtures("x64")
def test_gradients_are_finite_differences(cell_name, reverse):
    """Five directions of (params, xs), a difference of the sixth order: the error is about 1e-12 of the answer."""
    params, xs, length, dstate, dys = problem(cell_name, jnp.float64)
    run = graded(cell_name, "scan", reverse)

    def value(point):
        (state, ys), _ = run(*point, length, dstate, dys)
        return sum(float(jnp.vdot(a, b)) for a, b in zip(flat((state, ys)), flat((dstate, dys)), strict=True))

    _, gradient = run(params, xs, length, dstate, dys)
    h, multiples = 3e-3, (-3, -2, -1, 1, 2, 3)
    for seed in range(5):
        direction = drawn((params, xs), 100 + seed, jnp.float64)
        slope = sum(float(jnp.vdot(a, b)) for a, b in zip(flat(gradient), flat(direction), strict=True))
        at = {k: value(jax.tree.map(lambda a, d, k=k: a + k * h * d, (params, xs), direction)) for k in multiples}
        difference = (45 * (at[1] - at[-1]) - 9 * (at[2] - at[-2]) + (at[3] - at[-3])) / (60 * h)
        assert difference == pytest.approx(slope, rel=1e-9, abs=1e-9)


@cells
@pytest.mark.usefixtures("x64")
def test_second_derivatives_of_scan(cell_name):
    """The function returns values and gradients, so that its first derivatives are those of order one and two."""
    params, xs, length, dstate, dys = problem(cell_name, jnp.float64)
    run = graded(cell_name, "scan", False)
    modes = ("fwd", "rev") if cell_name == "vanilla" else ("rev",)  # forward costs as much again to compile
    check_grads(
        lambda params, xs: run(params, xs, length, dstate, dys),
        (params, xs), order=1, modes=modes, eps=1e-5, atol=1e-6, rtol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("cell_name, reverse", [(name, i % 2 == 1) for i, name in enumerate(CELLS)])
@others
@pytest.mark.usefixtures("x64")
def test_a_batch_too_large_for_one_product(cell_name, unroll_name, reverse):
    """Fast unrolls cut time into chunks of about a thousand rows: 300 rows make chunks of 3 steps, 7 is no multiple."""
    length = np.random.default_rng(0).integers(0, 8, size=300)
    arguments = problem(cell_name, jnp.float64, steps=7, rows=300, length=length)
    got = graded(cell_name, unroll_name, reverse)(*arguments)
    assert distance(flat(got), by_numpy(cell_name, arguments, reverse)) < 1e-9


@cells
@unrolls
def test_float32_stays_near_float64_over_200_steps(cell_name, unroll_name):
    params, xs, length, _dstate, _dys = arguments = problem(cell_name, steps=200, rows=2, length=[200, 150])
    unroll = jax.jit(functools.partial(member("unroll", unroll_name), cell_of(cell_name)))
    state, ys = unroll(params, xs, length)
    expected = by_numpy(cell_name, arguments, False)
    assert distance([*flat(state), ys], expected[: len(flat(state)) + 1]) < 1e-4


@cells
@others
def test_no_length_is_every_length_whole(cell_name, unroll_name):
    params, xs, _, dstate, dys = problem(cell_name)
    run = graded(cell_name, unroll_name, False)
    whole = run(params, xs, jnp.full(B, T, jnp.int32), dstate, dys)
    assert distance(run(params, xs, None, dstate, dys), whole) < 1e-6


@cells
@unrolls
@pytest.mark.usefixtures("x64")
def test_reverse_is_the_mirror_of_forward(cell_name, unroll_name):
    params, xs, _, dstate, dys = problem(cell_name, jnp.float64)
    whole = jnp.full(B, T, jnp.int32)
    (state, ys), (dparams, dxs) = graded(cell_name, unroll_name, True)(params, xs, whole, dstate, dys)
    mirrored = graded(cell_name, unroll_name, False)(params, xs[::-1], whole, dstate, dys[::-1])
    assert distance(((state, ys[::-1]), (dparams, dxs[::-1])), mirrored) < 1e-12


# --- how they may be called


def test_one_signature():
    for name in UNROLLS:
        parameters = inspect.signature(member("unroll", name)).parameters
        assert list(parameters) == ["cell", "params", "xs", "length", "reverse"], name
        assert parameters["reverse"].kind is inspect.Parameter.KEYWORD_ONLY and parameters["reverse"].default is False


@cells
@others
def test_jit_changes_nothing(cell_name, unroll_name):
    arguments = problem(cell_name)
    jitted = graded(cell_name, unroll_name, False)(*arguments)
    assert distance(plain(cell_name, unroll_name, False)(*arguments), jitted) < 1e-6


@cells
@others
def test_a_population_is_its_members_one_by_one(cell_name, unroll_name):
    """vmap over parameters, inputs and lengths, of which no two have the same longest row; each against scan."""
    population = [problem(cell_name, seed=seed, length=np.minimum(LENGTH, 6 - 2 * seed)) for seed in range(3)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *population)
    answers = jax.jit(jax.vmap(plain(cell_name, unroll_name, False)))(*together)
    for i, arguments in enumerate(population):
        solo = graded(cell_name, "scan", False)(*arguments)
        assert distance(jax.tree.map(lambda leaf, i=i: leaf[i], answers), solo) < 1e-5


@cells
@unrolls
def test_the_second_call_compiles_nothing(cell_name, unroll_name):
    """Not for other numbers, and not for other lengths."""
    run = graded(cell_name, unroll_name, False)
    run(*problem(cell_name))
    before = len(TRACES)
    run(*problem(cell_name, seed=5, length=LENGTH[::-1].copy()))
    assert len(TRACES) == before


@cells
@others
def test_a_loss_of_one_part_only(cell_name, unroll_name):
    """A loss that reads only the last state, only one step, or that asks for no gradient of the inputs."""
    cell, unroll = cell_of(cell_name), member("unroll", unroll_name)
    params, xs, length, dstate, dys = problem(cell_name)
    run = graded(cell_name, unroll_name, False)
    zero = functools.partial(jax.tree.map, jnp.zeros_like)

    @jax.jit
    def both(params, xs):
        by_state = jax.grad(lambda p: sum(map(jnp.vdot, flat(unroll(cell, p, xs, length)[0]), flat(dstate))))(params)
        by_output = jax.grad(lambda x: jnp.vdot(unroll(cell, params, x, length)[1], dys))(xs)
        return by_state, by_output

    by_state, by_output = both(params, xs)
    assert distance(by_state, run(params, xs, length, dstate, zero(dys))[1][0]) < 1e-6
    assert distance(by_output, run(params, xs, length, zero(dstate), dys)[1][1]) < 1e-6


@cells
@others
def test_integers_are_one_hot_vectors(cell_name, unroll_name):
    cell, unroll = cell_of(cell_name), member("unroll", unroll_name)
    params, _, length, dstate, dys = problem(cell_name)
    words = np.random.default_rng(3).integers(0, D, size=(T, B)).astype(np.int32)

    @jax.jit
    def of_words(params, words):
        answer, backward = jax.vjp(lambda params: unroll(cell, params, words, length), params)
        return answer, backward((dstate, dys))

    answer, (dparams, _) = graded(cell_name, unroll_name, False)(params, jnp.eye(D)[words], length, dstate, dys)
    assert distance(of_words(params, words), (answer, (dparams,))) < 1e-6


@cells
@others
def test_a_cell_without_a_pullback_is_sent_to_scan(cell_name, unroll_name):
    cell = cell_of(cell_name)._replace(split=None)
    params, xs, length, _, _ = problem(cell_name)
    with pytest.raises((ValueError, Exception), match="scan") as refusal:
        member("unroll", unroll_name)(cell, params, xs, length)
    assert cell.name in str(refusal.value)
    member("unroll", "scan")(cell, params, xs, length)


def test_the_notes_recursion_carries_the_transpose_of_W_hh():
    """Two steps by hand, as the notes do: dL/dW_hh = (1 - h_2^2) h_1 and dL/dh_1 = W_hh^T (1 - h_2^2)."""
    cell, bptt = cell_of("vanilla"), member("unroll", "bptt")
    params, xs, *_ = problem("vanilla", steps=2, rows=1)
    gradient = jax.grad(lambda p: bptt(cell, p, xs)[0].sum())(params)
    W_xh, W_hh, b_h = (np.asarray(leaf, np.float64) for leaf in params)
    x_1, x_2 = np.asarray(xs, np.float64)[:, 0]
    h_1 = np.tanh(W_xh @ x_1 + b_h)
    h_2 = np.tanh(W_xh @ x_2 + W_hh @ h_1 + b_h)
    delta_2 = 1 - h_2**2
    delta_1 = (1 - h_1**2) * (W_hh.T @ delta_2)
    assert distance(gradient.W_hh, np.outer(delta_2, h_1)) < 1e-5
    assert distance(gradient.W_xh, np.outer(delta_2, x_2) + np.outer(delta_1, x_1)) < 1e-5
    assert distance(gradient.b_h, delta_1 + delta_2) < 1e-5
