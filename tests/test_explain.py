"""The command explain, on networks with stored weights: its numbers by hand, and any text answered."""

import html.parser
import json
import math
import re

import jax
import numpy as np
import pytest
from members import CELLS

import jaxrnn
from jaxrnn import command, config, flow, packing, page, picture, plots, runs, steptable
from jaxrnn import explain as explaining
from jaxrnn.errors import ConfigurationError
from jaxrnn.stored import Saved, save_model
from jaxrnn.vocabulary import Vocabulary

# i love cats: H = 2, one-hot words, stored weights; W_xh has a column for each of <padding> <unknown> cats i love
W_XH = [[0.1, -0.2, 0.6, 0.3, -0.4], [0.2, 0.1, -0.5, 0.7, 0.8]]
W_HH = [[0.5, -0.3], [0.2, 0.9]]
B_H = [0.05, -0.1]
W_HY = [[0.7, -0.6], [-0.2, 0.4]]
B_Y = [0.01, -0.02]
TOKENS = ("<padding>", "<unknown>", "cats", "i", "love")


def stored(folder, tokens=TOKENS, labels=("bad", "good"), fill=None, dataset=None, tokenizer="words", **settings):
    """A run folder with a model in it, as train leaves one."""
    network = {"vocabulary_size": len(tokens), "classes": len(labels), "input": "one_hot", "hidden_size": 2}
    network |= {"cell": "vanilla", "activation": "tanh", "layers": 1, "bidirectional": False, "head": "last"} | settings
    params = jaxrnn.rnn(**network).init(jax.random.key(0))
    params = params if fill is None else fill(params)
    record = {"format": 1, "network": network, "labels": list(labels), "dataset": dataset or {"name": "phrases"},
              "tokenizer": {"name": tokenizer}, "max_length": 512}  # fmt: skip
    folder.mkdir(exist_ok=True)
    save_model(folder, Saved(record, packing.flat(params), Vocabulary(tuple(tokens)).to_json()))
    return folder


def slides(params):
    cell = params.layers[0]._replace(W_xh=np.float32(W_XH), W_hh=np.float32(W_HH), b_h=np.float32(B_H))
    return params._replace(layers=(cell,), W_hy=np.float32(W_HY), b_y=np.float32(B_Y))


def asked(capsys, *arguments):
    """-> exit code, standard output, standard error."""
    code = command.exit_code("explain", explaining.main, ["--device", "cpu", *map(str, arguments)])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


@pytest.fixture(scope="module")
def slides_run(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("slides"), fill=slides)


def by_hand(label):
    """The slides' computation with lists and math only: per step (W_xh x, W_hh h, h, p so far, dL/dh, delta)."""
    h, steps = [0.0, 0.0], []
    for word in ("i", "love", "cats"):
        column = TOKENS.index(word)
        from_input = [row[column] for row in W_XH]
        from_state = [row[0] * h[0] + row[1] * h[1] for row in W_HH]
        h = [math.tanh(a + b + c) for a, b, c in zip(from_input, from_state, B_H, strict=True)]
        z = [row[0] * h[0] + row[1] * h[1] + b for row, b in zip(W_HY, B_Y, strict=True)]
        whole = sum(map(math.exp, z))
        steps.append([from_input, from_state, h, [math.exp(v) / whole for v in z]])
    error = [p - (c == label) for c, p in enumerate(steps[-1][3])]
    grad = [sum(W_HY[c][k] * error[c] for c in range(2)) for k in range(2)]
    for step in reversed(steps):
        delta = [(1 - value**2) * g for value, g in zip(step[2], grad, strict=True)]
        step += [grad, delta]
        grad = [sum(W_HH[j][k] * delta[j] for j in range(2)) for k in range(2)]
    return steps


def test_the_trace_of_the_slides_is_the_computation_by_hand(slides_run, capsys):
    """To 1e-6, in JSON; label bad is class 0."""
    code, out, _ = asked(capsys, slides_run, "i love cats", "--label", "bad", "--json")
    found, steps = json.loads(out), by_hand(0)
    assert code == 0 and found["label"] == "bad" and [s["t"] for s in found["steps"]] == [1, 2, 3]
    before = [0.0, 0.0]
    for step, (from_input, from_state, h, p, grad, delta) in zip(found["steps"], steps, strict=True):
        for got, expected in (
            (step["from_input"], from_input),
            (step["from_state"], from_state),
            (step["state"], h),
            (list(step["probabilities"].values()), p),
            (step["delta"], delta),
            (step["grad_state_norm"], math.hypot(*grad)),
            (step["shares"]["b_h"], math.hypot(*delta)),
            (step["shares"]["W_hh"], math.hypot(*delta) * math.hypot(*before)),
            (step["shares"]["W_xh"], math.hypot(*delta)),  # a one-hot word has length 1
        ):
            assert got == pytest.approx(expected, abs=1e-6)
        assert step["input"].index(1.0) == TOKENS.index(step["token"]) and sum(step["input"]) == 1
        before = h
    assert found["loss"] == pytest.approx(-math.log(steps[-1][3][0]), abs=1e-6)
    assert found["spectral_radius"] == pytest.approx(max(abs(np.linalg.eigvals(np.array(W_HH)))), abs=1e-6)
    assert found["gradients"]["b_h"] == pytest.approx(math.hypot(*np.sum([s[5] for s in steps], 0)), abs=1e-6)
    assert found["gradients_error"] < 1e-5 and found["attribution"]["completeness_error"] < 1e-3


