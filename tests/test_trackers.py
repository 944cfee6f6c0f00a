"""Trackers are told what metrics.jsonl is told, know a run again, and never end one."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from jaxrnn import command, config, job, running, runs, trackers, train
from jaxrnn.errors import ArtefactError, ConfigurationError, StorageError

TINY = ["hidden_size=8", "input.size=4", "batch_size=16", "epochs=2", "dataset.train_rows=70", "patience=null"]
TINY += ["dataset.valid_rows=20", "dataset.test_rows=30", "flow.every_steps=4", "plots=never"]

pytestmark = pytest.mark.usefixtures("own_place")


def lines(folder):
    """{(name, step): number} of metrics.jsonl, as trackers are told them."""
    found = {}
    for record in runs.read_lines(Path(folder, "metrics.jsonl")):
        found |= {(name, record["step"]): value for name, value in trackers.numbers(record).items()}
    return found


class Client:
    """MLflow's, as far as it is used, with the limits of a server."""

    def __init__(self):
        self.held, self.experiments, self.calls, self.broken = {}, [], 0, False

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments.append(name)
        return name

    def create_run(self, experiment, run_name, tags):
        if self.broken:
            raise OSError("no route to host")
        name = f"run {len(self.held)}"
        self.held[name] = {"name": run_name, "tags": dict(tags), "params": {}, "metrics": [], "status": "RUNNING"}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=name))

    def update_run(self, run, status):
        self.held[run]["status"] = status

    set_terminated = update_run

    def log_batch(self, run, metrics=(), params=(), tags=()):
        self.calls += 1
        if self.broken:
            raise OSError("no route to host\nat all")
        assert (
            len(metrics) <= 1000 and len(params) <= 100 and not {key for key, _ in params} & {*self.held[run]["params"]}
        )
        self.held[run]["metrics"] += [((key, step), value) for key, value, _, step in metrics]
        self.held[run]["params"] |= dict(params)
        self.held[run]["tags"] |= dict(tags)


@pytest.fixture
def client(monkeypatch):
    """A server of MLflow's that every run finds."""
    made = Client()

    def module(name, **what):
        found = types.ModuleType(name)
        vars(found).update(what)
        found.__spec__ = types.SimpleNamespace(origin="here")
        monkeypatch.setitem(sys.modules, name, found)

    def told(*fields):
        return fields

    module("mlflow")
    module("mlflow.entities", Metric=told, Param=told, RunTag=told)
    module("mlflow.exceptions", MlflowException=ValueError)
    module("mlflow.tracking", MlflowClient=lambda: made)
    trackers.check.cache_clear()
    yield made
    trackers.check.cache_clear()


def test_mlflow_is_told_what_metrics_jsonl_is_told(client):
    words = [*TINY, "logger=[jsonl,mlflow]", "log_every_steps=3", "optimizer.learning_rate=0.01", "hydra.run.dir=r"]
    assert command.exit_code("train", train.main, words) == 0
    (run,) = client.held.values()
    summary = json.loads(Path("r/summary.json").read_text())
    told = dict(run["metrics"])
    assert len(told) == len(run["metrics"])
    assert {key: value for key, value in told.items() if not key[0].startswith("test/")} == lines("r")
    assert told[("test/accuracy", summary["steps"])] == summary["test"]["accuracy"]
    assert any(name.startswith("flow/layer 1 left to right/") for name, _ in told)
    assert run["params"]["optimizer.learning_rate"] == "0.01" and run["params"]["hidden_size"] == "8"
    assert (run["status"], run["name"], run["tags"]["folder"]) == ("FINISHED", "r", str(Path("r").resolve()))


def test_calls_of_a_server_wait_for_each_other(client, monkeypatch):
    job.run(config.compose([*TINY, "logger=mlflow", "epochs=30"]), loud=False)
    assert client.calls < 10


