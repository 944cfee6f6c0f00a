"""Data sets: what every one promises, what the built-in one is, and what damaged files are answered with."""

import codecs
import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest

from jaxrnn import baselines, text
from jaxrnn.data import download, lines
from jaxrnn.data import sst2 as sst2_module
from jaxrnn.data.files import files
from jaxrnn.data.phrases import phrases
from jaxrnn.data.sst2 import SOURCES, sst2
from jaxrnn.errors import ConfigurationError, DataError, StorageError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
offline = pytest.mark.skipif(not (SHARED / "sst").is_dir(), reason="no offline copy of SST-2 beside the repository")
ROWS = [("good \u2028 film", "pos"), ('5" disk, "quoted"', "neg"), ("caf\u00e9\x85 and\rmore", "pos"), ("", "neg")]


@pytest.fixture(scope="module")
def built_in():
    return phrases()


def test_phrases_are_balanced_unseen_and_of_known_words(built_in):
    texts = {}
    for name, size in {"train": 4000, "valid": 400, "test": 1000}.items():
        rows = getattr(built_in, name)
        assert len(rows) == size
        assert [label for _, label in rows].count("good") == size // 2
        texts[name] = {row for row, _ in rows}
        assert len(texts[name]) == size
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["valid"]
    found = text.encode(built_in, text.words())
    assert found.report["unknown_share"] == {"train": 0.0, "valid": 0.0, "test": 0.0}
    assert len(found.vocabulary) < 120
    assert found.corpus.length.max() <= 20
    known = set("i am good not happy this is bad was earlier now before but".split())
    assert known <= found.vocabulary.ids.keys()


def test_order_decides_in_phrases(built_in):
    found = text.encode(built_in, text.words())
    assert baselines.majority(found.corpus)["accuracy"] == 0.5
    assert baselines.bag_of_words(found.corpus, len(found.vocabulary))["accuracy"] < 0.8


def test_phrases_depend_on_their_settings_alone(built_in):
    digest = hashlib.sha256(repr(built_in[:3]).encode()).hexdigest()
    assert digest == "b1ae04a4c22a499c21098162234d92827a8f5bea0faff48076540b77af062b40"
    assert phrases(train_rows=40, valid_rows=4, test_rows=10) == phrases(train_rows=40, valid_rows=4, test_rows=10)
    assert phrases(seed=1).train != built_in.train


@pytest.mark.parametrize("wrong", [{"train_rows": 0}, {"test_rows": 7}, {"seed": -1}])
def test_phrases_refuse_sizes_that_make_no_sense(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        phrases(**wrong)


def test_phrases_refuse_more_rows_than_there_are(monkeypatch):
    monkeypatch.setattr("jaxrnn.data.phrases.TRIES", 1)
    with pytest.raises(ConfigurationError, match="ask for fewer"):
        phrases()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def tsv(rows):
    return "".join(f"{row}\t{label}\n" for row, label in [("text", "label"), *rows])


def csv(rows):
    return "".join(f'"{row.replace(chr(34), chr(34) * 2)}",{label}\n' for row, label in [("text", "label"), *rows])


def jsonl(rows):
    return "".join(json.dumps({"text": row, "label": label, "more": [1]}) + "\n" for row, label in rows)


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
@pytest.mark.parametrize(
    "pack", [None, gzip.compress, lambda content: gzip.compress(content[:9]) + gzip.compress(content[9:]) + b"\0\0"]
)
def test_every_kind_of_file_gives_its_rows_twice(tmp_path, kind, pack):
    content = {"tsv": tsv, "csv": csv, "jsonl": jsonl}[kind](ROWS).encode()
    path = tmp_path / (f"rows.{kind}.gz" if pack else f"rows.{kind}")
    splits = files(path=write(path, pack(content) if pack else content))
    assert list(splits.train) == list(splits.train) == ROWS
    assert splits.valid is splits.test is None


@pytest.mark.parametrize("block", [1, 3, 7])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_blocks_line_ends_and_marks_are_invisible(tmp_path, monkeypatch, block, end, last):
    content = codecs.BOM_UTF8 + tsv(ROWS).encode().replace(b"\n", end)
    path = write(tmp_path / "rows.tsv", content if last else content.removesuffix(end))
    monkeypatch.setattr(lines, "BLOCK", max(block, 4) if block > 1 else 16)
    assert list(files(path=path).train) == ROWS


def test_quoted_fields_may_hold_lines(tmp_path):
    path = write(tmp_path / "rows.csv", 'label,text\r\npos,"two\r\nlines, ""so"""\r\nneg,5" disk\r\n')
    assert list(files(path=path).train) == [('two\nlines, "so"', "pos"), ('5" disk', "neg")]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "cp037", "shift_jis"])
