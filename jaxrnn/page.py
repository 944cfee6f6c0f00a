"""What `explain` found, as one page of HTML that needs nothing else: style and drawings are inside, no script."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrnn.document import document, safe
from jaxrnn.plots import COLOURS
from jaxrnn.steptable import Columns, ends, gated, listed, methods, norm, number, part, power, printable, vector

MOST_COLUMNS, MOST_UNITS = 96, 64  # of the heat map
VERDICTS = {"vanishing": "#b3752c", "healthy": "#4d8a4a", "exploding": "#b5372f"}


def page(found: dict[str, Any]) -> str:
    """The whole document."""
    net, steps = found["network"], found["steps"]
    about = f"{net['cell']} · {net['activation']} · {net['hidden_size']} units · layer {net['layer']}"
    about += (
        f" of {net['layers']} · {net['direction']} · head {net['head']} · loss −ln p = {number(found['loss'])} nats"
    )
    text = found["text"] if len(found["text"]) <= 200 else found["text"][:199] + "…"
    parts = [f"<h1><bdi>{safe(text) or 'no text'}</bdi></h1>", f"<p class=note>{safe(about)}</p>", _bars(found)]
    if not steps:
        parts.append(f"<p>The text has no {found['unit']}s: this is the answer of a state that nothing has moved.</p>")
    else:
        parts += [*_forward(found), *_backward(found), *_attribution(found)]
    return document(printable(text, 60), parts)


def _word(step: dict) -> str:
    unknown = "" if step["known"] else ' class=unknown title="not in the vocabulary"'
    return f"<bdi{unknown}>{safe(step['token'])}</bdi>"


def _bars(found) -> str:
    p = found["probabilities"]
    rows = [
        f'<div class=bar><b><bdi>{safe(name)}</bdi></b><i style="width:{18 * (p[name] or 0):.2f}rem;background:'
        f'{COLOURS[list(p).index(name) % len(COLOURS)]}"></i>{number(p[name])}</div>'
        for name in sorted(p, key=lambda name: -(p[name] or 0))[:10]
    ]
    return f"<section>{''.join(rows)}</section>"


def _table(steps, columns: Columns, last: Sequence[str] | None = None) -> str:
    rows = ["<tr><th>t<th class=word>token" + "".join(f"<th>{safe(name)}" for name in columns)]
    for place in ends(len(steps)):
        if place is None:
            left = len(steps) - len(ends(len(steps))) + 1
            rows.append(f"<tr><td>⋮<td class=word colspan={len(columns) + 1}>{left:,} more steps")
        else:
            step = steps[place]
            rows.append(f"<tr><td>{step['t']}<td class=word>{_word(step)}"
                        + "".join(f"<td>{safe(show(step))}" for show in columns.values()))  # fmt: skip
    if last:
        rows.append("<tr class=sum><td><td class=word>norm of the sum" + "".join(f"<td>{cell}" for cell in last))
    return f"<section><table>{''.join(rows)}</table></section>"


def _forward(found) -> list[str]:
    steps, labels = found["steps"], list(found["probabilities"])
    shown = labels if len(labels) <= 4 else [found["label"]]
    columns: Columns = {
        "‖x_t‖": lambda s: norm(s["input"]),
        "‖W_xh x_t‖": lambda s: norm(s["from_input"]),
        "‖W_hh h_t−1‖": lambda s: norm(s["from_state"]),
        "‖h_t‖": lambda s: norm(s["state"]),
        "saturated": lambda s: "-" if s["saturation"] is None else f"{s['saturation']:.0%}",
        **{f"p({name})": part("probabilities", name) for name in shown},
    }
    lines = [(name, [s["probabilities"][name] for s in steps]) for name in
             sorted(labels, key=lambda n: -(found["probabilities"][n] or 0))[:6]]  # fmt: skip
    many = len(steps) > MOST_COLUMNS
    cut = f" {len(steps):,} states in {MOST_COLUMNS} columns, each the mean of a few." if many else ""
    cut += f" The first {MOST_UNITS} units." if len(steps[0]["state"]) > MOST_UNITS else ""
    gates = "<p class=note>‖W_xh x_t‖, ‖W_hh h_t−1‖ and ‖δ_t‖ are norms over all gates.</p>" if gated(steps[0]) else ""
    parts = [f"<h2>Forward: the state after each {found['unit']}</h2>",
             f"<p class=note>Each column is a state h_t, each row a unit; blue is negative, red positive.{cut}</p>",
             f"<section>{_heat(steps)}</section>",
             "<h2>The answer so far</h2><p class=note>The probability of each label if the text ended there.</p>",
             f"<section>{_lines(steps, lines, labels)}</section>", gates, _table(steps, columns)]  # fmt: skip
    if len(steps[0]["state"]) <= 8 and len(steps) <= 24:
        parts.append(f"<section><pre>{_vectors(steps)}</pre></section>")
    return parts


def _vectors(steps) -> str:
    names = {"x_t": "input", "W_xh x_t": "from_input", "W_hh h_t−1": "from_state", "h_t": "state", "δ_t": "delta"}
    lines = []
    for step in steps:
        lines.append(f"t = {step['t']}  <b>{_word(step)}</b>")
        lines += [f"  {name:<11}{safe(vector(step[key]))}" for name, key in names.items() if step[key] is not None]
    return "\n".join(lines)


def _backward(found) -> list[str]:
    steps, flow = found["steps"], found["flow"]
    logs = flow["log_norms"]
    columns: Columns = {
        "‖∂L/∂h_t‖": lambda s: number(s["grad_state_norm"]),
        "‖δ_t‖": lambda s: norm(s["delta"]),
        **{f"‖∂L/∂{name}‖ of step": part("shares", name) for name in found["gradients"]},
        "ln ‖∂h_T/∂h_t‖": lambda s: "−∞" if logs[s["t"] - 1] is None else f"{logs[s['t'] - 1]:+.3f}",
    }
    last = ["", "", *(number(value) for value in found["gradients"].values()), ""]
    slope = flow["log_slope"]
    told = "" if slope is None else f"ln ‖∂h_T/∂h_t‖ grows by {slope:+.4f} per step, a factor of {power(slope):.4g}"
    radius = "" if found["spectral_radius"] is None else f" · spectral radius of W_hh {found['spectral_radius']:.4f}"
    advice = "".join(f"<li>{safe(line)}" for line in flow["advice"])
    grad = [("‖∂L/∂h_t‖", [s["grad_state_norm"] for s in steps]),
            ("‖∂h_T/∂h_t‖", [None if v is None else power(v) for v in logs])]  # fmt: skip
    badge = f'<span class=verdict style="background:{VERDICTS[flow["verdict"]]}">{flow["verdict"]}</span>'
    return [
        "<h2>Backward: the gradient at each step</h2>",
        f"<p>{badge} {told}{radius}</p>" + (f"<ul>{advice}</ul>" if advice else ""),
        f"<section>{_lines(steps, grad, [name for name, _ in grad], log=True)}</section>",
        _table(steps, columns, last),
        f"<p class=note>The sums over steps equal automatic differentiation's gradients: largest relative difference "
        f"{number(found['gradients_error'])}.</p>",
    ]


def _attribution(found) -> list[str]:
    held, steps = found["attribution"], found["steps"]
    if held is None:
        return ["<h2>Attribution</h2><p class=note>Left out: the text is too long, or its inputs too wide.</p>"]
    names = methods(held)
    parts = [f"<h2>Attribution: what each {found['unit']} adds to ln p(<bdi>{safe(found['label'])}</bdi>)</h2>"]
    for name, key in names.items():
        top = max((abs(v) for v in held[key] if v is not None), default=0) or 1
        words = "".join(_chip(steps, held[key], top, place) for place in ends(len(steps)))
        parts.append(f"<section class=words><b>{name}</b><br>{words}</section>")
    columns = {name: listed(held[key]) for name, key in names.items()}
    parts.append(_table(steps, columns))
    pairs = [
        f"{' / '.join(pair['methods']).replace('_', ' ')}: {number(pair['rank_correlation'], '+')}"
        for pair in held["agreement"]
        if set(pair["methods"]) <= set(names.values())
    ]
    complete = f"Integrated gradients are complete to {number(held['completeness_error'])}." if held["complete"] else (
        "Integrated gradients are left out: the integral does not converge along so steep a path.")  # fmt: skip
    parts.append(f"<p class=note>{complete} Agreement as rank correlation: {safe('; '.join(pairs))}.</p>")
    return parts


def _chip(steps, values, top: float, place: int | None) -> str:
    if place is None:
        return "<span>…</span>"
    colour = _diverging((values[place] or 0) / top, 0.75)
    return f'<span style="background:{colour}" title="{number(values[place], "+")}">{_word(steps[place])}</span>'


def _diverging(value: float, depth: float = 1.0) -> str:
    """-1 blue, 0 white, 1 red."""
    if not np.isfinite(value):
        return "#ddd"
    share = min(abs(value), 1.0) * depth
    end = (178, 24, 43) if value > 0 else (33, 102, 172)
    return "#" + "".join(f"{round(255 + (e - 255) * share):02x}" for e in end)


def _binned(steps: int) -> list[np.ndarray]:
    return np.array_split(np.arange(steps), min(steps, MOST_COLUMNS))


def _places(count: int, left: int, wide: float) -> np.ndarray:
    return left + wide * (np.arange(count) + 0.5) / count


def _heat(steps) -> str:
    state = np.array([step["state"] for step in steps], float)[:, :MOST_UNITS]
    bins = _binned(len(steps))
    state = np.stack([state[bin].mean(0) for bin in bins])  # [columns, units]
    top = max(float(np.nanmax(np.abs(state))), 1e-9) if np.isfinite(state).any() else 1.0
    columns, units = state.shape
    tall = 26 if units <= 8 else max(5, 360 // units)
    wide = 900 / columns
    gap = 1.5 if columns <= 40 else 0
    cells = [
        f'<rect x="{60 + c * wide:.1f}" y="{u * tall}" width="{wide - gap:.1f}" height="{tall}" '
        f'fill="{_diverging(state[c, u] / top)}"/>'
        for c in range(columns) for u in range(units)
    ]  # fmt: skip
    note = f'<text x="0" y="14">{units} units</text>'
    return _svg(units * tall, [*cells, note], steps)


def _svg(tall: float, inside: Sequence[str], steps) -> str:
    """A drawing of 980 columns, the words (or some step numbers) below it."""
    words, room = [], 24
    if len(steps) <= 40:
        tilt = max(len(s["token"]) for s in steps) * 7.5 > 900 / len(steps)
        room = 66 if tilt else 26
        for x, step in zip(_places(len(steps), 60, 900), steps, strict=True):
            where = f'transform="translate({x:.1f} {tall + 16}) rotate(-45)" text-anchor="end"' if tilt else (
                f'x="{x:.1f}" y="{tall + 18}" text-anchor="middle"')  # fmt: skip
            words.append(f"<text {where}>{safe(printable(step['token'], 14))}</text>")
    else:
        at = _places(len(steps), 60, 900)
        words = [f'<text x="{at[t]:.1f}" y="{tall + 18}" text-anchor="middle">{t + 1:,}</text>'
                 for t in np.linspace(0, len(steps) - 1, 6).astype(int)]  # fmt: skip
    return f'<svg viewBox="0 0 1100 {tall + room:.0f}" width="1100" role="img">{"".join([*inside, *words])}</svg>'


def _lines(steps, lines, names, log: bool = False) -> str:
    """Curves over the words, a label at the end of each."""
    tall, values = 170, []
    for name, numbers in lines:
        y = np.array(numbers, float)
        values.append((name, np.log10(np.where(y > 0, y, np.nan)) if log else y))
    every = np.concatenate([y for _, y in values])
    every = every[np.isfinite(every)]
    low, high = (0.0, 1.0) if not log else (np.floor(every.min()), np.ceil(every.max())) if len(every) else (-1.0, 1.0)
    high = high if high > low else low + 1
    inside = []
    for tick in np.linspace(low, high, 3) if not log else np.arange(low, high + 1, max(1, (high - low) // 4)):
        y = 10 + (tall - 20) * (high - tick) / (high - low)
        label = f"1e{int(tick)}" if log else f"{tick:.1f}"
        inside.append(f'<path d="M60 {y:.1f}H960" stroke="#e4e4e4"/>')
        inside.append(f'<text x="52" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    at = _places(len(steps), 60, 900)
    taken: list[int] = []
    for name, curve in values:
        colour = COLOURS[names.index(name) % len(COLOURS)]
        down = 10 + (tall - 20) * (high - curve) / (high - low)
        points = [(x, y) for x, y in zip(at, down, strict=True) if np.isfinite(y)]
        if not points:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        inside.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        if len(steps) <= 40:
            inside += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="{colour}"/>' for x, y in points]
        free = [y for y in range(14, tall, 4) if all(abs(y - other) >= 15 for other in taken)]
        place = min(free, key=lambda y: abs(y - points[-1][1] - 4), default=14)
        taken.append(place)
        title = safe(printable(name, 16))
        inside.append(f'<text x="970" y="{place}" style="fill:{colour};font-weight:600">{title}</text>')
    return _svg(tall, inside, steps)
