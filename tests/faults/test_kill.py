"""D: killed, stopped, gone on with. Digests and losses are read from the files alone."""

import json
import math
import os
import random
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import faultbench as bench
import pytest


def same(run, reference):
    assert bench.digest(run) == bench.digest(reference)
    assert bench.losses(run) == bench.losses(reference)  # each step exactly once
    assert bench.summary(run)["status"] == "completed"
    assert not list(run.rglob("*.tmp-*"))


def kills(basis, cache, reference, tmp_path, count, seed):
    """Real SIGKILLs at random times, each followed by the same command; how many had saved a step."""
    draw, saved = random.Random(seed), 0
    for number in range(count):
        run = tmp_path / str(number)
        arguments = [*basis, f"hydra.run.dir={run}", "checkpoint.every_steps=1"]
        process, after = bench.start(arguments, cache), draw.randrange(40)
        bench.until(lambda run=run, after=after: bench.logged(run) >= after, process)
        time.sleep(draw.random() * 0.02)
        process.kill()
        process.communicate()
        before, last = bench.verifies(run), bench.logged(run)
        assert not before or last - before[-1] <= 2, "more than one interval lost"
        code, out, err = bench.train(arguments, cache)
        assert (code, err) == (0, [])
        saved += any(line.startswith("resuming at step") for line in out)
        same(run, reference)
        shutil.rmtree(run)
    return saved


@pytest.mark.fault("D1")
def test_a_kill_costs_at_most_one_interval(basis, cache, reference, tmp_path):
    assert kills(basis, cache, reference, tmp_path, 2, seed=1) > 0


@pytest.mark.fault("D1")
@pytest.mark.whole
def test_many_kills_cost_at_most_one_interval_each(basis, cache, reference, tmp_path):
    """FAULTS_KILLS=300 before a release."""
    count = int(os.environ.get("FAULTS_KILLS", 20))
    assert kills(basis, cache, reference, tmp_path, count, seed=1) > count // 4


@pytest.mark.fault("D5", "S5")
def test_a_little_of_the_soak(basis, cache, reference, tmp_path):
    assert soaked(basis, cache, reference, tmp_path, "0", seed=7, runs=1)["runs"] == 1


@pytest.mark.soak
@pytest.mark.fault("D1", "S5")
def test_minutes_of_faults(basis, cache, reference, tmp_path, capsys):
    """FAULTS_MINUTES=20 of them, from FAULTS_SEED=0, two runs at a time."""
    end = time.monotonic() + 60 * float(os.environ.get("FAULTS_MINUTES", 20))
    seed = int(os.environ.get("FAULTS_SEED", 0))
    with ThreadPoolExecutor(2) as pool:
        lanes = [pool.submit(soaked, basis, cache, reference, tmp_path, str(n), seed + n, end=end) for n in range(2)]
        counts = sum((lane.result() for lane in lanes), Counter())
    with capsys.disabled():
        print(f"\nseed {seed}: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))


def soaked(basis, cache, reference, where, lane, seed, *, end=math.inf, runs=math.inf):
    """Runs that meet drawn faults until they end, each at the digest of the reference; what happened how often."""
    draw, counts = random.Random(seed), Counter()
    while time.monotonic() < end and counts["runs"] < runs:
        run = where / f"{lane}_{counts['runs']}"
        arguments = [*basis, f"hydra.run.dir={run}", f"checkpoint.every_steps={draw.choice([1, 3, 4, 7])}"]
        for _ in range(draw.randrange(1, 5)):
            after, fault = bench.logged(run) + draw.randrange(1, 14), draw.choice(FAULTS)
            process = bench.start(arguments, cache)
            reached = bench.until(lambda run=run, after=after: bench.logged(run) >= after, process)
            time.sleep(draw.random() * 0.05)
            if fault in CODES:
                process.send_signal(getattr(signal, fault))
            else:
                process.kill()
            out, err = process.communicate(timeout=bench.LIMIT)
            plain = -getattr(signal, fault, 9)  # where no handler stands: before training, and after it
            assert "Traceback" not in err and process.returncode in (CODES.get(fault, -9), plain, 0), (fault, out, err)
            counts[fault if process.returncode else "too late"] += reached or 1
            if fault == "flipped" and process.returncode and len(bench.verifies(run)) > 1:
                flip(run / "checkpoints" / f"step_{bench.verifies(run)[-1]}" / "state.safetensors", draw)
            if process.returncode == 0:
                break
        code, _, err = bench.train(arguments, cache)
        assert (code, err) == (0, []), err
        same(run, reference)
        shutil.rmtree(run)
        counts["runs"] += 1
    return counts


CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 143}
FAULTS = ["SIGKILL", "SIGKILL", "SIGKILL", "flipped", *CODES]  # flipped: killed, then a bit of the newest checkpoint


