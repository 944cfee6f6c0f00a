"""The flow of the gradient during training: what it measures, when, and that training does not feel it."""

import json
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import CELLS, copied, distance, drawn
from test_fit import NUMBERS, ORDER, VALID, corpus  # noqa: F401 - a fixture

import jaxrnn
from jaxrnn import config, fit, flow, gradients, insight, job, monitor, optimizers, plots, resuming, runs
from jaxrnn.types import Corpus

V, E, H, B, T = 9, 3, 4, 3, 7
TOKENS = np.random.default_rng(1).integers(2, V, (B, T)).astype(np.int32)
TARGET = np.array([0, 1, 1], np.int32)


def measured(settings, change=None):
    """-> model, float64 parameters, the readings of TOKENS."""
    model = jaxrnn.rnn(**{"vocabulary_size": V, "classes": 2, "input_size": E, "hidden_size": H} | settings)
    params = drawn(jax.eval_shape(model.init, jax.random.key(0)), 0, jnp.float64)
    params = params if change is None else change(params)
    xs = insight.look_up(model.parts, params, TOKENS.T)
    found = jax.device_get(jax.jit(gradients.make(model))(params, xs, TARGET))
    return model, params, tuple(map(monitor.readings, found))


KINDS = [{"cell": name} for name in CELLS] + [
    {"cell": "gru", "layers": 2, "bidirectional": True, "head": "attention"},
    {"input": "one_hot", "head": "mean", "output": "sigmoid"},
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("settings", KINDS, ids=lambda s: "-".join(map(str, s.values())))
def test_readings_are_means_over_the_traces_of_the_texts(settings):
    """Any cell, depth, direction and head: ||dL/ds_t|| by autodiff, one text after another."""
    model, params, readings = measured(settings)
    cells = insight.cell_params(model.parts, params)
    assert [len(ways) for ways in readings] == [len(ways) for ways in cells]
    traces = [insight.trace(model, params, jnp.asarray(x), jnp.asarray(y)) for x, y in zip(TOKENS, TARGET, strict=True)]
    for layer, ways in enumerate(readings):
        for way, reading in enumerate(ways):
            shares = [trace.shares[layer][way] for trace in traces]
            if settings.get("cell") != "lstm":  # whose state is more than h
                expected = np.mean([np.log(share.grad_state) for share in shares], 0)
                assert distance(reading.log_norm, expected) < 1e-10
            assert reading.saturation == pytest.approx(np.mean([share.saturation for share in shares]))
            assert reading.spectral_radius == pytest.approx(flow.spectral_radius(cells[layer][way].W_hh), rel=0.01)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cell", CELLS)
def test_where_the_last_state_answers_growth_is_the_growth_of_the_norm(cell):
    _, _, readings = measured({"cell": cell})
    (flows,) = monitor.record(readings, 3, 1)["flow"]
    norms = np.asarray(readings[0][0].log_norm)[::-1]
    slope, fit_ = flow.log_slope(norms - norms[0])
    assert flows["log_slope"] == pytest.approx(slope, rel=1e-4)
    assert flows["fit_error"] == pytest.approx(np.sqrt(np.mean((norms - norms[0] - fit_) ** 2)), rel=1e-4)
    assert flows["log_norms"] == pytest.approx(norms.tolist(), rel=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("head", ["last", "mean", "attention"])
@pytest.mark.parametrize("scale, verdict", [(0, "vanishing"), (0.5, "vanishing"), (1, "healthy"), (2, "exploding")])
def test_growth_is_the_recurrences_whatever_the_head_adds(head, scale, verdict):
    """W_hh = g Q, Q orthogonal, identity: every step multiplies by g, though a mean adds a term at each."""

    def scaled(params):
        Q = np.linalg.qr(np.random.default_rng(1).normal(size=(H, H)))[0]
        return params._replace(layers=(params.layers[0]._replace(W_hh=jnp.asarray(scale * Q)),))

    _, _, readings = measured({"activation": "identity", "head": head, "bidirectional": False}, scaled)
    (flows,) = monitor.record(readings, 0, 0)["flow"]
    assert flows["verdict"] == verdict and flows["spectral_radius"] == pytest.approx(scale, rel=1e-3)
    assert flows["log_slope"] == (pytest.approx(np.log(scale), abs=1e-5) if scale else None)
    json.dumps(flows, allow_nan=False)


def test_the_spectral_radius_by_squaring_is_that_of_the_eigenvalues():
    def radius(W_hh):
        return monitor.spectral_radius(gradients.squares(jnp.asarray(W_hh, jnp.float32)[None])[:, 0])

    draw = np.random.default_rng(0)
    for W_hh in (draw.normal(size=(30, 30)), np.triu(draw.normal(size=(20, 20))), draw.normal(size=(36, 12)) / 9):
        assert radius(W_hh) == pytest.approx(flow.spectral_radius(W_hh), rel=0.01)
    assert radius(np.zeros((4, 4))) == 0


def test_the_texts_are_the_long_ones_of_training_cut_to_the_shortest(corpus):  # noqa: F811
    tokens, target = monitor.texts(corpus)  # training lengths 1 2 3 4 5 6 7 7: from place 7 of 8 on
    assert tokens.tolist() == [corpus.tokens[corpus.offset[5] : corpus.offset[6]].tolist()]
    assert target.tolist() == [corpus.target[5]]
    count = np.arange(300, dtype=np.int32)
    even = Corpus(np.arange(300 * 5), np.arange(301) * 5, count % 2, count[:290], count[290:], count[290:])
    tokens, _ = monitor.texts(even)
    assert tokens.shape == (monitor.TEXTS, 5) and tokens.max() < 290 * 5
    empty = Corpus(np.zeros(1, np.int32), np.zeros(5, np.int32), count[:4], count[:4], count[:0], count[:0])
    assert monitor.texts(empty) is None


def test_the_period():
    assert [monitor.period(asked, updates=900, epoch=90, early=False) for asked in (None, 0, 7)] == [None, None, 7]
    assert monitor.period("auto", updates=900, epoch=90, early=False) == 45
    assert monitor.period("auto", updates=90_000, epoch=90, early=False) == 4500
    assert monitor.period("auto", updates=90_000, epoch=90, early=True) == 90
    assert monitor.period("auto", updates=3, epoch=3, early=True) == 1


@pytest.fixture(scope="module")
def programs(corpus):  # noqa: F811
    """Of one device and of two, which measure; the table of 9 rows is filled up to 10."""
    model = jaxrnn.rnn(vocabulary_size=9, classes=2, input_size=3, hidden_size=4)
    return [
        fit.build(model, optimizers.transformation("adam"), optimizers.cosine, corpus, order=(3, 4), eval_order=(1, 4),
                  max_length=8, devices=jax.devices("cpu")[:count], texts=monitor.texts(corpus))
        for count in (1, 2)
    ]  # fmt: skip


class Late(NamedTuple):
    """A measurement whose program is never compiled before it is waited for."""

    measure: monitor.Measure

    def __call__(self, state):
        return self.measure(state)

    def done(self):
        return False


def run(programs, every, start=None, told=0, measure=None):
    """-> the records, what each report had to go on from, the losses of all updates. `told`: records so far."""
    order = np.pad(ORDER, ((0, 0), (0, 1)), constant_values=-1)
    records, losses = [], []
    reports = fit.fit(programs, NUMBERS, lambda e: np.roll(order, e, 0), VALID, seed=0, epochs=4, start=start,
                      report_every=[1] if every else [])  # fmt: skip
    if every:
        first = None if told else lambda: programs.init(np.uint32(0), np.float32(1))
        reports = monitor.watched(reports, measure or programs.readings, every, records.append, first)
    states = []
    for report in reports:
        losses.extend(report.log.loss.tolist())
        states.append((copied(programs, report.state), report.position, len(records)))
    return records, states, losses


def test_a_run_that_is_watched_is_the_run_that_is_not_bit_for_bit(programs):
    for each in programs:
        _, states, losses = run(each, None)
        records, watched, watched_losses = run(each, 5)
        assert losses == watched_losses
        for one, other in zip(jax.tree.leaves(states[-1][0]), jax.tree.leaves(watched[-1][0]), strict=True):
            assert one.tobytes() == other.tobytes()
        assert [(record["step"], record["epoch"]) for record in records] == [(0, 0), (5, 2), (10, 4), (12, 4)]


@pytest.mark.parametrize("every", [2, 5])
@pytest.mark.parametrize("late", [False, True], ids=["compiled", "late"])
def test_a_run_taken_up_anywhere_has_the_records_of_the_run_that_never_stopped(programs, late, every):
    """Also where the first measurement is not made yet, as its program is still being compiled."""
    each = programs[0]
    each.readings.program.ready()
    expected, _, _ = run(each, every)
    records, states, losses = run(each, every, measure=Late(each.readings) if late else None)
    assert records == expected and losses == run(each, None)[2]
    assert (states[0][2] == 0) == late
    for state, position, told in states[:-1]:
        more, _, _ = run(each, every, (resuming.placed(each, state), position), told)
        assert records[:told] + more == records


def test_the_first_measurement_waits_for_its_program_and_nothing_waits_for_it():
    class Measure:
        compiled = False

        def __call__(self, state):
            return ((monitor.Reading(np.zeros(3), np.zeros(3), 0.0, 1.0),),)

        def done(self):
            return self.compiled

    def steps(*reports, compiled_at=None):
        """The updates that were told when each report came."""
        measure, found, seen = Measure(), [], []

        def news():
            for step, valid, refused in reports:
                measure.compiled = step == compiled_at
                yield SimpleNamespace(step=step, epoch=1, state=step, valid=valid, refused=refused)

        for _ in monitor.watched(news(), measure, 10, found.append, lambda: 0):
            seen.append([record["step"] for record in found])
        return seen

    quiet = [(step, None, None) for step in (2, 4, 6)]
    assert steps(*quiet) == [[], [], []]
    assert steps(*quiet, compiled_at=4) == [[], [0], [0]]
    assert steps(*quiet, (7, {"loss": 0.0}, None)) == [[], [], [], [0]]
    assert steps(*quiet, (6, None, "an update")) == [[], [], [], [0]]
    assert steps(*quiet, (10, None, None)) == [[], [], [], [0, 10]]


def test_a_run_that_is_stopped_before_its_first_measurement_makes_it_when_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor.Measure, "done", lambda measure: False)
    monkeypatch.setattr(fit, "fit", partial(fit.fit, seconds_between=1e-9))  # a report after few updates
    given = ["dataset.train_rows=800", "dataset.valid_rows=60", "dataset.test_rows=60", "hidden_size=8", "epochs=2"]
    given += ["input.size=4", "batch_size=20", "plots=never", "flow.every_steps=30"]

    def flows(name, halt=None):
        job.run(config.compose([*given, f"hydra.run.dir={tmp_path / name}"]), loud=False, halt=halt)
        return flows_of(tmp_path / name)

    def flows_of(run):
        return [record for record in runs.read_lines(run / "metrics.jsonl") if "flow" in record]

    with pytest.raises(KeyboardInterrupt):
        flows("stopped", halt=KeyboardInterrupt)
    assert flows_of(tmp_path / "stopped") == []
    expected = flows("whole")
    assert [record["step"] for record in expected] == [0, 30, 60, 80]
    assert flows("stopped") == expected


def test_two_devices_measure_what_one_does(programs):
    states = [each.init(np.uint32(0), np.float32(1)) for each in programs]
    one, two = (jax.device_get(each.readings(state)) for each, state in zip(programs, states, strict=True))
    assert distance(two, one) < 1e-5


def test_an_update_that_was_refused_is_not_measured_twice():
    class Now:
        def __init__(self, step):
            self.step, self.epoch, self.state = step, 1, self
            self.params = None

    found = []
    readings = ((monitor.Reading(np.zeros(3), np.zeros(3), 0.0, 1.0),),)
    list(monitor.watched(map(Now, [2, 2, 3, 4]), lambda params: readings, 2, found.append, None))
    assert [record["step"] for record in found] == [2, 4]


def test_what_is_told_at_the_end_names_keys():
    healthy = {"layer": 1, "direction": "left to right", "verdict": "healthy", "log_slope": 0.01, "saturation": 0.1,
               "log_norms": [0.0] * 60}  # fmt: skip
    network = {"cell": "vanilla", "activation": "tanh", "head": "last", "init_scale": 0.3}
    assert monitor.told({"flow": [healthy]}, network) == ""
    faint = healthy | {"layer": 2, "verdict": "vanishing", "log_slope": -0.5}
    line = monitor.told({"flow": [healthy, faint]}, network)
    assert "vanishing, x 0.607 a step back over 60 steps (layer 2, left to right)" in line
    assert "initializer.recurrent=orthogonal init_scale=1, or cell=gru, or head=mean" in line
    assert "init_scale" not in monitor.told({"flow": [faint]}, network | {"init_scale": 1.0})
    settled = network | {"cell": "gru", "head": "attention", "init_scale": 1.0, "bidirectional": True}
    assert monitor.told({"flow": [faint]}, settled).endswith("(layer 2, left to right)")
    dead = faint | {"log_slope": None}
    assert "vanishing, nothing comes back over 60 steps (layer" in monitor.told({"flow": [dead]}, network)


def test_the_picture_takes_what_is_not_finite(tmp_path):
    one = {"layer": 1, "direction": "left to right", "log_slope": None, "log_norms": [0.0, -1.0, None]}
    for count in (1, 7):
        records = [{"step": step, "flow": [one] * count} for step in (0, 4, 8)]
        path = plots.gradient_flow(records, tmp_path / "flow.png", steps=4, healthy=0.2, title="a title")
        assert path.stat().st_size > 5000
    plots.gradient_flow(records[:1], tmp_path / "flow.png", steps=4, healthy=0.2)


def test_the_ticks_of_its_colour_bar_are_whole(tmp_path):
    from matplotlib.image import imread

    one = {"layer": 1, "direction": "left to right", "log_slope": -0.1, "log_norms": list(np.linspace(0, -2.1, 13))}
    records = [{"step": step, "flow": [one]} for step in range(0, 3126, 125)]
    pixels = imread(plots.gradient_flow(records, tmp_path / "flow.png", steps=125, healthy=0.2, title="a title"))
    assert (pixels[:, -2:, :3] == 1).all()


def test_a_map_is_over_the_largest_state_and_both_panels_are_in_log10(tmp_path, monkeypatch):
    """Of an attention head: what the last state alone learns from is no measure of the rest."""
    monkeypatch.setattr(plots, "_save", lambda figure, path: figure)
    one = {"layer": 1, "direction": "left to right", "log_slope": np.log(0.1), "log_norms": [-33.0, None, -5.0, -6.0]}
    records = [{"step": step, "flow": [one]} for step in (0, 4, 8)]
    figure = plots.gradient_flow(records, tmp_path / "flow.png", steps=4, healthy=np.log(10), title="a title")
    above, below, bar = figure.axes
    (drawn,) = above.collections
    expected = np.array([-28 / np.log(10), np.nan, 0, -1 / np.log(10)])
    assert drawn.get_array().filled(np.nan)[:, 0] == pytest.approx(expected, nan_ok=True)
    assert drawn.get_clim() == (-6, 0) and list(bar.get_yticks()) == [-6, -5, -4, -3, -2, -1, 0]
    assert all(tick == int(tick) for tick in above.get_yticks())
    assert below.lines[0].get_ydata() == pytest.approx([-1, -1, -1]) and below.patches[0].get_y() == pytest.approx(-1)
    assert all("log10" in axis.get_title(loc="left") for axis in (above, below))
    dead = [{"step": 0, "flow": [one | {"log_slope": None, "log_norms": [None, None]}]}]
    assert plots.gradient_flow(dead, tmp_path / "flow.png", steps=4, healthy=0.2).axes


@pytest.fixture(scope="module")
def sixty(tmp_path_factory):
    """Texts of 60 words, the first of which decides."""
    draw, path = np.random.default_rng(0), tmp_path_factory.mktemp("sixty") / "texts.tsv"
    rows = [
        f"{('no', 'yes')[answer]} {' '.join(draw.choice(['of', 'and', 'to', 'in', 'it'], 59))}\t{answer}"
        for answer in draw.integers(0, 2, 2000)
    ]
    path.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("init_scale, verdict", [(0.3, "vanishing"), (4.0, "exploding")])
def test_a_run_that_does_not_learn_is_told_why_and_learns_as_it_is_told(init_scale, verdict, sixty, tmp_path, capsys):
    given = ["dataset=files", f"dataset.path={sixty}", "hidden_size=24", "input.size=8", "epochs=6", "patience=null"]
    given += [f"init_scale={init_scale}", "clip_global_norm=null", "optimizer.learning_rate=1e-3"]

    def trained(name, *more):
        settings = config.compose([*given, *more, f"hydra.run.dir={tmp_path / name}"])
        accuracy = job.run(settings)["test"]["accuracy"]
        return accuracy, [line for line in capsys.readouterr().out.splitlines() if line.startswith("gradient flow")]

    accuracy, (line,) = trained("as_it_is")
    assert accuracy < 0.7 and line.startswith(f"gradient flow: {verdict}, x ")
    first = line.partition(", try ")[2].split(", or ")[0].split()
    accuracy, lines = trained("as_told", *first)
    assert accuracy > 0.99 and lines == []
    flows = [record for record in runs.read_lines(tmp_path / "as_told" / "metrics.jsonl") if "flow" in record]
    assert [record["step"] for record in flows] == sorted({record["step"] for record in flows}) and len(flows) > 15
