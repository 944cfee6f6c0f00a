"""What `explain` found, as tables for a terminal. Of a long text the two ends; short vectors are written out."""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

ENDS = 12  # steps shown at either end of a long text
FEW = 8  # numbers of a vector that is written out
WIDEST = 18  # columns of a token
DRAWN = 16  # units of a state that are drawn as bars
BARS = " ▁▂▃▄▅▆▇█"


def printable(token: str, most: int = WIDEST) -> str:
    """The token with control and formatting characters made visible, no wider than `most` columns."""
    seen = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
    short = ""
    for character in seen:
        if width(short + character) > most - 1:
            return short + "…"
        short += character
    return short


def width(text: str) -> int:
    """Columns of a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def padded(text: str, columns: int, right: bool = True) -> str:
    space = " " * (columns - width(text))
    return space + text if right else text + space


def number(value: float | None, sign: str = "") -> str:
    """Four digits that matter, in at most nine columns."""
    if value is None:
        return "-"
    return f"{value:{sign}.4f}" if value == 0 or 1e-3 <= abs(value) < 1000 else f"{value:{sign}.2e}"


def power(log: float) -> float:
    """e to that, within what a float can hold."""
    return float(np.exp(np.clip(log, -700, 700)))


def norm(vector: Any) -> str:
    if vector is None or isinstance(vector, int):
        return "-"
    values = np.array(vector, float)
    top = float(np.abs(values).max(initial=0.0))
    return number(top * float(np.linalg.norm(values / top)) if top > 0 else top)  # the square of 1e200 is none


def ends(count: int) -> list[int | None]:
    """The steps shown, None where some are left out."""
    if count <= 2 * ENDS + 1:
        return list(range(count))
    return [*range(ENDS), None, *range(count - ENDS, count)]


Columns = dict[str, Callable[[dict], str]]  # head -> what stands below it for a step


def table(steps: Sequence[dict], columns: Columns, last: dict[str, str] | None = None) -> list[str]:
    """Lines of aligned columns, after t and token."""
    heads = ["t", "token", *columns]
    rows = []
    for place in ends(len(steps)):
        if place is None:
            rows.append(["⋮", f"{len(steps) - 2 * ENDS:,} more steps", *[""] * len(columns)])
        else:
            step = steps[place]
            rows.append([str(step["t"]), printable(step["token"]), *(show(step) for show in columns.values())])
    if last:
        rows.append(["", last.get("token", ""), *(last.get(name, "") for name in columns)])
    size = [max(width(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    return [
        "  " + "  ".join(padded(cell, size[i], right=i != 1) for i, cell in enumerate(row)).rstrip()
        for row in [heads, *rows]
    ]


def part(group: str, name: str) -> Callable[[dict], str]:
    """The column of one number of a group of numbers."""
    return lambda step: number(step[group][name])


def listed(values: Sequence[float | None]) -> Callable[[dict], str]:
    """The column of a list of one number per step, with their signs."""
    return lambda step: number(values[step["t"] - 1], "+")


def sketch(vector: Sequence[float | None]) -> str:
    """The first numbers of a state as bars, -1 to 1 (or to the largest)."""
    values = np.array([0.0 if v is None else v for v in vector[:DRAWN]])
    top = max(1.0, np.abs(values).max(initial=0.0))
    return "".join(BARS[round((v / top + 1) * 4)] for v in values)


def vector(values: Any) -> str:
    if values is None or isinstance(values, int):
        return "-" if values is None else f"one-hot, number {values}"
    return "[" + " ".join(f"{v:+.6f}" if v is not None else "-" for v in values) + "]"


def tables(found: dict[str, Any]) -> str:
    """All of it."""
    net, steps, labels = found["network"], found["steps"], list(found["probabilities"])
    p = found["probabilities"][found["label"]]
    words = printable(found["text"], 80) or "(no text)"
    lines = [f"{words}  ->  {found['label']}   p {number(p)}   loss -ln p = {number(found['loss'])} nats",
             f"{net['cell']}, {net['activation']}, H = {net['hidden_size']}, layer {net['layer']} of {net['layers']}, "
             f"{net['direction']}, head {net['head']}"]  # fmt: skip
    if not steps:
        told = f"the text has no {found['unit']}s: this is the answer of a state that nothing has moved"
        return "\n".join([*lines, "", told])
    shown = labels if len(labels) <= 4 else [found["label"]]
    forward: Columns = {
        "known": lambda s: "yes" if s["known"] else "no",
        "|x|": lambda s: norm(s["input"]),
        "|W_xh x|": lambda s: norm(s["from_input"]),
        "|W_hh h|": lambda s: norm(s["from_state"]),
        "|h|": lambda s: norm(s["state"]),
        "saturated": lambda s: "-" if s["saturation"] is None else f"{s['saturation']:.0%}",
        **{f"p({printable(name, 12)})": part("probabilities", name) for name in shown},
        "h": lambda s: sketch(s["state"]),
    }
    lines += ["", "forward: h in |W_hh h| is the state before the step, p the answer if the text ended there"]
    lines += _notes(steps)
    lines += table(steps, forward)
    lines += _vectors(steps)
    shares = list(found["gradients"])
    logs = {s["t"]: v for s, v in zip(steps, found["flow"]["log_norms"], strict=True)}
    backward: Columns = {
        "|dL/dh|": lambda s: number(s["grad_state_norm"]),
        "|delta|": lambda s: norm(s["delta"]),
        **{f"d{name}": part("shares", name) for name in shares},
        "|dh_T/dh_t|": lambda s: "0" if logs[s["t"]] is None else number(power(logs[s["t"]])),
    }
    total = {"token": "norm of the sum", **{f"d{name}": number(found["gradients"][name]) for name in shares}}
    lines += ["", "backward: delta is the gradient at the pre-activation, dW the norm of what the step adds to dL/dW"]
    lines += table(steps, backward, total)
    lines.append(f"  the sums equal automatic differentiation's gradients: largest relative difference "
                 f"{found['gradients_error']:.1e}")  # fmt: skip
    return "\n".join([*lines, *_flow(found), *_attribution(found)])


def gated(step: dict[str, Any]) -> bool:
    """Has the cell several products of a step, one for each gate."""
    return isinstance(step["from_input"], list) and len(step["from_input"]) > len(step["state"])


def _notes(steps) -> list[str]:
    units = len(steps[0]["state"])
    notes = ["|W_xh x|, |W_hh h| and |delta| are norms over all gates"] if gated(steps[0]) else []
    notes += [f"the bars of h are its first {DRAWN} of {units:,} units"] if units > DRAWN else []
    return ["  " + "; ".join(notes)] if notes else []


def _vectors(steps) -> list[str]:
    """The numbers themselves, while they are few."""
    short = len(steps[0]["state"]) <= FEW and len(steps) <= 2 * ENDS
    if not short:
        return []
    lines = ["", "the vectors"]
    for step in steps:
        few = isinstance(step["input"], list) and len(step["input"]) <= FEW
        lines.append(f"  t = {step['t']}  {printable(step['token'])}")
        parts = {"x_t": step["input"] if few else None, "W_xh x_t": step["from_input"]}
        parts |= {"W_hh h_t-1": step["from_state"], "h_t": step["state"], "delta_t": step["delta"]}
        lines += [f"    {name:<11}{vector(values)}" for name, values in parts.items() if values is not None]
    return lines


def _flow(found) -> list[str]:
    flow = found["flow"]
    if (slope := flow["log_slope"]) is not None:
        growth = f"ln |dh_T/dh_t| grows by {slope:+.4f} per step, a factor of {power(slope):.4g}"
    else:
        growth = "nothing comes back to the earlier steps" if len(found["steps"]) > 1 else "a single step"
    radius = "" if found["spectral_radius"] is None else f"; spectral radius of W_hh {found['spectral_radius']:.4f}"
    how = "" if flow["exact"] else " (from random directions: a lower bound)"
    lines = ["", f"gradient flow: {flow['verdict']}; {growth}{how}{radius}"]
    return lines + [f"  {line}" for line in flow["advice"]]


def methods(held: dict[str, Any]) -> dict[str, str]:
    """The methods of attribution whose numbers mean something: title -> name."""
    names = {"leave one out": "leave_one_out", "gradient × input": "gradient_input"}
    return names | ({"integrated gradients": "integrated"} if held["complete"] else {})


def _attribution(found) -> list[str]:
    held = found["attribution"]
    if held is None:
        return ["", "attribution: left out, the text is too long, or its inputs are too many numbers"]
    names = methods(held)
    columns = {head: listed(held[name]) for head, name in names.items()}
    label = printable(found["label"], 20)
    lines = ["", f"attribution: what each {found['unit']} adds to ln p({label}), by three methods"]
    lines += table(found["steps"], columns)
    if held["complete"]:
        lines.append(f"  integrated gradients are complete to {number(held['completeness_error'])}")
    else:
        lines.append("  integrated gradients: left out, the integral does not converge along so steep a path")
    lines.append("  agreement as rank correlation:")
    for pair in held["agreement"]:
        if not held["complete"] and "integrated" in pair["methods"]:
            continue
        value = "-" if pair["rank_correlation"] is None else f"{pair['rank_correlation']:+.2f}"
        lines.append(f"    {value}  {' / '.join(pair['methods']).replace('_', ' ')}")
    return lines
