"""Laws of time, what must not matter: padding, neighbours, the order of rows, what comes later."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import distance
from test_unroll import LENGTH, B, T, by_numpy, cells, directions, flat, graded, problem, unrolls


@cells
@unrolls
@directions
@pytest.mark.usefixtures("x64")
def test_padding_is_invisible(cell_name, unroll_name, reverse):
    """Poisoned with NaN: the same bits. No gradient reaches it, no output leaves it. Longer than any text: as NumPy."""
    params, xs, length, dstate, dys = problem(cell_name, jnp.float64)
    run = graded(cell_name, unroll_name, reverse)
    clean = run(params, xs, length, dstate, dys)
    padded = np.arange(T)[:, None] >= LENGTH
    poisoned = run(params, jnp.where(padded[:, :, None], jnp.nan, xs), length, dstate, dys)
    assert distance(poisoned, clean) == 0.0
    (_, ys), (_, dxs) = clean
    assert (np.asarray(ys)[padded] == 0).all() and (np.asarray(dxs)[padded] == 0).all()

    short = params, xs.at[3:].set(0.0), jnp.minimum(length, 3), dstate, dys
    answer = run(params, xs.at[3:].set(jnp.nan), *short[2:])
    assert distance(flat(answer), by_numpy(cell_name, short, reverse)) < 1e-9


@cells
@unrolls
@directions
@pytest.mark.usefixtures("x64")
def test_a_row_of_length_zero_keeps_the_start(cell_name, unroll_name, reverse):
    params, xs, _, dstate, dys = problem(cell_name, jnp.float64)
    nothing = jnp.zeros(B, jnp.int32)
    (state, ys), gradients = graded(cell_name, unroll_name, reverse)(params, xs, nothing, dstate, dys)
    assert all((leaf == 0).all() for leaf in flat((state, ys, gradients)))


@cells
@unrolls
@directions
@pytest.mark.usefixtures("x64")
def test_rows_are_strangers(cell_name, unroll_name, reverse):
    """Other neighbours, the same bits; another order, the same answers in that order."""
    params, xs, length, dstate, dys = problem(cell_name, jnp.float64)
    run = graded(cell_name, unroll_name, reverse)
    (state, ys), (dparams, dxs) = run(params, xs, length, dstate, dys)
    (state_2, ys_2), (_, dxs_2) = run(params, xs.at[:, 1:].multiply(-3.0), length, dstate, dys)
    for one, other in zip(flat((state, dxs[:, 0], ys[:, 0])), flat((state_2, dxs_2[:, 0], ys_2[:, 0])), strict=True):
        np.testing.assert_array_equal(one[0], other[0])

    order = np.array([3, 0, 4, 2, 1])
    shuffled = run(params, xs[:, order], length[order], jax.tree.map(lambda leaf: leaf[order], dstate), dys[:, order])
    expected = (jax.tree.map(lambda leaf: leaf[order], state), ys[:, order]), (dparams, dxs[:, order])
    assert distance(shuffled, expected) < 1e-12


@cells
@unrolls
@pytest.mark.parametrize("t", [0, 2, 5])
@pytest.mark.usefixtures("x64")
def test_causality(cell_name, unroll_name, t):
    """Outputs do not see later inputs, and the gradient of an output is zero at later inputs."""
    params, xs, length, dstate, dys = problem(cell_name, jnp.float64)
    run = graded(cell_name, unroll_name, False)
    (_, ys), _ = run(params, xs, length, dstate, dys)
    (_, changed), _ = run(params, xs.at[t + 1 :].set(7.0), length, dstate, dys)
    np.testing.assert_array_equal(ys[: t + 1], changed[: t + 1])
    only_t = jnp.zeros_like(dys).at[t].set(dys[t])
    _, (_, dxs) = run(params, xs, length, jax.tree.map(jnp.zeros_like, dstate), only_t)
    assert (dxs[t + 1 :] == 0).all() and (dxs[t, LENGTH > t] != 0).any()