def test_a_run_that_is_resumed_is_the_same_run_there(client):
    for epochs in (2, 4):
        words = [*TINY, "logger=[jsonl,mlflow]", f"epochs={epochs}", "flow.every_steps=0", "hydra.run.dir=r"]
        assert command.exit_code("train", train.main, words) == 0
    (run,) = client.held.values()
    assert {key: value for key, value in run["metrics"] if not key[0].startswith("test/")} == lines("r")
    Path("r/trackers.json").write_text('{"mlflow": 3}')
    with pytest.raises(ArtefactError, match=r"trackers.json: expected names"):
        trackers.begun("mlflow", trackers.Run(Path("r"), {}))


def test_a_sweep_is_the_parent_of_its_jobs(client):
    jobs = [config.compose([*TINY, "logger=mlflow", f"seed={seed}"]) for seed in (0, 1)]
    jobs.append(config.compose([*TINY, "logger=mlflow", "optimizer.learning_rate=1e30", "seed=2"]))
    for _ in range(2):  # the second finds them ended
        with running.opened("s", "population") as runner:
            runner.run(list(enumerate(jobs[:2])))
    with running.opened("s", "basic") as runner:
        runner.run(list(enumerate(jobs)), lambda number, record: number == 2)
    held = {run["name"]: run for run in client.held.values()}
    parent = next(name for name, run in client.held.items() if run["name"] == "s")
    assert set(held) == {"s", "s/0", "s/1", "s/2"}
    assert {run["tags"].get("mlflow.parentRunId") for name, run in held.items() if name != "s"} == {parent}
    assert [held[name]["status"] for name in ("s", "s/0", "s/1")] == ["FINISHED"] * 3
    assert held["s/2"]["tags"]["status"] in ("pruned", "failed")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_what_ends_a_sweep_is_told_and_raised(client, stop):
    Path("s").mkdir()
    with pytest.raises(stop), trackers.sweep(Path("s"), {"mlflow"}, 1):
        raise stop
    assert [run["status"] for run in client.held.values()] == ["KILLED"]


def test_how_a_run_ended_is_told(client):
    bad = [*TINY, "logger=mlflow", "optimizer=sgd", "optimizer.learning_rate=1e38", "init_scale=1e30"]
    assert command.exit_code("train", train.main, bad) == 4
    stopped = [*TINY, "logger=mlflow", "hydra.run.dir=r"]
    with pytest.raises(KeyboardInterrupt):
        job.run(config.compose(stopped), loud=False, halt=KeyboardInterrupt)
    assert [run["status"] for run in client.held.values()] == ["FAILED", "KILLED"]


def test_what_is_stopped_while_it_is_told_how_it_ended_is_told_again(client, capsys, monkeypatch):
    words = [*TINY, "logger=mlflow", "hydra.run.dir=r"]

    def stopped(run, status):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "set_terminated", stopped)
        assert command.exit_code("train", train.main, words) == 130
    assert "stopped, saved after update" in capsys.readouterr().err
    assert command.exit_code("train", train.main, words) == 0
    (run,) = client.held.values()
    assert run["status"] == "FINISHED" and runs.read_json(Path("r/summary.json"))["status"] == "completed"


def test_a_sweep_whose_jobs_had_all_ended_ends_there_too(client, monkeypatch):
    jobs = [(n, config.compose([*TINY, "logger=mlflow", f"seed={n}"])) for n in (0, 1)]
    with monkeypatch.context() as patch, running.opened("s", "basic") as runner:
        patch.setattr(trackers, "sweep", lambda *_: trackers.contextmanager(lambda: (yield))())  # killed before its end
        runner.run(jobs)
    for left in (True, False):
        with running.opened("s", "basic") as runner:
            runner.run(jobs)
        assert {run["status"] for run in client.held.values()} == {"FINISHED"} and "s" in str(client.held)
        client.broken = left  # it is not asked for a sweep that has ended


