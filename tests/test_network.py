"""Laws of the whole network: NumPy as oracle, heads, outputs, noise, streaming, and everything that must not matter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from members import CELLS, distance, drawn, member

import jaxrnn
from jaxrnn import heads, layers, outputs
from jaxrnn.errors import ConfigurationError
from jaxrnn.types import Batch, Noise

V, E, H, C, B, T = 9, 3, 4, 3, 5, 6
LENGTH = np.array([6, 1, 0, 4, 3], np.int32)
MANY_TO_ONE = [name for name in ("last", "mean", "max", "attention") if name in heads.MEMBERS]
HEADS = sorted(heads.MEMBERS)
model_of = functools.partial(jaxrnn.rnn, vocabulary_size=V, classes=C, input_size=E, hidden_size=H)


def a_batch(seed=0, *, length=LENGTH, steps=T, classes=C, every=False):
    """Ids 2 to V - 1 where real, 0 where padded; the last row is a filler."""
    generator = np.random.default_rng(seed)
    rows = len(length)
    inputs = generator.integers(2, V, size=(rows, steps)).astype(np.int32)
    inputs[np.arange(steps) >= np.asarray(length)[:, None]] = 0
    target = generator.integers(0, classes, size=(rows, steps) if every else rows).astype(np.int32)
    weight = np.ones(rows, np.float32)
    weight[-1] = 0.0
    return Batch(inputs, np.asarray(length, np.int32), target, weight)


def parameters(model, dtype=jnp.float32, seed=0):
    return drawn(jax.eval_shape(model.init, jax.random.key(0)), seed, dtype)


# --- the network of the notes, in NumPy


@pytest.mark.parametrize(
    "cell_name, input, output, unroll",
    [(name, "embedding", "softmax", "bptt") for name in CELLS]
    + [("vanilla", "one_hot", "sigmoid", "bptt"), ("vanilla", "one_hot", "softmax", "scan")],
)
@pytest.mark.usefixtures("x64")
def test_the_many_to_one_network_is_the_oracle(cell_name, input, output, unroll):
    """Loss, logits and every gradient; a one-hot word is the embedding of the identity."""
    if cell_name not in oracles.CELLS:
        pytest.skip("no NumPy oracle for this cell yet")
    classes = 2 if output == "sigmoid" else C
    model = model_of(cell=cell_name, input=input, output=output, unroll=unroll, classes=classes)
    params, batch = parameters(model, jnp.float64), a_batch(classes=classes)
    batch = batch._replace(weight=batch.weight.astype(np.float64))
    (loss, sums), gradient = jax.jit(jax.value_and_grad(model.loss, has_aux=True))(params, batch)

    table = np.eye(V) if input == "one_hot" else np.asarray(params.input)
    p = {key: np.asarray(leaf) for key, leaf in params.layers[0]._asdict().items()}
    p |= {"embedding": table, "W_hy": np.asarray(params.W_hy), "b_y": np.asarray(params.b_y)}
    logits, expected, dp = oracles.network(cell_name, p, *batch, output=output)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert distance(jax.jit(model.apply)(params, batch), logits) < 1e-10
    got = {**gradient.layers[0]._asdict(), "W_hy": gradient.W_hy, "b_y": gradient.b_y}
    got |= {"embedding": gradient.input} if input == "embedding" else {}
    for key, value in got.items():
        assert distance(value, dp[key]) < 1e-9, key
    answers = logits.argmax(-1) if output == "softmax" else logits[:, 0] > 0
    assert (float(sums.correct), float(sums.weight)) == ((answers == batch.target)[:-1].sum(), B - 1)
    assert float(sums.loss) == pytest.approx(expected * (B - 1), rel=1e-12)


# --- padding, order, neighbours, alone (hypothesis draws the texts)


@functools.cache
def all_heads(cell_name):
    """One program: the logits of every many-to-one head, one way and bidirectional, over one shared pair of passes, and
    the gradient of the sum of their losses."""
    cell = member("cells", cell_name)(E, H)
    unroll = member("unroll", "scan" if cell.split is None else "bptt")
    ways = [layers.recurrent(cell, unroll, reverse=reverse) for reverse in (False, True)]
    summaries = [heads.named(name)(size) for size in (H, 2 * H) for name in MANY_TO_ONE]

    def init(key):
        return {
            "table": jnp.zeros((V, E)),
            "ways": [way.init(key) for way in ways],
            "heads": [head.init(key) for head in summaries],
            "W_hy": [jnp.zeros((C, head.output_size)) for head in summaries],
        }

    def logits(params, batch):
        xs = params["table"][batch.inputs.T]
        passes = [way.apply(p, xs, batch.length, None, 0.0) for way, p in zip(ways, params["ways"], strict=True)]
        ends, ys = zip(*passes, strict=True)
        read = {H: (ends[0], ys[0]), 2 * H: (jnp.concatenate(ends, -1), jnp.concatenate(ys, -1))}
        each = zip(summaries, params["heads"], params["W_hy"], strict=True)
        return jnp.stack([head.apply(p, *read[head.output_size], batch.length) @ W.T for head, p, W in each])

    def loss(params, batch):
        z = logits(params, batch)
        return jnp.sum(outputs.softmax.loss(z, jnp.stack([batch.target] * len(summaries))) * batch.weight), z

    @jax.jit
    def run(params, batch):
        (_, z), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return z, jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

    return run, drawn(jax.eval_shape(init, jax.random.key(0)), 0, jnp.float32)


texts = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**16),
        "length": st.lists(st.integers(0, T), min_size=B, max_size=B),
        "order": st.permutations(range(B)),
    }
)


@pytest.mark.parametrize("cell_name", CELLS)
@given(texts)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_nothing_but_the_text_matters(cell_name, drawn_texts):
    """Every cell x {one way, bidirectional} x every many-to-one head: all are in the one program."""
    run, params = all_heads(cell_name)
    length, order = np.array(drawn_texts["length"], np.int32), np.array(drawn_texts["order"])
    batch = a_batch(drawn_texts["seed"], length=length)._replace(weight=np.ones(B, np.float32))
    logits, gradient = run(params, batch)
    assert np.isfinite(logits).all() and np.isfinite(gradient).all()

    # padding whose vector is NaN: the same bits, at the same shape
    table = params["table"].at[0].set(jnp.nan)
    poisoned, poisoned_gradient = run({**params, "table": table}, batch)
    assert distance(poisoned, logits) == 0.0 and distance(poisoned_gradient, gradient) == 0.0

    # four more pads
    longer = batch._replace(inputs=np.pad(batch.inputs, ((0, 0), (0, 4)), constant_values=V - 1))
    more_logits, more_gradient = run(params, longer)
    assert distance(more_logits, logits) < 1e-6 and distance(more_gradient, gradient) < 1e-6

    # another order
    shuffled, shuffled_gradient = run(params, Batch(*(leaf[order] for leaf in batch)))
    assert distance(shuffled, logits[:, order]) < 1e-6 and distance(shuffled_gradient, gradient) < 1e-6

    # other neighbours, and no neighbours but empty fillers: the same bits
    other = a_batch(drawn_texts["seed"] + 1, length=np.append(length[0], length[:0:-1]))
    other.inputs[0] = batch.inputs[0]
    np.testing.assert_array_equal(run(params, other)[0][:, 0], logits[:, 0])
    alone = batch._replace(
        length=np.append(length[:1], np.zeros(B - 1, np.int32)), weight=np.eye(B, dtype=np.float32)[0]
    )
    np.testing.assert_array_equal(run(params, alone)[0][:, 0], logits[:, 0])


# --- the model: streaming, sums, noise


@pytest.mark.parametrize("cell_name, head", [*zip(CELLS, ["attention", "mean", "last"] * len(CELLS), strict=False)])
def test_token_by_token_is_apply_on_prefixes(cell_name, head):
    model = model_of(cell=cell_name, head=head, layers=2)
    params = parameters(model)
    tokens = a_batch(length=[T]).inputs[0]
    step = jax.jit(lambda state, token: model.step(params, state, token))
    state, streamed = model.start(params), []
    for token in tokens:
        state, logits = step(state, token)
        streamed.append(logits)
    prefixes = Batch(np.stack([tokens] * T), np.arange(1, T + 1, dtype=np.int32), np.zeros(T, np.int32), np.ones(T))
    answers = jax.jit(model.apply)(params, prefixes)
    assert distance(np.stack(streamed), answers) < 1e-5


def test_a_bidirectional_network_does_not_stream():
    model = model_of(bidirectional=True)
    with pytest.raises(ConfigurationError, match="apply"):
        model.start(parameters(model))


@pytest.fixture(scope="module")
def every():
    model = model_of(head="every", layers=2, bidirectional=True)
    return model, parameters(model), jax.jit(model.loss)


def test_every_step_has_an_answer_and_only_real_steps_count(every):
    model, params, loss = every
    batch = a_batch(every=True)
    logits = np.asarray(jax.jit(model.apply)(params, batch), np.float64)
    assert logits.shape == (B, T, C)
    real = [(b, t) for b in range(B - 1) for t in range(LENGTH[b])]
    expected = sum(oracles.softmax_loss(logits[b, t], batch.target[b, t])[0] for b, t in real)
    mean, sums = loss(params, batch)
    assert float(sums.loss) == pytest.approx(expected, rel=1e-5) and float(sums.weight) == len(real)
    assert float(mean) == pytest.approx(expected / len(real), rel=1e-5)
    assert float(sums.correct) == sum(logits[b, t].argmax() == batch.target[b, t] for b, t in real)


def test_batches_add_up_and_fillers_do_not_count(every):
    """Exact sums: the parts of a batch, each filled up with rows of weight 0, add up to the whole."""
    _, params, loss = every
    batch = a_batch(every=True)
    _, whole = loss(params, batch)
    kept = [np.array([1, 0, 0, 1, 0], np.float32), np.array([0, 1, 1, 0, 0], np.float32)]
    parts = [loss(params, batch._replace(weight=weight))[1] for weight in kept]
    assert distance(jax.tree.map(jnp.add, *parts), whole) < 1e-6
    filler = batch._replace(target=np.where(np.arange(B)[:, None] == B - 1, 0, batch.target))
    assert distance(loss(params, filler)[1], whole) == 0.0
    mean, none = loss(params, batch._replace(weight=np.zeros(B, np.float32)))
    assert (float(mean), float(none.loss), float(none.weight)) == (0.0, 0.0, 0.0)


def test_noise_needs_a_key_and_its_rates_compile_nothing():
    model = model_of(layers=2, head="mean")
    params, batch = parameters(model), a_batch()
    traces = []

    @jax.jit
    def apply(params, batch, key, noise):
        traces.append(key)
        return model.apply(params, batch, key, noise)

    quiet = apply(params, batch, None, Noise(0.9, 0.9))
    keys = [jax.random.key(seed) for seed in range(2)]
    assert distance(apply(params, batch, keys[0], Noise(0.0, 0.0)), quiet) < 1e-6
    dropped = apply(params, batch, keys[0], Noise(0.5, 0.0))
    assert distance(dropped, quiet) > 1e-3
    assert distance(apply(params, batch, keys[1], Noise(0.5, 0.0)), dropped) > 1e-3
    assert distance(apply(params, batch, keys[0], Noise(0.5, 0.0)), dropped) == 0.0
    assert distance(apply(params, batch, keys[0], Noise(0.0, 0.5)), quiet) > 1e-3
    assert len(traces) == 2  # one with a key, one without


def test_init_scale_multiplies_weight_matrices():
    model = model_of(head="attention")
    one, thousandth = model.init(jax.random.key(0)), model.init(jax.random.key(0), 1e-3)
    assert distance(thousandth.W_hy, one.W_hy * 1e-3) < 1e-6
    assert distance(thousandth.layers[0].W_hh, one.layers[0].W_hh * 1e-3) < 1e-6
    assert distance(thousandth.input, one.input * 1e-3) < 1e-6


def test_the_notes_initial_scale_is_available():
    model = model_of(input="one_hot", initializer=dict.fromkeys(["recurrent", "input", "readout"], "notes"))
    params = model.init(jax.random.key(0))
    for W in (params.W_hy, params.layers[0].W_hh, params.layers[0].W_xh):
        assert 2e-4 < float(jnp.std(W)) < 3e-3
    assert (params.b_y == 0).all() and (params.layers[0].b_h == 0).all()


def test_the_front_door_has_the_names_of_the_contract():
    cell = jaxrnn.vanilla(E, H, activation=jaxrnn.tanh)
    params = cell.init(jax.random.key(0))
    state, y = cell.step(params, cell.start(params), jnp.ones(E))
    assert distance(state, np.tanh(np.asarray(params.W_xh @ jnp.ones(E) + params.b_h))) < 1e-6
    assert distance(y, state) == 0.0
    xs = jnp.ones((T, B, E))
    for unroll in (jaxrnn.unroll.scan, jaxrnn.unroll.bptt):
        state, ys = unroll(cell, params, xs, LENGTH)
        assert state.shape == (B, H) and ys.shape == (T, B, H)
    assert callable(jaxrnn.gru) and callable(jaxrnn.lstm)


def test_an_unknown_name_is_refused_with_the_nearest():
    known = {"cell": ("vanila", "vanilla"), "head": ("men", "mean"), "output": ("softmx", "softmax"),
             "unroll": ("bpt", "bptt"), "activation": ("tanhh", "tanh"), "input": ("one-hot", "one_hot")}  # fmt: skip
    for group, (given_name, meant) in known.items():
        with pytest.raises(ConfigurationError, match=f"unknown {group} '{given_name}'; did you mean '{meant}'"):
            model_of(**{group: given_name})
    with pytest.raises(ConfigurationError, match="did you mean 'orthogonal'"):
        model_of(initializer={"recurrent": "ortogonal"}).init(jax.random.key(0))


def test_a_sigmoid_answers_between_two_classes():
    assert model_of(output="sigmoid", classes=2).outputs == 1 and model_of().outputs == C
    with pytest.raises(ConfigurationError, match="softmax"):
        model_of(output="sigmoid", classes=3)


@pytest.mark.parametrize("change", [{"hidden_size": 0}, {"classes": 1}, {"layers": 0}, {"vocabulary_size": 0}], ids=str)
def test_a_network_of_nothing_is_refused(change):
    ((name, value),) = change.items()
    with pytest.raises(ConfigurationError, match=rf"{name}={value}: expected at least"):
        jaxrnn.rnn(**{"vocabulary_size": 9, "classes": 2} | change)
