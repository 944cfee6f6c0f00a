"""A copy of what a run records, in a tool to look at many of them: name(run) -> Tracker. One function per tracker.

    tensorboard   <run>/tensorboard/; `tensorboard --logdir SWEEP` shows the jobs of a sweep beside each other
    wandb         a run of the project $WANDB_PROJECT, or "jaxrnn"; the jobs of a sweep are a group
    mlflow        a run of the experiment $MLFLOW_EXPERIMENT_NAME, or "jaxrnn"; a sweep is a run of its own, the parent
                  of its jobs

Each is a package of its own and keeps its own settings (WANDB_MODE, MLFLOW_TRACKING_URI, ...). trackers.json holds what
a run is called there: one that is resumed goes on there too. A tracker that cannot be reached when a run begins is
refused; one that is lost later is said once and left out, since metrics.jsonl is the record.
"""

import functools
import importlib.util
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxrnn import runs
from jaxrnn.errors import ArtefactError, ConfigurationError, StorageError

PROJECT = "jaxrnn"
SINGLE = ("prediction", "loss_base10")  # of a run that learns from one text
SENT_EVERY = 1.0  # seconds between two calls of a server that is waited for
MOST_METRICS, MOST_PARAMS, LONGEST = 1000, 100, 500  # of one call of MLflow's; characters of a parameter

Numbers = Mapping[str, float]


class Tracker(NamedTuple):
    """What is told of one run."""

    log: Callable[[Numbers, int], None]  # numbers by name, after so many updates
    flush: Callable[[], None]
    end: Callable[[Mapping[str, Any]], None]  # its summary; nothing comes after


class Run(NamedTuple):
    """The run to be followed."""

    folder: Path
    settings: Mapping[str, Any]  # by dotted key
    step: int = 0  # updates that it has had: where it is resumed

    @property
    def sweep(self) -> Path | None:
        """The folder of the sweep that it is a job of."""
        return self.folder.parent if (self.folder.parent / "sweep.json").exists() else None

    @property
    def name(self) -> str:
        return f"{self.sweep.name}/{self.folder.name}" if self.sweep else self.folder.name


@functools.cache
def check(name: str) -> None:
    """ConfigurationError where the package of a tracker is not installed."""
    found = importlib.util.find_spec(name) if name in MEMBERS else None
    if name in MEMBERS and (found is None or found.origin is None):  # no origin: a folder of that name, as W&B makes
        raise ConfigurationError(f"logger={name} needs a package that is not installed: pip install {name}")


def begun(name: str, run: Run) -> Tracker:
    """StorageError where the tracker cannot be had."""
    with _reached(name):
        tracker = MEMBERS[name](run)
    lost: list[Exception] = []
    ended: list[bool] = []

    def kept_apart(call: Callable[..., None]) -> Callable[..., None]:
        def told(*news: Any) -> None:
            try:
                if not lost:
                    call(*news)
            except Exception as error:
                lost.append(error)
                _say(name, error, run.folder)

        return told

    def end(summary: Mapping[str, Any]) -> None:
        if not ended:
            ended.append(True)
            kept_apart(tracker.end)(summary)

    return Tracker(kept_apart(tracker.log), kept_apart(tracker.flush), end)


@contextmanager
def sweep(folder: Path, names: set[str], left: int) -> Iterator[None]:
    """Around the jobs of a sweep that are left: with MLflow it is a run too, which must be there before they are."""
    if "mlflow" not in names or (not left and _known(folder, "mlflow_status") == "FINISHED"):
        yield
        return
    with _reached("mlflow"):
        client = _client()
        run = _mlflow_run(client, folder, folder.name, {})
    status = "KILLED"
    try:
        yield
        status = "FINISHED"
    finally:
        try:
            client.set_terminated(run, status)
            _keep(folder, "mlflow_status", status)
        except Exception as error:
            _say("mlflow", error, folder)


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of metrics.jsonl, by the names that trackers show.

    >>> numbers({"step": 9, "epoch": 1, "train": {"loss": 0.5}, "best": True, "seconds": 0.1})
    {'train/loss': 0.5, 'epoch': 1, 'seconds': 0.1}
    >>> numbers({"step": 9, "epoch": 1, "loss": 0.5, "grad_norm": 1.5})
    {'update/loss': 0.5, 'update/grad_norm': 1.5}
    """
    found: dict[str, Any] = {}
    for split in ("train", "valid", "test"):
        part = record.get(split, {})
        found |= {f"{split}/{key}": part[key] for key in ("loss", "accuracy", "f1_macro") if key in part}
    if "train" in record:
        found |= {key: record[key] for key in ("epoch", "seconds", "refused", *SINGLE) if key in record}
    found |= {f"update/{key}": record[key] for key in ("loss", "grad_norm") if key in record}
    for one in record.get("flow", ()):
        where = f"flow/layer {one['layer']} {one['direction']}"
        found |= {f"{where}/{key}": one[key] for key in ("log_slope", "saturation", "spectral_radius")}
    return {key: value for key, value in found.items() if value is not None}


def tensorboard(run: Run) -> Tracker:
    """Event files, the hyperparameters among them; what an earlier process wrote beyond `step` is purged."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    before = (run.folder / "tensorboard").exists()
    writer = EventFileWriter(str(run.folder / "tensorboard"))

    def put(step: int, **what: Any) -> None:
        writer.add_event(Event(wall_time=time.time(), step=step, **what))

    def session(tag: str, **what: Any) -> None:
        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**what))
        put(run.step, summary=Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)]))

    def log(found: Numbers, step: int) -> None:
        values = [Summary.Value(tag=key, simple_value=value) for key, value in found.items()]
        put(step, summary=Summary(value=values))

    def end(summary: Mapping[str, Any]) -> None:
        log(numbers({"test": summary.get("test", {})}), summary.get("steps", run.step))
        good = summary["status"] in ("completed", "pruned")
        status = api_pb2.STATUS_SUCCESS if good else api_pb2.STATUS_FAILURE
        session(metadata.SESSION_END_INFO_TAG, session_end_info={"status": status, "end_time_secs": time.time()})
        writer.close()

    if before:
        put(run.step + 1 if run.step else 0, session_log=SessionLog(status=SessionLog.START))
    start = plugin_data_pb2.SessionStartInfo(group_name=run.name, start_time_secs=time.time())
    for key, value in run.settings.items():
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[key].number_value = value
        elif value is not None:
            start.hparams[key].string_value = str(value)
    session(metadata.SESSION_START_INFO_TAG, session_start_info=start)
    return Tracker(log, writer.flush, end)


