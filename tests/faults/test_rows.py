"""B: data files that are missing, damaged, odd or leaky. In process: what a command does before it compiles."""

import gzip
import io
import json
import signal
import subprocess
import sys
import zipfile

import faultbench as bench
import pytest

from jaxrnn import artefact, command, text, train
from jaxrnn.data.files import files


def refused(capsys, *line):
    """-> exit code and the one line on standard error of a dry run, which reads and checks all there is to read."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = command.exit_code("train", train.main, ["dataset=files", "dry_run=true", *map(str, line)])
    finally:
        signal.signal(signal.SIGTERM, before)
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == (code != 0) and "Traceback" not in err
    return code, err if code else out


def table(path, rows):
    path.write_bytes(b"text\tlabel\n" + b"".join(row + b"\n" for row in rows))
    return path


GOOD = [b"good film number %d\t%d" % (n % 40, n % 2) for n in range(80)]


@pytest.mark.fault("B1")
@pytest.mark.parametrize("content", [None, "folder", b"", b"text\tlabel\n"])
def test_nothing_to_read_is_refused_by_its_path(tmp_path, capsys, content):
    path = tmp_path / "rows.tsv"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    code, told = refused(capsys, f"dataset.path={path}")
    assert code == 3 and str(path) in told


@pytest.mark.fault("B2")
def test_lines_that_do_not_decode_are_named_or_skipped_and_counted(tmp_path, capsys):
    rows = bench.rows(tmp_path / "tiny.tsv", 2000, 0, 8).read_bytes().split(b"\n")
    for number, bad in ((5, b"\xff\xfe"), (900, b"\x85"), (1999, b"caf\xe9")):
        rows[number - 1] = bad + rows[number - 1]
    path = tmp_path / "tiny.tsv"
    path.write_bytes(b"\n".join(rows))
    code, told = refused(capsys, f"dataset.path={path}")
    assert code == 3 and "line 5, byte" in told and "dataset.on_bad_row=skip" in told
    found = text.encode(files(path=str(path), on_bad_row="skip"), text.words()).report
    skipped = {"bytes that are not utf-8": {"rows": 3, "lines": [5, 900, 1999]}}
    assert found["files"] == {str(path): {"rows": 2000, "used": 1997, "skipped": skipped}}
    assert sum(found["rows"].values()) == 1997
    found = text.encode(files(path=str(path), encoding="latin-1"), text.words()).report
    assert sum(found["rows"].values()) == 2000


@pytest.mark.fault("B3")
def test_marks_and_line_ends_change_nothing(tmp_path, capsys):
    rows = [*GOOD, b"a lone\rcarriage return\t1"]
    plain = table(tmp_path / "plain.tsv", rows).read_bytes()
    encoded = text.encode(files(path=str(tmp_path / "plain.tsv")), text.words())
    for content in (b"\xef\xbb\xbf" + plain, plain.replace(b"\n", b"\r\n"), plain.removesuffix(b"\n")):
        (tmp_path / "other.tsv").write_bytes(content)
        other = text.encode(files(path=str(tmp_path / "other.tsv")), text.words())
        assert all((one == two).all() for one, two in zip(encoded.corpus, other.corpus, strict=True))
        assert sum(other.report["rows"].values()) == 81
    (tmp_path / "wide.tsv").write_bytes(plain.decode().encode("utf-16"))
    code, told = refused(capsys, f"dataset.path={tmp_path / 'wide.tsv'}")
    assert code == 3 and "dataset.encoding=utf-16" in told


@pytest.mark.fault("B4")
def test_long_fields_are_cut_and_counted_and_endless_lines_refused(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    lines = ["text,label", '"' + "word " * 40_000 + '",1', *(f"short {n},{n % 2}" for n in range(60))]
    path.write_text("\n".join(lines))
    found = text.encode(files(path=str(path)), text.words(), max_length=512)
    assert found.report["cut"] == 1 and found.corpus.length.max() == 512
    path.write_text("\n".join([*lines, "x" * 20_000_000 + ",1"]))
    code, told = refused(capsys, f"dataset.path={path}")
    assert code == 3 and "line 63" in told and "dataset.max_characters" in told
    path.write_text("\n".join([*lines, "x" * 2_000_000 + ",1"]))
    found = text.encode(files(path=str(path), on_bad_row="skip"), text.words()).report["files"][str(path)]
    assert found["skipped"] == {"more than dataset.max_characters=1,000,000": {"rows": 1, "lines": [63]}}


@pytest.mark.fault("B5")
def test_labels_that_are_not_allowed_and_rows_of_other_widths(tmp_path, capsys):
    strange = [b"a\t2", b"b\t", b"c\tnan", b"d\t1.0", b"e\tpositive", b"f", b"g\th\t1"]
    path = table(tmp_path / "rows.tsv", [*GOOD, *strange * 3])
    code, told = refused(capsys, f"dataset.path={path}", "dataset.labels=[0,1]")
    assert code == 3 and told.count("\n") == 1
    strange = "12 rows with a 'label' that is not in dataset.labels, lines 82, 84, 85, 86, 89, 91, 92, 93, 96, 98, ..."
    wide = ("3 rows with 1 column instead of 2, lines 87, 94, 101", "3 rows with 3 columns")
    for part in (strange, "3 rows with an empty 'label', lines 83, 90, 97", *wide):
        assert part in told
    code, told = refused(capsys, f"dataset.path={path}", "dataset.labels=[0,1]", "dataset.on_bad_row=skip")
    assert code == 0 and "64 train · 8 valid · 8 test" in told
    assert f"warning: 21 of the 101 rows of {path} were left out" in told
    found = files(path=str(path), labels=("0", "1"), on_bad_row="skip")
    assert len(list(found.train)) == 80
    assert found.read[str(path)]["rows"] == 101 and found.read[str(path)]["used"] == 80


ODD = ["", "  ", "...!?", "zzzunseen", "a\0b", "\u200b", "\u202eabc\u202c", "\U0001f468\u200d\U0001f469"]
ODD += ["e\u0301\u0327", "caf\u00e9", "cafe\u0301"]


@pytest.mark.fault("B6")
def test_odd_texts_are_kept_row_for_row(tmp_path):
    lines = [f"{odd}\t{n % 2}".encode() for n, odd in enumerate(ODD)]
    path = table(tmp_path / "rows.tsv", lines * 4 + GOOD)
    for name in text.TOKENIZERS:
        found = text.encode(files(path=str(path)), artefact.tokenizer(name, {}))
        assert sum(found.report["rows"].values()) == 4 * len(ODD) + 80 and found.corpus.length.min() >= 1
    for form, same in (("none", False), ("NFC", True), ("NFKC", True)):
        for name in text.TOKENIZERS:
            split = artefact.tokenizer(name, {"unicode": form}).split
            assert (split("caf\u00e9") == split("cafe\u0301")) is same


@pytest.mark.fault("B6")
@pytest.mark.whole
def test_odd_texts_are_trained_on_and_answered_in_order(tmp_path, cache):
    path = table(tmp_path / "rows.tsv", [f"{odd}\t{n % 2}".encode() for n, odd in enumerate(ODD)] * 4 + GOOD)
    line = f"dataset=files dataset.path={path} device=cpu epochs=2 hydra.run.dir={tmp_path / 'run'}".split()
    assert bench.train(line, cache)[::2] == (0, [])
    asked = tmp_path / "asked.txt"
    asked.write_text("\n".join(ODD) + "\n", encoding="utf-8")
    ask = [sys.executable, "-m", "jaxrnn.predict", tmp_path / "run", "--file", asked, "--json"]
    told = subprocess.run(ask, capture_output=True, env=bench.environment(cache), check=True, cwd=tmp_path).stdout
    answers = [json.loads(row) for row in told.decode().splitlines()]
    assert [answer["text"] for answer in answers] == ODD
    assert all(abs(sum(answer["probabilities"].values()) - 1) < 1e-6 for answer in answers)


def damaged():
    whole = b"text\tlabel\n" + b"\n".join(GOOD * 50)
    packed, bag = gzip.compress(whole), io.BytesIO()
    with zipfile.ZipFile(bag, "w") as archive:
        archive.writestr("rows.tsv", whole)
    flipped = bytearray(packed)
    flipped[-6] ^= 1
    return {
        "half.tsv.gz": packed[: len(packed) // 2],
        "sum.tsv.gz": bytes(flipped),
        "magic.tsv.gz": b"\x1e" + packed[1:],
        "bag.zip": bag.getvalue()[: len(bag.getvalue()) // 2],
        "bomb.tsv.gz": gzip.compress(bytes(100 << 20)),
    }


@pytest.mark.fault("B7")
def test_damaged_and_swollen_archives_are_refused_whole(tmp_path, capsys):
    for name, content in damaged().items():
        path = tmp_path / name
        path.write_bytes(content)
        code, told = refused(capsys, f"dataset.path={path}")
        assert code == 3 and name in told
        if name.split(".")[0] in ("half", "sum", "magic"):
            assert "damaged at byte" in told
        if name.startswith("bomb"):
            assert "dataset.max_" in told
    code = "from jaxrnn import command, train\nfound = command.exit_code('train', train.main, sys.argv[1:])"
    line = ["dataset=files", f"dataset.path={tmp_path / 'bomb.tsv.gz'}", "dry_run=true"]
    assert bench.bounded(code, *line, limit=1 << 30) == 3


def leaky(where):
    """Rows where exactly 20 of 100 test rows also stand in train, 10 texts have both labels, and a class is rare."""
    train = [b"text %d\t%d" % (n, n % 100 == 0) for n in range(1000)]
    torn = [b"torn %d" % (n // 2) for n in range(20)]
    table(where / "train.tsv", [*train, *(row + b"\t%d" % (n % 2) for n, row in enumerate(torn)), b"only here\trare"])
    table(where / "valid.tsv", [b"valid %d\t%d" % (n, n % 2) for n in range(50)])
    again = [b"text %d\t0" % (n + 1) for n in range(20)]
    table(where / "test.tsv", again + [b"test %d\t%d" % (n, n % 2) for n in range(80)])
    return [f"dataset.{part}={where}/{name}.tsv" for part, name in
            (("path", "train"), ("valid_path", "valid"), ("test_path", "test"))]  # fmt: skip


@pytest.mark.fault("B8")
def test_leaks_conflicts_and_rare_classes_are_counted_said_and_refused_when_asked(tmp_path, capsys):
    line = leaky(tmp_path)
    code, told = refused(capsys, *line)
    assert code == 0
    for part in ("20 of the 100 test rows also stand in train", "10 texts stand under more than one label",
                 "97.9% of the training rows are '0'", "no test row has the label 'rare'"):  # fmt: skip
        assert f"warning: {part}" in told
    assert refused(capsys, *line, "dataset.strict=true")[0] == 3
    paths = dict(entry.removeprefix("dataset.").split("=", 1) for entry in line)
    found = text.encode(files(**paths), text.words()).report
    assert found["shared"] == {
        "valid_in_train": 0,
        "test_in_train": 20,
        "repeated": {"train": 10, "valid": 0, "test": 0},
        "conflicting": {"texts": 10, "rows": 20},
    }
    assert found["class_shares"]["train"]["0"] == 1000 / 1021
    table(tmp_path / "train.tsv", [row.split(b"\t")[0] + b"\t0" for row in GOOD])
    assert refused(capsys, line[0])[0] == 3


@pytest.mark.fault("B2", "B5", "B8")
@pytest.mark.whole
def test_the_record_of_a_run_says_what_was_left_out(tmp_path, cache):
    line = leaky(tmp_path)
    with (tmp_path / "train.tsv").open("ab") as file:
        file.write(b"\xff\t0\nwide\t1\t1\n")
    run = tmp_path / "run"
    skip = ["dataset.on_bad_row=skip", f"hydra.run.dir={run}", "device=cpu", "epochs=1"]
    code, out, err = bench.train(["dataset=files", *line, *skip], cache)
    assert (code, err) == (0, []) and sum(row.startswith("warning: ") for row in out) == 6
    record = json.loads((run / "data_report.json").read_text())
    assert record["files"][f"{tmp_path}/train.tsv"]["used"] == 1021
    assert record["shared"]["test_in_train"] == 20
    assert "f1_macro" in bench.summary(run)["test"]
