"""G and C6: a run folder from a stranger whose sums are right: what it says is checked before it is used."""

import hashlib
import io
import json
import shutil
import struct
import tarfile
import zipfile

import faultbench as bench
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrnn import checkpoints, command, config, evaluate, progress
from jaxrnn.data.files import files
from jaxrnn.errors import ArtefactError, ConfigurationError, DataError
from jaxrnn.vocabulary import Vocabulary

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


@pytest.fixture
def trained(reference, tmp_path):
    shutil.copytree(reference, tmp_path / "trained")
    return tmp_path / "trained"


def signed(folder, name, content):
    """Change a file of such a folder, and the manifest with it."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def answered(capsys, *line):
    """-> exit code of evaluate and what it said on standard error."""
    code = command.exit_code("evaluate", evaluate.main, [*map(str, line), "--device", "cpu"])
    return code, capsys.readouterr().err


EVIL = ["evil: {_target_: os.system, command: touch CANARY}\n", "_target_: builtins.eval\n", "hiden_size: 3\n"]


@pytest.mark.fault("G2")
@pytest.mark.parametrize("line", EVIL)
def test_a_config_that_is_not_the_recorded_one_is_refused(trained, capsys, monkeypatch, line):
    monkeypatch.chdir(trained)
    path = trained / "config.yaml"
    recorded = path.read_text()
    for content in (recorded + line, line + recorded, recorded.rpartition("# sha256")[0] + line, ""):
        path.write_text(content)
        code, told = answered(capsys, trained)
        assert code == 5 and "not the file that was recorded" in told
    path.write_text(recorded)
    runs_again = command.exit_code("evaluate", evaluate.main, [str(trained), "--device", "cpu", "--json"])
    assert runs_again == 0 and not (trained / "CANARY").exists()


@pytest.mark.fault("G2")
@pytest.mark.whole
def test_a_config_that_is_not_the_recorded_one_is_not_gone_on_with(basis, cache, copy):
    with (copy / "config.yaml").open("a") as file:
        file.write(EVIL[0])
    before = {path: path.read_bytes() for path in copy.glob("checkpoints/*/*")}
    code, _, err = bench.train([*basis, f"hydra.run.dir={copy}"], cache)
    assert code == 5 and "not the file that was recorded" in err[-1]
    assert before == {path: path.read_bytes() for path in before}


def packed(header, data=b"", size=None):
    """A safetensors file, as the description of the format has it, or not."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def entry(shape, begin, end, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def strange_arrays():
    one = json.dumps(entry([1], 0, 4))
    return {
        "header of 2^63": packed(b"{}", size=1 << 63),
        "header of 101 MB": packed(b"{" + b" " * (101 << 20) + b"}"),
        "overlap": packed({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "out of range": packed({"a": entry([2], 0, 8)}, bytes(4)),
        "before the start": packed({"a": entry([2], -8, 0)}, bytes(8)),
        "shape of 2^50": packed({"a": entry([1 << 50], 0, 8)}, bytes(8)),
        "shape beyond numbers": packed({"a": entry([1 << 62, 1 << 62], 0, 8)}, bytes(8)),
        "empty and vast": packed({"a": entry([0, 1 << 62], 0, 0)}),
        "twice": packed(f'{{"a": {one}, "a": {one}}}'.encode(), bytes(4)),
        "unknown kind": packed({"a": entry([2], 0, 8, "F99")}, bytes(8)),
        "kind that numpy has not": packed({"a": entry([4], 0, 8, "BF16")}, bytes(8)),
        "more bytes": packed({"a": entry([2], 0, 8)}, bytes(9)),
        "200,000 arrays": packed({f"a{n}": entry([1], 4 * n, 4 * n + 4) for n in range(200_000)}, bytes(800_000)),
        "nothing": b"",
        "a list": packed([1]),
        "deep": packed(b"[" * 100_000),
    }


READ = """
from pathlib import Path
from jaxrnn import checkpoints, errors, vocabulary
found = dict()
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        if path.suffix == ".json":
            vocabulary.Vocabulary.from_json(path.read_bytes())
        else:
            checkpoints.arrays(path.read_bytes(), path)
        found[path.stem] = "taken"
    except errors.ArtefactError as error:
        found[path.stem] = str(error)
"""


@pytest.mark.fault("G4")
def test_strange_arrays_are_refused_in_bounded_memory(tmp_path):
    for name, content in strange_arrays().items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    found = bench.bounded(READ, tmp_path, limit=500 << 20)
    assert len(found) == 16 and all("is not a safetensors file" in told for told in found.values()), found


def vocabulary(pairs):
    return ("{" + ", ".join(f"{json.dumps(token)}: {number}" for token, number in pairs) + "}").encode()


WORDS = [("<padding>", 0), ("<unknown>", 1), ("a", 2), ("b", 3)]


@pytest.mark.fault("G6")
def test_strange_vocabularies_are_refused_in_bounded_memory(tmp_path):
    strange = {
        "token twice": vocabulary([*WORDS[:3], ("a", 3)]),
        "id twice": vocabulary([*WORDS[:3], ("b", 2)]),
        "gap": vocabulary([*WORDS[:3], ("b", 4)]),
        "negative": vocabulary([*WORDS[:3], ("b", -1)]),
        "many": b'{"<padding>":0' + b',"":1' * 10**7 + b"}",
        "no text": b'{"<padding>": 0, "<unknown>": 1, 3: 2}',
        "padding": vocabulary([("<unknown>", 0), ("<padding>", 1), *WORDS[2:]]),
        "nul": vocabulary([*WORDS[:3], ("b\0", 3)]),
        "text for id": b'{"<padding>": 0, "<unknown>": "1"}',
        "deep": b"[" * 10**6,
    }
    for name, content in strange.items():
        (tmp_path / f"{name}.json").write_bytes(content)
    found = bench.bounded(READ, tmp_path, limit=500 << 20)
    assert len(found) == 10 and all(told.startswith("vocabulary: ") for told in found.values()), found
    assert Vocabulary.from_json(vocabulary(WORDS)).tokens == ("<padding>", "<unknown>", "a", "b")


@pytest.mark.fault("G6", "G3")
def test_yaml_that_expands_without_end_is_refused(tmp_path):
    bomb = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))]
    for group, content in (("cell", "\n".join(bomb)), ("", "x: [" + "1, " * 100_000 + "]"), ("head", "name: [")):
        path = tmp_path / group / "own.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        with pytest.raises(ConfigurationError, match=r"own\.yaml"):
            config.compose(["cell=own"], config_dir=str(tmp_path))
        path.unlink()


