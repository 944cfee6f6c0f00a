"""Many runs in one vmapped program: member i is run i, whoever comes, fails, stops or stays away."""

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import (
    at_work,
    checkpoints,
    command,
    config,
    core,
    devices,
    group,
    job,
    launchers,
    planning,
    population,
    running,
    runs,
    stored,
    train,
    vmapped,
    widths,
)
from jaxrnn.cells.gru import gru
from jaxrnn.compiling import Program
from jaxrnn.types import Hyper
from jaxrnn.unroll.bptt import bptt

TINY = ["hidden_size=8", "input.size=4", "batch_size=16", "epochs=3", "dataset.train_rows=70", "patience=null"]
TINY += ["dataset.valid_rows=20", "dataset.test_rows=30", "unroll.kernel=never", "flow.every_steps=0", "plots=never"]
VARIED = [
    ["seed=1", "optimizer.learning_rate=0.03"],
    ["seed=2", "dropout_rate=0.3", "epochs=5"],
    ["seed=3", "clip_global_norm=0.01", "word_dropout_rate=0.2"],
    ["seed=4", "clip_value=0.001", "clip_global_norm=0.005", "init_scale=2"],
    ["seed=5", "optimizer.learning_rate=0.1", "patience=1", "epochs=6"],
    ["seed=6", "max_steps=7"],
]
COMPILED = "/jax/core/compile/backend_compile_duration"
DEADLOCK = 300  # seconds; to compile may take many where other processes do too


pytestmark = pytest.mark.usefixtures("own_place")


def flows(folder):
    """What was measured of the gradient's flow."""
    lines = [r for r in runs.read_lines(Path(folder, "metrics.jsonl")) if "flow" in r]
    return [(r["step"], *(one["log_slope"] for one in r["flow"])) for r in lines]


def words(line):
    """With those of TINY that go with them."""
    return [*(word for word in TINY if not ("input=one_hot" in line and word.startswith("input."))), *line]


def swept(lines, members, watch=None, runner=None, folder="s"):
    """The outcomes of these jobs, each TINY and some words more; fails where they do not end."""
    jobs, found = [config.compose(words(line)) for line in lines], []

    def run():
        if runner:
            found.extend(runner.run(list(enumerate(jobs)), watch))
        else:
            with running.opened(folder, "population", members=members) as own:
                found.extend(own.run(list(enumerate(jobs)), watch))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLOCK)
    assert not thread.is_alive(), "they wait for each other"
    return found


def ended(outcomes):
    return [(outcome.status, outcome.code) for outcome in outcomes]


def numbers(folder):
    """All numbers of metrics.jsonl but times."""
    lines = runs.read_lines(Path(folder, "metrics.jsonl"))
    return [
        (r["step"], r["epoch"], r["best"], *r["train"].values(), *r["valid"].values()) for r in lines if "train" in r
    ]


def same(folder, alone):
    """Is the job in that folder the run of these words alone."""
    summary = job.run(config.compose(words(alone)), loud=False)
    member = json.loads(Path(folder, "summary.json").read_text())
    np.testing.assert_allclose(numbers(folder), numbers(summary["run"]), rtol=1e-5, atol=1e-6)
    for name in ("status", "steps", "best_epoch", "parameters"):
        assert member[name] == summary[name]
    np.testing.assert_allclose(flows(folder), flows(summary["run"]), rtol=1e-3, atol=1e-3)
    assert member["test"]["confusion"] == summary["test"]["confusion"]
    assert member["test"]["loss"] == pytest.approx(summary["test"]["loss"], rel=5e-5)
    for name, array in stored.load_model(Path(summary["run"])).arrays.items():
        np.testing.assert_allclose(stored.load_model(Path(folder)).arrays[name], array, atol=5e-4)
    here, there = (checkpoints.newest(Path(place), print) for place in (folder, summary["run"]))
    assert (here.step, here.epoch, here.batch) == (there.step, there.epoch, there.batch)
    for name, array in there.state.items():
        np.testing.assert_allclose(here.state[name], array, rtol=1e-2, atol=5e-4, err_msg=name)


