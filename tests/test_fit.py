"""Laws of training: how an epoch is cut, what fills it up and which numbers it runs with do not change the program;
a run can be taken up at any update; nothing that is not finite is learned from."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn import fit, optimizers, resuming, tables
from jaxrnn import programs as programs_of
from jaxrnn.errors import NumericalError
from jaxrnn.resuming import Log
from jaxrnn.types import Batch, Corpus, Hyper, TrainState
from tests.members import copied

LENGTHS = (3, 1, 7, 5, 2, 7, 4, 6, 1, 3, 2)
ORDER = np.array([[0, 3, 1], [2, 4, 5], [6, 7, -1]], np.int32)
VALID = np.array([[8, 9, 10, -1]], np.int32)
NUMBERS = Hyper(0.05, weight_decay=0.1, clip_global_norm=1.0, dropout_rate=0.3, word_dropout_rate=0.2)


@pytest.fixture(scope="module")
def corpus():
    draw = np.random.default_rng(0)
    offset = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32)
    tokens = draw.integers(2, 9, offset[-1]).astype(np.int32)
    target = draw.integers(0, 2, len(LENGTHS)).astype(np.int32)
    return Corpus(tokens, offset, target, np.arange(8, dtype=np.int32), np.arange(8, 11, dtype=np.int32), VALID[0, :3])


def built(corpus, optimizer="adam", rows=None, **settings):
    model = jaxrnn.rnn(vocabulary_size=9, classes=2, input_size=3, hidden_size=4, **settings)
    rule = optimizers.transformation(optimizer, **({"rows": rows} if rows else {}))
    return fit.build(model, rule, optimizers.cosine, corpus, order=ORDER.shape,
                     eval_order=VALID.shape, max_length=8)  # fmt: skip


@pytest.fixture(scope="module", params=["dense", "deferred"])
def programs(corpus, request):
    """For both ways with the table of embeddings."""
    return built(corpus, rows=request.param)


def ready(hyper):
    return Hyper(*(np.float32(number) for number in hyper))


def segments(programs, cuts, hyper=NUMBERS, order=ORDER, seed=0):
    """The state after one epoch that is run in pieces ending at `cuts`, and the losses."""
    state, begin, losses = programs.init(np.uint32(seed), np.float32(1)), 0, []
    for end in cuts:
        last = np.bool_(end == cuts[-1])
        state, log, made = programs.segment(
            state, ready(hyper), programs.data, order, np.int32(begin), np.int32(end), last
        )
        assert made == end - begin
        losses.extend(Log(*np.asarray(log)).loss[begin:end])
        begin = end
    return SimpleNamespace(losses=losses, leaves=[np.array(leaf) for leaf in jax.tree.leaves(state[:3])])


def test_an_epoch_in_pieces_is_the_epoch_bit_for_bit(programs):
    whole, pieces = segments(programs, [3]), segments(programs, [1, 2, 3])
    assert whole.losses == pieces.losses
    for one, other in zip(whole.leaves, pieces.leaves, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_seed_decides_the_start_and_the_noise(programs):
    assert segments(programs, [3]).losses == segments(programs, [3]).losses
    assert segments(programs, [3]).losses != segments(programs, [3], seed=1).losses


def always(jaxpr):
    """The names of what a program does whatever its numbers are: what stands outside of the branches."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in equation.params.values() if equation.primitive.name != "cond" else ():
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from always(getattr(inner, "jaxpr", inner))


def test_an_update_draws_no_random_number_that_no_rate_asks_for():
    model, rule = jaxrnn.rnn(vocabulary_size=9, classes=2, layers=2, hidden_size=4), optimizers.adam()
    update = programs_of.make_update(model, tables.dense(rule), optimizers.cosine)
    params = model.init(jax.random.key(0))
    state = TrainState(params, rule.init(params), np.int32(0), jax.random.key(1))
    texts = Batch(np.ones((3, 8), np.int32), np.full(3, 8), np.zeros(3, np.int32), np.ones(3, np.float32))
    names = set(always(jax.make_jaxpr(update)(state, NUMBERS, texts).jaxpr))
    assert "cond" in names and not any(name.startswith(("random", "threefry")) for name in names)


def test_other_numbers_compile_nothing(programs):
    for program in programs[:3]:
        program.ready()  # it may still be on the way
    segments(programs, [3])
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **kwargs: compiled.append(name) if "backend_compile" in name else None
    )
    try:
        segments(programs, [3])
        segments(programs, [3], Hyper(*(0.3 for _ in Hyper._fields)), seed=7)
        fit.measure(programs, programs.init(np.uint32(3), np.float32(0.5)).params, VALID)
        assert compiled == []
    finally:
        jax.monitoring.clear_event_listeners()


def test_no_number_moves_to_the_host_inside_an_epoch(programs):
    state = programs.init(np.uint32(0), np.float32(1))
    arguments = jax.device_put((ready(NUMBERS), ORDER, np.int32(0), np.int32(3), np.bool_(True)))
    with jax.transfer_guard("disallow"):
        hyper, *rest = arguments
        programs.segment(state, hyper, programs.data, *rest)


