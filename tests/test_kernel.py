"""What is the kernel's own: every size, activation and width of vector; how its C code is compiled and kept."""

import importlib
import os
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import CELLS, ROOT, distance, drawn, member, no_kernel

from jaxrnn import activations, config, devices, foreign, group, job, targets
from jaxrnn.errors import ConfigurationError
from jaxrnn.unroll import kernel as module

pytestmark = pytest.mark.skipif(no_kernel() is not None, reason=str(no_kernel()))

# T, B, D, H: one of each; no multiples of a vector; few rows and one, so that weights are read as they lie; enough work
# for several parts, of unequal rows
SIZES = [(1, 1, 1, 1), (9, 5, 17, 20), (4, 3, 18, 40), (40, 1, 16, 64), (9, 1, 24, 33), (23, 61, 48, 50)]


def answers(cell, unroll, sizes, dtype, reverse=False):
    """state, ys and gradients for drawn parameters, texts of all lengths and a drawn gradient of every answer."""
    T, B, D, _ = sizes
    params = drawn(jax.eval_shape(cell.init, jax.random.key(0)), 1, dtype, 0.2)
    state = jax.tree.map(lambda leaf: jnp.zeros((B, *leaf.shape)), jax.eval_shape(cell.start, params))
    xs, dstate, dys = drawn((jnp.zeros((T, B, D)), state, jnp.zeros((T, B, cell.output_size))), 2, dtype, 1.0)
    length = jnp.asarray(np.random.default_rng(3).integers(0, T + 1, B), jnp.int32)

    @jax.jit
    def run(params, xs):
        answer, back = jax.vjp(lambda p, x: unroll(cell, p, x, length, reverse=reverse), params, xs)
        return answer, back((dstate, dys))

    return run(params, xs)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("cell_name", CELLS)
@pytest.mark.usefixtures("x64")
def test_any_size_is_bptt(cell_name, sizes):
    cell = member("cells", cell_name)(*sizes[2:])
    fast = answers(cell, member("unroll", "kernel"), sizes, jnp.float64, reverse=sizes[0] == 9)
    assert distance(fast, answers(cell, member("unroll", "bptt"), sizes, jnp.float64, reverse=sizes[0] == 9)) < 1e-10


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("cell_name", CELLS)
def test_any_size_in_single_precision(cell_name, sizes):
    cell = member("cells", cell_name)(*sizes[2:])
    fast = answers(cell, member("unroll", "kernel"), sizes, jnp.float32, reverse=sizes[0] == 9)
    assert distance(fast, answers(cell, member("unroll", "bptt"), sizes, jnp.float32, reverse=sizes[0] == 9)) < 3e-5


@pytest.mark.parametrize("name", module.ACTIVATIONS)
@pytest.mark.parametrize("cell_name", CELLS)
def test_every_activation_is_bptts(cell_name, name):
    cell = member("cells", cell_name)(8, 16, activation=activations.named(name))
    sizes = (6, 9, 8, 16)
    fast = answers(cell, member("unroll", "kernel"), sizes, jnp.float32)
    assert distance(fast, answers(cell, member("unroll", "bptt"), sizes, jnp.float32)) < 1e-5


def test_a_limit_of_threads_changes_no_bit():
    cell, found = member("cells", "vanilla")(*SIZES[-1][2:]), []
    for threads in (1, devices.cores()):
        foreign.limit(threads)
        found.append(answers(cell, member("unroll", "kernel"), SIZES[-1], jnp.float32))
    assert distance(*found) == 0


