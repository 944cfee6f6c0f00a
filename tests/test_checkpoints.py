"""The commit protocol: wholly there or not at all, compared before use, the newest that compares well wins."""

import errno
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import safetensors.numpy

from jaxrnn import checkpoints, runs
from jaxrnn.errors import ArtefactError, BusyError, StorageError


def checkpoint(step, **changed):
    state = {"params.W": np.full((3, 2), step, np.float32), "step": np.int32(step), "empty": np.zeros(0, np.float32)}
    return checkpoints.Checkpoint(step, 1, step, {"seed": 0}, {"waited": 1}, state, None)._replace(**changed)


@pytest.fixture
def run(tmp_path):
    for step in (10, 20, 30):
        checkpoints.save(tmp_path, checkpoint(step, best={"W": np.ones(2, np.float32)}), keep=2)
    return tmp_path


def folder(run, step):
    return run / "checkpoints" / f"step_{step}"


def test_save_then_load_is_the_identity_and_only_the_newest_are_kept(run):
    assert checkpoints.steps(run) == [30, 20]
    found = checkpoints.load(run, 30)
    np.testing.assert_equal(found._asdict(), checkpoint(30, best={"W": np.ones(2, np.float32)})._asdict())
    assert sorted(json.loads((folder(run, 30) / "manifest.json").read_text())) == [
        "batch", "epoch", "files", "fingerprint", "step",
    ]  # fmt: skip


def test_a_step_that_is_not_there_is_refused_with_those_that_are(run):
    with pytest.raises(ArtefactError, match=f"no checkpoint of step 77 in {run}; there are: 20, 30$"):
        checkpoints.load(run, 77)
    with pytest.raises(ArtefactError, match="there are: none"):
        checkpoints.load(run / "new", 77)


@pytest.mark.parametrize("name", ["state.safetensors", "best.safetensors", "position.json", "manifest.json"])
@pytest.mark.parametrize("damage", [0, 1, 0.5, 0.99, "flip", "gone", "more", "{}"])
def test_a_damaged_one_is_refused_said_and_kept_and_the_one_before_is_used(run, name, damage):
    path = folder(run, 30) / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "more":
        path.with_name(name + ".more").write_bytes(b"")
    elif damage == "flip":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    else:
        path.write_bytes(b"{}" if damage == "{}" else content[: damage if damage == 1 else int(damage * len(content))])
    said = []
    if (name, damage) == ("manifest.json", "flip"):  # it may still be a manifest that fits
        return
    with pytest.raises(ArtefactError):
        checkpoints.load(run, 30)
    found = checkpoints.newest(run, said.append)
    assert found.step == 20 and len(said) == 1 and "step_30" in said[0]
    assert len(list(run.glob("checkpoints/step_30.damaged-*"))) == 1


def test_no_good_one_left_is_refused_and_none_at_all_is_a_new_run(run, tmp_path):
    for step in (30, 20):
        (folder(run, step) / "manifest.json").write_bytes(b"")
    for _ in range(2):  # the second time they have been renamed
        with pytest.raises(ArtefactError, match="every checkpoint is damaged"):
            checkpoints.newest(run, lambda _: None)
    assert checkpoints.newest(tmp_path / "nosuch", print) is None


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("when", [0, 1, 2, 3])
def test_a_failing_disk_costs_nothing_that_was_there(run, monkeypatch, call, number, when):
    before, real, count = sorted(run.rglob("*")), getattr(os, call), []

    def fail(*arguments, **settings):
        count.append(1)
        if len(count) == when + 1:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **settings)

    monkeypatch.setattr(os, call, fail)
    try:
        checkpoints.save(run, checkpoint(40), keep=1)
    except StorageError as error:
        assert "bytes to write" in str(error)
        after = [path for path in sorted(run.rglob("*")) if "step_40" not in str(path)]
        assert after == before and not list(run.rglob("*.tmp-*"))
    else:
        assert len(count) <= when or call == "rename"  # an old one that cannot be removed stays
    monkeypatch.undo()
    assert all(checkpoints.load(run, step) for step in checkpoints.steps(run))
    assert checkpoints.newest(run, pytest.fail).step in (30, 40)


