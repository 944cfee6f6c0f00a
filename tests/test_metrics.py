"""Metrics and baselines against slow, obvious versions, and at the edges of float64."""

import itertools
import math

import numpy as np
import pytest

from jaxrnn import baselines, metrics
from jaxrnn.types import Corpus


def drawn(classes, rows=200, seed=0):
    generator = np.random.default_rng(seed)
    return 3 * generator.normal(size=(rows, classes)), generator.integers(0, max(2, classes), rows)


def slow_probabilities(row):
    if len(row) == 1:
        p = 1 / (1 + math.exp(-row[0]))
        return [1 - p, p]
    total = sum(math.exp(s) for s in row)
    return [math.exp(s) / total for s in row]


@pytest.mark.parametrize("classes", [1, 2, 3, 7])
def test_metrics_equal_the_slow_versions(classes):
    logits, target = drawn(classes)
    p = np.array([slow_probabilities(row) for row in logits])
    answers = p.argmax(axis=1)
    np.testing.assert_allclose(metrics.probabilities(logits), p, rtol=1e-12)
    assert metrics.loss(logits, target) == pytest.approx(-np.mean([math.log(p[r, c]) for r, c in enumerate(target)]))
    assert metrics.accuracy(logits, target) == np.mean(answers == target)
    counts = [[sum((target == t) & (answers == a)) for a in range(max(2, classes))] for t in range(max(2, classes))]
    assert metrics.confusion(logits, target).tolist() == counts
    scores = []
    for c in range(max(2, classes)):
        hit, said, there = sum((answers == c) & (target == c)), sum(answers == c), sum(target == c)
        scores.append(2 * hit / (said + there))
    assert metrics.f1_macro(logits, target) == pytest.approx(np.mean(scores))
    gap = 0.0
    for b in range(15):
        inside = [r for r in range(len(p)) if b / 15 < p[r].max() <= (b + 1) / 15]
        if inside:
            right = np.mean([answers[r] == target[r] for r in inside])
            gap += len(inside) / len(p) * abs(right - np.mean([p[r].max() for r in inside]))
    assert metrics.ece(logits, target) == pytest.approx(gap)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_metrics_are_finite_at_any_logit(classes):
    logits = np.zeros((4, classes), np.float32)
    logits[:, -1] = [1e30, -1e30, 3e38, 0.0]
    target = np.array([0, 1, 1, 0])
    found = metrics.measure(logits, target)
    assert all(np.isfinite(found[key]).all() for key in found)
    np.testing.assert_allclose(metrics.probabilities(logits).sum(axis=1), 1.0)


def test_a_sigmoid_is_a_softmax_over_zero_and_its_logit():
    logits, target = drawn(1)
    both = np.concatenate([np.zeros_like(logits), logits], axis=1)
    one, other = metrics.measure(logits, target), metrics.measure(both, target)
    assert one.keys() == other.keys()
    assert all(np.allclose(one[key], other[key]) for key in one)