def test_filler_rows_are_invisible(programs, corpus):
    quiet = NUMBERS._replace(dropout_rate=0.0, word_dropout_rate=0.0)
    padded = np.array([[0, -1, -1], [3, 1, -1], [-1, -1, -1]], np.int32)
    _, log, _ = programs.segment(programs.init(np.uint32(0), np.float32(1)), ready(quiet), programs.data, padded,
                                 np.int32(0), np.int32(1), np.bool_(True))  # fmt: skip
    logged = Log(*np.asarray(log))
    params = programs.init(np.uint32(0), np.float32(1)).params
    alone = fit.measure(programs, params, np.array([[0]], np.int32))["loss"]
    assert float(logged.loss[0]) == pytest.approx(alone, rel=1e-6)
    assert float(logged.weight[0]) == 1


def test_a_measurement_does_not_depend_on_the_batches(programs):
    params = programs.init(np.uint32(0), np.float32(1)).params
    whole = fit.measure(programs, params, VALID)
    ones = [fit.measure(programs, params, np.array([[row]], np.int32)) for row in (8, 9, 10)]
    assert whole["loss"] == pytest.approx(np.mean([one["loss"] for one in ones]), rel=1e-6)
    assert whole["accuracy"] == pytest.approx(np.mean([one["accuracy"] for one in ones]))
    rows, logits = fit.logits(programs, params, VALID)
    assert rows.tolist() == [8, 9, 10] and logits.shape == (3, 2)


@pytest.mark.parametrize("settings", [{}, {"cell": "lstm"}, {"input": "one_hot"}, {"unroll": "scan"}], ids=str)
def test_it_learns_its_training_rows(corpus, settings):
    programs = built(corpus, **settings)
    reports = list(fit.fit(programs, Hyper(0.05, clip_global_norm=1.0), lambda epoch: ORDER, VALID, seed=0, epochs=60))
    assert reports[-1].train["accuracy"] == 1.0 and reports[-1].train["loss"] < 0.05
    assert [r.step for r in reports if r.valid] == list(range(3, 181, 3))


def test_patience_and_max_steps_end_a_run(programs):
    still = Hyper(0.0)  # nothing ever improves after the first epoch
    ends = [r for r in fit.fit(programs, still, lambda epoch: ORDER, VALID, seed=0, epochs=50, patience=4) if r.valid]
    assert len(ends) == 5 and ends[0].best and not any(r.best for r in ends[1:])
    short = list(fit.fit(programs, still, lambda epoch: ORDER, VALID, seed=0, epochs=50, max_steps=7))
    assert short[-1].step == 7 and short[-1].batch == 1 and short[-1].epoch == 3


@pytest.mark.filterwarnings("ignore:overflow")
def test_an_update_that_is_not_finite_is_refused_and_changes_nothing(programs):
    state = programs.init(np.uint32(0), np.float32(1))
    broken = state._replace(params=state.params._replace(b_y=state.params.b_y * np.float32(np.nan)))
    before = [np.array(leaf) for leaf in jax.tree.leaves(broken[:3])]
    after, log, made = programs.segment(
        broken, ready(NUMBERS), programs.data, ORDER, np.int32(0), np.int32(3), np.bool_(True)
    )
    assert made == 0 and Log(*np.asarray(log)).weight[1:].sum() == 0  # it stopped there
    for one, other in zip(before, jax.tree.leaves(after[:3]), strict=True):
        np.testing.assert_array_equal(one, np.asarray(other))
    with pytest.raises(NumericalError, match=r"update 2 .* not finite"):
        list(fit.fit(programs, Hyper(1e38), lambda epoch: ORDER, VALID, seed=0, epochs=2))