def test_the_same_numbers_stand_in_the_tables_and_on_the_page(slides_run, capsys, tmp_path):
    code, out, _ = asked(capsys, slides_run, "i love cats", "--html", tmp_path / "x.html", "--png", tmp_path / "x.png")
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert out.endswith(f"\nwritten to {tmp_path}/x.html\nwritten to {tmp_path}/x.png\n")
    assert code == 0 and (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    for from_input, from_state, h, p, grad, delta in by_hand(0)[1:]:
        for vector in (from_input, from_state, h, delta):
            assert steptable.vector(vector) in out and steptable.vector(vector) in text
        for value in (*p, math.hypot(*grad)):
            assert steptable.number(value) in out and steptable.number(value) in text


def test_the_object_has_the_names_of_the_contract(slides_run, capsys):
    _, out, _ = asked(capsys, slides_run, "i love dogs", "--json")
    found = json.loads(out)
    assert set(found) >= {"text", "label", "probabilities", "loss", "steps", "spectral_radius", "flow"}
    assert set(found["flow"]) >= {"log_slope", "verdict"}
    names = "t token known input from_input from_state state probabilities grad_state_norm saturation"
    assert all(set(step) >= set(names.split()) for step in found["steps"])
    assert [step["known"] for step in found["steps"]] == [True, True, False]
    assert found["label"] == max(found["probabilities"], key=found["probabilities"].get)


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_is_explained(cell, tmp_path, capsys):
    run = stored(tmp_path, cell=cell, hidden_size=3, input="embedding", input_size=4)
    code, out, _ = asked(capsys, run, "i love cats", "--json")
    found = json.loads(out)
    assert code == 0 and found["gradients_error"] < 1e-5 and found["attribution"]["complete"]
    assert all(len(step["input"]) == 4 and len(step["state"]) == 3 for step in found["steps"])


def test_each_layer_and_direction_has_numbers_of_its_own(tmp_path, capsys):
    run = stored(tmp_path, bidirectional=True, layers=2, head="mean")
    found = [json.loads(asked(capsys, run, "i love cats", "--json", *way)[1]) for way in
             ([], ["--backward"], ["--layer", "2"])]  # fmt: skip
    assert len({one["gradients"]["W_hh"] for one in found}) == 3
    assert len({one["loss"] for one in found}) == 1 and all(one["gradients_error"] < 1e-5 for one in found)
    assert found[1]["flow"]["log_norms"][0] == pytest.approx(0, abs=1e-9), "right to left ends at the first word"
    assert found[1]["steps"][-1]["from_state"] == [0, 0] and found[0]["steps"][0]["from_state"] == [0, 0]


TEXTS = {
    "nothing": "",
    "blanks": "  \n ",
    "unknown": "zzz qqq",
    "right to left": "שלום עולם مرحبا",
    "emoji": "i 🎉👩‍👩‍👧 cats",
    "markup": '<script>alert("1")</script> & <b>',
    "dollars": "$x_1$ $$",
    "control": "i \x1b[31m\x07\u202e love\ttabs",
    "broken": "i \udcff love",
}


class Strict(html.parser.HTMLParser):
    """The elements of a page, and whatever would load or run something."""

    def __init__(self):
        super().__init__()
        self.seen, self.bad = set(), []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.bad += [name for name, _ in attributes if name.startswith("on") or name in ("src", "href")]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_is_answered_in_every_form(slides_run, text, capsys, tmp_path):
    for arguments in ([], ["--json"]):
        code, out, error = asked(capsys, slides_run, "--png", tmp_path / "x.png", "--html", tmp_path / "x.html",
                                 *arguments, "--", text)  # fmt: skip
        assert code == 0 and out and "Traceback" not in error
        assert "\x1b" not in out
    found = json.loads(out)
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    content = (tmp_path / "x.html").read_text(encoding="utf-8")
    page_seen = Strict()
    page_seen.feed(content)
    assert "script" not in page_seen.seen and not page_seen.bad and "b>" not in re.sub(r"</?b>", "", content)
    assert "\x1b" not in content and not re.search(r"https?://|@import|url\(", content)
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_ten_thousand_words_are_cut_as_in_training_and_stay_readable(slides_run, capsys, tmp_path):
    files = ("--png", tmp_path / "x.png", "--html", tmp_path / "x.html")
    code, out, error = asked(capsys, slides_run, "i love " * 5000, *files)
    assert code == 0 and "first 512 of 10,000" in error and "488 more steps" in out
    assert len(out.splitlines()) < 150 and (tmp_path / "x.html").stat().st_size < 500_000


def test_a_text_of_one_step_and_a_gradient_that_ends_have_no_growth_rate(slides_run, tmp_path, capsys):
    _, out, _ = asked(capsys, slides_run, "i")
    assert "gradient flow: healthy; a single step; spectral radius" in out
    dead = stored(tmp_path / "run", fill=lambda params: slides(params)._replace(
        layers=(slides(params).layers[0]._replace(W_hh=np.zeros((2, 2), np.float32)),)))  # fmt: skip
    _, out, _ = asked(capsys, dead, "i love cats")
    assert "gradient flow: vanishing; nothing comes back to the earlier steps; spectral radius" in out


@pytest.mark.parametrize("given", [[], ["init_scale=0.5", "clip_global_norm=null", "optimizer.learning_rate=0.02"]])
def test_advice_is_that_of_the_settings_of_the_run(given, tmp_path, capsys):
    """As `train` gives it; of a model without the settings of its run nothing that may be in force."""

    def grown(params):
        cell = slides(params).layers[0]
        return slides(params)._replace(layers=(cell._replace(W_hh=9 * np.eye(2, dtype=np.float32)),))

    def advised():
        _, out, _ = asked(capsys, run, "i love cats", "--json", "--html", tmp_path / "x.html")
        found = json.loads(out)["flow"]
        assert found["verdict"] == "exploding"
        assert all(html.escape(line, quote=False) in (tmp_path / "x.html").read_text() for line in found["advice"])
        return found["advice"]

    run = stored(tmp_path / "run", fill=grown, activation="identity", initializer={"recurrent": "orthogonal"})
    few = ["bound what a step can do: activation=tanh", "carry memory by addition: cell=gru"]
    assert advised() == few
    settings = config.compose(given)
    (run / "config.yaml").write_text(runs.sealed(config.to_yaml(settings)))
    network = {"cell": "vanilla", "activation": "identity", "initializer": {"recurrent": "orthogonal"}}
    network |= {"init_scale": settings.init_scale, "clip_global_norm": settings.clip_global_norm}
    network |= {"learning_rate": settings.optimizer.learning_rate}
    expected = flow.advice("exploding", network, None)
    assert advised() == expected and len(expected) == len(few) + (3 if given else 1)


def test_refusals(slides_run, capsys, tmp_path):
    assert asked(capsys, slides_run, "i", "--label", "goood")[::2] == (
        2, "jaxrnn.explain: unknown label 'goood'; did you mean 'good'? known: bad, good\n")  # fmt: skip
    assert asked(capsys, slides_run, "i", "--layer", "2")[0] == 2
    assert asked(capsys, slides_run, "i", "--backward")[0] == 2
    assert asked(capsys, slides_run, "i", "--loud")[0] == 2
    code, _, error = asked(capsys, slides_run, "i", "--png", tmp_path / "x.jpg")
    assert code == 2 and error.endswith("x.jpg: expected a name that ends in .png, .pdf, .svg\n")
    assert not (tmp_path / "x.jpg").exists()
    assert asked(capsys, tmp_path / "nowhere", "i")[0] == 5
    for flag in ("--html", "--png"):
        code, out, error = asked(capsys, slides_run, "i", flag, tmp_path / "typo" / "p")
        assert (code, out) == (2, "") and f"cannot write {tmp_path}/typo/p" in error
        code, _, error = asked(capsys, slides_run, "i", flag, tmp_path / ("p" * 300))
        assert code == 7 and error.endswith("name another file\n")
    assert not (tmp_path / "typo").exists()
    with pytest.raises(ConfigurationError):
        explaining.main([str(slides_run)])


def test_numbers_that_are_not_finite_become_null_and_are_still_drawn(tmp_path, capsys):
    def huge(params):
        cell = params.layers[0]
        return params._replace(layers=(cell._replace(W_hh=np.float32(1e30) * np.eye(2, dtype=np.float32)),))

    run = stored(tmp_path / "run", fill=huge, activation="identity")
    files = ("--png", tmp_path / "x.png", "--html", tmp_path / "x.html")
    code, out, _ = asked(capsys, run, "i love cats " * 20, "--json", *files)
    assert code == 0 and json.loads(out)["flow"]["verdict"] == "exploding"


def test_columns_line_up_with_wide_characters():
    steps = [{"t": 1, "token": "日本"}, {"t": 2, "token": "ab"}]
    lines = steptable.table(steps, {"n": lambda step: "7"})
    assert len({steptable.width(line) for line in lines}) == 1
    assert steptable.printable("a\x1b[2Jb\u202e") == "a\\x1b[2Jb\\u202e"
    assert steptable.width(steptable.printable("日" * 40)) <= steptable.WIDEST


def test_pages_and_pictures_take_any_number_of_labels(tmp_path, capsys):
    labels = [f"class {c} with <markup>" for c in range(12)]
    run = stored(tmp_path / "run", labels=labels)
    code, out, _ = asked(capsys, run, "i love cats", "--json")
    found = json.loads(out)
    assert code == 0 and "<markup>" not in page.page(found)
    assert picture.picture(found, tmp_path / "x.png").stat().st_size > 5000


def test_a_picture_is_what_its_name_ends_in_and_says_what_the_verdict_is_about(slides_run, capsys, tmp_path):
    starts = {"x.PDF": b"%PDF", "x.svg": b"<?xml", "x": b"\x89PNG"}
    for name, start in starts.items():
        assert asked(capsys, slides_run, "i $love$ cats", "--png", tmp_path / name)[0] == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    drawn = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert "norm of the gradient at each step   (‖∂h_T/∂h_t‖: vanishing)" in drawn


def test_a_character_is_drawn_in_a_font_that_has_it_or_as_an_escape(slides_run, capsys, tmp_path, monkeypatch):
    """DejaVu Sans Mono comes with matplotlib and has what DejaVu Sans has not, as a font of Chinese would."""
    assert plots.drawable("\U0001d670\x1b\n\U0001f389a\u0301", 40) == "\\U0001d670\\x1b \\U0001f389a\u0301"
    assert plots.drawable("1234", 5) == "1234" and plots.drawable("12345", 5) == "1234…"
    monkeypatch.setattr(plots, "CJK", ("A font that is nowhere", "DejaVu Sans Mono"))
    monkeypatch.setattr(plots, "fonts", plots.fonts.__wrapped__)
    assert list(plots.fonts()) == ["DejaVu Sans", "DejaVu Sans Mono"]
    assert plots.drawable("\U0001d670\U0001f389") == "\U0001d670\\U0001f389"
    code, _, error = asked(capsys, slides_run, "\U0001d670", "--png", tmp_path / "x.png")
    assert code == 0 and "Glyph" not in error


@pytest.mark.parametrize("tokenizer, unit", [("words", "word"), ("characters", "character"), ("bytes", "byte")])
def test_a_step_is_called_what_the_tokenizer_makes(tokenizer, unit, tmp_path, capsys):
    run = stored(tmp_path / "run", tokenizer=tokenizer)
    for text, expected in (("i love cats", f"{unit} adds"), ("", f"The text has no {unit}s")):
        _, out, _ = asked(capsys, run, text, "--html", tmp_path / "x.html", "--png", tmp_path / "x.svg")
        seen = (out, (tmp_path / "x.html").read_text("utf-8"), (tmp_path / "x.svg").read_text("utf-8"))
        assert expected.lower() in out.lower() and expected in seen[1]
        assert (f"after each {unit}" if text else expected) in seen[2]
        assert unit == "word" or not any(re.search(r"each word|no words", one) for one in seen)


@pytest.mark.parametrize("cell, units", [("vanilla", 2), ("gru", 17), ("lstm", 3)])
def test_norms_over_gates_and_a_state_of_which_a_part_is_drawn_are_told(cell, units, tmp_path, capsys):
    run = stored(tmp_path / "run", cell=cell, hidden_size=units)
    _, out, _ = asked(capsys, run, "i love cats", "--html", tmp_path / "x.html")
    assert out.count("over all gates") == (cell != "vanilla")
    assert out.count("the bars of h are its first 16 of 17 units") == (units == 17)
    assert (tmp_path / "x.html").read_text("utf-8").count("over all gates") == (cell != "vanilla")
    _, out, _ = asked(capsys, run, "i", "--json")
    (step,) = json.loads(out)["steps"]
    assert all((len(step[name]) > units) == (cell != "vanilla") for name in ("from_input", "from_state", "delta"))