@pytest.fixture
def met(monkeypatch):
    """(name, how many calls met, width) of every call that was made."""
    made, train, measure = [], population.Population._train, population.Population._measure

    def trained(self, calls, width):
        made.append(("segment", len(calls), width))
        return train(self, calls, width)

    def measured(self, calls, params):
        made.append(("answers", len(calls), len(params.b_y)))
        return measure(self, calls, params)

    monkeypatch.setattr(population.Population, "_train", trained)
    monkeypatch.setattr(population.Population, "_measure", measured)
    return made


@pytest.fixture
def prompt(monkeypatch):
    """Programs of another width are begun when they do, and are there as soon as they are."""
    monkeypatch.setattr(widths, "WORTH", 0.0)
    monkeypatch.setattr(vmapped.Together, "there", lambda self: all(program.ready() for program in self))


@pytest.mark.parametrize(
    "network",
    [
        [],
        [
            "cell=gru",
            "layers=2",
            "bidirectional=true",
            "head=attention",
            "optimizer.rows=deferred",
            "flow.every_steps=4",
        ],
        ["cell=lstm", "input=one_hot", "head=mean", "optimizer=sgd", "schedule=cosine"],
    ],
    ids=["vanilla", "gru", "lstm"],
)
def test_a_member_is_the_run_alone(network, prompt):
    lines = [[*network, *line] for line in VARIED]
    assert ended(swept(lines, 8)) == [("completed", 0)] * len(lines)
    for number, line in enumerate(lines):
        same(f"s/{number}", line)


def test_the_loops_over_time_of_several_networks_have_one_end():
    cell, (T, B) = gru(3, 4), (150, 16)  # three chunks of time

    def loss(params, xs, length):
        return jnp.sum(jnp.square(bptt(cell, params, xs, length)[1]))

    params = jax.vmap(cell.init)(jax.random.split(jax.random.key(0), 3))
    xs = jax.random.normal(jax.random.key(1), (3, T, B, 3))
    length = jnp.stack([jnp.arange(B) * 9, jnp.full(B, 2), jnp.zeros(B, jnp.int32)])
    together = jax.jit(jax.vmap(jax.grad(loss)))
    for i, alone in enumerate(zip(*map(_rows, (params, xs, length)), strict=True)):
        found = jax.tree.map(lambda leaf, i=i: leaf[i], together(params, xs, length))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, jax.grad(loss)(*alone))
    ends = list(_ends(jax.make_jaxpr(together)(params, xs, length).jaxpr))
    assert ends and set(ends) == {()}  # not one for each network


