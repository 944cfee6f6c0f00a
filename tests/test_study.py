"""hydra/sweeper=optuna: what may be chosen from, what a study keeps, what a kill, a neighbour or a lock does to it."""

import gc
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna", reason="needs the extra [sweeps]")
sqlalchemy = pytest.importorskip("sqlalchemy", reason="needs the extra [sweeps]")

from jaxrnn import choosing, command, planning, running, runs, space, study, sweep, train  # noqa: E402
from jaxrnn.errors import ConfigurationError, NumericalError, StorageError  # noqa: E402
from jaxrnn.launchers import Outcome  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
TINY = ["hidden_size=8", "input.size=4", "batch_size=16", "epochs=2", "dataset.train_rows=64"]
TINY += ["dataset.valid_rows=20", "dataset.test_rows=30"]
RATES = "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))"
STATES = optuna.trial.TrialState
pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # those that the tests look into


@pytest.fixture(autouse=True)
def collected(own_place):
    yield
    gc.collect()  # databases are closed here, not in the middle of another module's test


def call(*arguments, capsys):
    """-> exit code, lines of standard output, lines of standard error."""
    code = command.exit_code("train", train.main, ["-m", "hydra/sweeper=optuna", *map(str, arguments)])
    found = capsys.readouterr()
    return code, found.out.splitlines(), found.err.splitlines()


def options(**changes):
    return [f"hydra.sweeper.{key}={value}" for key, value in changes.items()]


def held(place="sqlite:///s/study.db"):
    return optuna.load_study(study_name="jaxrnn", storage=choosing.storage(place))


def distribution(line):
    (override,) = planning.parsed(None, [line])
    return space.distribution(override)


@pytest.mark.parametrize(
    ("line", "low", "high", "step", "log"),
    [
        ("a=interval(0,1)", 0.0, 1.0, None, False),
        ("a=tag(log,interval(1e-5,1e-1))", 1e-5, 1e-1, None, True),
        ("a=int(interval(1,10))", 1, 10, 1, False),
        ("a=tag(log,int(interval(1,100)))", 1, 100, 1, True),
        ("a=range(1,10)", 1, 9, 1, False),
        ("a=range(1,10,4)", 1, 9, 4, False),
        ("a=range(1,9,4)", 1, 5, 4, False),
        ("a=range(9,0,-4)", 1, 9, 4, False),
        ("a=range(0,1,0.25)", 0.0, 0.75, 0.25, False),
        ("a=range(0.1,0.4,0.1)", 0.1, 0.3, 0.1, False),
    ],
)
def test_numbers_are_taken_from_hydras_syntax(line, low, high, step, log):
    found = distribution(line)
    assert (found.low, found.step, found.log) == (low, step, log)
    assert found.high == pytest.approx(high)
    assert type(found.low) is type(low)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("a=gru,lstm", ("gru", "lstm")),
        ("a=choice(1,1,2)", ("1", "2")),
        ("a=shuffle(1,2,3,4)", ("1", "2", "3", "4")),
        ("a='x y',null,true", ("'x y'", "null", "True")),
        ("a=[1,2],[3]", ("[1,2]", "[3]")),
    ],
)
def test_choices_are_words_of_the_command_line(line, values):
    assert distribution(line).choices == values


def test_every_choice_and_both_ends_are_corners_and_a_grid_has_every_point():
    found = {"a": distribution("a=x,y,z"), "b": distribution("b=range(1,6,2)"), "c": distribution("c=range(0,1,0.5)")}
    assert space.corners(found) == [
        {"a": "x", "b": 1, "c": 0.0}, {"a": "y", "b": 5, "c": 0.5}, {"a": "z", "b": 5, "c": 0.5}]  # fmt: skip
    points = space.grid(found)
    assert len(points) == len({tuple(point.values()) for point in points}) == 18
    assert points[:3] == [{"a": "x", "b": 1, "c": 0.0}, {"a": "x", "b": 1, "c": 0.5}, {"a": "x", "b": 3, "c": 0.0}]
    told = space.spelled({"b": 3, "a": 0.123456789, "c": "3"})
    assert told == [("a=0.123457", "a", 0.123457), ("b=3", "b", 3), ("c=3", "c", None)]
    with pytest.raises(ConfigurationError, match="at most 100,000"):
        space.grid({name: distribution("a=range(0,1000)") for name in "ab"})


