"""Sweeps: a job is the run it would be alone, a group compiles once, one bad job is one bad job."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrnn import (
    command,
    config,
    devices,
    foreign,
    group,
    job,
    launchers,
    planning,
    progress,
    running,
    runs,
    standing,
    stored,
    sweep,
    train,
)
from jaxrnn.errors import BusyError, ConfigurationError

TINY = ["hidden_size=8", "input.size=4", "batch_size=16", "epochs=3", "dataset.train_rows=64"]
TINY += ["dataset.valid_rows=20", "dataset.test_rows=30", "patience=1"]
FAILS = ["optimizer=sgd", "optimizer.learning_rate=1e+38,0.01", "clip_global_norm=null", "init_scale=100"]
ROOT = Path(__file__).resolve().parent.parent
COMPILED = "/jax/core/compile/backend_compile_duration"


pytestmark = pytest.mark.usefixtures("own_place")


@pytest.fixture
def compilations():
    """The names of the programs that XLA was asked for, in a list that grows; those of earlier tests are awaited."""
    names = []
    for thread in threading.enumerate():
        if thread.name.startswith("compiler"):
            thread.join(60)

    def heard(event, seconds, **more):
        if event == COMPILED:
            names.append(more.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield names
    jax.monitoring.unregister_event_duration_listener(heard)


def call(*arguments, capsys):
    """-> exit code, lines of standard output, lines of standard error."""
    code = command.exit_code("train", train.main, [str(a) for a in arguments])
    found = capsys.readouterr()
    return code, found.out.splitlines(), found.err.splitlines()


def jobs(folder):
    return [
        (entry["job"], entry["status"], entry["code"]) for entry in runs.read_json(Path(folder, "sweep.json"))["jobs"]
    ]


def records(folder):
    """metrics.jsonl without its times."""
    return [
        {k: v for k, v in line.items() if k != "seconds"} for line in runs.read_lines(Path(folder, "metrics.jsonl"))
    ]


@pytest.mark.parametrize("launcher", ["basic", "population"])
def test_a_sweep_over_numbers_compiles_once_and_each_job_is_the_run_alone(tmp_path, compilations, capsys, launcher):
    same = [*TINY, "dropout_rate=0.1", "flow.every_steps=3"]
    varied = ["optimizer.learning_rate=0.001,0.03", "seed=0,1"]
    code, out, err = call("-m", *same, *varied, f"hydra/launcher={launcher}", "hydra.sweep.dir=s", capsys=capsys)
    assert (code, err, out[-1]) == (0, [], "sweep: s")
    assert jobs("s") == [(n, "completed", 0) for n in range(4)]
    assert sorted(compilations) == ["jit(answers)", "jit(init)", "jit(readings)", "jit(segment)"]  # and nothing else
    alone = job.run(config.compose([*same, "optimizer.learning_rate=0.03", "seed=1"]), loud=False)
    member = json.loads(Path("s/3/summary.json").read_text())
    for timed in ("seconds", "compile_seconds", "examples_per_second", "tokens_per_second"):
        del alone[timed], member[timed]
    assert member == {key: value for key, value in alone.items() if key != "run"}
    assert records("s/3") == records(alone["run"])
    np.testing.assert_equal(stored.load_model(Path("s/3")).arrays, stored.load_model(Path(alone["run"])).arrays)
    there = {path.relative_to(alone["run"]) for path in Path(alone["run"]).rglob("*")}
    drawn = {Path("plots/curves.png"), Path("plots/confusion.png")}
    assert drawn < there and there - drawn == {p.relative_to("s/3") for p in Path("s/3").rglob("*")} - drawn
    assert sum(Path("s", str(n), "plots", "curves.png").exists() for n in range(4)) == 1


def test_started_from_a_shell_too_a_job_is_the_run_alone():
    """No flag of XLA is set by somebody else: a sweep computes with the program of a run, from one compile cache."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    environment |= {"XDG_CACHE_HOME": str(Path("cache").resolve()), "PYTHONPATH": str(ROOT)}
    same = [*TINY, "dropout_rate=0.3", "flow.every_steps=0", "plots=never"]
    alone = ["seed=1", "hydra.run.dir=alone"]
    for words in (alone, ["-m", "seed=0,1", "hydra/launcher=population", "hydra.sweep.dir=all"]):
        line = [sys.executable, "-m", "jaxrnn.train", *words, *same]
        subprocess.run(line, env=environment, stdout=subprocess.DEVNULL, check=True)
        programs = {path.name for path in Path("cache/jaxrnn/xla").glob("*-cache")}
        assert len(programs) == 3, "the sweep compiled others"
    model = "model/params.safetensors"
    assert Path("alone", model).read_bytes() == Path("all/1", model).read_bytes()