def test_trackers_before_one_that_cannot_be_reached_are_ended(client, monkeypatch):
    ended, client.broken = [], True
    other = trackers.Tracker(print, lambda: None, lambda summary: ended.append(summary["status"]))
    monkeypatch.setitem(trackers.MEMBERS, "tensorboard", lambda run: other)
    with pytest.raises(StorageError, match="mlflow"):
        job.loggers.opened(("tensorboard", "mlflow"), Path("."), 1)
    assert ended == ["failed"]


def test_a_tracker_that_is_lost_is_said_once_and_ends_no_run(client, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "SENT_EVERY", 0.0)
    epoch = trackers.numbers

    def breaking(record):
        client.broken = True
        return epoch(record)

    monkeypatch.setattr(trackers, "numbers", breaking)
    assert command.exit_code("train", train.main, [*TINY, "logger=[jsonl,mlflow]", "hydra.run.dir=r"]) == 0
    (told,) = capsys.readouterr().err.splitlines()
    assert told == "logger=mlflow: no route to host; nothing more is told there, the record is in r"
    assert len(lines("r")) > 10


def test_a_tracker_that_cannot_be_reached_is_refused(client, capsys):
    client.broken = True
    assert command.exit_code("train", train.main, [*TINY, "logger=mlflow"]) == 7
    assert "logger=mlflow: no route to host; leave mlflow out" in capsys.readouterr().err
    with pytest.raises(StorageError), trackers.sweep(Path("."), {"mlflow"}, 1):
        pass


def test_wandb_runs_are_grouped_by_their_sweep(monkeypatch):
    made = []

    class Run:
        def __init__(self, **what):
            self.what, self.logged, self.summary, self.ended, self.axis = what, [], {}, None, []
            made.append(self)

        def define_metric(self, *names, **what):
            self.axis.append((*names, what))

        def log(self, numbers):
            self.logged.append(numbers)

        def finish(self, exit_code):
            self.ended = exit_code

    fake = types.ModuleType("wandb")
    fake.init, fake.Settings = Run, dict
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(trackers, "check", lambda name: None)
    words = [*TINY, "logger=[jsonl,wandb]", "flow.every_steps=0"]
    with running.opened("s", "population") as runner:
        runner.run([(n, config.compose([*words, f"seed={n}"])) for n in (0, 1)])
    job.run(config.compose([*words, "hydra.run.dir=r"]), loud=False)
    job.run(config.compose([*words, "hydra.run.dir=r", "epochs=3"]), loud=False)
    one, two, alone, again = sorted(made, key=lambda run: (run.what["name"] == "r", made.index(run)))
    assert {one.what["name"], two.what["name"]} == {"s/0", "s/1"} and one.what["id"] != two.what["id"]
    assert [run.what["group"] for run in made] == ["s", "s", None, None]
    assert alone.what["id"] == again.what["id"] and again.what["resume"] == "allow"
    assert {run.what["project"] for run in made} == {"jaxrnn"} and {run.ended for run in made} == {0}
    told = {(key, numbers["step"]): value for numbers in alone.logged + again.logged for key, value in numbers.items()}
    assert {key: value for key, value in told.items() if key[0] != "step"} == lines("r")
    assert ("*", {"step_metric": "step"}) in alone.axis
    assert again.summary["status"] == "completed" and again.summary["test/accuracy"] > 0


def test_a_tracker_that_is_not_installed_is_refused_before_there_is_a_folder(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    trackers.check.cache_clear()
    assert command.exit_code("train", train.main, [*TINY, "logger=wandb"]) == 2
    assert command.exit_code("train", train.main, ["-m", *TINY, "seed=0,1", "logger=wandb"]) == 2
    assert "pip install wandb" in capsys.readouterr().err and not Path("runs").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: types.SimpleNamespace(origin=None))  # a folder wandb/
    with pytest.raises(ConfigurationError, match="not installed"):
        trackers.check("wandb")
    trackers.check("csv")


