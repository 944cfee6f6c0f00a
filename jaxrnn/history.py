"""What a run wrote about itself, read back as a stranger's: ArtefactError for a record that could not be drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxrnn import runs
from jaxrnn.errors import ArtefactError


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # nan is not


def _or_none(value: Any) -> bool:
    return value is None or _number(value)


def _from(low: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value < 1 << 62


def _text(value: Any) -> bool:
    return isinstance(value, str)


MEASURED = {"loss": _number, "accuracy": _number}
EPOCH: dict[str, Any] = {"step": _from(1), "epoch": _from(1), "best": lambda value: type(value) is bool}
EPOCH |= {"train": MEASURED, "valid": MEASURED}
WAY: dict[str, Any] = {"layer": _from(1), "direction": _text, "verdict": _text, "log_norms": [_or_none]}
WAY |= {"log_slope": _or_none, "saturation": _or_none}
FLOW: dict[str, Any] = {"step": _from(0), "flow": [WAY]}
TEST: dict[str, Any] = {"confusion": [[_number]], "labels": [_text]}


def fits(value: Any, form: Any) -> bool:
    """Is a JSON value of that form: {key: form} with other keys besides, [form] of at least one, or as a function says.

    >>> fits({"loss": 0.5, "more": 1}, {"loss": _number}), fits([], [_number])
    (True, False)
    """
    if isinstance(form, dict):
        return isinstance(value, dict) and all(fits(value.get(key), inner) for key, inner in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and bool(value) and all(fits(inner, form[0]) for inner in value)
    return form(value)


def earlier(folder: Path) -> list[dict[str, Any]]:
    """The epochs and the measurements of the gradient's flow in metrics.jsonl; none where there is no such file."""
    path = folder / "metrics.jsonl"
    records = (record for record in runs.read_lines(path) if isinstance(record, dict)) if path.exists() else ()
    found = [record for record in records if "train" in record or "flow" in record]
    if not all(fits(record, EPOCH if "train" in record else FLOW) for record in found) or not _alike(found):
        raise ArtefactError(f"{path}: expected the records of this run as train writes them: it is damaged")
    return found


def _alike(records: list[dict[str, Any]]) -> bool:
    """Every measurement of the flow is of the same layers and distances."""
    flows = [record["flow"] for record in records if "train" not in record]
    return len({tuple((way["layer"], way["direction"], len(way["log_norms"])) for way in flow) for flow in flows}) <= 1


def test(folder: Path) -> dict[str, Any]:
    """Of summary.json what is drawn: the confusion matrix of the test split, and its labels."""
    path = folder / "summary.json"
    summary = runs.read_json(path)
    found: Any = summary.get("test") if isinstance(summary, dict) else None
    if not fits(found, TEST) or not _square(**{key: found[key] for key in TEST}):
        raise ArtefactError(f"{path}: expected a confusion matrix of the test split, and its labels")
    return found


def _square(confusion: list[list[float]], labels: list[str]) -> bool:
    return {len(confusion), *map(len, confusion)} == {len(labels)}