def test_jobs_measure_the_flow_of_the_gradient_only_where_it_is_asked_for(capsys):
    call("-m", *TINY, "seed=0,1", "hydra.sweep.dir=s", capsys=capsys)
    assert not any("flow" in record for record in records("s/0"))
    assert "every_steps: null" in Path("s/0/config.yaml").read_text()


def test_a_watch_prunes_one_job_and_it_stays_pruned():
    chosen = planning.planned([*TINY, "seed=0,1", "patience=null"]).jobs
    heard = []

    def watch(number, record):
        heard.append((number, record["epoch"], record["valid"]["loss"]))
        return number == 1 and record["epoch"] == 2

    for launcher in ("population", "basic"):
        with running.opened("s", launcher) as runner:
            outcomes = runner.run(list(enumerate(chosen)), watch)
        assert [(o.number, o.status, o.code) for o in outcomes] == [(0, "completed", 0), (1, "pruned", 0)]
    assert sorted(pair[:2] for pair in heard) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]
    assert len(records("s/1")) == 2 and "test" not in outcomes[1].summary
    assert jobs("s") == [(0, "completed", 0), (1, "pruned", 0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [["joblib", "hydra.launcher.n_jobs=2"], ["submitit_local"]], ids=lambda words: words[0]
)
def test_jobs_in_other_processes_are_the_jobs_of_this_one(capsys, monkeypatch, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher[0].partition('_')[0]}_launcher")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    if absl := sys.modules.get("absl.logging"):  # launchers close the log handlers there are, absl's then its stream
        monkeypatch.setattr(absl.get_absl_handler().python_handler, "stream", sys.__stderr__)
    line = ["-m", *TINY, *FAILS, "seed=0,1"]
    code, out, _ = call(*line, "hydra.sweep.dir=here", capsys=capsys)
    found = call(*line, "hydra.sweep.dir=there", f"hydra/launcher={launcher[0]}", *launcher[1:], capsys=capsys)
    assert (code, found[0]) == (4, 4) and out[-1] == "sweep: here" and found[1][-1] == "sweep: there"
    assert jobs("here") == jobs("there") and [code for *_, code in jobs("there")] == [4, 4, 0, 0]
    assert records("here/2") == records("there/2")
    assert not {path.name for path in Path("there").iterdir()} - {
        "0",
        "1",
        "2",
        "3",
        "sweep.json",
        "run.lock",
        ".submitit",
    }
    again = call(*line, "hydra.sweep.dir=there", f"hydra/launcher={launcher[0]}", *launcher[1:], capsys=capsys)
    assert again[0] == 4 and sum("left alone" in text for text in again[1]) == 2


@pytest.mark.slow
def test_a_stop_of_the_parent_alone_saves_the_jobs_in_other_processes(capsys):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    line = ["-m", *TINY, "seed=range(4)", "epochs=100000", "patience=null"]
    line += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=s"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxrnn.train", *line],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while process.poll() is None and not all(Path("s", job, "metrics.jsonl").exists() for job in "01"):
            time.sleep(0.05)
        process.terminate()
        told = process.communicate(timeout=60)[1].splitlines()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143 and "stopped, saved in s" in told[-1]
    assert jobs("s") == [(0, "stopped", 143), (1, "stopped", 143), (2, "waiting", None), (3, "waiting", None)]
    assert all(list(Path("s", job, "checkpoints").glob("step_*")) for job in "01")
    assert not Path("s", "stop").exists()


