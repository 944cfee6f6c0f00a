"""E: full, failing and read-only file systems, damaged checkpoints. C1, C2: numbers that are not finite."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import faultbench as bench
import numpy as np
import pytest


def mounted(script, *arguments):
    """A shell script in a mount namespace of its own; skips where there can be none."""
    why = bench.allowed("unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt")
    if why:
        pytest.skip(f"no mount namespace: {why}")
    return ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, arguments)]


@pytest.mark.fault("E1")
def test_room_is_asked_for_before_compilation(basis, cache, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    before = mounted('d=$1; shift; mount -t tmpfs -o size=20k none "$d"; "$@"', disk)
    code, out, err = bench.train([*basis, f"hydra.run.dir={disk}/run"], cache, before=before)
    assert code == 7 and not any("compiled" in line for line in out), out
    needed, free = re.search(r"checkpoints, ([\d,]+) bytes, found ([\d,]+) bytes free", err[-1]).groups()
    assert int(needed.replace(",", "")) > int(free.replace(",", "")) > 0


@pytest.mark.fault("E1")
@pytest.mark.whole
@pytest.mark.parametrize("keep", [1, 2])
def test_a_full_disk_costs_the_checkpoint_that_did_not_fit(basis, cache, copy, tmp_path, reference, keep):
    """Room is there at the start, and taken while the run goes."""
    disk, back = tmp_path / "disk", tmp_path / "back"
    disk.mkdir()
    script = 'd=$1; c=$2; b=$3; n=$4; shift 4; mount -t tmpfs -o size=4m none "$d"; cp -r "$c" "$d/run"; '
    script += '( while [ $(wc -l < "$d/run/metrics.jsonl") -lt "$n" ]; do sleep 0.01; done; '
    script += 'dd if=/dev/zero of="$d/full" bs=1k 2>/dev/null ) & "$@"; code=$?; wait; cp -r "$d/run" "$b"; exit $code'
    before = mounted(script, disk, copy, back, bench.logged(copy) + 20)
    line = [*basis, f"checkpoint.keep={keep}", "checkpoint.every_steps=2"]
    code, _, err = bench.train([*line, "epochs=40", f"hydra.run.dir={disk}/run"], cache, before=before)
    assert code == 7 and "No space left" in err[-1] and "bytes to write" in err[-1] and "bytes are free" in err[-1], err
    assert bench.verifies(back) and bench.verifies(back) == bench.steps(back)
    assert not list(back.glob("checkpoints/*.tmp-*"))
    code, _, err = bench.train([*line, "epochs=40", f"hydra.run.dir={back}"], cache)
    assert (code, err) == (0, [])
    assert bench.losses(back)[:40] == bench.losses(reference)


@pytest.mark.fault("E2")
@pytest.mark.whole
@pytest.mark.parametrize(
    ("call", "error", "path"),
    [
        ("fsync", "error=EIO:when=3", None),
        ("fsync", "error=ENOSPC:when=9", None),
        ("rename", "error=EDQUOT:when=4", None),
        ("write", "error=ENOSPC:when=2", "metrics.jsonl"),  # a write before every checkpoint, of which two are kept
    ],
)
def test_a_failing_call_is_said_at_that_save(basis, cache, copy, tmp_path, call, error, path):
    only = [] if path is None else ["-P", str(copy / path)]
    trace, why = bench.traced(call, error, tmp_path / "trace", *only)
    if why:
        pytest.skip(f"no strace: {why}")
    good = bench.verifies(copy)
    line = [*basis, f"hydra.run.dir={copy}", "checkpoint.every_steps=2"]
    code, _, err = bench.train(line, cache, before=trace)
    assert "(INJECTED)" in (tmp_path / "trace").read_text()
    assert code == 7 and len(err) == 1, err
    assert set(good) & set(bench.verifies(copy))
    assert bench.train(line, cache)[0] == 0


@pytest.mark.fault("E3")
@pytest.mark.whole
def test_a_read_only_place_is_refused_before_compilation(basis, cache, copy, tmp_path):
    script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; "$@"'
    before = mounted(script, copy)
    held = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for place in (copy, copy / "new"):
        code, out, err = bench.train([*basis, f"hydra.run.dir={place}"], cache, before=before)
        assert code == 7 and "Read-only" in err[-1] and not any("compiled" in line for line in out), err
    assert held == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


@pytest.mark.fault("E3")
@pytest.mark.whole
def test_a_folder_of_somebody_else_is_refused_before_compilation(basis, cache):
    other = ["setpriv", "--reuid=65534", "--clear-groups"]
    with tempfile.TemporaryDirectory(dir="/tmp") as held:
        home, data = Path(held), Path(basis[1].partition("=")[2]).parent
        for name in ("tiny.tsv", "valid.tsv", "test.tsv"):
            shutil.copyfile(data / name, home / name)
        (home / "mine").mkdir()
        home.chmod(0o755)
        look = "import jax, sys; open(sys.argv[1])"
        if why := bench.allowed(*other, sys.executable, "-c", look, str(home / "tiny.tsv")):
            pytest.skip(f"nobody else to be: {why}")
        line = [part.replace(str(data), held) for part in basis]
        code, out, err = bench.train([*line, f"hydra.run.dir={home / 'mine'}"], home / "none", before=other)
        assert code == 7 and "Permission denied" in err[-1] and not any("compiled" in text for text in out), err
        assert not list((home / "mine").iterdir())


@pytest.mark.fault("E4")
@pytest.mark.whole
def test_a_read_only_run_is_measured_and_not_touched(basis, cache, reference, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; shift; exec "$@"'
    before = mounted(script, tmp_path / "run")
    held = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    command = [*before, sys.executable, "-m", "jaxrnn.evaluate", str(tmp_path / "run"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=bench.environment(cache), cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["rows"] == 60, done.stderr
    code, _, err = bench.train([*basis, f"hydra.run.dir={tmp_path / 'run'}", "epochs=5"], cache, before=before)
    assert code == 7 and "Read-only" in err[-1]
    assert held == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.fault("E5")
def test_a_damaged_checkpoint_is_passed_over_and_kept(basis, cache, copy, reference):
    *_, before, newest = bench.verifies(copy)
    path = copy / "checkpoints" / f"step_{newest}" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    line = [*basis, f"hydra.run.dir={copy}"]
    code, _, err = bench.train([*line, "resume=must", f"resume_step={newest}"], cache)
    assert code == 5 and "damaged" in err[-1]
    code, out, _ = bench.train(line, cache)
    assert code == 0 and any(text.startswith(f"checkpoint step_{newest} is not used") for text in out)
    assert any(text.startswith(f"resuming at step {before} ") for text in out)
    assert len(list(copy.glob(f"checkpoints/step_{newest}.damaged-*"))) == 1
    assert (bench.digest(copy), bench.losses(copy)) == (bench.digest(reference), bench.losses(reference))


@pytest.mark.fault("E6")
def test_only_damaged_checkpoints_is_no_new_start(basis, cache, copy):
    for step in bench.steps(copy):
        (copy / "checkpoints" / f"step_{step}" / "manifest.json").write_text("{}")
    for _ in range(2):
        code, _, err = bench.train([*basis, f"hydra.run.dir={copy}"], cache)
        assert code == 5 and "every checkpoint is damaged" in err[-1]


def of_numpy(payload):
    """An .npy file of objects."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + payload


