"""Deferred rows are dense Adam: the same path, at the cost of the rows touched."""

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn import fit, optimizers, packing, resuming
from jaxrnn.types import Corpus, Hyper
from tests.members import copied, distance, no_kernel

V, ROWS, BATCH, EPOCHS = 60, 96, 8, 4
STEPS = ROWS // BATCH
NUMBERS = Hyper(3e-3, weight_decay=2.0, clip_global_norm=0.5, clip_value=0.1, word_dropout_rate=0.1, warmup_steps=5,
                decay_steps=EPOCHS * STEPS, final_fraction=0.1)  # fmt: skip


@pytest.fixture(scope="module")
def corpus():
    """Few words are frequent and many rare: some are never trained on, some once, one in every batch."""
    draw = np.random.default_rng(0)
    offset = np.concatenate([[0], np.cumsum(draw.integers(1, 9, ROWS))]).astype(np.int32)
    often = 1 / np.arange(1, V)
    tokens = draw.choice(np.arange(1, V), offset[-1], p=often / often.sum()).astype(np.int32)
    rows = np.arange(ROWS, dtype=np.int32)
    return Corpus(tokens, offset, tokens[offset[:-1]] % 2, rows, rows[:16], rows[:16])


def plan(epoch):
    return np.random.default_rng(epoch).permutation(ROWS).reshape(STEPS, BATCH).astype(np.int32)


def built(corpus, rows, count=1, in_c=False, size=6, **network):
    model = jaxrnn.rnn(vocabulary_size=V, classes=2, input_size=size, hidden_size=5, **network)
    return fit.build(model, optimizers.transformation("adam", rows=rows), optimizers.linear, corpus,
                     order=(STEPS, BATCH), eval_order=(2, BATCH), max_length=8,
                     devices=jax.devices("cpu")[:count], in_c=in_c)  # fmt: skip


def run(programs, numbers=NUMBERS, **settings):
    """-> losses, final parameters, the last report."""
    losses = []
    for report in fit.fit(programs, numbers, plan, plan(0)[:2], seed=1, epochs=EPOCHS, **settings):
        losses.extend(report.log.loss)
    return np.array(losses), fit.whole(programs, report.state.params), report


@pytest.fixture(scope="module", params=[False, True], ids=["jax", "c"])
def deferred(corpus, request):
    if request.param and no_kernel():
        pytest.skip(str(no_kernel()))
    return built(corpus, "deferred", in_c=request.param)


@pytest.mark.parametrize("numbers", [NUMBERS, Hyper(1e-2), Hyper(1e-2, weight_decay=5)], ids=["all", "rate", "decay"])
def test_deferred_is_dense(corpus, deferred, numbers):
    dense = built(corpus, "dense")
    losses, params, last = run(dense, numbers)
    found, others, end = run(deferred, numbers)
    start = fit.whole(dense, dense.init(np.uint32(1), np.float32(1)).params)
    assert distance(params.input, start.input) > 0.05  # there is something to agree on
    np.testing.assert_allclose(found, losses, rtol=2e-5)
    assert distance(others, params) < 2e-4
    adam = end.state.optimizer.adam
    assert distance((adam.mu, adam.nu), (last.state.optimizer.mu, last.state.optimizer.nu)) < 1e-4


@pytest.mark.parametrize("network", [{"size": 1}, {"size": 33, "bidirectional": True}, {"input": "one_hot"},
                                     {"size": 300, "cell": "lstm", "head": "attention"}], ids=str)  # fmt: skip
@pytest.mark.skipif(no_kernel() is not None, reason=str(no_kernel()))
def test_the_c_code_is_jaxs_for_any_network(corpus, network):
    rows = "auto" if "input" in network else "deferred"
    losses, params, last = run(built(corpus, rows, **network))
    found, others, end = run(built(corpus, rows, in_c=True, **network))
    np.testing.assert_allclose(found, losses, rtol=2e-5)
    assert distance(others, params) < 2e-4
    assert distance(end.state.optimizer, last.state.optimizer) < 1e-4
    np.testing.assert_allclose(end.log.grad_norm, last.log.grad_norm, rtol=1e-4)