def test_a_launcher_that_is_not_there_is_refused_with_what_to_install(capsys):
    assert call("-m", "seed=0,1", "hydra/launcher=ray", capsys=capsys)[::2] == (
        2, ["jaxrnn.train: hydra/launcher=ray needs a package that is not here: pip install hydra-ray-launcher"],
    )  # fmt: skip
    code, _, told = call("-m", "seed=0,1", "hydra/launcher=basic,population", "dry_run=true", capsys=capsys)
    assert code == 2 and "basic,population" in told[0] and not os.listdir()
    code, _, (told,) = call("-m", "seed=0,1", "hydra/launcher=populatoin", capsys=capsys)
    assert code == 2 and "'population'" in told
    code, _, (told,) = call("-m", "seed=0,1", "hydra/launcher=population", "hydra.launcher.n_jobs=2", capsys=capsys)
    assert code == 2 and "hydra.launcher.n_jobs" in told
    code, _, (told,) = call("-m", "seed=0,1", "hydra/launcher=population", "hydra.launcher.membrs=2", capsys=capsys)
    assert code == 2 and "did you mean 'hydra.launcher.members'" in told


@pytest.mark.slow
def test_a_population_that_was_stopped_or_killed_does_what_is_missing(capsys):
    line = ["-m", *TINY, "seed=range(4)", "epochs=300", "patience=null", "checkpoint.every_steps=100"]
    line.append("hydra/launcher=population")
    assert call(*line, "hydra.sweep.dir=whole", capsys=capsys)[0] == 0
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    words = [sys.executable, "-m", "jaxrnn.train", *line, "hydra.sweep.dir=cut"]
    codes = []

    def length():
        log = Path("cut", "0", "metrics.jsonl")
        return len(log.read_bytes().splitlines()) if log.exists() else 0

    for sent in (signal.SIGTERM, signal.SIGKILL):
        before = length()
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None and length() < before + 40:
                time.sleep(0.002)
            process.send_signal(sent)
            codes.append(process.wait(60))
        finally:
            process.kill()
        if sent == signal.SIGTERM:
            states = {status for _, status, _ in jobs("cut")}
            assert "stopped" in states and states <= {"completed", "stopped", "waiting"}
            assert list(Path("cut", "0", "checkpoints").glob("step_*"))
    assert codes == [143, -signal.SIGKILL] and {status for _, status, _ in jobs("cut")} != {"completed"}
    before = sum(progress.completed(Path("cut", str(number))) for number in range(4))
    code, out, err = call(*line, "hydra.sweep.dir=cut", capsys=capsys)
    assert (code, err) == (0, []) and sum("left alone" in text for text in out) == before
    assert jobs("cut") == jobs("whole")
    for number in map(str, range(4)):
        assert records(f"cut/{number}") == records(f"whole/{number}")
        np.testing.assert_equal(
            stored.load_model(Path("cut", number)).arrays, stored.load_model(Path("whole", number)).arrays
        )
    fewer = ["seed=range(3)" if word == "seed=range(4)" else word for word in line]
    assert call(*fewer, "hydra.sweep.dir=cut", capsys=capsys)[0] == 6


def lines(path, count):
    """A table of so many rows of two classes."""
    rows = "".join(f"{'good' if n % 2 else 'bad'} film {n % 7}\t{n % 2}\n" for n in range(count))
    Path(path).write_text("text\tlabel\n" + rows)


