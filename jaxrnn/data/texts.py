"""Texts: a handful of texts written out in the configuration, one training, validation and test split at once.

What it measures is how well they were learned by heart, which is the point of an example worked by hand.
"""

from collections.abc import Sequence

from ..errors import ConfigurationError
from . import Splits


def texts(*, texts: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> Splits:
    """Each text with its answer, one of `labels`; all rows of one class are enough."""
    for key, value in (("texts", texts), ("answers", answers), ("labels", labels)):
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
            raise ConfigurationError(f"dataset.{key}={value!r}: expected a list of texts, as in ['0','1']")
    if not texts or len(texts) != len(answers):
        raise ConfigurationError(f"{len(texts)} dataset.texts, {len(answers)} dataset.answers: expected one for each")
    strange = [answer for answer in answers if answer not in labels]
    if strange or len(set(labels)) < 2:
        raise ConfigurationError(f"dataset.labels={list(labels)}: expected two or more, with {sorted(set(answers))}")
    rows = list(zip(texts, answers, strict=True))
    return Splits(rows, rows, rows, labels=tuple(labels))