def test_other_encodings_are_read_when_asked_for(tmp_path, encoding):
    rows = [("one", "a"), ("two", "b")]
    path = write(tmp_path / "rows.tsv", tsv(rows).encode(encoding))
    assert list(files(path=path, encoding=encoding).train) == rows


def test_labels_of_json_may_be_numbers(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"t": "a", "y": 1}\n{"t": "b", "y": true}\n\n{"t": "c", "y": " x "}')
    assert list(files(path=path, text="t", label="y").train) == [("a", "1"), ("b", "true"), ("c", "x")]


def test_a_folder_per_class(tmp_path):
    for place in ("train/pos/1", "train/pos/0", "train/neg/0", "test/neg/0", "test/pos/0"):
        write(tmp_path / f"{place}.txt", f"text of\n{place}\n")
    write(tmp_path / "README", "not data")
    splits = files(path=str(tmp_path))
    assert [row for row, _ in splits.train] == ["text of\ntrain/neg/0", "text of\ntrain/pos/0", "text of\ntrain/pos/1"]
    assert [label for _, label in splits.test] == ["neg", "pos"]
    assert splits.valid is None
    assert len(list(files(path=str(tmp_path / "test"), test_path=str(tmp_path / "train")).test)) == 3


GZ = gzip.compress(tsv([("word " * 9, str(n % 2)) for n in range(500)]).encode())
BAD = {
    "empty": ("a.tsv", b"", "is empty"),
    "header only": ("a.tsv", b"text\tlabel\n", "holds no rows"),
    "no objects": ("a.jsonl", b"\n", "holds no rows"),
    "wrong column": ("a.tsv", b"sentence\tlabels\nx\t1\n", "unknown column 'text'.*known: labels, sentence"),
    "near column": ("a.csv", b"texts,label\nx,1\n", "did you mean 'texts'.*dataset.text"),
    "no columns": ("a.csv", b"x" * 90_000 + b"," * 90_000 + b"\n", "unknown column 'text'"),
    "column twice": ("a.csv", b"text,label,text\nx,1,2\n", "stands twice"),
    "columns": (
        "a.tsv",
        b"text\tlabel\nx\ny\t1\nz\t1\t2\nu\n",
        "2 rows with 1 column instead of 2, lines 2, 5; 1 row with 3 columns",
    ),
    "no label": ("a.tsv", b"text\tlabel\nx\t\n", "an empty 'label', line 2"),
    "utf-8": ("a.tsv", b"text\tlabel\nx\t1\nab\xff\t1\n", r"line 3, byte 17 .*xff.*dataset.encoding"),
    "latin-1": ("a.tsv", b"text\tlabel\n\x85\t1\n", "line 2, byte 11"),
    "utf-16": ("a.tsv", tsv(ROWS).encode("utf-16"), "dataset.encoding=utf-16"),
    "quote": ("a.csv", b'text,label\n"x,1\ny,2\n', "line 2: a quote opens that never closes"),
    "after quote": ("a.csv", b'text,label\n"x"y,1\n', "line 2: 'y' after a closing quote"),
    "long quote": ("a.csv", b'text,label\n"' + b"x\n" * 1000, "line 2: .*dataset.max_characters"),
    "long text": ("a.tsv", b"text\tlabel\n" + b"x" * 1001 + b"\t1\n", "line 2: .*dataset.max_characters=1,000"),
    "json": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "line 2: not JSON"),
    "deep json": ("a.jsonl", b'{"text": ' * 100_000, "line 1"),
    "json list": ("a.jsonl", b"[1]\n", "line 1: expected a JSON object"),
    "json key": ("a.jsonl", b'{"txt": "a", "label": 1}\n', "unknown key 'text'.*'txt'"),
    "json text": (
        "a.jsonl",
        b'{"text": 3, "label": 1}\n{"text": "\\ud800", "label": 1}\n',
        "2 rows with a 'text' .* lines 1, 2",
    ),
    "json label": ("a.jsonl", b'{"text": "a", "label": null}\n', "1 row with a 'label'"),
    "cut gzip": ("a.tsv.gz", GZ[:-9], "damaged at byte .*ends in the middle"),
    "cut in half": ("a.tsv.gz", GZ[: len(GZ) // 2], "damaged at byte"),
    "gzip checksum": ("a.tsv.gz", GZ[:-8] + b"\0\0\0\0" + GZ[-4:], "damaged at byte"),
    "after gzip": ("a.tsv.gz", GZ + b"more", "damaged at byte"),
    "no gzip": ("a.tsv.gz", tsv(ROWS).encode(), "damaged at byte 0"),
    "gzip unnamed": ("a.tsv", GZ, "packed file"),
    "zip": ("a.csv", b"PK\x03\x04", "packed file"),
    "kind": ("a.xlsx", b"", "unknown kind of file '.xlsx'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_file_is_refused_by_name(tmp_path, case):
    name, content, message = BAD[case]
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as refusal:
        list(files(path=path, max_characters=1000).train)
    assert path in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 3000


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\na\t0\nb\t1\n")
    rows = iter(files(path=str(path)).train)
    assert next(rows) == ("a", "0")
    with path.open("a") as file:
        file.write("half a te")
    with pytest.raises(DataError, match="changed while it was read"):
        list(rows)


@pytest.mark.parametrize("limit", [{"max_ratio": 200}, {"max_ratio": 10_000, "max_gigabytes": 0}])
def test_a_gzip_bomb_is_refused_by_ratio_and_by_size(tmp_path, limit):
    path = write(tmp_path / "bomb.tsv.gz", gzip.compress(b"text\tlabel\n" + (b"x" * 997 + b"\t1\n") * 30_000))
    with pytest.raises(DataError, match=f"dataset.{list(limit)[-1]}"):
        list(files(path=path, **limit).train)


def test_places_that_are_no_data_are_refused(tmp_path):
    empty, mixed = tmp_path / "empty", tmp_path / "mixed"
    (empty / ".hidden").mkdir(parents=True)
    for path, message in ((tmp_path / "none.tsv", "no such file"), (empty, "folder without folders")):
        with pytest.raises(DataError, match=message) as refusal:
            files(path=str(path))
        assert str(path) in str(refusal.value)
    write(mixed / "a" / "1.txt", "x")
    write(mixed / "b" / "1.md", "x")
    with pytest.raises(DataError, match=r"holds no \.txt file"):
        files(path=str(mixed))
    write(mixed / "b" / "1.txt", "x")
    with pytest.raises(DataError, match=r"expected only \.txt files"):
        list(files(path=str(mixed)).train)
    os.mkfifo(tmp_path / "pipe.tsv")
    with pytest.raises(DataError, match="regular file"):
        files(path=str(tmp_path / "pipe.tsv"))


@pytest.mark.parametrize(
    "wrong", [{"path": None}, {"path": "a.tsv", "encoding": "utf-88"}, {"path": "a.tsv", "text": 3}]
)
def test_settings_of_files_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=f"dataset.{list(wrong)[-1]}"):
        files(**wrong)


@offline
@pytest.mark.parametrize(("train", "rows", "positive"), [("sentences", 6920, 3610), ("phrases", 67349, 37569)])
def test_sst2_has_the_published_rows(train, rows, positive):
    splits = sst2(root=str(SHARED), train=train)
    assert [len(part) for part in splits[:3]] == [rows, 872, 1821]
    assert [[label for _, label in part].count("positive") for part in splits[:3]] == [positive, 444, 909]
    assert not any("-lrb-" in row or "\\/" in row for part in splits[:3] for row, _ in part)


@offline
def test_a_bag_of_words_reaches_what_others_found_on_sst2():
    found = text.encode(sst2(root=str(SHARED), train="sentences"), text.words())
    assert baselines.bag_of_words(found.corpus, len(found.vocabulary))["accuracy"] == pytest.approx(0.821, abs=2e-3)
    assert baselines.majority(found.corpus)["accuracy"] == pytest.approx(909 / 1821)


@offline
def test_words_leave_tokenised_text_as_it_is():
    rows = sst2(root=str(SHARED), train="sentences").train
    split = text.words().split
    assert sum(split(row) == row.split() for row, _ in rows) >= 0.99 * len(rows)


@offline
def test_what_is_downloaded_is_the_offline_copy(tmp_path, monkeypatch):
    """The published files, rebuilt from the offline copy and served from a folder, give the same rows."""
    monkeypatch.setenv("JAXRNN_CACHE", str(tmp_path / "cache"))
    for name, source in list(SOURCES.items()):
        pairs = b"".join(lines.blocks(SHARED / source.path)).split(b"\n")[1:-1]
        pairs = [pair.split(b"\t") for pair in pairs]
        if name == "phrases":
            content = b"".join(label + b"\t" + row + b"\r\n" for row, label in [(b"sentence", b"label"), *pairs])
            content = content.replace(b"\n1\t10,000\r", b"\n1\t10000\r")
        else:
            content = b"".join(label + b" " + row + b"\n" for row, label in pairs)
        assert hashlib.sha256(content).hexdigest() == source.url_sha256
        url = Path(write(tmp_path / "served" / source.url.rpartition("/")[2], content)).as_uri()
        monkeypatch.setitem(SOURCES, name, source._replace(url=url))
    for train in ("phrases", "sentences"):
        assert sst2(train=train) == sst2(root=str(SHARED), train=train)
    for place in (tmp_path / "served").iterdir():
        place.unlink()
    assert len(sst2().train) == 67349
    assert len(list((tmp_path / "cache" / "datasets").iterdir())) == 4


def test_sst2_without_its_files_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"sst2_glue/train\.tsv\.gz"):
        sst2(root=str(tmp_path))
    write(tmp_path / "sst2_glue" / "train.tsv.gz", gzip.compress(b"sentence\tlabel\nx\t1\n"))
    with pytest.raises(DataError, match="expected content of the sha256"):
        sst2(root=str(tmp_path))
    with pytest.raises(ConfigurationError, match="did you mean 'phrases'"):
        sst2(train="phrase")
    monkeypatch.setenv("JAXRNN_CACHE", str(tmp_path / "cache"))
    gone = SOURCES["phrases"]._replace(url=(tmp_path / "gone").as_uri())
    monkeypatch.setitem(sst2_module.SOURCES, "phrases", gone)
    with pytest.raises(DataError, match=r"cannot be downloaded.*dataset\.root"):
        sst2()
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


def test_a_download_is_checked_kept_private_and_mended(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXRNN_CACHE", str(tmp_path / "cache"))
    url = Path(write(tmp_path / "served.bin", b"content")).as_uri()
    whole = hashlib.sha256(b"content").hexdigest()
    with pytest.raises(DataError, match="not the published file"):
        download.download(url, hashlib.sha256(b"other").hexdigest())
    place = download.download(url, whole)
    assert place.read_bytes() == b"content"
    assert place.parent.stat().st_mode & 0o777 == 0o700
    place.write_bytes(b"damaged")
    assert download.download(url, whole).read_bytes() == b"content"
    assert [entry.name for entry in place.parent.iterdir()] == [place.name]
    monkeypatch.setenv("JAXRNN_CACHE", str(tmp_path / "served.bin"))
    with pytest.raises(StorageError, match="JAXRNN_CACHE"):
        download.download(url, whole)