def test_a_job_that_was_made_with_other_settings_or_rows_is_not_taken_for_one_of_the_sweep(tmp_path, capsys):
    """A yaml of the user's, a table and a run made by hand: what sweep.json says of them may no longer be so."""
    own = tmp_path / "mine" / "experiment" / "e.yaml"
    own.parent.mkdir(parents=True)
    head = "# @package _global_\ndefaults:\n  - override /dataset: files\ndataset:\n  path: rows.tsv\n"
    own.write_text(head + "hidden_size: 8\nplots: auto\n")
    lines("rows.tsv", 80)
    line = ["--config-dir", "mine", "-m", "experiment=e", "epochs=1", "input.size=4", "seed=0,1", "hydra.sweep.dir=s"]
    assert call(*line, capsys=capsys)[0] == 0
    own.write_text(head + "hidden_size: 8\nplots: never\nflow:\n  every_steps: 5\n")  # changes no number
    code, out, _ = call(*line, capsys=capsys)
    assert code == 0 and sum("left alone" in told for told in out) == 2
    for change, says in (("hidden_size: 9\n", "hidden_size: 8 there, 9 here"), ("hidden_size: 8\n", "the rows")):
        own.write_text(head + change)
        if says == "the rows":
            lines("rows.tsv", 90)
        for _ in range(2):  # refused once, refused again
            code, out, err = call(*line, capsys=capsys)
            assert code == 5 and not any("left alone" in told for told in out)
            assert sum(f"holds another run: {says}" in told for told in err) == 2
    shutil.rmtree("s/1/checkpoints")
    lines("rows.tsv", 80)
    assert [told for told in call(*line, capsys=capsys)[1] if "left alone" in told][1].startswith("job 1")
    own.write_text(head + "hidden_size: 9\n")
    assert sum("its config.yaml not as given" in told for told in call(*line, capsys=capsys)[2]) == 1

    assert call(*TINY, "epochs=1", "cell=lstm", "hydra.run.dir=w/0", capsys=capsys)[0] == 0
    for _ in range(2):
        code, out, err = call("-m", *TINY, "epochs=1", "cell=gru,lstm", "hydra.sweep.dir=w", capsys=capsys)
        assert code == 5 and "job 0: w/0 holds another run: cell.name: 'lstm' there, 'gru' here" in err[0]
        assert jobs("w") == [(0, "failed", 5), (1, "completed", 0)]


def test_a_sweep_that_is_given_again_reads_equal_rows_once_and_makes_nothing(monkeypatch, capsys):
    line = ["-m", *TINY, "epochs=1", "seed=range(3)", "hydra.sweep.dir=s"]
    assert call(*line, capsys=capsys)[0] == 0
    read, seen = group.read, []
    monkeypatch.setattr(group, "read", lambda settings: (seen.append(settings), read(settings))[1])
    monkeypatch.setattr(group, "prepare", None)
    code, out, _ = call(*line, capsys=capsys)
    assert code == 0 and sum("left alone" in told for told in out) == 3 and len(seen) == 1


@pytest.mark.parametrize(("share", "code", "says"), [(1.5, 0, "1 jobs at once"), (0.5, 8, "lower batch_size")])
def test_what_does_not_fit_is_run_one_by_one_or_refused(monkeypatch, capsys, share, code, says):
    needed = group.prepare(config.compose([*TINY, "flow.every_steps=null"]), print).needed
    monkeypatch.setattr(devices, "cores", lambda: 2)
    monkeypatch.setattr(devices, "free_memory", lambda device: int(share * needed))
    found, out, err = call("-m", *TINY, "seed=0,1", "epochs=1", "hydra/launcher=population", capsys=capsys)
    assert found == code and says in "\n".join(out + err)


def test_a_sweep_asks_for_room_for_all_its_jobs_before_one_trains(monkeypatch, capsys):
    bytes_each = group.prepare(config.compose(TINY), print).checkpoint_bytes
    monkeypatch.setattr(progress.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 4 * bytes_each))
    code, _, err = call("-m", *TINY, "seed=range(5)", "hydra.sweep.dir=t", capsys=capsys)
    assert code == 7 and "the checkpoints of 5 jobs" in err[0] and "hydra.sweep.dir=DIR" in err[0]
    assert jobs("t") == [(n, "failed", 7) for n in range(5)] and set(os.listdir("t")) == {"sweep.json", "run.lock"}
    assert call("-m", *TINY, "seed=range(4)", "hydra.sweep.dir=u", capsys=capsys)[0] == 0


