"""G: a checkpoint from a stranger whose sums are right: what it says is checked before it is used."""

import json

import faultbench as bench
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrnn import checkpoints, progress
from jaxrnn.errors import ArtefactError

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
POSITION = {"ended": False, "score": [0.5, -0.7], "waited": 0, "refused": 0, "told": {"best_epoch": 1}, "logs": {}}


class Reached(Exception):
    """Everything was checked, the arrays come next."""


class Programs:
    """Stands for compiled programs, which a checkpoint meets last."""

    def __getattr__(self, name):
        raise Reached


def held(position, log):
    state = {f"log.{name}": log for name in ("loss", "correct", "weight", "grad_norm")}
    return checkpoints.Checkpoint(3, 1, 3, {}, position, state, None)


@pytest.mark.fault("G4")
@settings(deadline=None, max_examples=300, derandomize=True)
@given(key=st.sampled_from(sorted(POSITION)), value=ANYTHING, gone=st.booleans())
def test_a_position_is_used_or_refused(tmp_path_factory, key, value, gone):
    position = {k: v for k, v in POSITION.items() if k != key} | ({} if gone else {key: value})
    folder = tmp_path_factory.getbasetemp()
    found = held(position, np.zeros(3, np.float32))
    with pytest.raises((ArtefactError, Reached)):
        progress.start(Programs(), found, folder)
    try:
        progress.rewind(folder, found)
    except ArtefactError as error:
        assert "metrics" in str(error)


@pytest.mark.fault("G4")
@pytest.mark.parametrize("log", [np.zeros((2, 2), np.float32), np.float32(1), np.zeros(3, np.int32)])
def test_losses_of_another_shape_are_refused(tmp_path, log):
    with pytest.raises(ArtefactError, match="position"):
        progress.start(Programs(), held(POSITION, np.asarray(log)), tmp_path)


@pytest.mark.fault("G4")
@settings(deadline=None, max_examples=200, derandomize=True)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_any_bit_of_a_checkpoint_may_flip(tmp_path_factory, at, bit, cut):
    """In the manifest too: what it says of itself is refused, or is what it said."""
    run = tmp_path_factory.mktemp("flip")
    state = {"params.W": np.arange(6, dtype=np.float32), "step": np.int32(3)}
    folder = checkpoints.save(run, checkpoints.Checkpoint(3, 1, 3, {"seed": 0}, POSITION, state, None), keep=1)
    paths = sorted(folder.iterdir())
    path = paths[at % len(paths)]
    content = bytearray(path.read_bytes())
    place = at % len(content)
    content[place] ^= 1 << bit
    path.write_bytes(content[:place] if cut else content)
    try:
        found = checkpoints.load(run, 3)
    except ArtefactError:
        return
    assert path.name == "manifest.json"
    np.testing.assert_equal(found.state, state)


@pytest.mark.fault("G4")
@pytest.mark.whole
@pytest.mark.parametrize(
    "change", [{"step": 2**70}, {"batch": -1}, {"epoch": True}, {"fingerprint": []}, {"files": {}}]
)
def test_a_manifest_of_nonsense_is_passed_over(basis, cache, copy, reference, change):
    path = copy / "checkpoints" / f"step_{bench.verifies(copy)[-1]}" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    code, out, err = bench.train([*basis, f"hydra.run.dir={copy}"], cache)
    assert (code, err) == (0, []) and any("is not used" in line for line in out)
    assert bench.digest(copy) == bench.digest(reference)
