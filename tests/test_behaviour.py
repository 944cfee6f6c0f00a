"""The behaviour suite, checked against a rule that does everything right and a bag of words that cannot negate."""

import re

import numpy as np
import pytest

from jaxrnn import behaviour, command
from jaxrnn import evaluate as evaluating
from jaxrnn.errors import ConfigurationError

GOOD, BAD = behaviour.WORDS
TURNS = {"not", "nobody"}


def rule(texts):
    """The sign of the judgement, turned over by every word that denies."""
    found = []
    for text in texts:
        words = re.findall(r"\w+", text)
        sign = any(word in GOOD for word in words)
        found.append(sign ^ (sum(word in TURNS for word in words) % 2))
    return np.array(found, int)


def results(answer):
    return {check["check"]: check["passed"] / check["cases"] for check in behaviour.measured(answer, behaviour.suite())}


def test_a_rule_passes_everything():
    found = behaviour.measured(rule, behaviour.suite())
    assert all(check["passed"] == check["cases"] and check["plain"] == 1 for check in found)
    assert not any(check["failures"] for check in found)
    assert "100%" in behaviour.table(found) and "not so" not in behaviour.table(found)


@pytest.mark.parametrize("weight", [-1.5, 0.0, 1.5])
def test_a_bag_of_words_fails_negation_and_nothing_else(weight):
    """Whatever "not" weighs, it cannot turn both the good words and the bad ones over."""

    def answer(texts):
        score = {**dict.fromkeys(GOOD, 1.0), **dict.fromkeys(BAD, -1.0), "not": weight}
        return np.array([sum(score.get(word, 0.0) for word in text.split()) > 0 for text in texts], int)

    found = results(answer)
    assert found["negation flips"] <= 0.5
    rest = set(found) - {"negation flips", "double negation"}
    assert all(found[name] == 1 for name in rest)


def test_who_always_says_the_same_fails_negation_only():
    found = results(lambda texts: np.ones(len(texts), int))
    assert found.pop("negation flips") == 0 and set(found.values()) == {1.0}


def test_texts_longer_than_training_are_longer():
    checks = {check.name: check for check in behaviour.suite(beyond=137)}
    assert all(len(case.changed.split()) > 137 for case in checks["longer than training"].cases)
    assert all(len({case.sign for case in check.cases}) == 2 for check in checks.values())


def test_the_good_label_is_known_or_it_is_refused():
    assert behaviour.positive(["bad", "good"]) == 1 and behaviour.positive(["Positive", "negative"]) == 0
    assert behaviour.positive(["0", "1"]) == 1
    for labels in (["bad", "good", "neutral"], ["num", "loc"], ["good"], []):
        with pytest.raises(ConfigurationError, match="two labels of sentiment"):
            behaviour.positive(labels)


def test_evaluate_tells_the_behaviour_of_a_run_and_refuses_other_labels(tmp_path, capsys):
    from test_explain import stored

    from jaxrnn import artefact, text

    data = {"name": "phrases", "train_rows": 200, "valid_rows": 40, "test_rows": 40}
    encoded = text.encode(artefact.splits("phrases", {k: v for k, v in data.items() if k != "name"}), text.words())
    run = stored(tmp_path / "run", encoded.vocabulary.tokens, encoded.labels, dataset=data)
    arguments = [str(run), "--device", "cpu"]
    assert command.exit_code("evaluate", evaluating.main, [*arguments, "--behaviour"]) == 0
    out = capsys.readouterr().out
    assert all(check.name in out for check in behaviour.suite())
    found = evaluating.evaluate(str(run), device="cpu", detail=True)
    low, high = found["f1_macro_bootstrap95"]
    assert low <= found["f1_macro"] <= high and "behaviour" not in found
    assert "tokens" in evaluating.table(found)
    assert sum(part["rows"] for part in found["accuracy_by_length"]) == found["rows"] == 40
    path = tmp_path / "questions.tsv"
    path.write_text("text\tlabel\n" + "".join(f"where is {n}\tloc\nhow many are {n}\tnum\n" for n in range(40)))
    asked = text.encode(artefact.splits("files", {"path": str(path)}), text.words())
    questions = {"name": "files", "path": str(path)}
    other = stored(tmp_path / "other", asked.vocabulary.tokens, asked.labels, dataset=questions)
    assert command.exit_code("evaluate", evaluating.main, [str(other), "--behaviour"]) == 2