def test_a_run_and_a_sweep_share_no_folder(capsys):
    def held(folder):
        files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != "run.lock")
        return {path: path.read_bytes() for path in files}

    run, many = [*TINY, "epochs=1", "hydra.run.dir=a"], ["-m", *TINY, "epochs=1", "seed=0,1", "hydra.sweep.dir=s"]
    assert (call(*run, capsys=capsys)[0], call(*many, capsys=capsys)[0]) == (0, 0)
    before = held("a"), held("s")
    code, out, err = call(*many, "hydra.sweep.dir=a", capsys=capsys)
    assert (code, out, len(err)) == (6, [], 1) and "a holds a run: expected another hydra.sweep.dir" in err[0]
    code, out, err = call(*run, "hydra.run.dir=s", capsys=capsys)
    assert (code, out, len(err)) == (6, [], 1) and "s holds a sweep: expected another hydra.run.dir" in err[0]
    assert (held("a"), held("s")) == before
    assert call(*run, "hydra.run.dir=s/1", "seed=1", capsys=capsys)[0] == 0  # a job is a run


@pytest.mark.parametrize("launcher", ["basic", "population"])
def test_a_stopped_sweep_says_in_one_line_how_to_go_on(monkeypatch, capsys, launcher):
    def heard(folder, stream=None, epochs=1):
        return job.loggers.Logger(epoch=lambda record: os.kill(os.getpid(), signal.SIGTERM))

    line = ["-m", *TINY, "seed=0,1", "logger=csv", f"hydra/launcher={launcher}"]
    with monkeypatch.context() as patched:
        patched.setitem(job.loggers.MEMBERS, "csv", heard)
        code, _, err = call(*line, capsys=capsys)
    (folder,) = Path("runs/default").iterdir()
    way = f"hydra.sweep.dir={folder}"
    assert (code, err) == (143, [f"jaxrnn.train: stopped, saved in {folder}; resume with the same command and {way}"])
    assert call(*line, way, capsys=capsys)[0] == 0
    with pytest.raises(command.Terminated, match="before a checkpoint was saved in u"), running.opened("u", launcher):
        raise command.Terminated