def test_the_wilson_interval_stays_within_zero_and_one_and_holds_the_share():
    for rows in (1, 7, 1821):
        for right in (0, rows // 2, rows):
            low, high = metrics.accuracy_ci95(right, rows)
            assert 0.0 <= low <= right / rows <= high <= 1.0
    assert metrics.accuracy_ci95(0, 10) == pytest.approx((0.0, 0.2775327998628892))


def test_a_measurement_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        metrics.measure(np.zeros((0, 2)), np.zeros(0, int))


def corpus(rows, target, train, test):
    tokens = np.array([token for row in rows for token in row], np.int32)
    offset = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    train, test = np.array(train, np.int32), np.array(test, np.int32)
    return Corpus(tokens, offset, np.array(target, np.int32), train, test, test)


def test_the_bag_of_words_is_naive_bayes_on_presence(monkeypatch):
    generator = np.random.default_rng(3)
    size, classes = 12, 3
    target = generator.integers(0, classes, 90)
    rows = [generator.integers(1 + c, size, generator.integers(1, 9)).tolist() for c in target]
    data = corpus(rows, target, range(60), range(60, 90))
    right = 0
    for r in data.test:
        scores = []
        for c in range(classes):
            mine = [set(rows[t]) - {0, 1} for t in data.train if target[t] == c]
            count = {v: 1 + sum(v in row for row in mine) for v in range(2, size)}
            scores.append(
                math.log(len(mine) / 60)
                + sum(math.log(count[v] / sum(count.values())) for v in sorted(set(rows[r]) - {0, 1}))
            )
        right += int(np.argmax(scores)) == target[r]
    assert baselines.bag_of_words(data, size) == {"accuracy": right / 30}
    monkeypatch.setattr(baselines, "CHUNK", 7)
    assert baselines.bag_of_words(data, size) == {"accuracy": right / 30}


def test_the_majority_is_that_of_training():
    data = corpus([[2]] * 6, [0, 1, 1, 0, 0, 1], [0, 1, 2], [3, 4, 5])
    assert baselines.majority(data) == {"accuracy": pytest.approx(1 / 3)}


# --- honest evaluation


def test_the_bootstrap_interval_is_near_the_exact_one_and_the_same_again():
    generator = np.random.default_rng(0)
    target = generator.integers(0, 2, 400)
    logits = np.where(generator.random(400) < 0.8, 2 * target - 1, 1 - 2 * target)[:, None].astype(float)
    found = metrics.bootstrap_ci95(logits, target)
    exact = metrics.accuracy_ci95(int(400 * metrics.accuracy(logits, target)), 400)
    assert found == pytest.approx(exact, abs=0.015) and found == metrics.bootstrap_ci95(logits, target)
    low, high = metrics.bootstrap_ci95(logits, target, metrics.f1_macro, draws=100)
    assert low < metrics.f1_macro(logits, target) < high


@pytest.mark.parametrize("classes", [1, 4])
def test_the_temperature_is_the_one_that_was_hidden(classes):
    """Answers drawn from softmax(z), logits 3 z: the loss is least at 3; no other temperature on a grid does better."""
    generator = np.random.default_rng(1)
    z = generator.normal(size=(20_000, classes))
    p = metrics.probabilities(z)
    target = (p.cumsum(axis=1) < generator.random((len(p), 1))).sum(axis=1)
    found = metrics.temperature(3 * z, target)
    assert found == pytest.approx(3, rel=0.05)
    assert metrics.ece(3 * z / found, target) < metrics.ece(3 * z, target)
    best = metrics.loss(3 * z / found, target)
    assert all(best <= metrics.loss(3 * z / t, target) + 1e-12 for t in np.geomspace(0.1, 10, 41))


def test_mcnemar_counts_only_what_differs():
    one, other = np.array([1] * 30 + [0] * 10), np.array([1] * 22 + [0] * 8 + [1] * 2 + [0] * 8)
    tail = sum(math.comb(10, k) for k in range(3)) / 2**10
    assert metrics.mcnemar(one, other) == metrics.mcnemar(other, one) == pytest.approx(2 * tail)
    assert metrics.mcnemar(one, one) == 1
    many = np.arange(4000) % 2
    assert metrics.mcnemar(many, 1 - many) == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="same rows"):
        metrics.mcnemar(one, other[:3])


def test_the_interval_of_repetitions_holds_their_mean_in_95_of_100_cases():
    generator = np.random.default_rng(5)
    for count in (2, 5):
        drawn = [metrics.mean_ci95(values) for values in generator.normal(0.9, 0.01, (4000, count))]
        assert np.mean([abs(mean - 0.9) <= half for mean, half in drawn]) == pytest.approx(0.95, abs=0.012)
    assert metrics.mean_ci95([0.5]) == (0.5, None)
    with pytest.raises(ValueError, match="at least one"):
        metrics.mean_ci95([])


@pytest.mark.parametrize("p", [(0.7, 0.1, 0.05), (0.9, 0.02, 0.02)])  # both right, only a, only b
def test_the_interval_of_a_difference_holds_it_in_about_95_of_100_cases(p):
    generator = np.random.default_rng(6)
    cells = np.array([(1, 1), (1, 0), (0, 1), (0, 0)])
    held = []
    for _ in range(1000):
        rows = cells[generator.choice(4, 100, p=(*p, 1 - sum(p)))]
        low, high = metrics.difference_ci95(rows[:, 0], rows[:, 1])
        held.append(low <= p[1] - p[2] <= high)
    assert 0.93 <= np.mean(held) <= 0.99
    same = np.ones(10)
    assert metrics.difference_ci95(same, 1 - same)[1] == 1


def test_accuracy_by_length_shares_every_row_out_once():
    logits, target = drawn(3)
    length = np.random.default_rng(5).integers(1, 30, len(target))
    parts = metrics.accuracy_by_length(logits, target, length)
    assert sum(part["rows"] for part in parts) == len(target) and len(parts) == 4
    assert all(one["tokens"][1] < other["tokens"][0] for one, other in itertools.pairwise(parts))
    right = sum(part["rows"] * part["accuracy"] for part in parts) / len(target)
    assert right == pytest.approx(metrics.accuracy(logits, target))
    (whole,) = metrics.accuracy_by_length(logits, target, np.full(len(target), 7))
    assert whole["tokens"] == [7, 7] and whole["rows"] == len(target)
