"""The run folder: made once, written whole, read back as a stranger's."""

import errno
import itertools
import json
import os
from typing import NamedTuple

import numpy as np
import pytest

from jaxrnn import history, loggers, packing, plots, runs, stored
from jaxrnn.errors import ArtefactError, StorageError


class Inner(NamedTuple):
    W: np.ndarray
    b: np.ndarray


class Outer(NamedTuple):
    table: np.ndarray
    layers: tuple
    nothing: tuple


def tree():
    """Arrays of two, one and no dimensions, and one without elements."""
    layers = (Inner(np.eye(2, dtype=np.float32).T, np.float32(4.0)), Inner(np.ones((0, 2), np.float32), np.ones(3)))
    return Outer(np.ones((3, 2), np.float32), layers, ())


@pytest.fixture
def run(tmp_path):
    saved = stored.Saved({"format": 1}, packing.flat(tree()), '{"<padding>": 0}\n')
    stored.save_model(tmp_path, saved)
    return tmp_path


def test_names_of_leaves_are_fields_and_numbers():
    assert list(packing.flat(tree())) == ["table", "layers.0.W", "layers.0.b", "layers.1.W", "layers.1.b"]


def test_save_then_load_is_the_identity(run):
    found = stored.load_model(run)
    again = packing.filled(tree(), found.arrays, "here")
    assert found.settings == {"format": 1}
    assert found.vocabulary == '{"<padding>": 0}\n'
    np.testing.assert_equal(packing.flat(again), packing.flat(tree()))
    assert sorted(path.name for path in run.iterdir()) == ["model"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.pop("layers.0.W"), "'layers.0.W' of the network is missing"),
        (lambda a: a.update(strange=np.ones(1)), "'strange' is not part"),
        (
            lambda a: a.update({"layers.0.W": np.ones((2, 3), np.float32)}),
            r"W' is float32\[2, 3\], expected float32\[2, 2\]",
        ),
        (lambda a: a.update({"layers.0.W": np.ones((2, 2))}), r"'layers.0.W' is float64"),
    ],
)
def test_a_wrong_array_is_named(change, says):
    arrays = packing.flat(tree())
    change(arrays)
    with pytest.raises(ArtefactError, match=says):
        packing.filled(tree(), arrays, "here")