@pytest.mark.parametrize("members", ["1", "2"])
def test_a_second_interrupt_waits_for_no_job(members):
    """Each is where it hears of no stop, as in a compilation; the command leaves all the same, its record written."""
    code = """
import os, signal, sys, threading, time
from jaxrnn import command, running, train
running.Runner.at_once = lambda self, tasks: 2
def one(self, number, settings, watch, halt):
    if number == 0:
        return running.Outcome(0, "failed", 3, {}, ValueError("early"))
    if number == 1:
        threading.Thread(target=twice, daemon=True).start()
    time.sleep(300)
def twice():
    for _ in range(2):
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)
running.Runner.one = one
command.run("train", train.main)
"""
    words = ["-m", *TINY, "seed=0,1,2", "hydra/launcher=population", f"hydra.launcher.members={members}"]
    line = [sys.executable, "-c", code, *words, "hydra.sweep.dir=s"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
    told = done.stderr.splitlines()[-1]
    assert done.returncode == 130 and told.startswith("jaxrnn.train: stopped before a checkpoint was saved in s")
    assert jobs("s") == [(0, "failed", 3), (1, "waiting", None), (2, "waiting", None)]


def test_jobs_at_work_divide_the_cores_among_their_threads(monkeypatch):
    limits, room = [], launchers.Room(4)
    monkeypatch.setattr(foreign, "limit", limits.append)
    with room.taken(1), room.taken(1), room.taken(2):
        pass
    assert limits == [4, 2, 1, 2, 4, 4]


def test_a_damaged_summary_is_met_by_its_job_alone(capsys):
    line = ["-m", *TINY, "seed=0,1,2", "hydra.sweep.dir=s"]
    assert call(*line, capsys=capsys)[0] == 0
    Path("s/1/summary.json").write_bytes(Path("s/1/summary.json").read_bytes()[:20])
    shutil.rmtree("s/2")
    code, _, err = call(*line, capsys=capsys)
    assert code == 5 and jobs("s") == [(0, "completed", 0), (1, "failed", 5), (2, "completed", 0)]
    (reason,) = [entry["reason"] for entry in runs.read_json(Path("s/sweep.json"))["jobs"] if "reason" in entry]
    assert "summary.json is not JSON" in reason and f"job 1: {reason}" in err


@pytest.mark.parametrize("when", ["during", "after"])
def test_a_folder_that_is_removed_while_it_trains_fails_its_job_alone(monkeypatch, capsys, when):
    def heard(folder, stream=None, epochs=1):
        def remove(record):
            if Path(folder).name in ("0", "alone"):
                shutil.rmtree(folder, ignore_errors=True)

        return job.loggers.Logger(epoch=remove) if when == "during" else job.loggers.Logger(close=lambda: remove(None))

    monkeypatch.setitem(job.loggers.MEMBERS, "csv", heard)
    line = [*TINY, "epochs=1", "logger=csv"]
    code, out, err = call("-m", *line, "seed=0,1", "hydra.sweep.dir=s", capsys=capsys)
    assert code == 7 and jobs("s") == [(0, "failed", 7), (1, "completed", 0)] and out[-1] == "sweep: s"
    assert "job 0: s/0/config.yaml has vanished while the run trained" in err[0] and not Path("s/0").exists()
    code, _, err = call(*line, "hydra.run.dir=alone", capsys=capsys)
    assert code == 7 and "alone/config.yaml has vanished" in err[0]
    standing.tell("job 3: seed=3", launchers.Outcome(3, "completed", 0, {}))


def test_a_dry_run_of_many_jobs_looks_at_their_rows_and_devices_once_for_each_group(tmp_path, monkeypatch, capsys):
    read, seen = group.read, []
    monkeypatch.setattr(group, "read", lambda settings: (seen.append(settings), read(settings))[1])
    lines("good.tsv", 80)
    line = ["-m", "dataset=files", "seed=range(50)", "batch_size=8", "cell=vanilla,gru", "dry_run=true"]
    code, out, err = call(*line, "dataset.path=good.tsv", capsys=capsys)
    assert (code, err, len(seen)) == (0, [], 1) and "100 jobs" in out[-1]
    assert sum(told.startswith("data: files, 64 train") for told in out) == 1
    for words, wanted, says in (
        (["dataset.path=good.tsv,nope.csv"], 3, "nope.csv: no such file"),
        (["dataset.path=good.tsv", "device=cpu,tpu"], 2, "device=tpu"),
        (["dataset.path=good.tsv", "device.count=3"], 2, "device.count=3"),
        (["dataset.path=nope.csv", "hydra/launcher=population"], 3, "nope.csv: no such file"),
    ):
        code, out, err = call(*line, *words, capsys=capsys)
        assert code == wanted and says in err[-1] and not any("sound" in told for told in out)
    assert [path.name for path in tmp_path.iterdir()] == ["good.tsv"]


def test_a_sweep_that_cannot_be_written_is_told_a_word_for_another_place(capsys):
    Path("file").write_text("")
    code, _, err = call("-m", *TINY, "seed=0,1", "hydra.sweep.dir=file/s", capsys=capsys)
    assert code == 7 and "of a sweep hydra.sweep.dir=DIR" in err[0]


def test_the_folder_of_a_sweep_may_have_any_name(capsys):
    line = ["-m", *TINY, "seed=0,1", "epochs=1"]
    assert call(*line, "hydra.sweep.dir=latest", capsys=capsys)[1][-1] == "sweep: latest"
    code, out, _ = call(*line, "hydra.sweep.dir=out/${now:%Y}", capsys=capsys)
    assert (code, out[-1]) == (0, f"sweep: out/{time.strftime('%Y')}")


def test_where_the_report_fails_the_folder_is_said(capsys, monkeypatch):
    monkeypatch.setattr(sweep.ranking, "ranked", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main(["-m", *TINY, "seed=0,1", "epochs=1", "hydra.sweep.dir=s"])
    assert capsys.readouterr().out.splitlines()[-1] == "sweep: s"


def test_a_job_that_was_stopped_in_another_process_is_said(capsys):
    standing.tell("job 3: seed=3", launchers.Outcome(3, "stopped", 143, {}))
    assert capsys.readouterr().out == "job 3: seed=3   stopped\n"


def test_errors_of_jobs_hold_nothing_of_what_was_in_memory():
    seen = []
    fails = config.compose([*TINY, *(word.replace("1e+38,0.01", "1e+38") for word in FAILS), "plots=never"])
    with running.opened("s", "basic") as runner:
        outcomes = runner.run([(0, fails)])
    error = outcomes[0].error
    while error is not None:
        seen.append(error.__traceback__)
        error = error.__cause__ or error.__context__
    assert outcomes[0].code == 4 and set(seen) == {None}


def test_what_cannot_be_run_is_refused_before_anything_is_changed():
    one, other = (config.compose([*TINY, f"seed={seed}", "plots=never"]) for seed in (0, 1))
    with running.opened("s", "basic") as runner:
        runner.run([(0, one)])
        before = Path("s/sweep.json").read_bytes()
        with pytest.raises(BusyError, match="another job 0"):
            runner.run([(5, other), (0, other)])
        with pytest.raises(ConfigurationError, match="different numbers"):
            runner.run([(7, one), (7, other)])
        assert set(runner.entries) == {0} and Path("s/sweep.json").read_bytes() == before
    for wrong in ({"launcher": "populatoin"}, {"launcher": "population", "members": 0}):
        says = r"populatoin.*did you mean 'population'|members=0"
        with pytest.raises(ConfigurationError, match=says), running.opened("t", **wrong):
            pass
    assert not Path("t").exists()


def test_a_sweep_is_known_by_the_words_of_each_job_in_any_order(capsys):
    line = [*TINY, "seed=0,1", "hydra.sweep.dir=s"]
    assert call("-m", *line, capsys=capsys)[0] == 0
    code, out, _ = call("-m", *line[::-1], "plots=never", "logger=jsonl", "resume=must", capsys=capsys)
    assert code == 0 and sum("left alone" in told for told in out) == 2
    for words, says in (
        (["seed=1,0"], "another job 0, seed=0 there, seed=1 here"),
        (["seed=0,1", "layers=1"], "another job 0, nothing there, layers=1 here"),
        (["seed=0,1", "resume=never"], "job 0 and resume=never"),
        (["epochs=1", "seed=0,1"], "another job 0, epochs=3 there, epochs=1 here"),
        (["seed=0,1,2"], "a sweep of other jobs, 2 there, 3 here"),
    ):
        code, _, (told,) = call("-m", *TINY, *words, "hydra.sweep.dir=s", capsys=capsys)
        assert code == 6 and says in told


def test_sweep_json_of_many_jobs_is_written_now_and_then(monkeypatch):
    monkeypatch.setattr(running, "WRITTEN_EVERY", 1e9)
    written, write = [], runs.write_json
    monkeypatch.setattr(runs, "write_json", lambda path, value: (written.append(path.name), write(path, value)))
    with running.opened("s", "population") as runner:
        runner.run([(n, config.compose([*TINY, f"seed={n}"])) for n in range(4)])
    assert written.count("sweep.json") == 2 and jobs("s") == [(n, "completed", 0) for n in range(4)]


def test_the_group_that_was_not_used_for_longest_makes_room(monkeypatch):
    monkeypatch.setattr(running, "GROUPS_KEPT", 2)
    prepare, made = group.prepare, []
    monkeypatch.setattr(
        group, "prepare", lambda settings, *more: (made.append(settings.hidden_size), prepare(settings, *more))[1]
    )
    sizes = [3, 4, 3, 5, 3, 4]
    with running.opened("s", "basic") as runner:
        for number, size in enumerate(sizes):
            runner.run([(number, config.compose([*TINY, f"hidden_size={size}", "epochs=1", "unroll.kernel=never"]))])
    assert made == [3, 4, 5, 4]


def test_where_there_are_no_more_threads_the_sweep_ends_in_order(monkeypatch):
    start, begun, told, at_work = threading.Thread.start, [], [], threading.Event()

    def few(thread):
        if "ThreadPoolExecutor" in thread.name:
            if begun:
                at_work.wait(60)
                raise RuntimeError("can't start new thread")
            begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", few)
    monkeypatch.setattr(devices, "cores", lambda: 2)

    def run(halt):
        at_work.set()
        while halt() is None:
            time.sleep(0.01)
        told.append(halt())
        return launchers.Outcome(0, "stopped", 130, {})

    tasks = [launchers.Task(number, None, run) for number in range(4)]
    with pytest.raises(RuntimeError, match="new thread"):
        launchers.population(tasks, told.extend)
    assert len(told) == 1 and isinstance(told[0], KeyboardInterrupt)