@pytest.mark.fault("C6")
def test_ids_beyond_the_table_are_never_looked_up(trained, capsys):
    model = trained / "model"
    whole = json.loads((model / "vocabulary.json").read_text())
    short = json.dumps(dict(list(whole.items())[:-10])).encode()
    negative = json.dumps({token: number - (number == len(whole) - 1) * len(whole) for token, number in whole.items()})
    (model / "vocabulary.json").write_bytes(short)
    code, told = answered(capsys, trained)
    assert code == 5 and "damaged" in told
    for content, message in ((short, "do not match"), (negative.encode(), "expected 0 to")):
        signed(model, "vocabulary.json", content)
        code, told = answered(capsys, trained)
        assert code == 5 and message in told


def members():
    """A good file, and what would write outside, stand for a device, or run as somebody else."""
    yield tarfile.TarInfo("rows.tsv")
    for name in ("../x", "/tmp/CANARY", "..\\x"):
        yield tarfile.TarInfo(name)
    for kind, target in ((tarfile.SYMTYPE, "/tmp"), (tarfile.LNKTYPE, "../../x"), (tarfile.CHRTYPE, "")):
        info = tarfile.TarInfo(f"link{ord(kind)}")
        info.type, info.linkname = kind, target
        yield info
    info = tarfile.TarInfo("setuid")
    info.mode = 0o4755
    yield info


@pytest.mark.fault("G5")
@pytest.mark.parametrize("name", ["rows.tar", "rows.tar.gz", "rows.zip", "rows.tsv", "rows.tsv.gz"])
def test_no_archive_is_unpacked(tmp_path, name):
    """No data set needs one, so there is nothing that could be written outside of a folder."""
    content = io.BytesIO()
    if name.endswith("zip"):
        with zipfile.ZipFile(content, "w") as archive:
            for info in members():
                archive.writestr(info.name, "text\tlabel\na\t0\nb\t1\n")
    else:
        with tarfile.open(fileobj=content, mode="w:gz" if name.endswith("gz") else "w") as archive:
            for info in members():
                archive.addfile(info)
    (tmp_path / name).write_bytes(content.getvalue())
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        list(files(path=str(tmp_path / name)).train)
    assert [path.name for path in tmp_path.iterdir()] == [name]