@pytest.mark.parametrize("name", [*stored.MODEL_FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "empty", "pickle"])
def test_damage_is_found_before_use(run, name, damage):
    path = run / "model" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "flip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes({"cut": content[:-1], "empty": b"", "pickle": b"cos\nsystem\n(S'touch CANARY'\ntR."}[damage])
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.") if damage == "gone" else "model"):
        stored.load_model(run)
    assert not os.path.exists("CANARY")


def test_a_folder_of_runs_is_refused_with_the_newest_of_them(tmp_path):
    for number, (place, status) in enumerate([("1", "completed"), ("2", "completed"), ("3", "failed")]):
        (tmp_path / place).mkdir()
        runs.write_json(tmp_path / place / "summary.json", {"status": status})
        os.utime(tmp_path / place / "summary.json", ns=(number * 10**9, number * 10**9))
    with pytest.raises(ArtefactError, match=f"expected a run folder .*, such as {tmp_path / '2'}, the newest"):
        stored.load_model(tmp_path)
    (tmp_path / "3" / "summary.json").write_text("{")
    with pytest.raises(ArtefactError, match=f"such as {tmp_path / '2'}, the newest"):
        stored.load_model(tmp_path)


def test_a_run_that_still_trains_has_no_model_yet(tmp_path):
    with pytest.raises(ArtefactError, match="holds no model/: expected a run folder"):
        stored.load_model(tmp_path)
    (tmp_path / "config.yaml").write_text("cell: gru\n")
    with pytest.raises(ArtefactError, match="no model yet: model/ is written when training ends or is stopped"):
        stored.load_model(tmp_path)


def test_what_is_no_safetensors_file_is_refused_even_with_its_right_sum(run):
    import hashlib

    content = b"\x80\x04K\x01."
    (run / "model" / "params.safetensors").write_bytes(content)
    manifest = json.loads((run / "model" / "manifest.json").read_text())
    manifest["files"]["params.safetensors"] = {
        "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    (run / "model" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="not a safetensors file"):
        stored.load_model(run)


def test_new_folders_are_never_shared(tmp_path):
    made = {runs.new_folder("x", root=tmp_path) for _ in range(20)}
    sweeps = {runs.new_folder("x", prefix="sweep_", root=tmp_path) for _ in range(5)}
    assert len(made) == 20
    assert len(sweeps) == 5
    assert len(list((tmp_path / "x").iterdir())) == 25


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failing_disk_is_said_and_leaves_the_old_file(tmp_path, monkeypatch, number, where):
    runs.write_json(tmp_path / "summary.json", {"old": True})

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(StorageError, match=os.strerror(number)):
        runs.write_json(tmp_path / "summary.json", {"old": False})
    monkeypatch.undo()
    assert runs.read_json(tmp_path / "summary.json") == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_failing_disk_leaves_no_half_model(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(StorageError, match="bytes are free"):
        stored.save_model(tmp_path, stored.Saved({}, {}, "{}"))
    assert list(tmp_path.iterdir()) == []


def test_latest_is_the_newest_completed(tmp_path):
    for number, (place, status) in enumerate(
        [("a/1", "completed"), ("b/sweep_1/0", "completed"), ("b/2", "failed"), ("b/sweep_1/1", "stopped")]
    ):
        (tmp_path / place).mkdir(parents=True)
        runs.write_json(tmp_path / place / "summary.json", {"status": status})
        os.utime(tmp_path / place / "summary.json", ns=(number * 10**9, number * 10**9))
    assert runs.find("latest", tmp_path) == tmp_path / "b/sweep_1/0"
    (tmp_path / "a" / "damaged").mkdir(parents=True)
    (tmp_path / "a" / "damaged" / "summary.json").write_text('{"status": "compl')
    assert runs.find("latest", tmp_path) == tmp_path / "b/sweep_1/0"
    assert runs.find(str(tmp_path / "a/1")) == tmp_path / "a/1"
    with pytest.raises(ArtefactError, match="no completed run"):
        runs.find("latest", tmp_path / "nosuch")
    with pytest.raises(ArtefactError, match="not a folder"):
        runs.find(str(tmp_path / "nosuch"))


def test_json_that_is_none_is_refused(tmp_path):
    path = tmp_path / "x.json"
    for content in (b"{", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match="not JSON"):
            runs.read_json(path)


def record(epoch, best=False):
    split = {"loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch}
    return {"step": 10 * epoch, "epoch": epoch, "train": split, "valid": split, "best": best, "seconds": 0.5}


def flow(step, **changed):
    way = {"layer": 1, "direction": "left to right", "verdict": "healthy", "log_slope": None, "saturation": 0.1}
    return {"step": step, "epoch": 1, "flow": [way | {"log_norms": [0.0, None]} | changed]}


def test_what_a_run_wrote_is_read_back_or_refused(tmp_path):
    assert history.earlier(tmp_path) == []
    good = [flow(0), {"step": 1, "epoch": 1, "loss": 0.5, "grad_norm": 1.0}, record(1), flow(8), record(2)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in good) + '{"half')
    assert history.earlier(tmp_path) == [line for line in good if "loss" not in line]
    whole = path.read_text()
    odd = [record(1) | {"train": 1}, record(1) | {"epoch": 0}, record(1) | {"best": 1}, {"flow": []}, {"train": {}}]
    odd += [flow(8, log_norms=[0.0]), flow(8, layer=2), flow(8, log_norms=5), flow(8, log_slope="x"), flow(True)]
    for line in ["[", "x" * (1 << 20), *map(json.dumps, odd), json.dumps(record(1)).replace("0.5", "NaN")]:
        path.write_text(f"{json.dumps(flow(0))}\n{line}\n")
        with pytest.raises(ArtefactError, match=r"metrics\.jsonl"):
            history.earlier(tmp_path)
    path.write_text(whole)
    for test in (None, {"confusion": [[1, 0], [0]], "labels": ["a", "b"]}, {"confusion": [[1]], "labels": ["a", "b"]}):
        runs.write_json(tmp_path / "summary.json", {"test": test})
        with pytest.raises(ArtefactError, match=r"summary\.json"):
            history.test(tmp_path)
    runs.write_json(tmp_path / "summary.json", {"test": {"confusion": [[1, 0], [0, 2]], "labels": ["a", "b"]}})
    assert history.test(tmp_path)["labels"] == ["a", "b"]


@pytest.mark.parametrize("name", ["run.lock", "metrics.jsonl", "checkpoints", "plots/curves.png", "model"])
def test_a_folder_that_leads_elsewhere_is_not_written_to(tmp_path, name):
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / name).parent.mkdir(parents=True)
    outside.write_text("not yours")
    for place in (lambda: (run / name).symlink_to(outside), lambda: os.mkfifo(run / name)):
        place()
        with pytest.raises(ArtefactError, match=name), runs.locked(run):
            pytest.fail("it was entered")
        assert outside.read_text() == "not yours"
        (run / name).unlink()
    with runs.locked(run):
        assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize("read", [runs.read_json, runs.check_config, lambda path: list(runs.read_lines(path))])
def test_what_is_no_file_is_not_read(tmp_path, read):
    for place in (os.mkfifo, lambda path: os.symlink("/dev/zero", path), os.mkdir):
        place(tmp_path / "config.yaml")
        with pytest.raises(ArtefactError, match="not a file"):
            read(tmp_path if read is runs.check_config else tmp_path / "config.yaml")
        (tmp_path / "config.yaml").rmdir() if place is os.mkdir else (tmp_path / "config.yaml").unlink()


def test_loggers_write_every_epoch(tmp_path, capsys):
    log = loggers.opened(("console", "jsonl", "csv"), tmp_path, 3)
    for epoch in (1, 2, 3):
        log.tick(epoch, 5, 10, 0.7)
        log.step({"step": epoch, "epoch": epoch, "loss": 0.5, "grad_norm": 1.0})
        log.epoch(record(epoch, best=epoch == 2))
    log.close()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed] == ["1/3", "2/3", "3/3"]
    assert printed[1].endswith("best")
    assert "\r" not in "".join(printed)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("train") is None for line in lines] == [True, False] * 3
    assert lines[1] == record(1)
    table = (tmp_path / "metrics.csv").read_text().splitlines()
    assert table[0].startswith("epoch,step,train_loss")
    assert len(table) == 4