@pytest.mark.skipif(no_kernel() is not None, reason=str(no_kernel()))
def test_plain_descent_in_c_is_that_of_optax(corpus):
    """With decay, both clips, a schedule and word dropout."""
    ends = []
    for in_c in (False, True):
        model = jaxrnn.rnn(vocabulary_size=V, classes=2, input="one_hot", hidden_size=33, cell="gru")
        rule = optimizers.transformation("sgd", momentum=0.0, nesterov=False)
        ends.append(run(fit.build(model, rule, optimizers.linear, corpus, order=(STEPS, BATCH), eval_order=(2, BATCH),
                                  max_length=8, in_c=in_c), NUMBERS._replace(learning_rate=0.1)))  # fmt: skip
    (losses, params, last), (found, others, end) = ends
    np.testing.assert_allclose(found, losses, rtol=2e-5)
    np.testing.assert_allclose(end.log.grad_norm, last.log.grad_norm, rtol=1e-4)
    assert distance(others, params) < 2e-4


@pytest.mark.parametrize(("scale", "rate", "decay", "made"), [
    (1.0, 1e3, 1e3, 1), (1e25, 1e3, 1e3, 1), (1e34, 1e3, 1e3, 0), (1e10, 1e-30, 1e38, 0)
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.skipif(no_kernel() is not None, reason=str(no_kernel()))
def test_plain_descent_of_large_weights_stays_finite_or_is_refused(corpus, scale, rate, decay, made):
    """Weights whose squares overflow are moved with care; an update past the largest float is not made."""
    model = jaxrnn.rnn(vocabulary_size=V, classes=2, input="one_hot", hidden_size=5, activation="sigmoid")
    rule = optimizers.transformation("sgd", momentum=0.0, nesterov=False)
    programs = fit.build(model, rule, optimizers.constant, corpus, order=(STEPS, BATCH), eval_order=(2, BATCH),
                         max_length=8, in_c=True)  # fmt: skip
    state = programs.init(np.uint32(0), np.float32(1))
    (cell,) = state.params.layers
    state = state._replace(params=state.params._replace(layers=(cell._replace(W_xh=scale * cell.W_xh),)))
    before = jax.tree.map(np.array, state.params)
    numbers = Hyper(*(np.float32(number) for number in Hyper(rate, weight_decay=decay)))
    order = plan(0)
    after, _, count = programs.segment(state, numbers, programs.data, order, np.int32(0), np.int32(1), np.bool_(True))
    assert int(count) == made
    if made:
        decayed = before.layers[0].W_xh * np.float32(1 - 1e6)
        assert distance(np.array(after.params.layers[0].W_xh), decayed) < 1e-3
    else:
        assert distance(after.params, before) == 0


def test_two_devices_are_one(corpus, deferred):
    quiet = NUMBERS._replace(word_dropout_rate=0.0)
    losses, params, _ = run(deferred, quiet)
    found, others, _ = run(built(corpus, "deferred", count=2), quiet)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    assert distance(others, params) < 2e-4


def test_reports_on_the_way_move_no_bit(deferred):
    """Nothing is brought up to date because somebody looks."""
    _, params, _ = run(deferred)
    _, others, _ = run(deferred, report_every=[1])
    assert distance(others, params) == 0


def test_at_the_end_of_an_epoch_every_row_is_up_to_date(deferred):
    for report in fit.fit(deferred, NUMBERS, plan, plan(0)[:2], seed=1, epochs=2, report_every=[5]):
        behind = report.state.optimizer.behind
        settled = report.valid is not None
        assert settled == (int(behind.now) == 0) and settled != bool(np.asarray(behind.since).any())


def test_rows_that_stand_at_no_update_are_not_taken_up(deferred):
    """A stranger's checkpoint: the numbers address memory."""
    state = copied(deferred, run(deferred, max_steps=5)[2].state)
    assert resuming.sound(state)
    since = state.optimizer.behind.since
    for change in {"since": since + 1}, {"since": since - 1}, {"now": STEPS + 1}:
        memory = state.optimizer._replace(behind=state.optimizer.behind._replace(**change))
        assert not resuming.sound(state._replace(optimizer=memory))


def test_a_run_that_ends_inside_an_epoch_is_settled(deferred):
    _, _, report = run(deferred, max_steps=STEPS + 3)
    assert report.step == STEPS + 3 and int(report.state.optimizer.behind.now) == 0


def at_second(programs):
    """The state on disk after two updates."""
    reports = fit.fit(programs, NUMBERS, plan, plan(0)[:2], seed=1, epochs=1, report_every=[1])
    return next(copied(programs, report.state) for report in reports if report.step == 2)


def test_a_state_is_taken_up_by_programs_that_keep_another(corpus, deferred):
    """In the middle of an epoch: what is dense in one is deferred in the other, or for epochs of another length."""

    def taken(programs, state):
        named = packing.flat(state)
        return resuming.refitted(programs, packing.filled(resuming.recorded(programs, named), named, "here"))

    dense, there = built(corpus, "dense"), at_second(deferred)
    for one, other in zip(packing.flat(taken(deferred, there)).items(), packing.flat(there).items(), strict=True):
        np.testing.assert_array_equal(one[1], other[1])
    settled, expected = taken(dense, there), at_second(dense)
    longer = [np.append(numbers, [0, 0, 0]).astype(np.float32) for numbers in there.optimizer.behind[1:3]]
    behind = there.optimizer.behind._replace(drift=longer[0], shrink=longer[1])
    again = taken(deferred, there._replace(optimizer=there.optimizer._replace(behind=behind)))
    for state in (settled, taken(deferred, settled), again):
        assert distance(state.params, expected.params) < 1e-5
    assert jax.tree.map(np.shape, again) == jax.tree.map(np.shape, deferred.kept)
    assert again.optimizer.behind.now == 0 and (again.optimizer.behind.drift == 0).all()


@pytest.mark.parametrize("entries, in_c, expected", [(128, False, False), (192, False, True), (128, True, True)])
def test_auto_defers_where_the_table_is_wide_and_in_c(corpus, entries, in_c, expected):
    """8 rows of 8 places: three entries of the table for each of them."""
    if in_c and no_kernel():
        pytest.skip(str(no_kernel()))
    model = jaxrnn.rnn(vocabulary_size=entries, classes=2, input_size=2, hidden_size=2)
    programs = fit.build(model, optimizers.transformation("adamw", rows="auto"), optimizers.constant, corpus,
                         order=(STEPS, BATCH), eval_order=(2, BATCH), max_length=8, in_c=in_c)  # fmt: skip
    assert hasattr(programs.kept.optimizer, "behind") == expected


def test_a_refused_update_leaves_the_rows_as_they_stand(deferred):
    seen = []
    with pytest.raises(jaxrnn.errors.NumericalError):
        for report in fit.fit(deferred, Hyper(1e38), plan, plan(0)[:2], seed=1, epochs=1, nonfinite_limit=3):
            seen.append([np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(report.state[:3])])
    assert len(seen) >= 4 and seen[-1] == seen[-2] == seen[-3]


def test_going_back_into_an_epoch_leaves_room_for_the_rest_of_another(deferred):
    """The state it goes back to has had eight of an epoch's twelve updates, and ten of another follow."""
    reports = fit.fit(deferred, NUMBERS, plan, plan(0)[:2], seed=1, epochs=1)
    middle = next(copied(deferred, report.state) for report in reports)
    assert int(middle.optimizer.behind.now) == 8
    refused = []

    def segment(state, hyper, data, order, begin, end, last):
        if begin == 1 and end > begin and not refused:
            refused.append(begin)
            return state, np.full((4, STEPS), np.inf, np.float32), np.int32(0)
        return deferred.segment(state, hyper, data, order, begin, end, last)

    for report in fit.fit(deferred._replace(segment=segment), NUMBERS, plan, plan(0)[:2], seed=1, epochs=2,
                          report_every=[1], nonfinite_limit=2,
                          go_back=lambda: resuming.placed(deferred, middle)):  # fmt: skip
        assert resuming.sound(resuming.kept(deferred, report.state))
    assert refused and report.step == 2 * STEPS