def flip(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("number", "after", "code"),
    [
        (signal.SIGTERM, 3, 143),
        pytest.param(signal.SIGTERM, 15, 143, marks=pytest.mark.whole),
        pytest.param(signal.SIGTERM, 26, 143, marks=pytest.mark.whole),
        pytest.param(signal.SIGINT, 7, 130, marks=pytest.mark.fault("D3")),
        pytest.param(signal.SIGUSR1, 7, 143, marks=pytest.mark.whole),
        pytest.param(signal.SIGUSR2, 7, 143, marks=pytest.mark.whole),
    ],
)
@pytest.mark.fault("D2")
def test_a_polite_stop_saves_where_it_was(basis, cache, reference, tmp_path, number, after, code):
    run = tmp_path / "run"
    arguments = [*basis, f"hydra.run.dir={run}", "checkpoint.every_steps=1"]
    process = bench.start(arguments, cache)
    assert bench.until(lambda: bench.logged(run) >= after, process)
    process.send_signal(number)
    began = time.monotonic()
    found, _, err = bench.ended(process)
    assert time.monotonic() - began < 10
    held = bench.summary(run)
    assert (found, len(err)) == (code, 1) and f"saved after update {held['steps']} in {run};" in err[0]
    assert (held["status"], held["error"]["code"]) == ("stopped", code)
    assert bench.verifies(run)[-1] == held["steps"] == bench.losses(run)[-1][0]
    found, out, err = bench.train(arguments, cache)
    assert (found, err) == (0, [])
    assert any(line.startswith(f"resuming at step {held['steps']} ") for line in out)
    same(run, reference)


@pytest.mark.fault("D3")
def test_the_second_interrupt_does_not_wait(tmp_path):
    """Two SIGINTs while an update is under way: in process, since a real one is over too soon."""
    import os

    from jaxrnn import command

    before = signal.getsignal(signal.SIGINT)  # which a shell that starts it in the background has switched off
    with pytest.raises(KeyboardInterrupt), command.put_off() as arrived:
        os.kill(os.getpid(), signal.SIGINT)
        assert type(arrived()) is KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it was put off again")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.fault("D4")
@pytest.mark.whole
def test_stopped_and_then_killed(basis, cache, reference, tmp_path):
    for number, pause in enumerate((0.0, 0.005, 0.02, 0.2)):
        run = tmp_path / str(number)
        arguments = [*basis, f"hydra.run.dir={run}", "checkpoint.every_steps=1"]
        process = bench.start(arguments, cache)
        assert bench.until(lambda run=run: bench.logged(run) >= 5, process)
        process.send_signal(signal.SIGTERM)
        time.sleep(pause)
        process.kill()
        process.communicate()
        assert bench.verifies(run) == bench.steps(run)
        assert bench.train(arguments, cache)[0] == 0
        same(run, reference)


def saving(basis, cache, run, trace):
    """A run whose disk takes 0.4 s for every sync, at the first of five of its second checkpoint; its process id."""
    slow, why = bench.traced("fsync", "delay_enter=400000", trace)
    if why:
        pytest.skip(f"no strace: {why}")
    process = bench.start([*basis, f"hydra.run.dir={run}"], cache, before=slow)
    assert bench.until(lambda: list(run.glob("checkpoints/step_8.tmp-*/state.safetensors")), process, bench.LIMIT)
    return process, json.loads((run / "run.lock").read_text())["pid"]


@pytest.mark.fault("D4")
@pytest.mark.whole
def test_what_a_kill_left_half_written_is_mentioned_once_and_ignored(basis, cache, reference, tmp_path):
    run = tmp_path / "run"
    process, pid = saving(basis, cache, run, tmp_path / "trace")
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert bench.verifies(run) == [4] and bench.summary(run) is None
    code, out, err = bench.train([*basis, f"hydra.run.dir={run}"], cache)
    assert (code, err) == (0, []) and sum("half-written and ignored: step_8.tmp-" in text for text in out) == 1
    assert any(text.startswith("resuming at step 4 ") for text in out)
    same(run, reference)


