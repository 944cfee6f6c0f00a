"""G4, G6, B7: every reader of a file from elsewhere over damaged copies of good ones: it is used, or refused by type.

corpus/ holds one small good file for each reader. A mutation that once got through is kept there under a name of its
own. FAULTS_EXAMPLES=1000000 python -m pytest tests/faults/test_fuzz.py draws at random, as long as that takes.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxrnn import artefact, checkpoints, runs, text
from jaxrnn.data.files import files
from jaxrnn.errors import ArtefactError, DataError, JaxrnnError
from jaxrnn.vocabulary import Vocabulary

CORPUS = Path(__file__).parent / "corpus"
EXAMPLES = os.environ.get("FAULTS_EXAMPLES")
DRAWN = settings(deadline=None, max_examples=int(EXAMPLES or 60), derandomize=EXAMPLES is None, database=None,
                 suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
TOKENS = [b"", b"\0", b'"', b"{", b"[" * 40, b"\xff", b"\n", b"\t", b"9" * 30, b"-1", b"1e999", b"null", b"\xed\xa0"]


def table(path):
    for skip in ("error", "skip"):
        for row, label in files(path=str(path), on_bad_row=skip, max_characters=4000).train:
            assert isinstance(row, str) and label


def model(path):
    """model.json in a folder whose other files fit it, and whose manifest fits them all."""
    folder = path.parent / "run" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("params.safetensors", "vocabulary.json"):
        (folder / name).write_bytes((CORPUS / f"model_{name}").read_bytes())
    (folder / "model.json").write_bytes(path.read_bytes())
    sums = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}
    sums = {name: {"bytes": len(held), "sha256": hashlib.sha256(held).hexdigest()} for name, held in sums.items()}
    (folder / "manifest.json").write_text(json.dumps({"files": sums}))
    loaded = artefact.load(folder.parent)
    assert loaded.tokenizer.split("a b")


def manifest(path):
    folder = path.parent / "step_1"
    folder.mkdir(exist_ok=True)
    (folder / "state.safetensors").write_bytes(b"")
    (folder / "position.json").write_bytes(b"{}")
    (folder / "manifest.json").write_bytes(path.read_bytes())
    checkpoints.verified(folder)


def config(path):
    (path.parent / "run").mkdir(exist_ok=True)
    (path.parent / "run" / "config.yaml").write_bytes(path.read_bytes())
    runs.check_config(path.parent / "run")


READERS = {
    "rows.tsv": (table, DataError),
    "rows.csv": (table, DataError),
    "rows.jsonl": (table, DataError),
    "rows.tsv.gz": (table, DataError),
    "vocabulary.json": (lambda path: Vocabulary.from_json(path.read_bytes()), ArtefactError),
    "state.safetensors": (lambda path: checkpoints.arrays(path.read_bytes(), path), ArtefactError),
    "manifest.json": (manifest, ArtefactError),
    "metrics.jsonl": (lambda path: list(runs.read_lines(path)), ArtefactError),
    "config.yaml": (config, ArtefactError),
    "model.json": (model, ArtefactError),
}


@pytest.mark.fault("G4", "G6", "B7")
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_used_or_refused_by_type(tmp_path, name):
    read, refusal = READERS[name]
    whole, path = (CORPUS / name).read_bytes(), tmp_path / name
    path.write_bytes(whole)
    read(path)
    for kept in CORPUS.glob(f"{name}.*.kept"):
        path.write_bytes(kept.read_bytes())
        with pytest.raises(JaxrnnError):
            read(path)
    place = st.integers(0, len(whole))
    change = st.tuples(place, st.integers(0, 30), st.one_of(st.sampled_from(TOKENS), st.binary(max_size=6), st.none()))

    @DRAWN
    @given(st.lists(change, min_size=1, max_size=4))
    def law(changes):
        content = whole
        for at, gone, new in changes:
            new = content[at // 2 : at // 2 + 40] if new is None else new  # None: a piece of the file itself
            content = content[:at] + new + content[at + gone :]
        path.write_bytes(content)
        try:
            read(path)
        except JaxrnnError as error:
            assert type(error) is refusal and len(str(error)) < 3000

    law()


def places(tree, at=()):
    for key, value in tree.items():
        yield (*at, key)
        if isinstance(value, dict):
            yield from places(value, (*at, key))


VALUES = [None, False, 0, -1, 10**9, 2**63, 2**70, 1e300, 0.5, "", "none", [], {}, ["a"], {"a": 1}, "lstm", "one_hot"]


@pytest.mark.fault("G4", "C6")
def test_any_value_in_the_record_of_a_model_is_used_or_refused(tmp_path):
    """A billion layers among them: what would not fit the arrays beside the record is not built."""
    whole = json.loads((CORPUS / "model.json").read_text())

    @DRAWN
    @given(st.sampled_from(list(places(whole))), st.sampled_from(VALUES))
    def law(place, value):
        changed = json.loads(json.dumps(whole))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        (tmp_path / "model.json").write_text(json.dumps(changed))
        try:
            model(tmp_path / "model.json")
        except ArtefactError as error:
            assert len(str(error)) < 3000

    law()


@pytest.mark.fault("C6")
def test_every_id_of_a_damaged_vocabulary_has_a_row(tmp_path):
    """What is accepted has the ids 0 to V - 1, each once: nothing is looked up beyond a table of V rows."""
    whole = (CORPUS / "vocabulary.json").read_bytes()

    @DRAWN
    @given(st.integers(0, len(whole) - 1), st.sampled_from(b'0123456789-,:"'))
    def law(at, byte):
        try:
            found = Vocabulary.from_json(whole[:at] + bytes([byte]) + whole[at + 1 :])
        except ArtefactError:
            return
        assert sorted(found.ids.values()) == list(range(len(found)))
        tokens, *_ = text.encode_texts(["a b c", "zzz"], text.words(), found)
        assert ((np.array(tokens) >= 0) & (np.array(tokens) < len(found))).all()

    law()