def wandb(run: Run) -> Tracker:
    """A run that may be one of many in this process, over updates: its own count of calls knows no way back."""
    import wandb as package

    made = package.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        group=run.sweep and run.sweep.name,
        name=run.name,
        id=_known(run.folder, "wandb") or _keep(run.folder, "wandb", secrets.token_hex(8)),
        resume="allow",
        reinit="create_new",
        config=dict(run.settings),
        settings=package.Settings(console="off", silent=run.sweep is not None),
    )

    made.define_metric("step", hidden=True)
    made.define_metric("*", step_metric="step")

    def end(summary: Mapping[str, Any]) -> None:
        made.summary.update({**numbers({"test": summary.get("test", {})}), "status": summary["status"]})
        made.finish(exit_code=0 if summary["status"] in ("completed", "pruned") else 1)

    return Tracker(lambda found, step: made.log({**found, "step": step}), lambda: None, end)


def mlflow(run: Run) -> Tracker:
    """A run, whose metrics wait up to SENT_EVERY seconds for each other: each call of the server is waited for."""
    from mlflow.entities import Metric, Param, RunTag

    client = _client()
    parent = run.sweep and _known(run.sweep, "mlflow")
    new = _known(run.folder, "mlflow") is None
    made = _mlflow_run(client, run.folder, run.name, {"mlflow.parentRunId": parent} if parent else {})
    params = [Param(key, str(value)[:LONGEST]) for key, value in run.settings.items()] if new else []
    for first in range(0, len(params), MOST_PARAMS):
        client.log_batch(made, params=params[first : first + MOST_PARAMS])
    held: list[Any] = []
    sent = [time.monotonic()]

    def flush() -> None:
        while held:
            client.log_batch(made, metrics=held[:MOST_METRICS])
            del held[:MOST_METRICS]
        sent[0] = time.monotonic()

    def log(found: Numbers, step: int) -> None:
        now = int(time.time() * 1000)
        held.extend(Metric(key, float(value), now, step) for key, value in found.items())
        if time.monotonic() - sent[0] >= SENT_EVERY:
            flush()

    def end(summary: Mapping[str, Any]) -> None:
        log(numbers({"test": summary.get("test", {})}), summary.get("steps", run.step))
        flush()
        client.log_batch(made, tags=[RunTag("status", summary["status"])])
        status = {"completed": "FINISHED", "pruned": "FINISHED", "stopped": "KILLED"}.get(summary["status"], "FAILED")
        client.set_terminated(made, status)

    return Tracker(log, flush, end)


MEMBERS: dict[str, Callable[[Run], Tracker]] = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow}


def _client() -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient()


def _mlflow_run(client: Any, folder: Path, name: str, tags: Mapping[str, str]) -> str:
    """The run of a folder, running: the one that it had, or a new one."""
    from mlflow.exceptions import MlflowException

    known = _known(folder, "mlflow")
    if known is not None:
        client.update_run(known, status="RUNNING")
        return known
    title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
    found = client.get_experiment_by_name(title)
    try:
        experiment = found.experiment_id if found else client.create_experiment(title)
    except MlflowException:  # another process was first
        experiment = client.get_experiment_by_name(title).experiment_id
    tags = {**tags, "folder": str(folder.resolve()), "mlflow.source.name": "jaxrnn.train"}
    return _keep(folder, "mlflow", client.create_run(experiment, run_name=name, tags=tags).info.run_id)


def _known(folder: Path, name: str) -> str | None:
    """What the run of that folder is called there."""
    path = folder / "trackers.json"
    held = runs.read_json(path) if path.exists() else {}
    found = held.get(name) if isinstance(held, dict) else 0
    if found is not None and not isinstance(found, str):
        raise ArtefactError(f"{path}: expected names of runs, as in {{{name!r}: a word}}")
    return found


def _keep(folder: Path, name: str, called: str) -> str:
    path = folder / "trackers.json"
    held = runs.read_json(path) if path.exists() else {}
    runs.write_json(path, {**held, name: called})
    return called


@contextmanager
def _reached(name: str) -> Iterator[None]:
    try:
        yield
    except (ArtefactError, StorageError):
        raise
    except Exception as error:
        raise StorageError(f"logger={name}: {_line(error)}; leave {name} out of logger to do without it") from error


def _say(name: str, error: Exception, folder: Path) -> None:
    why = f"logger={name}: {_line(error)}; nothing more is told there, the record is in {folder}"
    print(why, file=sys.stderr, flush=True)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or repr(error)[:200]
