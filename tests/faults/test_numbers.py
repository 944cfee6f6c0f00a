"""C: padding, gradients and bits, over every cell; the laws of tests/ over whole networks and at greater length."""

import json
import subprocess
import sys
from functools import cache as once

import faultbench as bench
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads
from members import CELLS, distance, drawn, member

import jaxrnn
from jaxrnn.types import Batch
from jaxrnn.unroll import scan

B, T, V = 4, 6, 11
EPSILON = {"float32": 1e-6, "float64": 1e-12}
NETWORKS = [(c, ways, head) for c in CELLS for ways in (False, True) for head in ("last", "mean", "max", "attention")]
QUICK = [("gru", True, "attention")]


@once
def network(cell, bidirectional, head, kind):
    """-> batch -> logits, loss, gradient of one network of that kind of numbers.

    The gradient is one vector: of a weight whose terms nearly cancel, a sum in another order is nothing but rounding.
    """
    sizes = {"vocabulary_size": V, "classes": 3, "input_size": 3, "hidden_size": 4}
    model = jaxrnn.rnn(**sizes, cell=cell, bidirectional=bidirectional, head=head)
    params = jax.tree.map(lambda leaf: leaf.astype(kind), model.init(jax.random.key(1)))

    @jax.jit
    def run(batch):
        (loss, _), gradients = jax.value_and_grad(model.loss, has_aux=True)(params, batch)
        return model.apply(params, batch), loss, ravel_pytree(gradients)[0]

    return run


def batch(ids, length, target, kind):
    return Batch(*(np.array(part, np.int32) for part in (ids, length, target)), np.ones(len(ids), kind))


def padding_is_invisible(which, kind, draw):
    run, near = network(*which, kind), EPSILON[kind]
    ids, other, length, target, order = (np.array(part) for part in draw)
    real = np.arange(T) < length[:, None]
    clean = run(batch(np.where(real, ids, 0), length, target, kind))
    poisoned = run(batch(np.where(real, ids, other), length, target, kind))
    assert distance(poisoned, clean) == 0.0  # other padding: same bits
    wide = np.concatenate([np.where(real, ids, 0), other[:, :3]], axis=1)
    assert distance(run(batch(wide, length, target, kind)), clean) <= near
    shuffled = run(batch(np.where(real, ids, 0)[order], length[order], target[order], kind))
    assert distance(shuffled, (clean[0][order], *clean[1:])) <= near
    mixed = np.where(real, ids, 0)
    mixed[1:] = other[1:]
    assert (run(batch(mixed, length, target, kind))[0][0] == clean[0][0]).all()  # other neighbours: same bits
    alone = run(batch(np.where(real, ids, 0)[:1], length[:1], target[:1], kind))
    assert distance(alone[0], clean[0][:1]) <= near


ROW = st.lists(st.lists(st.integers(0, V - 1), min_size=T, max_size=T), min_size=B, max_size=B)
LENGTHS = st.lists(st.integers(1, T), min_size=B, max_size=B)
DRAW = st.tuples(ROW, ROW, LENGTHS, st.lists(st.integers(0, 2), min_size=B, max_size=B), st.permutations(range(B)))


@pytest.mark.fault("C3")
@pytest.mark.parametrize("which", QUICK, ids=str)
@pytest.mark.usefixtures("x64")
def test_padding_neighbours_and_order_are_invisible(which):
    @settings(deadline=None, max_examples=10, derandomize=True, database=None)
    @given(DRAW)
    def law(draw):
        padding_is_invisible(which, "float64", draw)

    law()


@pytest.mark.fault("C3")
@pytest.mark.whole
@pytest.mark.parametrize("kind", EPSILON)
@pytest.mark.parametrize("which", NETWORKS, ids=str)
def test_padding_is_invisible_to_every_network(which, kind):
    """21 draws of 24 networks: 504 in each kind of numbers."""

    @settings(deadline=None, max_examples=21, derandomize=True, database=None)
    @given(DRAW)
    def law(draw):
        padding_is_invisible(which, kind, draw)

    with jax.enable_x64(kind == "float64"):
        law()