def test_lines_reach_the_file_in_time(tmp_path, monkeypatch):
    now, path = [100.0], tmp_path / "metrics.jsonl"
    quick = {"seconds": 0.001}
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])

    def written():
        return len(path.read_text().splitlines())

    log = loggers.opened(("jsonl", "csv"), tmp_path, 9)
    log.epoch(record(1) | quick)
    assert written() == 0
    now[0] += 2 * runs.HELD
    log.epoch(record(2) | quick)
    assert written() == 2
    log.epoch(record(3) | quick)
    log.tick(4, 5, 10, 0.7)
    assert written() == 3
    log.epoch(record(4) | quick)
    log.flush()
    assert written() == len((tmp_path / "metrics.csv").read_text().splitlines()) - 1 == 4
    log.epoch(record(5))
    assert written() == 5  # an epoch of half a second
    log.epoch(record(6) | quick)
    log.close()
    assert written() == 6
    loggers.opened(("csv",), tmp_path, 9).close()
    assert (tmp_path / "metrics.csv").read_text().count("epoch") == 1


def test_a_long_plain_log_is_thinned_and_ends_with_its_last_epoch(tmp_path, capsys):
    log = loggers.opened(("console",), tmp_path, 1000)
    for epoch in range(1, 996):
        log.epoch(record(epoch))
    log.close()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 101
    assert printed[-1].split()[1] == "995/1000"


def test_a_terminal_gets_a_bar(tmp_path):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    log = loggers.console(tmp_path, out, 3)
    log.tick(1, 5, 10, 0.7)
    assert "5/10" in out.getvalue()
    assert "█" in out.getvalue()
    assert out.getvalue().startswith("\r")


def test_a_single_text_shows_its_prediction_in_both_bases():
    line = loggers.line(record(1) | {"train": {"loss": 0.2485}} | loggers.single_text({"loss": 0.2485}), 1)
    assert "prediction 0.7800" in line
    assert "0.2485 nats, 0.1079 in base 10" in line


def test_pictures_are_pngs(tmp_path):
    records = [record(epoch, best=epoch == 2) for epoch in (1, 2, 3)]
    paths = [
        plots.curves(records, tmp_path / "curves.png", title="a title"),
        plots.confusion(np.array([[3, 1], [0, 4]]), ["bad", "good"], tmp_path / "two.png"),
        plots.confusion(np.eye(12, dtype=int), [f"a long label {n}" for n in range(12)], tmp_path / "twelve.png"),
        plots.confusion(np.zeros((40, 40), int), [str(n) for n in range(40)], tmp_path / "forty.png"),
        plots.confusion(np.eye(3, dtype=int), ["$^$", "\u65e5\U0001f468\u200d", "\x1b[1m"], tmp_path / "odd.png"),
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_curves_say_by_what_an_epoch_is_the_best_and_no_legend_lies_on_them(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "_save", lambda figure, path: figure)
    figure = plots.curves([record(epoch, best=epoch == 2) for epoch in (1, 2, 3)], tmp_path / "curves.png", title="a")
    figure.draw_without_rendering()
    (legend,), panels = figure.legends, [axis.get_window_extent() for axis in figure.axes]
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
    assert not any(legend.get_window_extent().overlaps(panel) for panel in panels)
    for axis in figure.axes:
        assert axis.get_title(loc="right").endswith("at epoch 2, the best by validation accuracy")


@pytest.mark.parametrize("count", [2, 20, 60, 200])
def test_a_confusion_matrix_names_its_classes_and_what_is_a_whole(count, tmp_path, monkeypatch):
    """Names that do not overlap, or numbers and what they count."""
    monkeypatch.setattr(plots, "_save", lambda figure, path: figure)
    names = [f"comp.sys.mac.{n}" for n in range(count)] if count > 2 else ["bad", "good"]
    figure = plots.confusion(np.eye(count, dtype=int), names, tmp_path / "x.png", title="test")
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert "true label, a row is 100 %" in axis.get_title(loc="left")
    shown = [tick.get_text() for tick in axis.get_yticklabels()]
    assert ("summary.json" in axis.get_ylabel()) == (count == 200) and (shown == names) == (count < 200)
    for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
        boxes = [tick.get_window_extent() for tick in ticks if tick.get_text()]
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))