def test_two_devices_are_one(corpus):
    settings = {"vocabulary_size": 9, "classes": 2, "input_size": 3, "hidden_size": 4}
    order = np.concatenate([ORDER, np.full((3, 1), -1, np.int32)], 1)
    quiet = NUMBERS._replace(dropout_rate=0.0, word_dropout_rate=0.0)
    results = []
    for count in (1, 2):
        model = jaxrnn.rnn(**settings)
        programs = fit.build(model, optimizers.transformation("adam"), optimizers.constant, corpus, order=order.shape,
                             eval_order=VALID.shape, max_length=8, devices=jax.devices("cpu")[:count])  # fmt: skip
        report = list(fit.fit(programs, quiet, lambda epoch, o=order: o, VALID, seed=0, epochs=3))[-1]
        results.append((report, fit.whole(programs, report.state.params)))
    (one, params), (two, others) = results
    start = resuming.placed(programs, copied(programs, two.state))  # the table of 9 rows fills 10 on two devices
    for a, b in zip(jax.tree.leaves(start[:3]), jax.tree.leaves(two.state[:3]), strict=True):
        assert a.sharding == b.sharding
        np.testing.assert_array_equal(a, b)
    assert one.train == pytest.approx(two.train, rel=1e-5) and one.valid == pytest.approx(two.valid, rel=1e-5)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def digest(programs, report):
    """Everything a run remembers, as bytes."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(copied(programs, report.state))]


def run(programs, *, start=None, hyper=NUMBERS, **settings):
    """The reports of a run, each with its state as it was then on disk, and the losses of all its updates."""
    settings = {"seed": 0, "epochs": 4, "report_every": [1]} | settings
    reports, states, losses = [], [], []
    for report in fit.fit(programs, hyper, lambda e: np.roll(ORDER, e, 0), VALID, start=start, **settings):
        reports.append(report)
        states.append(copied(programs, report.state))
        losses.extend(float(loss).hex() for loss in report.log.loss)
    return reports, states, losses


def test_a_run_taken_up_at_any_report_is_the_run_that_never_stopped(programs):
    reports, states, losses = run(programs, patience=3)
    assert [report.step for report in reports] == list(range(1, len(losses) + 1))
    for at in range(len(reports) - 1):
        start = resuming.placed(programs, states[at]), reports[at].position
        more, ends, rest = run(programs, start=start, patience=3)
        assert rest == losses[at + 1 :], at
        assert [r[:3] for r in more] == [r[:3] for r in reports[at + 1 :]]
        assert [(r.train, r.valid, r.best) for r in more] == [(r.train, r.valid, r.best) for r in reports[at + 1 :]]
        for one, other in zip(jax.tree.leaves(ends[-1]), jax.tree.leaves(states[-1]), strict=True):
            assert one.tobytes() == other.tobytes()
    assert run(programs, start=(resuming.placed(programs, states[-1]), reports[-1].position), patience=3)[0] == []


def test_reports_fall_on_the_steps_asked_for(programs):
    reports, _, losses = run(programs, report_every=[2], max_steps=7)
    assert {2, 4, 6, 7} <= {report.step for report in reports} and len(losses) == 7


@pytest.mark.filterwarnings("ignore:overflow")
def test_an_update_that_is_not_finite_can_be_left_out_and_counted(programs):
    hot = Hyper(1e38)
    seen = []
    with pytest.raises(NumericalError, match="not finite"):
        for report in fit.fit(programs, hot, lambda e: ORDER, VALID, seed=0, epochs=9, nonfinite_limit=3):
            seen.append((report, digest(programs, report)))
    refused = [(r, d) for r, d in seen if r.refused]
    assert [r.refused.step for r, _ in refused] == [2, 3, 4] and [r.refused.batch for r, _ in refused] == [1, 2, 0]
    assert refused[0][0].refused.rows.tolist() == ORDER[1].tolist()
    assert refused[0][1] == refused[1][1] == seen[0][1]
    assert refused[2][1] == seen[-2][1] and seen[-2][0].valid  # after the end of an epoch, which settles deferred rows
    assert [r.position.refused for r, _ in refused] == [1, 2, 2] and refused[2][0].position.step == 3


@pytest.mark.parametrize("between", [1, 3])
@pytest.mark.filterwarnings("ignore:overflow")
def test_an_update_that_overflows_the_parameters_is_found_and_not_applied(corpus, between):
    """Each update multiplies the matrices by 1e20; loss and gradient norm of update 2 are still finite."""
    reports, programs = [], built(corpus, optimizer="sgd")
    with pytest.raises(NumericalError, match=r"update 2 .* leaves the finite numbers"):
        for report in fit.fit(programs, Hyper(1e10, weight_decay=1e10), lambda e: ORDER, VALID, seed=0, epochs=2,
                              report_every=[between]):  # fmt: skip
            reports.append((report, digest(programs, report)))
    assert [report.step for report, _ in reports] == [1, 1]
    assert reports[1][0].refused.step == 2 and np.isfinite(reports[1][0].refused[3:5]).all()
    assert reports[0][1] == reports[1][1]


@pytest.mark.filterwarnings("ignore:overflow")
def test_training_can_go_back_and_on_after_the_batch_that_was_not_finite(programs):
    """From the state that it is given; at the limit it ends, and what it ends with is finite."""
    start = programs.init(np.uint32(0), np.float32(1))
    first = copied(programs, start)
    seen, hot = [], Hyper(1e38)
    with pytest.raises(NumericalError, match="not finite"):
        for report in fit.fit(programs, hot, lambda e: ORDER, VALID, seed=0, epochs=9, nonfinite_limit=3,
                              go_back=lambda: resuming.placed(programs, first)):  # fmt: skip
            seen.append((report, copied(programs, report.state)))
    refused = [(report, state) for report, state in seen if report.refused]
    assert len(refused) == 3 and [report.position.refused for report, _ in refused] == [1, 2, 2]
    for report, state in refused[:2]:
        assert report.position.step == report.refused.step
        for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(first), strict=True):
            np.testing.assert_array_equal(one, other)
    assert all(np.isfinite(leaf).all() for _, state in seen for leaf in jax.tree.leaves(state))