def test_killed_while_it_removes_an_old_one_it_leaves_none_with_files_missing(run, monkeypatch):
    def killed(folder, **_):
        if folder.exists():
            (folder / "manifest.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(run, checkpoint(40), keep=1)
    monkeypatch.undo()
    assert [checkpoints.load(run, step).step for step in checkpoints.steps(run)] == [40, 20]


def test_the_same_step_can_be_written_again(run):
    checkpoints.save(run, checkpoint(30, epoch=7), keep=2)
    assert checkpoints.load(run, 30).epoch == 7
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_20", "step_30"]


def test_what_a_kill_left_behind_is_said_once_and_removed(run):
    (run / "checkpoints" / "step_40.tmp-abc").mkdir()
    (run / "summary.json.tmp-abc").write_text("{")
    said = []
    checkpoints.tidied(run, said.append)
    checkpoints.tidied(run, said.append)
    assert len(said) == 2 and not list(run.rglob("*.tmp-*"))


HOLD = """import pathlib, sys, jaxrnn.runs
with jaxrnn.runs.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_folder_has_one_writer_and_a_killed_one_lets_go(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        lock = (tmp_path / "run.lock").read_bytes()
        with pytest.raises(BusyError, match=f"process {holder.pid} on"), runs.locked(tmp_path):
            pass
        assert (tmp_path / "run.lock").read_bytes() == lock
    finally:
        holder.kill()
        holder.communicate()
    with runs.locked(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_lines_of_several_writers_stay_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def write(who):
        lines = runs.Lines(path)
        for number in range(100):
            lines.add(json.dumps({"who": who, "number": number, "text": "x" * 200}))
            if number % 3 == 0:
                lines.flush()
        lines.close()

    writers = [threading.Thread(target=write, args=(who,)) for who in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with path.open("ab") as file:
        file.write(b'{"torn": ')
    assert len(list(runs.read_lines(path))) == 800
    with path.open("ab") as file:
        file.write(b"\n{}\n")
    with pytest.raises(ArtefactError, match="not JSON"):
        list(runs.read_lines(path))


KINDS = [np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.float16, np.int32, np.uint32, np.float32]
KINDS += [np.float64, np.int64, np.uint64]


def test_arrays_are_packed_as_the_library_packs_them():
    stream = np.random.default_rng(0)
    named = {f'{kind.__name__}.ä"{n}': stream.integers(0, 2, (3, n)).astype(kind) for kind in KINDS for n in (2, 5)}
    named |= {"empty": np.zeros((0, 3), np.float32), "number": np.array(7, np.int32)}
    named["across"] = named['float32.ä"5'].T
    for held in (named, {}):
        joined = {name: np.asarray(array, order="C") for name, array in held.items()}
        assert b"".join(checkpoints.packed(held)) == safetensors.numpy.save(joined)


@pytest.mark.parametrize("change", ["flip", "cut", "more", "gone", "link", "another"])
def test_what_the_disk_does_not_hold_as_it_was_written_is_found_before_an_old_one_goes(run, monkeypatch, change):
    real = checkpoints.sync_folder

    def damaging(path):
        real(path)
        if path.name == "checkpoints":  # the new one has just got its name
            file = folder(run, 40) / "state.safetensors"
            content = file.read_bytes()
            if change in ("flip", "cut", "more"):
                flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
                file.write_bytes({"flip": flipped, "cut": content[:-1], "more": content + b"\0"}[change])
            elif change == "another":
                file.with_name("more").write_bytes(b"")
            else:
                file.unlink()
                if change == "link":
                    file.symlink_to(folder(run, 30) / "state.safetensors")

    monkeypatch.setattr(checkpoints, "sync_folder", damaging)
    with pytest.raises(ArtefactError):
        checkpoints.save(run, checkpoint(40), keep=1)
    assert checkpoints.load(run, 30).step == 30 and checkpoints.load(run, 20).step == 20