def test_tanh_is_within_four_units_of_the_last_place():
    cell = member("cells", "vanilla")(16, 16)
    params = cell.init(jax.random.key(0))._replace(W_xh=jnp.eye(16))
    x = np.concatenate([np.linspace(-20, 20, 20_001), np.logspace(-30, 1, 4_000), [0.0, np.inf, -np.inf]])
    x = x[: len(x) // 16 * 16].astype(np.float32)
    _, ys = member("unroll", "kernel")(cell, params, jnp.asarray(x.reshape(1, -1, 16)))
    expected = np.tanh(x.astype(np.float64))
    assert np.abs(np.asarray(ys).ravel() / np.where(expected, expected, 1) - (expected != 0)).max() < 4 * 2**-23


def test_a_number_that_is_not_finite_is_not_hidden():
    cell = member("cells", "vanilla")(16, 16)
    xs = jnp.zeros((3, 2, 16)).at[1, 0, 0].set(jnp.nan)
    state, _ = member("unroll", "kernel")(cell, cell.init(jax.random.key(0)), xs)
    assert np.isnan(state[0]).all() and np.isfinite(state[1]).all()


WIDTHS = """
import sys
sys.path.insert(0, "tests")
import jax, members, test_kernel
from jaxrnn import foreign
jax.config.update("jax_enable_x64", True)
foreign.load("-DDOUBLE", *sys.argv[1:])
from jaxrnn.unroll import bptt
from jaxrnn.unroll.kernel import kernel
for name in members.CELLS:
    cell = members.member("cells", name)(17, 20)
    one, two = (test_kernel.answers(cell, unroll, (9, 61, 17, 20), jax.numpy.float64) for unroll in (kernel, bptt))
    assert members.distance(one, two) < 1e-10, name
"""


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="these flags are x86's")
@pytest.mark.parametrize("flags", [["-mno-avx512f"], ["-mno-avx512f", "-mno-avx2", "-mno-avx"]], ids=["8", "4"])
def test_narrower_vectors_give_the_same(flags):
    subprocess.run([sys.executable, "-c", WIDTHS, *flags], cwd=ROOT, check=True, timeout=300)


def test_the_same_bits_every_time():
    cell = member("cells", "gru")(48, 64)
    runs = [answers(cell, member("unroll", "kernel"), (23, 61, 48, 64), jnp.float32) for _ in range(5)]
    assert all(distance(run, runs[0]) == 0.0 for run in runs)


# --- how the code comes to run


CALLS = """
import ctypes, sys, threading, time
library = ctypes.CDLL(sys.argv[1])
ctypes.c_int.in_dll(library, "jaxrnn_cores").value = 4
task_of = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
right = []

def calls(who):
    for turn in range(150):
        done = [0] * (turn % 9 + 1)
        def one(_, number):
            done[number] += 1
        library.jaxrnn_in_parallel(4, len(done), task_of(one), None)
        right.append(set(done) == {1})
        if turn % 50 == who:
            time.sleep(0.002)  # so that helpers fall asleep

threads = [threading.Thread(target=calls, args=(who,)) for who in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(right), all(right))
"""


def test_every_task_is_done_once_whoever_calls():
    """Three callers at once and three helpers, awake and asleep."""
    library = foreign._kept(foreign._command())
    told = subprocess.run([sys.executable, "-c", CALLS, str(library)], capture_output=True, text=True, timeout=120)
    assert told.stdout.split() == ["450", "True"], told.stderr


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A cache folder of its own; what has been loaded stays loaded after the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(targets, "_targets", dict(targets._targets))
    monkeypatch.setattr(foreign, "_loaded", set())
    monkeypatch.setattr(foreign, "_failed", {})
    return tmp_path


def loaded(*flags):
    foreign._loaded.clear()
    foreign.load(*flags)


def test_compiled_once_in_a_private_folder(alone):
    loaded()
    (library,) = (alone / "cache" / "jaxrnn" / "native").iterdir()
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    before = library.stat().st_mtime_ns
    loaded()
    assert [path.stat().st_mtime_ns for path in library.parent.iterdir()] == [before]
    loaded("-DDOUBLE")
    assert len(list(library.parent.iterdir())) == 2