REFUSED = {
    "hidden_size=8": "nothing to choose",
    "cell=gru,lstm cell=vanilla": "cell is given twice",
    "hidden_size=range(5,5)": "nothing lies between",
    "dropout_rate=interval(0.5,0.1)": "nothing lies between",
    "dropout_rate=tag(log,interval(0,0.5))": "a start above 0",
    "hidden_size=tag(log,range(1,9,2))": "step 1",
    "hidden_size=tag(lag,range(1,9))": "unknown tag 'lag'",
    "hiden_size=8,16": "did you mean 'hidden_size'",
    "hidden_size=range(-3,9)": "hidden_size=-3",
    "cell=gru,lstmm": "did you mean 'lstm'",
    "cell=gru,lstm hydra.sweeper.sampler=bayes": "hydra.sweeper.sampler='bayes': expected one of tpe",
    "cell=gru,lstm hydra.sweep.dir=a,b": "hydra.sweep.dir=a,b: expected one value",
    "cell=gru,lstm hydra/launcher=basic,population": "expected one value",
    "cell=gru,lstm hydra.sweeper.sampler=tpee": "did you mean 'tpe'?",
    "cell=gru,lstm hydra.sweeper.trials=3": "trials",
    "cell=gru,lstm hydra.sweeper.n_trials=0": "n_trials=0",
    "cell=gru,lstm unroll=kernel hydra/launcher=population hydra.launcher.members=2": "train alone",
    "cell=gru,lstm hydra.sweeper.aggregate=bound": "seeds=2",
    "cell=gru,lstm seed=4294967295 hydra.sweeper.seeds=2": "the last of hydra.sweeper.seeds=2: seed=4294967296",
    "cell=gru,lstm seed=1,2 hydra.sweeper.seeds=2": "seed is chosen",
    "dropout_rate=interval(0,0.5) hydra.sweeper.sampler=grid": "dropout_rate: sampler=grid needs choices",
    "cell=gru,lstm hydra.sweeper.storage=nosuch://there": "hydra.sweeper.storage=nosuch://there",
    "cell=gru,lstm hydra.sweeper.storage=${oc.env:NOPE}/x": "hydra.sweeper.storage: ",
    "cell=gru,lstm hydra/launcher=nosuch": "nosuch",
    "cell=gru,lstm hydra.sweeper.params=3": "hydra.sweeper.params=3",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_chosen_is_refused_in_a_line_and_leaves_nothing(line, tmp_path, capsys):
    code, out, err = call(*line.split(" "), capsys=capsys)
    assert (code, out) == (2, []), err
    assert REFUSED[line] in " ".join(err)
    assert len(err) <= 2
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_command_that_installs_it_is_named(monkeypatch, capsys):
    monkeypatch.setattr(space, "find_spec", lambda name: None)
    code, _, err = call("cell=gru,lstm", capsys=capsys)
    assert (code, "pip install 'optuna>=5'" in err[0]) == (2, True)
    monkeypatch.undo()
    monkeypatch.setattr(choosing, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install cmaes"):
        choosing.sampler({"sampler": "cmaes", "startup_trials": 1, "sampler_seed": None}, [], "")


class Quick:
    """A Runner whose jobs are a formula, not trainings: the best learning rate is 0.01, a seed adds a little."""

    def __init__(self, folder, launcher="basic", fails=None, dies_at=None, epochs=3):
        self.folder, self.fails, self.dies_at, self.epochs = Path(folder), fails, dies_at, epochs
        self.ran, self.told = [], set()

    def run(self, jobs, watch=None):
        outcomes = []
        for number, settings in jobs:
            if self.dies_at is not None and len(self.ran) == self.dies_at:
                raise KeyboardInterrupt
            rate = settings.optimizer.learning_rate
            self.ran.append((number, rate, settings.seed))
            self.told.add(settings.config_dir)
            value = 0.9 - abs(math.log10(rate) + 2) / 5 + settings.seed / 100
            status = "completed"
            for epoch in range(1, self.epochs + 1):
                accuracy = value * epoch / self.epochs
                if watch and watch(number, {"epoch": epoch, "valid": {"accuracy": accuracy, "loss": 1 - accuracy}}):
                    status = "pruned"
                    break
            code = (self.fails or {}).get(len(self.ran) - 1, 0)
            error = {0: None, 4: NumericalError("not finite"), 7: StorageError("no room")}[code]
            status = "failed" if code else status
            outcomes.append(Outcome(number, status, code, {"valid": {"accuracy": value, "loss": 1 - value}}, error))
        return outcomes


@pytest.fixture
def quick(monkeypatch):
    """Studies without training: -> (exit code, the Runner) of a call with these options."""

    def start(*arguments, **how):
        runner = Quick("s", **how)
        runner.folder.mkdir(exist_ok=True)

        @contextmanager
        def opened(*_, **__):
            with runs.locked(runner.folder):
                yield runner

        monkeypatch.setattr(running, "opened", opened)
        monkeypatch.setattr(sweep, "conclude", lambda *_: print("a report"))
        code = command.exit_code("train", train.main, ["-m", "hydra/sweeper=optuna", *arguments])
        return code, runner

    return start


@pytest.mark.slow
def test_a_study_looks_where_the_best_trials_were(quick):
    code, runner = quick(RATES, *options(n_trials=40, startup_trials=10, sampler_seed=1, pruner="none"))
    found = held()
    assert code == 0
    assert len(runner.ran) == len(found.trials) == 40
    assert found.best_value > 0.85
    near = [abs(math.log10(rate) + 2) for _, rate, _ in runner.ran]
    assert sum(near[20:]) < sum(near[:20])  # nearer to 0.01 than the first ones
    assert [number for number, _, _ in runner.ran] == list(range(40))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_seeded_study_is_the_same_again_however_often_it_is_stopped(quick, sampler, tmp_path, monkeypatch):
    how = [RATES, *options(n_trials=8, sampler=sampler, startup_trials=3, sampler_seed=7)]
    _, whole = quick(*how)
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    ran = []
    for stop in (3, 2, None):
        code, runner = quick(*how, dies_at=stop)
        assert code == (0 if stop is None else 130)
        ran += runner.ran
    assert [rate for _, rate, _ in ran] == [rate for _, rate, _ in whole.ran]
    assert len(held().trials) == 8


@pytest.mark.slow
def test_seeds_of_a_trial_are_told_as_their_mean_or_bound(quick, tmp_path, monkeypatch):
    fixed = ["optimizer.learning_rate=0.01,0.1", "seed=5"]
    _, runner = quick(*fixed, *options(n_trials=2, sampler="grid", seeds=3))
    assert runner.ran == [(n, 0.01 if n < 3 else 0.1, 5 + n % 3) for n in range(6)]
    assert held().trials[0].value == pytest.approx(0.96)
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    quick(*fixed, *options(n_trials=2, sampler="grid", seeds=3, aggregate="bound"))
    assert held().trials[0].value == pytest.approx(0.96 - 4.302652729911275 * 0.01 / 3**0.5)
    (tmp_path / "third").mkdir()
    monkeypatch.chdir(tmp_path / "third")
    quick(*fixed, *options(n_trials=2, sampler="grid", seeds=3, aggregate="bound", metric="loss"))
    assert held().direction == optuna.study.StudyDirection.MINIMIZE
    assert held().trials[0].value == pytest.approx(0.04 + 4.302652729911275 * 0.01 / 3**0.5)


def test_a_grid_has_every_point_once_whatever_is_stopped(quick):
    how = ["optimizer.learning_rate=0.1,0.01,0.001", "activation=tanh,relu", *options(sampler="grid", n_trials=99)]
    _, first = quick(*how, dies_at=2)
    _, second = quick(*how)
    trials = held().trials
    assert len(first.ran) == 2 and len(second.ran) == 4
    assert len({tuple(trial.params.values()) for trial in trials}) == len(trials) == 6


def test_a_bad_trial_is_pruned_by_its_first_seed(quick):
    how = [
        "optimizer.learning_rate=0.012,0.011,0.01,0.0001",
        *options(sampler="grid", n_trials=4, startup_trials=2, warmup_epochs=0, seeds=2),
    ]
    _, runner = quick(*how)
    found = held()
    assert [trial.state.name for trial in found.trials] == ["COMPLETE"] * 3 + ["PRUNED"]
    assert list(found.trials[0].intermediate_values) == [1, 2, 3]
    assert list(found.trials[3].intermediate_values) == [1]
    assert len(runner.ran) == 8


def test_that_a_trial_was_pruned_outlives_the_process(quick):
    how = ["optimizer.learning_rate=0.012,0.011,0.01,0.0001"]
    how += options(sampler="grid", n_trials=4, startup_trials=2, seeds=2)
    quick(*how, *options(warmup_epochs=0), dies_at=7)  # between the seeds of the last trial
    assert held().trials[3].state == STATES.RUNNING
    Path("s/6").mkdir()
    Path("s/6/summary.json").write_text('{"status": "pruned"}')
    quick(*how, *options(warmup_epochs=99))
    assert held().trials[3].state == STATES.PRUNED


@pytest.mark.slow
def test_warmup_epochs_are_not_pruned_and_hyperband_prunes_too(quick, tmp_path, monkeypatch):
    rates = "optimizer.learning_rate=0.012,0.011,0.01,0.0001"
    quick(rates, *options(sampler="grid", startup_trials=2, warmup_epochs=2))
    assert list(held().trials[3].intermediate_values) == [1, 2, 3]
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    quick(RATES, *options(pruner="hyperband", n_trials=30, sampler="random", sampler_seed=0, warmup_epochs=0), epochs=9)
    states = Counter(trial.state for trial in held().trials)
    assert states[STATES.PRUNED] >= 5 and states[STATES.COMPLETE] >= 3


def test_a_failed_trial_is_one_failed_trial_but_a_full_disk_ends_the_study(quick, capsys):
    how = [RATES, *options(n_trials=5, pruner="none")]
    code, runner = quick(*how, fails={1: 4, 3: 7})
    assert code == 7 and len(runner.ran) == 4
    assert [trial.state.name for trial in held().trials] == ["COMPLETE", "FAIL", "COMPLETE", "RUNNING"]
    code, again = quick(*how)
    assert code == 0
    assert again.ran[0] == runner.ran[3]  # the same job, not a new one
    assert [trial.state.name for trial in held().trials] == ["COMPLETE", "FAIL"] + ["COMPLETE"] * 3
    code, _ = quick(*how[:1], *options(n_trials=7, pruner="none"))
    assert len(held().trials) == 7  # more trials may be asked for
    assert "study jaxrnn: 5 of 7 trials done" in capsys.readouterr().out


def test_a_dry_run_tells_the_space_and_makes_nothing(tmp_path, capsys):
    code, out, _ = call(RATES, "cell=gru,lstm", "dry_run=true", capsys=capsys)
    assert (code, list(tmp_path.iterdir())) == (0, [])
    assert out[0].startswith("optimizer.learning_rate: FloatDistribution(high=0.1, log=True")
    assert "nothing was made" in out[-1]


def test_a_dry_run_looks_at_the_rows(tmp_path, capsys):
    code, out, err = call(RATES, "dataset=files", "dataset.path=nope.csv", "dry_run=true", capsys=capsys)
    assert code == 3 and "nope.csv: no such file" in err[0] and not any("sound" in told for told in out)


@pytest.mark.parametrize("seeds", [1, 2])
def test_every_job_of_a_study_is_called_by_what_was_chosen_for_it(seeds, capsys):
    fixed = [*TINY, "epochs=1", "optimizer.learning_rate=0.01,0.02", "hydra.sweep.dir=s"]
    code, out, _ = call(*fixed, *options(sampler="grid", seeds=seeds), capsys=capsys)
    named = [line.partition("   ")[0] for line in out if line.startswith("job ")]
    rates = [json.loads(Path(f"s/{n}/overrides.json").read_text())[-1 if seeds == 1 else -2] for n in range(2 * seeds)]
    assert code == 0 and sorted(set(rates)) == ["optimizer.learning_rate=0.01", "optimizer.learning_rate=0.02"]
    seed = ["", ""] if seeds == 1 else [" seed=0", " seed=1"] * 2
    assert named == [f"job {n}: {rate}{seed[n]}" for n, rate in enumerate(rates)]


def test_nothing_but_failures_is_a_failure(quick):
    code, _ = quick(RATES, *options(n_trials=2), fails={0: 4, 1: 4})
    assert code == 4


def test_where_no_trial_could_be_composed_the_code_is_that_of_its_refusal(monkeypatch, capsys):
    def refused(study, trial):
        raise ConfigurationError("values that do not go together")

    monkeypatch.setattr(study.Study, "_jobs", refused)
    code, out, err = call(RATES, *TINY, "hydra.sweep.dir=s", *options(n_trials=2), capsys=capsys)
    assert (code, err, out[-1]) == (2, [], "sweep: s")


def test_another_study_in_the_same_place_is_refused(quick, capsys):
    quick(RATES, *options(n_trials=1))
    for other in (
        [RATES, "hidden_size=9"],
        ["optimizer.learning_rate=interval(0.1,1)"],
        [RATES, *options(metric="loss")],
    ):
        code, runner = quick(*other)
        assert (code, runner.ran) == (5, [])
        assert "another study" in capsys.readouterr().err


def test_a_yaml_that_has_changed_since_makes_another_study(tmp_path, quick, capsys):
    own = tmp_path / "mine" / "experiment" / "o.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nhidden_size: 4\n")
    how = ["--config-dir", str(tmp_path / "mine"), "experiment=o", RATES]
    assert quick(*how, *options(n_trials=1))[0] == 0
    own.write_text("# @package _global_\nhidden_size: 4\nplots: never\nseed: 3\nlogger:\n  csv:\n    name: csv\n")
    assert quick(*how, *options(n_trials=2))[0] == 0
    own.write_text("# @package _global_\nhidden_size: 4\nlayers: 2\ndataset:\n  train_rows: 9\n")
    code, runner = quick(*how, *options(n_trials=3))
    told = capsys.readouterr().err
    assert (code, runner.ran) == (5, []) and "layers: 1 there, 2 here not as given" in told
    assert "another study, its dataset.train_rows: " in told
    record = held().user_attrs["jaxrnn"]
    del record["settings"]  # as those before had none
    held().set_user_attr("jaxrnn", record)
    code, runner = quick(*how, *options(n_trials=3))
    assert code == 0 and len(runner.ran) == 1


def test_the_order_of_words_and_what_changes_no_number_make_no_other_study(quick, capsys):
    how = ["hidden_size=4", "layers=2", RATES]
    assert quick(*how, *options(n_trials=1))[0] == 0
    code, runner = quick(*how[::-1], "plots=never", *options(n_trials=2))
    assert code == 0 and len(runner.ran) == 1
    code, runner = quick(*how[1:], "hidden_size=5", *options(n_trials=2))
    told = capsys.readouterr().err
    assert code == 5 and "fixed words: hidden_size=4 there, hidden_size=5 here, hidden_size: 4 there, 5 here" in told


@pytest.mark.slow
def test_trials_of_a_dead_process_are_run_again_once_and_of_a_living_one_not(quick, tmp_path):
    place = f"sqlite:///{tmp_path}/shared.db"
    how = [RATES, *options(n_trials=6, storage=place, pruner="none")]
    quick(*how, dies_at=2)  # trial 2 is left running, its folder s without a writer
    (tmp_path / "s").rename(tmp_path / "dead")
    shared = held(place)
    owner = shared.trials[2].user_attrs[choosing.OWNER]
    storage = choosing.storage(place)
    dead, living = ({**owner, "folder": str(tmp_path / name), "id": name} for name in ("dead", "alive"))
    storage.set_trial_user_attr(shared.trials[2]._trial_id, choosing.OWNER, dead)
    alive = shared.ask({"optimizer.learning_rate": distribution(RATES)})
    alive.set_user_attr(choosing.OWNER, living)
    with runs.locked(tmp_path / "alive"):
        code, runner = quick(*how)
    trials = held(place).trials
    assert code == 0
    assert trials[2].state == STATES.FAIL and trials[2].user_attrs[choosing.LEFT]
    assert trials[3].state == STATES.RUNNING
    (again,) = [trial for trial in trials if choosing.AGAIN in trial.user_attrs]
    assert again.params == trials[2].params and again.state == STATES.COMPLETE
    assert len(runner.ran) == 3  # 2 done and 1 alive of 6
    code, runner = quick(*how)  # the living one has died since
    assert len(runner.ran) == 1
    done = [trial for trial in held(place).trials if trial.state == STATES.COMPLETE]
    assert len(done) == 6


def test_a_bug_in_a_sampler_is_not_blamed_on_the_storage(quick, monkeypatch):
    monkeypatch.setattr(choosing, "sampler", lambda *_: {}["nonsense"])
    with pytest.raises(KeyError, match="nonsense"):
        quick(RATES, *options(n_trials=1))


def test_one_trial_too_many_is_given_back(quick, monkeypatch):
    """Another process asks for the last one between the count and the asking here."""
    ask, others = optuna.study.Study.ask, []

    def second(self, space):
        if len(self.get_trials(deepcopy=False)) == 2 and not others:
            others.append(ask(self, space))
            self.tell(others[0], 0.5)
        return ask(self, space)

    monkeypatch.setattr(optuna.study.Study, "ask", second)
    code, runner = quick(RATES, *options(n_trials=3, pruner="none", storage="study.log"))
    assert code == 0 and len(runner.ran) == 2
    states = [(trial.state.name, choosing.SURPLUS in trial.user_attrs) for trial in held("study.log").trials]
    assert states == [("COMPLETE", False)] * 3 + [("FAIL", True)]


@pytest.mark.parametrize("place", ["sqlite:////nosuch/dir/study.db", "/nosuch/dir/study.log"])
def test_an_unreachable_storage_is_refused_with_7(place, tmp_path, capsys):
    code, out, err = call(RATES, *options(storage=place), capsys=capsys)
    assert (code, out, len(err)) == (7, [], 1)
    assert place in err[0]
    assert list(tmp_path.iterdir()) == []


def test_a_locked_storage_is_busy_and_a_damaged_one_damaged(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(choosing, "PATIENCE", 0.2)
    choosing.storage("sqlite:///study.db")
    with sqlite3.connect("study.db", isolation_level=None) as locker:
        locker.execute("BEGIN EXCLUSIVE")
        code, _, err = call(RATES, *options(storage="sqlite:///study.db"), capsys=capsys)
        locker.rollback()
    locker.close()
    assert (code, len(err)) == (6, 1)
    assert "locked" in err[0]
    for name, url in (("no.db", "sqlite:///no.db"), ("no.log", "no.log")):
        (tmp_path / name).write_bytes(b"this is no database\n" * 100)
        code, _, err = call(RATES, *options(storage=url), capsys=capsys)
        assert (code, len(err)) == (5, 1), err


@pytest.mark.slow
def test_processes_that_open_an_empty_database_at_once_all_get_it(tmp_path):
    line = "import sys, time; from jaxrnn import choosing\nfor n in range(4):\n    "
    line += "time.sleep(max(0, float(sys.argv[1]) + n / 2 - time.time())); choosing.storage(f'sqlite:///{n}.db')"
    start = [sys.executable, "-c", line, str(time.time() + 4)]
    both = [subprocess.Popen(start, env={**os.environ, "PYTHONPATH": str(ROOT)}) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]


def test_a_password_is_not_shown():
    with pytest.raises(ConfigurationError) as told, choosing.refusals("postgresql://me:secret@host/db"):
        raise ImportError("No module named 'psycopg2'")
    assert "secret" not in str(told.value) and "me:***@host" in str(told.value)


def test_a_yaml_of_the_users_may_hold_the_search(tmp_path, quick):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "search.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /hydra/sweeper: optuna\n"
        "hydra:\n  sweeper:\n    n_trials: 3\n    pruner: none\n    params:\n"
        "      optimizer.learning_rate: tag(log,interval(1e-3,1e-1))\n      hidden_size: 8,16\n      layers: 2\n"
    )
    code, runner = quick("--config-dir", str(tmp_path / "mine"), "experiment=search", "hidden_size=4")
    assert code == 0
    assert len(runner.ran) == 3
    record = held().user_attrs["jaxrnn"]
    assert list(record["space"]) == ["optimizer.learning_rate"]
    assert "layers=2" in record["fixed"] and "hidden_size=4" in record["fixed"]
    assert runner.told == {str(tmp_path / "mine")}


def test_a_yaml_of_the_users_may_name_the_folder_of_a_study(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nhydra: {sweep: {dir: of a study}}\n")
    words = ["hydra/sweeper=optuna", "experiment=mine", "cell=gru,lstm"]
    with space.search(words, config_dir=str(tmp_path)) as found:
        assert found.directory == "of a study"


def processes(count, *arguments):
    """So many processes that train at once, each its output collected when it is waited for."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(Path("cache").resolve())}
    line = [sys.executable, "-m", "jaxrnn.train", "-m", "hydra/sweeper=optuna", *TINY, *arguments]
    return [
        subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "population"])
def test_a_study_killed_and_started_again_misses_nothing_and_repeats_nothing(launcher):
    how = [RATES, "hydra.sweep.dir=s", f"hydra/launcher={launcher}"]
    how += options(n_trials=6, startup_trials=2, sampler_seed=3, batch=2, pruner="none")
    (running,) = processes(1, *how)
    deadline = time.monotonic() + 120
    while not Path("s/2/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    before = {path: path.stat().st_mtime_ns for path in Path("s").glob("*/summary.json")}
    (again,) = processes(1, *how)
    out, _ = again.communicate(timeout=180)
    assert again.returncode == 0, out
    assert out.splitlines()[-1] == "sweep: s"
    entries = runs.read_json(Path("s/sweep.json"))["jobs"]
    assert [(entry["job"], entry["status"]) for entry in entries] == [(n, "completed") for n in range(6)]
    trials = held().trials
    assert [trial.state for trial in trials] == [STATES.COMPLETE] * 6
    assert len({trial.params["optimizer.learning_rate"] for trial in trials}) == 6
    for path, time_ns in before.items():  # what had ended was left alone
        if json.loads(path.read_text())["status"] == "completed":
            assert path.stat().st_mtime_ns == time_ns
    for number, trial in enumerate(trials):
        assert trial.value == json.loads(Path(f"s/{number}/summary.json").read_text())["valid"]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["sqlite:///study.db", "study.log"])
def test_two_processes_share_one_storage(place):
    both = processes(2, RATES, *options(n_trials=7, startup_trials=2, storage=place))
    told = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    trials = [trial for trial in held(place).trials if choosing.SURPLUS not in trial.user_attrs]
    assert Counter(trial.state.is_finished() for trial in trials) == {True: 7}
    assert len({trial.params["optimizer.learning_rate"] for trial in trials}) == 7
    folders = {trial.user_attrs[choosing.OWNER]["folder"] for trial in trials}
    jobs = [entry["job"] for folder in folders for entry in runs.read_json(Path(folder, "sweep.json"))["jobs"]]
    assert sorted(jobs) == sorted(trial.number for trial in trials)


@pytest.mark.slow
def test_a_pruned_trial_trains_no_further_and_is_told_in_the_report(capsys):
    rates = "optimizer.learning_rate=0.02,0.021,0.022,1e-9"
    more = ["epochs=6", "patience=null", "dataset.train_rows=256", "hidden_size=16", "input.size=16"]
    how = options(sampler="grid", startup_trials=1, warmup_epochs=4)
    code, out, err = call(*TINY, *more, rates, "hydra.sweep.dir=s", *how, capsys=capsys)
    assert (code, err) == (0, [])
    last = held().trials[3]
    assert last.state == STATES.PRUNED
    assert len(list(runs.read_lines(Path("s/3/metrics.jsonl")))) == len(last.intermediate_values) == 5
    assert any("not completed, not counted: 1 pruned" in line for line in out)
    assert len(list(Path("s").glob("*/plots/curves.png"))) == 1  # the best job is drawn
    assert out[-1] == "sweep: s"
