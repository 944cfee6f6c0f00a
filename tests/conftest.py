"""Settings that must stand before jax starts, the compile cache of the tests, and what a test asks for."""

import os
import signal

# XLA:CPU's YNN fusions give wrong sums in silence (jax-ml/jax#39103): off, unless the caller chose.
if "xla_cpu_experimental_ynn_fusion_type" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_cpu_experimental_ynn_fusion_type=").strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

SLOW = "test_insight test_explain test_behaviour test_checkpoints test_unroll_invariances test_benchmarks".split()
jax.config.update("jax_num_cpu_devices", 2)  # two, on any machine: one run spread over them is one of the laws


def pytest_configure(config):
    """Compiled programs stay in pytest's own cache folder (which ignores itself in git): a second run is quick."""
    cache = getattr(config, "cache", None)
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache.mkdir("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(cache.mkdir("hypothesis")))


def pytest_collection_modifyitems(items):
    """`-m "not slow"` is the fast part: without what starts many processes or compiles a program per case."""
    for item in items:
        if "faults" in item.path.parts or item.path.stem in SLOW:
            item.add_marker("slow")


@pytest.fixture
def x64():
    """64-bit floats for the length of one test; off everywhere else."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def own_place(tmp_path, monkeypatch):
    """A working directory and a compile cache of the tests' own, and SIGTERM as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "set by the tests")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