def test_a_damaged_library_is_compiled_again(alone):
    loaded()
    (library,) = (alone / "cache" / "jaxrnn" / "native").iterdir()
    content = library.read_bytes()
    for damaged in (b"not a library", content[: len(content) // 2], content[:-4096] + bytes(4096)):
        library.unlink()  # and not written over: this process has it open
        library.write_bytes(damaged)
        loaded()
        assert [path.read_bytes() == damaged for path in library.parent.iterdir()] == [False]


def test_a_library_that_others_could_have_written_is_not_opened(alone):
    loaded()
    (library,) = (alone / "cache" / "jaxrnn" / "native").iterdir()
    library.chmod(0o722)
    before = library.stat().st_ino, library.stat().st_mtime_ns
    loaded()
    (library,) = library.parent.iterdir()
    assert stat.S_IMODE(library.stat().st_mode) == 0o700
    assert (library.stat().st_ino, library.stat().st_mtime_ns) != before


@pytest.mark.parametrize("made", [b"", b"not a library", None])
def test_a_compiler_whose_code_cannot_be_opened_leaves_bptt_to_train(alone, monkeypatch, made):
    path = alone / "cc"  # writes what it was told to, or nothing
    path.write_text(
        "#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\n" + f"cp {alone / 'made'} $1\n" * (made is not None)
    )
    path.chmod(0o755)
    (alone / "made").write_bytes(made or b"")
    monkeypatch.setenv("CC", str(path))
    said = []
    small = ["dataset.train_rows=64", "dataset.valid_rows=20", "dataset.test_rows=30", "hidden_size=8"]
    assert group.prepare(config.compose(small), said.append).unroll == "bptt"
    assert sum("cannot be used here" in line for line in said) == 1


def test_without_a_compiler_the_reason_is_said_and_bptt_trains(alone, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(alone))
    monkeypatch.delenv("CC", raising=False)
    said = []
    small = ["dataset.train_rows=64", "dataset.valid_rows=20", "dataset.test_rows=30", "hidden_size=8"]
    assert group.prepare(config.compose(small), said.append).unroll == "bptt"
    assert any("no C compiler" in line for line in said)
    with pytest.raises(ConfigurationError, match="no C compiler"):
        group.prepare(config.compose([*small, "unroll=kernel"]), said.append)


@pytest.fixture
def broken(alone, monkeypatch):
    """A compiler that fails."""
    path = alone / "cc"
    path.write_text("#!/bin/sh\necho 'x.c:1: error: no such thing' >&2\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))
    return path


@pytest.mark.usefixtures("broken")
def test_a_compiler_that_fails_is_quoted(alone, monkeypatch):
    with pytest.raises(ConfigurationError, match="error: no such thing"):
        foreign.load()
    assert not list((alone / "cache" / "jaxrnn" / "native").iterdir())
    monkeypatch.setattr(foreign, "_call", None)
    with pytest.raises(ConfigurationError, match="error: no such thing"):  # is not tried again
        foreign.load()


@pytest.mark.parametrize("home", ["a file", "unknown"])
def test_without_a_folder_to_keep_it_in_it_is_compiled_once_for_this_process(alone, home, monkeypatch):
    if home == "a file":
        (alone / "cache").write_text("in the way")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    calls = []
    compiled = foreign._compile
    monkeypatch.setattr(foreign, "_compile", lambda *given: [calls.append(given), compiled(*given)][1])
    small = ["dataset.train_rows=64", "dataset.valid_rows=20", "dataset.test_rows=30", "hidden_size=8"]
    for _ in range(2):
        assert group.prepare(config.compose(small), print).unroll == "kernel"
    assert len(calls) == 1


@pytest.mark.parametrize("dry_run", ["false", "true"])
def test_where_it_fails_after_the_programs_were_traced_bptt_trains(broken, dry_run):
    said = []
    small = ["dataset.train_rows=64", "dataset.valid_rows=20", "dataset.test_rows=30", "hidden_size=8"]
    made = group.prepare(config.compose([*small, f"dry_run={dry_run}"]), said.append)
    assert made.unroll == "bptt" and "float32" not in targets.dtypes()
    assert sum("error: no such thing" in line for line in said) == 1
    state = made.programs.init(np.uint32(0), np.float32(1))
    assert np.isfinite(np.asarray(state.params.input)).all()
    with pytest.raises(ConfigurationError, match="no such thing"):
        group.prepare(config.compose([*small, "unroll=kernel"]), said.append)


def test_programs_are_traced_while_it_is_compiled(alone, monkeypatch):
    from jaxrnn import fit

    compiled, told = foreign.load, []
    monkeypatch.setattr(foreign, "load", lambda: [told.append("asked"), compiled(), told.append("there")])
    build = fit.build
    monkeypatch.setattr(fit, "build", lambda *given, **more: [told.append("built"), build(*given, **more)][1])
    small = ["dataset.train_rows=64", "dataset.valid_rows=20", "dataset.test_rows=30", "hidden_size=8"]
    group.prepare(config.compose(small), print)
    assert told[0] == "built" and "there" in told
    told.clear()
    group.prepare(config.compose(small), print)
    assert told == ["asked", "there"]


def test_what_it_cannot_compute_is_refused_with_what_can():
    xs = jnp.zeros((2, 3, 4))
    softplus = member("cells", "vanilla")(4, 5, activation=activations.named("softplus"))
    with pytest.raises(ConfigurationError, match=r"softplus.*unroll=bptt"):
        module.kernel(softplus, softplus.init(jax.random.key(0)), xs)
    own = member("cells", "vanilla")(4, 5, activation=activations.tanh._replace(apply=jnp.sin))
    with pytest.raises(ConfigurationError, match="unroll=bptt"):
        module.kernel(own, own.init(jax.random.key(0)), xs)
    cell = member("cells", "vanilla")(4, 5)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), cell.init(jax.random.key(0)))
    with pytest.raises(ConfigurationError, match=r"bfloat16.*unroll=bptt"):
        module.kernel(cell, half, xs)


@pytest.mark.parametrize("change", ["wide", "few"])
def test_shapes_that_do_not_fit_are_refused(change):
    cell = member("cells", "vanilla")(4, 5)
    xs, length = jnp.zeros((6, 3, 7 if change == "wide" else 4)), jnp.full(2 if change == "few" else 3, 6)
    with pytest.raises(ValueError, match="do not fit W_xh"):
        module.kernel(cell, cell.init(jax.random.key(0)), xs, length)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell_name", CELLS)
def test_lengths_beyond_the_texts_are_scans(cell_name, reverse):
    cell = member("cells", cell_name)(4, 20)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (6, 5, 4))

    def answered(unroll, length, params, xs):
        state, ys = unroll(cell, params, xs, jnp.array(length, jnp.int32), reverse=reverse)
        return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves((state, ys)))

    for length in ([9, 6, 20, 3, 7], [-1, 2, -(2**31), 6, 2**31 - 1], [-100_000] * 5):
        fast, slow = (
            jax.value_and_grad(partial(answered, unroll, length), argnums=(0, 1))(params, xs)
            for unroll in (module.kernel, member("unroll", "scan"))
        )
        assert distance(fast, slow) < 1e-5