def _ends(jaxpr):
    """The shape of the condition of every loop."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            yield from (aval.shape for aval in equation.params["cond_jaxpr"].out_avals)
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _ends(inner)


def _rows(tree):
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(3)]


@pytest.mark.parametrize("optimizer_rows", ["dense", "deferred"])
def test_members_take_different_parts_of_an_epoch(optimizer_rows):
    settings = config.compose([*TINY, f"optimizer.rows={optimizer_rows}", "dropout_rate=0.2"])
    alone = group.prepare(settings, print).programs
    order = np.random.default_rng(0).permutation(64).astype(np.int32).reshape(4, 16)
    order = np.concatenate([order, np.full((1, 16), -1, np.int32)])
    hyper = Hyper(*np.float32([0.01, 0.1, 1, np.inf, 0.2, 0, 0, 9, 0]))
    members = [(0, 5, True), (1, 3, False), (2, 2, True), (0, 4, True)]  # begin, end, last
    expected, states = [], []
    for seed, (begin, end, last) in enumerate(members):
        state = alone.init(np.uint32(seed), np.float32(1))
        states.append(jax.tree.map(jnp.copy, state))
        numbers_ = np.int32(begin), np.int32(end), np.bool_(last)
        expected.append(alone.segment(state, hyper, alone.data, order, *numbers_))
    states, hypers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), Hyper(*(np.full(4, n) for n in hyper))
    begin, end, last = (np.array(numbers_) for numbers_ in zip(*members, strict=True))
    given = states, hypers, alone.data, np.stack([order] * 4), np.int32(begin), np.int32(end), last
    states, logs, made = vmapped.begun(alone, 4).segment(*given)
    for n, (state, log, count) in enumerate(expected):
        assert made[n] == count == members[n][1] - members[n][0]
        np.testing.assert_allclose(logs[n], log, rtol=1e-5, atol=1e-6)
        found, wanted = (jax.tree.leaves(tree._replace(key=())) for tree in (states, state))
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one[n], other, rtol=1e-4, atol=1e-6)


def test_they_compile_once_and_meet_in_every_call(met):
    names = []

    def heard(event, seconds, **more):
        if event == COMPILED:
            names.append(more.get("fun_name"))

    jax.clear_caches()
    lines = [[f"seed={seed}", f"epochs={epochs}"] for seed, epochs in ((0, 3), (1, 3), (2, 3))]
    with running.opened("s", "population", members=4) as runner:
        jax.monitoring.register_event_duration_secs_listener(heard)
        try:
            assert ended(swept(lines, 4, runner=runner)) == [("completed", 0)] * 3
            programs = Counter(names)
            assert {call for call in met if call[0] == "segment"} == {("segment", 3, 4)}
            assert [call for call in met if call[0] == "answers"][:3] == [("answers", 3, 4)] * 3
            more = swept([*lines, ["seed=3"], ["seed=4"], ["seed=5"]], 4, runner=runner)
            assert ended(more) == [("completed", 0)] * 6 and Counter(names) == programs
        finally:
            jax.monitoring.unregister_event_duration_listener(heard)
    once = ["init", "segment", "answers"]  # and what moves states, once for a state and once for parameters
    assert programs == Counter([f"jit({name})" for name in once + 2 * ["repeated", "written", "_picked"]])


def test_members_that_stop_early_cost_no_more(met, prompt):
    lines = [["seed=0", "epochs=7"], *([f"seed={n}", "epochs=2"] for n in (1, 2)), ["seed=3", "epochs=4"]]
    assert ended(swept(lines, 4)) == [("completed", 0)] * 4
    calls = [call[1:] for call in met if call[0] == "segment"]
    assert list(dict.fromkeys(calls)) == [(4, 4), (2, 2), (1, 1)]
    for number, line in enumerate(lines):
        same(f"s/{number}", line)


def test_while_a_narrower_program_is_compiled_the_wide_one_goes_on(met, monkeypatch):
    class Never(vmapped.Together):
        def there(self):
            return False

    begun, asked = vmapped.begun, []
    monkeypatch.setattr(widths, "WORTH", 0.0)
    monkeypatch.setattr(
        vmapped, "begun", lambda p, width: asked.append(width) or (begun(p, width) if width == 4 else Never(None, None))
    )
    assert ended(swept([[f"seed={n}", f"epochs={n + 1}"] for n in range(4)], 4)) == [("completed", 0)] * 4
    assert {call[2] for call in met} == {4}
    assert asked == [4, 2]  # one at a time
    same("s/3", ["seed=3", "epochs=4"])


def test_a_narrower_program_is_not_compiled_for_the_little_that_is_left(met, monkeypatch):
    begun, asked = vmapped.begun, []
    monkeypatch.setattr(widths, "WORTH", 1e6)
    monkeypatch.setattr(vmapped, "begun", lambda p, width: asked.append(width) or begun(p, width))
    assert ended(swept([[f"seed={n}", f"epochs={n + 1}"] for n in range(4)], 4)) == [("completed", 0)] * 4
    assert asked == [4] and {call[2] for call in met} == {4}


FAILS = ["optimizer=sgd", "clip_global_norm=null", "init_scale=100"]


@pytest.mark.parametrize("how", ["stop", "skip", "rollback"])
def test_a_member_that_is_not_finite_fails_alone(how):
    way = [f"on_nonfinite={how}", "nonfinite_limit=3"]
    lines = [[*FAILS, *way, "optimizer.learning_rate=1e+38"], [*FAILS, *way, "optimizer.learning_rate=0.001"]]
    assert ended(swept(lines, 2)) == [("failed", 4), ("completed", 0)]
    same("s/1", lines[1])
    told = json.loads(Path("s/0/nonfinite.json").read_text())
    with pytest.raises(Exception, match=r"not finite|finite numbers"):
        job.run(config.compose([*TINY, *lines[0]]), Path("alone"), loud=False)
    alone = json.loads(Path("alone/nonfinite.json").read_text())
    for name in ("step", "epoch", "batch", "rows", "key", "fold_in"):
        assert told[name] == alone[name]


def test_members_that_broke_off_at_different_places_go_on_from_there(prompt):
    lines = [[f"seed={n}", "epochs=6", "checkpoint.every_steps=3"] for n in range(4)]

    def breaks(number, record):
        if record["epoch"] == number + 2 and number < 3:
            raise RuntimeError("broken off")
        return False

    assert ended(swept(lines, 4, breaks)) == [("failed", 1)] * 3 + [("completed", 0)]
    steps = [checkpoints.steps(Path("s", str(n)))[-1] for n in range(3)]
    assert len(set(steps)) == 3
    assert ended(again := swept(lines, 4)) == [("completed", 0)] * 4
    assert [outcome.summary["bitwise"] for outcome in again] == [False] * 3 + [True]
    for number, line in enumerate(lines):
        same(f"s/{number}", line)


def test_a_job_that_never_trains_keeps_nobody_waiting():
    lines = [[f"seed={n}"] for n in range(3)]
    Path("s/1").mkdir(parents=True)
    Path("s/1/config.yaml").write_text("not of ours")
    assert [outcome.status for outcome in swept(lines, 3)] == ["completed", "failed", "completed"]
    with running.opened("t", "population", members=3) as runner:
        done = swept(lines[:1], 3, runner=runner)
        assert done[0].status == "completed" and ended(swept(lines, 3, runner=runner)) == [("completed", 0)] * 3


def test_a_watch_prunes_one_member(met):
    def watch(number, record):
        return number == 1 and record["epoch"] == 2

    outcomes = swept([[f"seed={n}", "epochs=4"] for n in range(3)], 3, watch)
    assert ended(outcomes) == [("completed", 0), ("pruned", 0), ("completed", 0)]
    assert len(numbers("s/1")) == 2 and checkpoints.newest(Path("s/1"), print).epoch == 2
    same("s/2", ["seed=2", "epochs=4"])


def test_more_jobs_than_members_take_turns(met):
    lines = [[f"seed={n}", f"epochs={2 + n % 2}"] for n in range(5)]
    assert ended(swept(lines, 2)) == [("completed", 0)] * 5
    assert max(call[1] for call in met if call[0] == "segment") == 2
    for number, line in enumerate(lines):
        same(f"s/{number}", line)


def test_groups_take_turns(met, monkeypatch):
    at_once, train = [], population.Population._train
    running = Counter()

    def trained(self, calls, width):
        at_once.append(sum(1 for p in running if p._members) + (self not in running))
        running[self] += 1
        return train(self, calls, width)

    monkeypatch.setattr(population.Population, "_train", trained)
    lines = [[f"cell={cell}", f"seed={seed}"] for seed in (0, 1) for cell in ("vanilla", "gru")]
    assert ended(swept(lines, 4)) == [("completed", 0)] * 4
    assert len(running) == 2 and max(at_once) == 1
    assert all(one.stack.states is None for one in running)  # room for the next
    same("s/3", lines[3])


def test_what_breaks_a_call_is_met_by_all_who_were_in_it(monkeypatch):
    calls, begun = [], vmapped.begun

    class Breaks:
        def __init__(self, program):
            self.program, self.done, self.error = program, program.done, program.error

        def ready(self):
            return self

        def __call__(self, *arguments):
            calls.append(self.program(*arguments))  # the states are taken over
            if len(calls) == 2:
                raise MemoryError
            return calls[-1]

    def breaking(programs, width):
        made = begun(programs, width)
        return made._replace(segment=Breaks(made.segment))

    monkeypatch.setattr(vmapped, "begun", breaking)
    monkeypatch.setattr(vmapped, "needed", lambda together: 0)
    outcomes = swept([[f"seed={n}", "epochs=2"] for n in range(4)], 2)
    assert Counter(ended(outcomes)) == {("failed", 8): 2, ("completed", 0): 2}


def test_groups_have_the_device_one_after_the_other():
    turns, events = launchers.Turns(), []

    def of_one(group_, until):
        with turns.taken(group_, lambda: 2):
            events.append(group_)
            until.wait(DEADLOCK)

    ends = {name: threading.Event() for name in ("a", "b")}
    threads = [threading.Thread(target=of_one, args=(name, ends[name]), daemon=True) for name in "abaa"]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    assert events == ["a", "a"]  # two places; b waits, though the second was free when it came
    for end in ends.values():
        end.set()
    for thread in threads:
        thread.join(DEADLOCK)
    assert sorted(events) == ["a", "a", "a", "b"] and not any(thread.is_alive() for thread in threads)


def test_a_slow_member_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(population, "PATIENCE", 0.05)
    over = threading.Event()

    def watch(number, record):
        if number == 0 and record["epoch"] == 1:
            over.wait(DEADLOCK)  # until the other has ended
        elif number == 1 and record["epoch"] == 5:
            over.set()
        return False

    lines = [[f"seed={n}", "epochs=5"] for n in range(2)]
    assert ended(swept(lines, 2, watch)) == [("completed", 0)] * 2
    for number, line in enumerate(lines):
        same(f"s/{number}", line)


def test_patience_with_a_slow_member_is_lost_once(monkeypatch):
    """Not at every call: until it is back the others do not wait for it."""
    monkeypatch.setattr(population, "PATIENCE", 0.3)
    over, lost = threading.Event(), []

    class Door(threading.Condition):
        def wait(self, timeout=None):
            come = super().wait(timeout)
            lost.append(not come and not over.is_set() and timeout > 0.01)
            return come

    def watch(number, record):
        if number == 0 and record["epoch"] == 2:
            over.wait(DEADLOCK)
        elif number == 1 and record["epoch"] == 30:
            over.set()
        return False

    create = population.Population.__init__

    def created(self, *arguments):
        create(self, *arguments)
        self._door = Door()

    monkeypatch.setattr(population.Population, "__init__", created)
    assert ended(swept([["seed=0", "epochs=3"], ["seed=1", "epochs=30"]], 2, watch)) == [("completed", 0)] * 2
    assert 1 <= sum(lost) < 10


def test_a_narrower_program_that_does_not_compile_is_said_and_left_out(monkeypatch, capsys, met, prompt):
    begun = vmapped.begun

    def failing(programs, width):
        failed = Future()
        failed.set_exception(RuntimeError("no kernel\nfor this"))
        return vmapped.Together(*[Program(failed)] * 2) if width == 2 else begun(programs, width)

    monkeypatch.setattr(vmapped, "begun", failing)
    monkeypatch.setattr(vmapped.Together, "there", lambda self: all(one.done() or one.ready() for one in self))
    lines = [["seed=0", "epochs=6"], ["seed=1", "epochs=4"], *([f"seed={n}", "epochs=2"] for n in (2, 3))]
    assert ended(swept(lines, 4)) == [("completed", 0)] * 4
    assert {call[2] for call in met if call[0] == "segment"} == {4, 1}  # two in that for four
    assert capsys.readouterr().err.splitlines() == ["no program for 2 jobs at once: no kernel"]


def test_a_member_waits_once_an_epoch_and_counts_its_own_seconds(monkeypatch):
    called, calls = population.Population._called, []

    def heard(self, name, place, *more):
        calls.append((name, place is not None))
        return called(self, name, place, *more)

    def watch(number, record):
        time.sleep(1.5 * (number == 1 and record["epoch"] == 2))
        return False

    monkeypatch.setattr(population.Population, "_called", heard)
    assert ended(swept([[f"seed={n}", "epochs=5"] for n in range(2)], 2, watch)) == [("completed", 0)] * 2
    assert Counter(calls) == {("segment", True): 10, ("answers", True): 2, ("answers", False): 2}
    (third,) = [record for record in runs.read_lines(Path("s/0/metrics.jsonl")) if record["epoch"] == 3]
    assert third["seconds"] < 1.0  # it waited for the other


def test_answers_that_cannot_be_had_ahead_are_asked_for(monkeypatch):
    ahead, broken = population.Population._look_ahead, []

    def breaking(self, calls, results):
        with monkeypatch.context() as patch:
            patch.setattr(population.Population, "_measure", lambda *_: broken.append(1 / 0))
            ahead(self, calls, results)

    monkeypatch.setattr(population.Population, "_look_ahead", breaking)
    assert ended(swept([["seed=0"], ["seed=1"]], 2)) == [("completed", 0)] * 2
    same("s/1", ["seed=1"])


def test_few_are_at_work_at_a_time_and_those_that_train_come_first(monkeypatch):
    monkeypatch.setattr(at_work, "LONG", DEADLOCK)
    few, order, begun = at_work.AtWork(2), [], [threading.Event() for _ in range(2)]
    go = [threading.Event() for _ in range(2)]

    def work(number):
        with few.taken():
            assert len(few.turns) <= 2
            if number < 2:
                begun[number].set()
                go[number].wait(DEADLOCK)
            if number == 0:
                few.again(few.others)
            order.append(number)

    threads = [threading.Thread(target=work, args=[number], daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
        assert threads.index(thread) > 1 or begun[threads.index(thread)].wait(DEADLOCK)
    while len(few.members) < 4:
        time.sleep(0.001)
    go[0].set()  # the other keeps its turn, so that all go through this one
    for thread in [threads[0], *threads[2:]]:
        thread.join(DEADLOCK)
    go[1].set()
    threads[1].join(DEADLOCK)
    assert sorted(order[:4]) == [2, 3, 4, 5] and order[4:] == [0, 1] and not few.turns


def test_turns_go_round_where_no_thread_can_watch_them(monkeypatch):
    def no_more(thread):
        raise RuntimeError("can't start new thread")

    few = at_work.AtWork(1)
    with few.taken(), monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        answer = at_work.Answer()
        few.give(answer, 3, few.members)
    assert answer.wait() == 3 and not few._watching


def test_turns_that_wait_for_something_else_hold_nobody_up():
    """More of them than there are turns: each waits until a member has trained that was answered after them."""
    over, most = threading.Event(), population.AT_WORK

    def watch(number, record):
        if number == most and record["epoch"] == 5:
            over.set()
        elif number < most and record["epoch"] == 1:
            over.wait(DEADLOCK)
        return False

    lines = [[f"seed={n}", "epochs=5"] for n in range(most + 1)]
    assert ended(swept(lines, most + 1, watch)) == [("completed", 0)] * (most + 1)
    assert over.is_set()


@pytest.mark.skipif(len(core.Core().every) < 2, reason="no cores to choose from")
def test_members_share_a_core_and_nobody_else_is_kept_there(monkeypatch):
    made, told, watched, here = population.Population._made, set(), [], os.sched_getaffinity
    every = here(0)

    def calling(self, calls, members):
        told.add(("conductor", len(here(0))))
        return made(self, calls, members)

    def saving(*arguments):
        told.add(("ended", len(here(0))))
        return save(*arguments)

    save = stored.save_model
    monkeypatch.setattr(population.Population, "_made", calling)
    monkeypatch.setattr(stored, "save_model", saving)
    swept([["seed=0"], ["seed=1"]], 2, lambda number, record: watched.append(here(0)) or False)
    assert told == {("conductor", len(every)), ("ended", len(every))}
    assert {len(cores) for cores in watched} == {1} and len({*map(tuple, watched)}) == 1


def test_where_threads_cannot_be_kept_on_a_core_they_go_anywhere(monkeypatch):
    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    assert ended(swept([["seed=0"], ["seed=1"]], 2)) == [("completed", 0)] * 2
    monkeypatch.setattr(sys, "platform", "darwin")
    assert core.Core().one == set()


def test_who_writes_at_the_end_keeps_neither_a_turn_nor_a_place(monkeypatch):
    """Those that have trained write until all have begun to train, also the ones that waited for their places."""
    save, segment, begun = stored.save_model, population.Population._segment, set()
    end = time.monotonic() + DEADLOCK

    def slow(*arguments):
        while len(begun) < 9 and time.monotonic() < end:
            time.sleep(0.01)
        return save(*arguments)

    def counted(self, *arguments):
        begun.add(self._here.place)
        return segment(self, *arguments)

    monkeypatch.setattr(launchers, "WRITING", 8)  # a thread for each job
    monkeypatch.setattr(stored, "save_model", slow)
    monkeypatch.setattr(population.Population, "_segment", counted)
    lines = [["seed=0", "epochs=9"], *([f"seed={n}", "epochs=1"] for n in range(1, 9))]
    assert ended(swept(lines, 4)) == [("completed", 0)] * 9
    assert time.monotonic() < end


def test_a_polite_stop_saves_every_member_and_the_command_goes_on(capsys, monkeypatch, met):
    line = ["-m", *TINY, "seed=range(3)", "epochs=40", "hydra/launcher=population", "hydra.launcher.members=2"]
    line += ["hydra.sweep.dir=s"]
    train_ = population.Population._train

    def stopped(self, calls, width):
        if len(met) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)  # more than the launcher lets pass between two looks
        return train_(self, calls, width)

    with monkeypatch.context() as patch:
        patch.setattr(population.Population, "_train", stopped)
        assert command.exit_code("train", train.main, line) == 143
    states = [entry["status"] for entry in runs.read_json(Path("s/sweep.json"))["jobs"]]
    assert states.count("stopped") >= 2 and set(states) <= {"stopped", "waiting"}
    assert sum(bool(checkpoints.steps(Path(f"s/{n}"))) for n in range(3)) == 2  # whichever of them trained
    assert command.exit_code("train", train.main, line) == 0
    capsys.readouterr()
    for seed in range(3):
        same(f"s/{seed}", [f"seed={seed}", "epochs=40"])


def test_who_is_in_a_long_call_is_not_taken_for_slow(monkeypatch):
    measure, train_, missing = population.Population._measure, population.Population._train, []

    def measured(self, calls, params):
        time.sleep(1.2)  # longer than PATIENCE
        return measure(self, calls, params)

    def trained(self, calls, width):
        missing.append(len(self._members) - len(calls))
        return train_(self, calls, width)

    monkeypatch.setattr(population, "PATIENCE", 1.0)
    monkeypatch.setattr(population.Population, "_measure", measured)
    monkeypatch.setattr(population.Population, "_train", trained)
    lines = [["checkpoint.every_steps=3", "max_steps=6"], ["max_steps=6"]]  # the first comes to its epoch's end later
    assert ended(swept(lines, 2)) == [("completed", 0)] * 2
    assert not any(missing)


def test_a_polite_stop_waits_until_it_is_known_how_many_train_at_once():
    """What compiles them must not be left in the middle: the interpreter would end beside a thread of XLA."""
    known, ran = [], []

    def at_once(settings):
        os.kill(os.getpid(), signal.SIGINT)
        known.append(time.sleep(0.05))
        return 1

    with pytest.raises(KeyboardInterrupt):
        launchers.population([launchers.Task(0, None, ran.append)], ran.append, members=at_once)
    assert known and not ran


@pytest.mark.parametrize("bytes_of", [2, 1, 0.9])
def test_fewer_at_once_where_the_memory_is_short(monkeypatch, capsys, met, bytes_of):
    with running.opened("first", "population", members=4) as runner:
        swept([["seed=0"]], 4, runner=runner)
        (made,) = runner.groups.values()
        free = int(min(bytes_of, 1) * made.population.widths.needed(max(1, int(bytes_of))))
    monkeypatch.setattr(devices, "free_memory", lambda device: free)
    met.clear()
    with running.opened("s", "population", members=4) as runner:
        found = ended(swept([[f"seed={n}", "epochs=1"] for n in range(4)], 4, runner=runner))
    (made,) = runner.groups.values()
    told = capsys.readouterr()
    if bytes_of < 1:
        assert found == [("failed", 8)] * 4 and "lower batch_size" in told.err
    else:
        assert found == [("completed", 0)] * 4 and f"4 need more than the {free:,} bytes" in told.out
        assert max(call[2] for call in met) <= bytes_of
        assert (
            4 in made.population.widths.made and max(made.population.widths.there()) <= bytes_of
        )  # visits take what is there


def test_visits_wait_for_each_other_but_members_do_not_wait_for_them(met):
    lines = [["seed=0", "epochs=300"], *([f"seed={n}", "epochs=2"] for n in range(1, 8))]
    with running.opened("s", "population", members=8) as runner:
        swept([["seed=9"]], 8, runner=runner)
        met.clear()
        (made,) = runner.groups.values()
        made.population._visit_seconds = 0.2
        assert ended(swept([["seed=9"], *lines], 8, runner=runner)) == [("completed", 0)] * 9
    visits = [n for n, (name, count, _) in enumerate(met) if name == "answers" and 2 <= count <= 7]
    assert visits, met
    assert any(name == "segment" for name, *_ in met[visits[-1] :])


def test_trials_of_a_study_train_together(capsys, met):
    line = ["-m", *TINY, "hydra/sweeper=optuna", "optimizer.learning_rate=tag(log,interval(1e-3,1e-1))"]
    line += ["hydra.sweeper.n_trials=3", "hydra.sweeper.seeds=2", "hydra.sweeper.sampler=random", "hydra.sweep.dir=s"]
    line += ["hydra/launcher=population", "hydra.launcher.members=4"]
    assert command.exit_code("train", train.main, line) == 0
    assert Counter(call[1] for call in met if call[0] == "segment").keys() == {4, 2}
    rate = next(w for w in runs.read_json(Path("s/5/overrides.json")) if w.startswith("optimizer.learning_rate"))
    same("s/5", [rate, "seed=1"])


def test_without_a_number_members_are_one_on_a_cpu_and_many_on_one_accelerator(monkeypatch):
    settings = config.compose(TINY)
    assert group.prepare(settings, print, members=None).members == 1
    gpu = type("Gpu", (), {"platform": "gpu"})()
    monkeypatch.setattr(devices, "choose", lambda *_, **__: [gpu])
    made = group.prepare(settings, print, members=None)
    assert (made.members, made.unroll) == (group.MEMBERS, "bptt, vmapped")
    assert group.prepare(settings, print, members=1).members == 1
    monkeypatch.setattr(devices, "choose", lambda *_, **__: [gpu, gpu])
    assert group.prepare(settings, print, members=None).members == 1


def test_how_many_members_is_a_setting_of_the_launcher(capsys, tmp_path, monkeypatch):
    how = ["hydra/launcher=population", "seed=0,1", "dry_run=true"]
    assert planning.planned(how).members is None
    assert planning.planned([*how, "hydra.launcher.members=16"]).members == 16
    assert planning.planned([*how, "hydra.launcher.members=auto"]).members is None
    for line in ("hydra.launcher.members=0", "hydra.launcher.members=many", "hydra.launcher.members=1.5",
                 "hydra.launcher.members=true", "hydra.launcher.member=2", "hydra.launcher.members=1,2",
                 "hydra/launcher=basic hydra.launcher.members=2", "unroll=kernel hydra.launcher.members=2",
                 "device.count=1,2 hydra.launcher.members=2"):  # fmt: skip
        assert command.exit_code("train", train.main, ["-m", *how, *line.split()]) == 2
        told = capsys.readouterr().err.splitlines()
        assert all("hydra.launcher.member" in one for one in told)
        assert len(told) == 1 + line.startswith(("unroll", "device"))  # both jobs, or each that has two devices
    (tmp_path / "experiment").mkdir()
    lines = "# @package _global_\ndefaults:\n  - override /hydra/launcher: population\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(lines + "hydra:\n  launcher:\n    members: 3\n")
    plan = planning.planned(["experiment=mine", "seed=0,1"], config_dir=str(tmp_path))
    assert (plan.launcher, plan.members) == ("population", 3)
    monkeypatch.setattr(sys.modules[__name__], "TINY", [word for word in TINY if "unroll" not in word])
    assert ended(swept([["unroll=kernel"], ["device.count=2"], []], 2)) == [("failed", 2)] * 2 + [("completed", 0)]
    assert "it trains one run, not 2 at once" in (told := capsys.readouterr().err) and "device.count=1" in told
    assert checkpoints.newest(Path("s/2"), print).fingerprint["loops"] == "bptt, vmapped"
