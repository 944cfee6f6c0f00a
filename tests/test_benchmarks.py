"""The benchmarks run and their contestants are right; how fast anything is, no test says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests.members import no_kernel

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("steps", "ragged", "startup", "embedding", "sweep")


def python(*words):
    """What a process from the root of the checkout says; its compiled programs are kept where the tests keep theirs."""
    cache = jax.config.jax_compilation_cache_dir
    environment = os.environ | ({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {})
    environment |= {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scripts_import_without_jax_and_peers():
    names = ", ".join(f"tests.benchmarks.{name}" for name in SCRIPTS)
    said = python("-c", f"import sys, {names}; print({{'jax', 'torch', 'keras', 'flax'}} & sys.modules.keys())")
    assert said.strip() == "set()"


def test_a_peer_that_is_missing_is_said_to_be():
    script = """
import importlib.util
importlib.util.find_spec = lambda name: None
from tests.benchmarks import arena, steps
for name, (module, options, knobs) in steps.contenders(1).items():
    if name in steps.LIBRARIES:
        assert arena.best([], name, module, None, options, knobs, say=print) is None
"""
    said = python("-c", script).splitlines()
    assert sorted(said) == [f"{name}: not installed" for name in ("equinox", "flax", "haiku", "keras", "torch")]


@pytest.mark.skipif(no_kernel() is not None, reason=str(no_kernel()))
def test_steps_run_and_the_contestants_agree():
    said = python("-m", "tests.benchmarks.steps", "--quick", "--json", "--contestants", "ours", "plain scan", "adam")
    (line,) = said.splitlines()
    record = json.loads(line)
    assert record["benchmark"] == "steps" and record["versions"]["jax"] == jax.__version__
    (row,) = record["rows"]
    assert row["contestants"].keys() == {"ours", "plain scan", "adam"}
    for name in ("ours", "plain scan"):
        found = row["contestants"][name]
        assert found["same_path"] and found["error"] < 1e-4 and found["repeats"] >= 3
        assert found["quartiles_ms"] == sorted(found["quartiles_ms"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_explain_themselves(name):
    assert f"python -m tests.benchmarks.{name}" in " ".join(python("-m", f"tests.benchmarks.{name}", "--help").split())