def test_a_run_says_which_loops_it_takes():
    small = ["dataset.train_rows=64", "dataset.valid_rows=20", "dataset.test_rows=30", "hidden_size=8"]
    for overrides, expected in ([], "kernel"), (["unroll.kernel=never"], "bptt"), (["unroll=scan"], "scan"):
        found = group.prepare(config.compose([*small, *overrides]), print)
        assert found.unroll == expected
        assert found.network["unroll"] == expected.replace("kernel", "bptt")  # what is saved runs anywhere


def test_the_source_is_in_the_package():
    assert all(path.is_relative_to(Path(devices.__file__).parent) for path in foreign.SOURCES)
    assert set(foreign.SOURCES) == set(foreign.NATIVE.glob("*.c"))


def test_other_code_or_cores_are_another_run_bit_for_bit(tmp_path, monkeypatch, capsys):
    small = ["dataset.train_rows=64", "dataset.valid_rows=20", "dataset.test_rows=30", "hidden_size=8", "plots=never"]

    def again(epochs):
        line = [*small, f"epochs={epochs}", f"hydra.run.dir={tmp_path / 'run'}", "device.count=1"]
        return job.run(config.compose(line))["bitwise"], "not as it was: loops" in capsys.readouterr().out

    assert [again(1), again(2)] == [(True, False), (True, False)]
    mark = foreign.mark()
    monkeypatch.setattr(foreign, "mark", lambda: f"another {mark}")
    assert again(3) == (False, True)
    monkeypatch.setattr(foreign, "mark", lambda: mark)
    assert again(4) == (False, True)  # a run that was not is not any more
    monkeypatch.setattr(devices, "cores", lambda: 64)
    assert again(5) == (False, True)


def test_a_dry_run_refuses_a_cell_that_cannot_be_trained(monkeypatch):
    make = member("cells", "vanilla")
    monkeypatch.setattr(
        importlib.import_module("jaxrnn.cells.vanilla"),
        "vanilla",
        lambda *sizes, **more: make(*sizes, **more)._replace(split=None),
    )
    line = ["dataset.train_rows=64", "dataset.valid_rows=20", "dataset.test_rows=30", "dry_run=true"]
    with pytest.raises(ConfigurationError, match="use unroll=scan"):
        group.prepare(config.compose(line), print)
    assert group.prepare(config.compose([*line, "unroll=scan"]), print).unroll == "scan"