def summed(cell_name, steps=T, kind=np.float64):
    """A scalar of parameters and inputs that every output of the unroll is part of, with lengths 1 and T."""
    cell = member("cells", cell_name)(3, 4)
    params = drawn(jax.eval_shape(cell.init, jax.random.key(0)), 5, kind, 0.3)
    xs = jnp.asarray(np.random.default_rng(6).normal(size=(steps, 3, 3)), kind)
    length = jnp.array([1, steps, max(steps // 2, 1)])

    def total(params, xs):
        state, ys = scan(cell, params, xs, length)
        return jnp.sin(ys).sum() + sum(jnp.cos(leaf).sum() for leaf in jax.tree.leaves(state))

    return jax.jit(total), params, xs


@pytest.mark.fault("C4")
@pytest.mark.whole
@pytest.mark.parametrize("cell_name", CELLS)
@pytest.mark.usefixtures("x64")
def test_derivatives_of_second_order_are_differences(cell_name):
    total, params, xs = summed(cell_name)
    for _ in range(5):  # each a random direction
        check_grads(total, (params, xs), order=2, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6, eps=1e-5)


@pytest.mark.fault("C4")
@pytest.mark.parametrize("cell_name", CELLS)
@pytest.mark.usefixtures("x64")
def test_forward_and_backward_are_those_of_numpy(cell_name):
    total, params, xs = summed(cell_name)
    named, length = {name: np.asarray(p) for name, p in params._asdict().items()}, np.array([1, T, T // 2])
    state, ys, tapes = oracles.unroll(cell_name, named, np.asarray(xs), length)
    real = np.arange(T)[:, None] < length
    expected = np.sin(ys).sum() + sum(np.cos(leaf).sum() for leaf in state)
    assert abs(float(total(params, xs)) - expected) <= 1e-10 * abs(expected)
    dstate = tuple(-np.sin(leaf) for leaf in state)
    dys = np.cos(ys) * real[:, :, None]
    dparams, dxs = oracles.unroll_back(cell_name, named, tapes, np.asarray(xs), length, dstate, dys)
    found, dfound = jax.grad(total, (0, 1))(params, xs)
    assert distance(dfound, dxs) <= 1e-6
    assert distance([found._asdict()[name] for name in dparams], list(dparams.values())) <= 1e-6


@pytest.mark.fault("C4")
@pytest.mark.parametrize("cell_name", CELLS)
def test_single_precision_stays_near_over_200_steps(cell_name):
    total, params, xs = summed(cell_name, 200, np.float32)
    single = float(total(params, xs))
    with jax.enable_x64(True):
        total, params, xs = summed(cell_name, 200)
        assert abs(single - float(total(params, xs))) <= 1e-4 * abs(float(total(params, xs)))


SAME = """
import hashlib, json, sys
import jax, numpy as np
import jaxrnn
from jaxrnn.types import Batch
draw = np.random.default_rng(0)
model = jaxrnn.rnn(vocabulary_size=500, classes=2, input_size=64, hidden_size=64)
params = model.init(jax.random.key(0))
batch = Batch(draw.integers(0, 500, (64, 20)).astype(np.int32), draw.integers(1, 21, 64).astype(np.int32),
              draw.integers(0, 2, 64).astype(np.int32), np.ones(64, np.float32))
step = jax.jit(lambda p: jax.tree.map(lambda p, g: p - g, p, jax.grad(model.loss, has_aux=True)(p, batch)[0]))
found = [[np.asarray(leaf) for leaf in jax.tree.leaves(step(params))] for _ in range(200)]
hashes = {hashlib.sha256(b"".join(leaf.tobytes() for leaf in one)).hexdigest() for one in found}
far = max(float(np.abs(a - b).max()) for one in found for a, b in zip(one, found[0]))
print(json.dumps([len(hashes), far]))
"""


@pytest.mark.fault("C5")
@pytest.mark.whole
def test_the_same_step_gives_the_same_bits(cache, capsys):
    """On one thread always; on all of them the number of different results is reported, and they are near."""
    told = {}
    for name, before in (("one thread", [sys.executable, "-c", bench.ONE_CORE]), ("all threads", [])):
        command = [*before, sys.executable, "-c", SAME]
        done = subprocess.run(command, capture_output=True, text=True, env=bench.environment(cache), check=True)
        told[name] = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\n200 times the same step: {told} (different results, largest difference)")
    assert told["one thread"] == [1, 0.0]
    assert told["all threads"][1] <= 1e-5


@pytest.mark.fault("C5")
@pytest.mark.whole
def test_the_same_command_gives_the_same_run(basis, cache, reference, tmp_path):
    code, _, err = bench.train([*basis, f"hydra.run.dir={tmp_path / 'again'}"], cache)
    assert (code, err) == (0, [])
    assert bench.digest(tmp_path / "again") == bench.digest(reference)
    assert bench.losses(tmp_path / "again") == bench.losses(reference)
    best = "model/params.safetensors"
    assert (tmp_path / "again" / best).read_bytes() == (reference / best).read_bytes()
