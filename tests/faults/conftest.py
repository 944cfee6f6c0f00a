"""The cases by ID, a table of them at the end, and which belong to the quick part.

python -m pytest                               the quick part, with the other tests
python -m pytest tests/faults -m "not soak"    every case
python -m pytest tests/faults -m soak          twenty minutes of drawn faults
"""

import shutil

import faultbench
import pytest

LINES = pytest.StashKey()


def pytest_configure(config):
    config.addinivalue_line("markers", "fault(*ids): the cases of the fault tables that a test injects")
    config.addinivalue_line("markers", "whole: too long for the quick part")
    config.addinivalue_line("markers", "soak: minutes of random faults")
    config.stash[LINES] = {}


def pytest_collection_modifyitems(config, items):
    if config.option.markexpr:
        return
    kept = [item for item in items if not any(item.get_closest_marker(name) for name in ("whole", "soak"))]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    mark = item.get_closest_marker("fault")
    if mark and (report.when == "call" or report.outcome != "passed"):
        for case in mark.args:
            item.config.stash[LINES].setdefault(case, []).append((report.outcome, report.duration, report.longrepr))


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash.get(LINES, {})
    if not lines:
        return
    terminalreporter.section("faults")
    for case in faultbench.CASES:
        found = lines.get(case, [])
        count = {kind: sum(outcome == kind for outcome, *_ in found) for kind in ("passed", "failed", "skipped")}
        told = ", ".join(f"{number} {kind}" for kind, number in count.items() if number) or "not run"
        reasons = sorted({why[2] for outcome, _, why in found if outcome == "skipped" and isinstance(why, tuple)})
        spent = sum(seconds for _, seconds, _ in found)
        terminalreporter.write_line(f"{case:4} {told:34} {f'{spent:.1f} s' if found else '':>8}  {' '.join(reasons)}")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def basis(tmp_path_factory):
    return faultbench.basis(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def reference(basis, cache, tmp_path_factory):
    """The run that is never stopped."""
    run = tmp_path_factory.mktemp("reference") / "run"
    code, _, err = faultbench.train([*basis, f"hydra.run.dir={run}"], cache)
    assert (code, err) == (0, [])
    return run


@pytest.fixture(scope="session")
def halted(basis, cache, tmp_path_factory):
    """A run killed after two checkpoints; cases work on copies of it."""
    run = tmp_path_factory.mktemp("halted") / "run"
    arguments = [*basis, f"hydra.run.dir={run}", "checkpoint.every_steps=2"]
    process = faultbench.start(arguments, cache)
    assert faultbench.until(lambda: len(faultbench.verifies(run)) >= 2 and faultbench.logged(run) >= 13, process)
    process.kill()
    process.communicate()
    assert faultbench.summary(run) is None
    return run


@pytest.fixture
def copy(halted, tmp_path):
    shutil.copytree(halted, tmp_path / "run")
    return tmp_path / "run"
