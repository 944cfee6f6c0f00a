"""What a sentiment classifier should do with sentences of our own: pairs whose answers must agree, or must differ.

Each case is a plain judgement and a change of it: "the food is good", "the food is not good". A case is passed when the
change turns the answer over, or leaves it, as it should; whether the plain answer is right is told apart, as "plain".
Ribeiro et al. 2020, "Beyond accuracy: behavioral testing of NLP models with CheckList".
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.errors import ConfigurationError

SUBJECTS = ("this", "it", "the food", "the film", "the music")
WORDS = ({"good", "great", "nice", "lovely"}, {"bad", "awful", "poor", "dull"})
LABELS = "good bad, positive negative, pos neg, happy sad, love hate, yes no, 1 0, 1 -1, 4 0, 2 1"  # the good one first
SHOWN = 3  # failures quoted per check


class Case(NamedTuple):
    plain: str
    changed: str
    sign: int  # of the plain judgement: 1 good, 0 bad
    flips: bool


class Check(NamedTuple):
    name: str
    cases: list[Case]


def suite(beyond: int = 60) -> list[Check]:
    """The checks; `beyond` is the number of words that the longest text of training had."""
    longer = "i think that " * (beyond // 3 + 1)
    changes: dict[str, tuple[bool, tuple[str, ...]]] = {
        "negation flips": (True, ("{s} is not {w}", "{s} is not very {w}", "it is not true that {s} is {w}")),
        "double negation": (False, ("it is not true that {s} is not {w}", "nobody says that {s} is not {w}")),
        "intensifiers": (False, ("{s} is very {w}", "{s} is really {w}", "{s} is so {w}")),
        "neutral words": (False, ("{s} is {w} today", "i think {s} is {w}", "{s} is {w} .")),
        "names": (False, ("anna says that {s} is {w}", "david says that {s} is {w}", "fatima says {s} is {w}")),
        "unknown words": (False, ("{s} is {w} qzxv", "qzxv {s} is {w}", "the qzxv is {w}")),
        "longer than training": (False, (longer + "{s} is {w}",)),
    }
    return [
        Check(name, [
            Case(f"{s} is {w}", form.format(s=s, w=w), sign, flips)
            for form in forms for s in SUBJECTS for sign in (1, 0) for w in sorted(WORDS[1 - sign])
        ])
        for name, (flips, forms) in changes.items()
    ]  # fmt: skip


def positive(labels: Sequence[str]) -> int:
    """Which of two labels is the good one; ConfigurationError where they are not a sentiment."""
    names = [label.strip().lower() for label in labels]
    for pair in LABELS.split(", "):
        if sorted(pair.split()) == sorted(names):
            return names.index(pair.split()[0])
    raise ConfigurationError(
        f"--behaviour: expected two labels of sentiment, such as good and bad or 1 and 0, found {list(labels)[:6]}"
    )


def measured(answer: Callable[[Sequence[str]], np.ndarray], checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Each check of a classifier: answer(texts) -> 1 good or 0 bad for each text, [R]."""
    found = []
    for check in checks:
        plain = np.asarray(answer([case.plain for case in check.cases]))
        changed = np.asarray(answer([case.changed for case in check.cases]))
        right = (plain != changed) == np.array([case.flips for case in check.cases])
        failed = [case for case, fine in zip(check.cases, right, strict=True) if not fine]
        found.append(
            {
                "check": check.name,
                "cases": len(right),
                "passed": int(right.sum()),
                "plain": float((plain == np.array([case.sign for case in check.cases])).mean()),
                "failures": [[case.plain, _short(case.changed)] for case in failed[:SHOWN]],
            }
        )
    return found


def _short(text: str, most: int = 70) -> str:
    return text if len(text) <= most else "… " + text[-most:]


def table(found: Sequence[dict[str, Any]]) -> str:
    """For people: the share passed, and a failure of each check."""
    lines = ["behaviour: pairs of sentences whose answers must agree, or differ"]
    for check in found:
        line = f"  {check['check']:<22}{check['passed'] / check['cases']:>6.0%}  of {check['cases']}"
        if check["failures"]:
            plain, changed = check["failures"][0]
            line += f"   not so: {plain!r} and {changed!r}"
        lines.append(line)
    lines.append(f"  the plain sentences themselves are answered rightly {found[0]['plain']:.0%} of the time")
    return "\n".join(lines)