@pytest.mark.fault("D3")
@pytest.mark.whole
def test_two_interrupts_do_not_wait_for_a_save_under_way(basis, cache, reference, tmp_path):
    run = tmp_path / "run"
    process, pid = saving(basis, cache, run, tmp_path / "trace")
    os.kill(pid, signal.SIGINT)
    time.sleep(0.6)  # two that meet the same call count as one
    os.kill(pid, signal.SIGINT)
    code, _, err = bench.ended(process)
    assert code == 130 and f"saved after update 4 in {run};" in err[-1] and bench.summary(run)["status"] == "stopped"
    assert bench.verifies(run) == bench.steps(run) == [4] and not list(run.glob("checkpoints/*.tmp-*"))
    assert bench.train([*basis, f"hydra.run.dir={run}"], cache)[0] == 0
    same(run, reference)


@pytest.mark.fault("D5")
@pytest.mark.whole
def test_killed_again_and_again_it_still_gets_there(basis, cache, reference, tmp_path):
    run, draw, reached = tmp_path / "run", random.Random(3), [0]
    arguments = [*basis, f"hydra.run.dir={run}", "checkpoint.every_steps=1"]
    for _ in range(30):
        process = bench.start(arguments, cache)
        goal = reached[-1] + draw.randrange(3, 9)
        bench.until(lambda goal=goal: (bench.steps(run) or [0])[-1] >= goal, process)
        process.kill()
        process.communicate()
        if bench.summary(run):
            break
        reached.append((bench.steps(run) or [0])[-1])
    assert len(reached) > 3 and reached == sorted(set(reached)), "progress between any two kills"
    assert bench.train(arguments, cache)[0] == 0
    same(run, reference)


DIFFERENT = {
    "hidden_size=9": "hidden_size: 16 there, 9 here",
    "tokenizer.size=9": "tokenizer.size",
    "tokenizer=characters": "tokenizer.name",
    "seed=1": "seed: 0 there, 1 here",
    "optimizer=sgd": "optimizer.name",
    "batch_size=20": "batch_size: 40 there, 20 here",
    "epochs=3": "epochs: 4 there, 3 here",
}


@pytest.mark.fault("D6")
@pytest.mark.parametrize("change", ["hidden_size=9", *(pytest.param(c, marks=pytest.mark.whole) for c in DIFFERENT)])
def test_another_run_is_refused_key_by_key(basis, cache, copy, change):
    kept = [copy / "checkpoints" / f"step_{step}" for step in bench.steps(copy)]  # whole ones
    before = {path: path.read_bytes() for folder in kept for path in folder.iterdir()}
    code, _, err = bench.train([*basis, f"hydra.run.dir={copy}", change], cache)
    assert code == 5 and DIFFERENT[change] in err[-1] and len(err) == 1
    assert before == {path: path.read_bytes() for path in before}
    assert bench.summary(copy)["status"] == "failed"


@pytest.mark.fault("D6")
@pytest.mark.whole
def test_what_may_differ_is_said_and_recorded(basis, cache, copy, reference):
    line = [*basis, f"hydra.run.dir={copy}"]
    code, _, err = bench.train([*line, "resume=never"], cache)
    assert code == 6 and "resume=never" in err[-1]
    code, out, _ = bench.train([*line, "batch_size=20", "resume_allow=[batch_size]"], cache)
    assert code == 0 and any("batch_size" in text for text in out)
    assert bench.summary(copy)["bitwise"] is False


@pytest.mark.fault("D6")
@pytest.mark.whole
def test_more_epochs_are_allowed_and_must_needs_a_checkpoint(basis, cache, copy, tmp_path):
    code, *_ = bench.train([*basis, f"hydra.run.dir={copy}", "epochs=6"], cache)
    assert code == 0 and bench.digest(copy)[1:] == (60, 6, 10)
    assert bench.summary(copy)["bitwise"] is True
    code, _, err = bench.train([*basis, f"hydra.run.dir={tmp_path / 'new'}", "resume=must"], cache)
    assert code == 5 and "resume=must" in err[-1]