def scalars(folder):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    held = reader.EventAccumulator(str(folder), size_guidance={reader.SCALARS: 0})
    held.Reload()
    found = [((tag, e.step), e.value) for tag in held.Tags()["scalars"] for e in held.Scalars(tag)]
    assert len(dict(found)) == len(found)
    return held, dict(found)


def test_event_files_hold_what_metrics_jsonl_holds():
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.plugins.hparams import metadata

    for epochs in (2, 3):
        words = [*TINY, "logger=[jsonl,tensorboard]", f"epochs={epochs}", "flow.every_steps=0", "hydra.run.dir=r"]
        assert command.exit_code("train", train.main, words) == 0
    held, told = scalars("r/tensorboard")
    told = {key: value for key, value in told.items() if not key[0].startswith("test/")}
    assert told == pytest.approx(lines("r"), rel=1e-6)
    content = held.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams
    assert hparams["hidden_size"].number_value == 8 and hparams["cell.name"].string_value == "vanilla"
    assert hparams["bidirectional"].bool_value is False


def test_a_run_that_begins_again_has_each_step_once(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    for number in (1, 2):  # the first was killed before its first checkpoint
        tracker = trackers.begun("tensorboard", trackers.Run(tmp_path, {}))
        for step in (0, 1):
            tracker.log({"loss": float(number)}, step)
        tracker.flush()
    assert scalars(tmp_path / "tensorboard")[1] == {("loss", 0): 2, ("loss", 1): 2}


def test_events_beyond_the_place_of_resuming_are_purged(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    before = trackers.begun("tensorboard", trackers.Run(tmp_path, {}))
    for step in range(1, 6):
        before.log({"loss": float(step)}, step)
    before.flush()  # and was killed
    after = trackers.begun("tensorboard", trackers.Run(tmp_path, {}, 3))
    for step in range(4, 7):
        after.log({"loss": step + 0.5}, step)
    after.end({"status": "stopped"})
    _, told = scalars(tmp_path / "tensorboard")
    assert told == {("loss", 1): 1, ("loss", 2): 2, ("loss", 3): 3, **{("loss", n): n + 0.5 for n in (4, 5, 6)}}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_package_itself_is_told(name, tmp_path):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    environ = os.environ | {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/m.db"}
    line = [sys.executable, "-m", "jaxrnn.train", *TINY, f"logger=[jsonl,{name}]"]
    done = subprocess.run([*line, "hydra.run.dir=r"], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "nothing more is told" not in done.stderr, done.stderr
    line += ["-m", "seed=0,1", "hydra/launcher=population", "hydra.sweep.dir=s"]
    done = subprocess.run(line, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "nothing more is told" not in done.stderr, done.stderr
    called = runs.read_json(Path("r/trackers.json"))[name]
    if name == "wandb":
        assert list(Path("wandb").glob(f"offline-run-*-{called}"))
        return
    ask = (
        "from mlflow.tracking import MlflowClient; import json, sys; c = MlflowClient(); held = c.get_run(sys.argv[1]);"
        "e = c.get_experiment_by_name('jaxrnn').experiment_id;"
        "print(json.dumps([held.info.status, held.data.metrics, [(r.info.run_name, r.info.status,"
        " r.data.tags.get('mlflow.parentRunId')) for r in c.search_runs([e])]]))"
    )
    told = subprocess.run([sys.executable, "-c", ask, called], env=environ, capture_output=True, text=True, check=True)
    status, metrics, everything = json.loads(told.stdout)
    last = max(step for _, step in lines("r"))
    assert status == "FINISHED" and metrics["valid/loss"] == lines("r")[("valid/loss", last)]
    parent = runs.read_json(Path("s/trackers.json"))["mlflow"]
    children = {("s/0", "FINISHED", parent), ("s/1", "FINISHED", parent)}
    assert {tuple(one) for one in everything} == {("r", "FINISHED", None), ("s", "FINISHED", None), *children}