def of_torch(payload):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    return file.getvalue()


@pytest.mark.fault("G1")
@pytest.mark.parametrize(
    "dressed", [bytes, *(pytest.param(dress, marks=pytest.mark.whole) for dress in (of_numpy, of_torch))]
)
def test_a_pickle_in_the_place_of_weights_is_not_opened(basis, cache, copy, tmp_path, dressed):
    canary = tmp_path / "CANARY"
    payload = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    evil = dressed(payload)
    if dressed is of_numpy:
        (tmp_path / "evil.npy").write_bytes(evil)
        opened = f"import numpy; numpy.load({str(tmp_path / 'evil.npy')!r}, allow_pickle=True)"
    else:
        opened = f"import pickle; pickle.loads({payload!r})"
    subprocess.run([sys.executable, "-c", opened], capture_output=True)
    assert canary.exists(), "the payload works where it is let"
    canary.unlink()
    for step in bench.steps(copy):
        folder = copy / "checkpoints" / f"step_{step}"
        (folder / "state.safetensors").write_bytes(evil)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["state.safetensors"] = {"bytes": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    code, out, err = bench.train([*basis, f"hydra.run.dir={copy}"], cache)
    assert code == 5 and any("not a safetensors file" in line for line in [*out, *err])
    assert not canary.exists()


HOT = ["optimizer=sgd", "optimizer.learning_rate=1e38", "init_scale=100", "clip_global_norm=null"]
ADAM, RELU = ["optimizer.learning_rate=1e38", "optimizer.rows=dense"], ["init_scale=1e30", "activation=relu"]
COMMANDS = [HOT, *(pytest.param(line, marks=pytest.mark.whole) for line in (ADAM, RELU))]


@pytest.mark.fault("C1")
@pytest.mark.parametrize("hot", COMMANDS, ids=" ".join)
def test_what_is_not_finite_is_named_and_never_saved(basis, cache, tmp_path, hot):
    run = tmp_path / "run"
    code, _, err = bench.train([*basis, f"hydra.run.dir={run}", *hot, "checkpoint.every_steps=1"], cache)
    assert code == 4 and "not finite" in err[-1]
    record = json.loads((run / "nonfinite.json").read_text())
    assert {"step", "epoch", "batch", "loss", "grad_norm", "rows", "key"} <= set(record)
    assert len(record["rows"]) == 40 and max(bench.verifies(run)) == record["step"] - 1
    for step in bench.steps(run):
        for _, kind, _, content in bench.tensors(run / "checkpoints" / f"step_{step}" / "state.safetensors"):
            assert kind != "F32" or np.isfinite(np.frombuffer(content, np.float32)).all()
    again = bench.train([*basis, f"hydra.run.dir={run}", *hot, "checkpoint.every_steps=1"], cache)
    replayed = json.loads((run / "nonfinite.json").read_text())
    assert again[0] == 4 and replayed | {"time": record["time"]} == record  # the same batch, key and numbers


@pytest.mark.fault("C2")
@pytest.mark.whole
def test_skipped_updates_change_nothing_and_end_at_the_limit(basis, cache, tmp_path):
    run = tmp_path / "run"
    line = [*basis, f"hydra.run.dir={run}", *HOT, "on_nonfinite=skip", "nonfinite_limit=3", "checkpoint.keep=9"]
    code, out, err = bench.train([*line, "checkpoint.every_steps=1"], cache)
    assert code == 4 and "not finite" in err[-1]
    assert sum("was not applied" in text for text in out) == 3
    states = []
    for step in bench.steps(run)[-3:]:
        found = bench.tensors(run / f"checkpoints/step_{step}/state.safetensors")
        states.append({name: content for name, *_, content in found if not name.startswith("log.")})
    assert states[0] == states[1] == states[2]


@pytest.mark.fault("C2")
@pytest.mark.whole
def test_rolled_back_at_most_so_many_times(basis, cache, tmp_path):
    run = tmp_path / "run"
    line = [*basis, f"hydra.run.dir={run}", *HOT, "on_nonfinite=rollback", "nonfinite_limit=3", "checkpoint.keep=9"]
    code, out, err = bench.train([*line, "checkpoint.every_steps=1"], cache)
    assert code == 4 and "not finite" in err[-1] and bench.summary(run)["bitwise"] is False
    assert sum("was not applied" in text for text in out) == 3
    for step in bench.steps(run):
        for _, kind, _, content in bench.tensors(run / "checkpoints" / f"step_{step}" / "state.safetensors"):
            assert kind != "F32" or np.isfinite(np.frombuffer(content, np.float32)).all()


@pytest.mark.fault("S2")
@pytest.mark.whole
def test_a_long_run_keeps_its_size(basis, cache, tmp_path):
    run = tmp_path / "run"
    line = [*basis, f"hydra.run.dir={run}", "epochs=200", "checkpoint.every_steps=100", "logger=[jsonl]"]
    process, seen = bench.start(line, cache), []
    while process.poll() is None:
        try:
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
            rss = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096
        except OSError:
            break
        seen.append((bench.logged(run), rss, files))
        assert len(bench.steps(run)) <= 3
        time.sleep(0.1)
    assert bench.ended(process)[0] == 0
    late = [entry for entry in seen if 500 <= entry[0] < 2000]
    assert len(late) > 2 and max(files for *_, files in late) - min(files for *_, files in late) <= 6
    assert late[-1][1] < 1.05 * late[0][1]
    shutil.rmtree(run)
