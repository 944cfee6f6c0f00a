"""Two runs on the same test rows: which answers differ, and whether chance alone would do that (McNemar 1947)."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn import evaluate, metrics


def compared(one: Path, other: Path, *, device: str = "auto") -> dict[str, Any]:
    """Both runs answer the test rows again, which are matched by text and label.

    -> {"runs", "rows", "accuracy", "difference", "difference_ci95", "only_first", "only_second", "p"}: the difference
    is first - second, `only_first` counts the rows that only the first run got right, `p` is two-sided and exact.
    Where the two were not measured on the same rows: {"runs", "refused": why}.
    """
    (rows_a, right_a), (rows_b, right_b) = (_answered(folder, device) for folder in (one, other))
    if rows_a != rows_b:
        shared = len(set(rows_a) & set(rows_b))
        told = f"their test rows differ, {len(rows_a):,} and {len(rows_b):,} with {shared:,} texts in common"
        return {"runs": [str(one), str(other)], "refused": told}
    return {
        "runs": [str(one), str(other)],
        "rows": len(rows_a),
        "accuracy": [float(right_a.mean()), float(right_b.mean())],
        "difference": float(right_a.mean() - right_b.mean()),
        "difference_ci95": list(metrics.difference_ci95(right_a, right_b)),
        "only_first": int((right_a & ~right_b).sum()),
        "only_second": int((~right_a & right_b).sum()),
        "p": metrics.mcnemar(right_a, right_b),
    }


def _answered(folder: Path, device: str) -> tuple[list[bytes], np.ndarray]:
    """Digests of text and label of the test rows, sorted, and whether each was answered rightly."""
    run = evaluate.opened(str(folder), device)
    logits, rows = run.answered(run.corpus.test)
    right = metrics.predictions(logits) == run.corpus.target[rows]
    wanted = set(rows.tolist())
    every = itertools.chain.from_iterable(split for split in run.rows[:3] if split is not None)
    digests = {
        number: hashlib.sha256(f"{len(text)} {text} {label}".encode()).digest()
        for number, (text, label) in enumerate(every)
        if number in wanted
    }
    order = sorted(range(len(rows)), key=lambda place: digests[int(rows[place])])
    return [digests[int(rows[place])] for place in order], right[order]


def told(found: dict[str, Any]) -> str:
    """The same for people."""
    if "refused" in found:
        return f"the two runs are not compared: {found['refused']}"
    (one, other), (low, high) = found["runs"], found["difference_ci95"]
    return "\n".join(
        [
            f"the two runs on the same {found['rows']:,} test rows",
            f"  A  {found['accuracy'][0]:.4f}  {one}",
            f"  B  {found['accuracy'][1]:.4f}  {other}",
            f"  A - B  {found['difference']:+.4f}   95 % interval {low:+.4f} to {high:+.4f}",
            f"  only A right {found['only_first']:,} rows, only B {found['only_second']:,}: "
            f"McNemar's test, exact, p = {found['p']:.3g}",
        ]
    )
