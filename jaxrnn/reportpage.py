"""The report as one page of HTML, its plots drawn inside: ranking, parallel coordinates, a slice for each key."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxrnn.document import document, safe
from jaxrnn.ranking import NOTE, Configuration, Mean, Ranking, as_number, natural
from jaxrnn.results import Run, counts
from jaxrnn.steptable import printable

MOST_ROWS, MOST_LINES, MOST_DOTS, MOST_KEYS = 200, 400, 2000, 12  # of the ranking, of a plot, axes and slices
MOST_PLACES = 9  # values that stand at equal distances; more numbers than that have a scale
BEST, LOW, HIGH = "#d1603d", (203, 213, 222), (38, 84, 128)
GRID = "#e4e4e4"
HALO = ' style="paint-order:stroke;stroke:#fff;stroke-width:4px"'  # readable over lines


class Axis(NamedTuple):
    """Where each value stands, 0 to 1, and what is written where."""

    place: dict[str, float]
    ticks: list[tuple[float, str]]


def axis(values: Iterable[str]) -> Axis:
    """Few values, or words, at equal distances; many numbers to scale, a logarithmic one where they span much."""
    distinct = sorted(set(values), key=natural)
    numbers = [number for number in map(as_number, distinct) if number is not None]
    spans = bool(numbers) and 0 < numbers[-1] - numbers[0] < math.inf
    if len(distinct) <= MOST_PLACES or len(numbers) < len(distinct) or not spans:
        place = {value: (i + 0.5) / len(distinct) for i, value in enumerate(distinct)}
        step = math.ceil(len(distinct) / MOST_PLACES)
        return Axis(place, [(place[value], printable(value, 14)) for value in distinct[::step]])
    low, high = numbers[0], numbers[-1]
    log = low > 0 and high > 30 * low
    on = [math.log(number) if log else number for number in numbers]
    shown = [on[0] + (on[-1] - on[0]) * i / 4 for i in range(5)]
    ticks = [(i / 4, f"{math.exp(value) if log else value:.3g}") for i, value in enumerate(shown)]
    return Axis({v: (x - on[0]) / (on[-1] - on[0]) for v, x in zip(distinct, on, strict=True)}, ticks)


class Scale(NamedTuple):
    """Accuracies from `low` to `high`, both among the ticks."""

    low: float
    high: float
    ticks: list[float]

    def place(self, value: float) -> float:
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)


def scale(values: Sequence[float]) -> Scale:
    """Round ticks around the values, within 0 to 1; equal ones stand amid 0.004.

    >>> [round(tick, 3) for tick in scale([0.812, 0.874]).ticks]
    [0.8, 0.82, 0.84, 0.86, 0.88]
    """
    low, high = min(values), max(values)
    spare = max(0.004 - (high - low), 0.0) / 2
    low, high = max(low - spare, 0.0), min(high + spare, 1.0)
    wide = high - low
    step = min((s for s in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if wide / s <= 5), default=0.2)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return Scale(first * step, last * step, [tick * step for tick in range(first, last + 1)])


def page(ranked: Ranking, pair: str) -> str:
    """The whole document; `pair` is what two runs give row by row, or nothing."""
    rows = ranked.configurations
    best = rows[0]
    parts = [f"<h1>{ranked.size:,} runs, {len(rows):,} configurations</h1>", f"<p class=note>{NOTE}</p>"]
    if ranked.mixed:
        parts.append("<p class=unknown>The runs are of different data sets: their accuracies are not comparable.</p>")
    parts += [
        "<h2>The best</h2>",
        f"<section><p><b>{best.valid}</b> on validation, {best.test} on the test, runs: {len(best.runs):,}. Its best "
        f"run is <code>{safe(best.runs[0].folder)}</code>; this trains it again:</p>"
        f"<pre style='white-space:pre-wrap'>{safe(best.runs[0].command)}</pre></section>",
        "<h2>Ranking</h2>",
        _ranking(ranked),
    ]
    if ranked.keys:
        parts += ["<h2>Which values go together</h2>",
                  "<p class=note>A line is a configuration, the darker the better, the best in orange; rest on one to "
                  "read it.</p>", f"<section>{_parallel(ranked)}</section>",
                  "<h2>One key at a time</h2>",
                  "<p class=note>A dot is a run, by its validation accuracy; a bar is the mean of those that share the "
                  "value, whatever else differs.</p>"]  # fmt: skip
        parts += [f"<section>{_slice(ranked, key)}</section>" for key in ranked.keys[:MOST_KEYS]]
        if len(ranked.keys) > MOST_KEYS:
            parts.append(f"<p class=note>{len(ranked.keys):,} keys vary: the first {MOST_KEYS} are drawn.</p>")
    if pair:
        parts += ["<h2>Row by row</h2>", f"<section><pre>{_lines(pair)}</pre></section>"]
    return document(f"{ranked.size} runs", [*parts, *_others(ranked)])


def _lines(text: str) -> str:
    return "\n".join(map(safe, text.splitlines()))


def _ranking(ranked: Ranking) -> str:
    rows = ranked.configurations
    shown = rows[:MOST_ROWS]
    reach = [row.valid.mean + sign * (row.valid.half or 0) for row in shown for sign in (-1, 1)]
    on = scale([min(max(value, 0.0), 1.0) for value in reach])
    keys = "".join(f"<th class=word>{safe(printable(key, 40))}" for key in ranked.keys)
    lines = [f"<tr><th>rank{keys}<th>runs<th>validation<th>validation, 95 % ({on.low:.3g} to {on.high:.3g})<th>test"]
    for place, row in enumerate(shown, 1):
        values = "".join(f"<td class=word>{safe(printable(value, 40))}" for value in row.values.values())
        lines.append(f"<tr><td>{place}{values}<td>{len(row.runs):,}<td>{row.valid}<td>{_interval(row.valid, on, place)}"
                     f"<td>{row.test}")  # fmt: skip
    more = len(rows) - len(shown)
    told = f"<p class=note>and {more:,} more; --csv and --json list all</p>" if more > 0 else ""
    return f"<section><table>{''.join(lines)}</table>{told}</section>"


def _interval(mean: Mean, on: Scale, rank: int) -> str:
    x, half = 180 * on.place(mean.mean) + 5, mean.half or 0.0
    low, high = (180 * on.place(mean.mean + sign * half) + 5 for sign in (-1, 1))
    colour = BEST if rank == 1 else "#4878a8"
    return (f'<svg viewBox="0 0 190 14" width="190"><path d="M5 7H185" stroke="{GRID}"/>'
            f'<path d="M{low:.1f} 7H{high:.1f}" stroke="{colour}" stroke-width="2.5"/>'
            f'<circle cx="{x:.1f}" cy="7" r="4" fill="{colour}"/></svg>')  # fmt: skip


def _shade(share: float) -> str:
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(LOW, HIGH, strict=True))


def _title(row: Configuration) -> str:
    told = " ".join(f"{key}={value}" for key, value in row.values.items())
    return f"<title>{safe(told)} {row.valid}, {len(row.runs)} runs</title>"


def _tick(x: float, y: float, text: str, anchor: str = "end", style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{safe(text)}</text>'


def _parallel(ranked: Ranking) -> str:
    rows, keys = ranked.configurations[:MOST_LINES], ranked.keys[:MOST_KEYS]
    top, tall, left = 40, 280, 90
    step = 860 / len(keys)
    axes = {key: axis(row.values[key] for row in rows) for key in keys}
    on = scale([row.valid.mean for row in rows])
    inside = []
    for row in reversed(rows):  # the best on top
        places = [axes[key].place[row.values[key]] for key in keys] + [on.place(row.valid.mean)]
        points = " ".join(f"{left + i * step:.1f},{top + tall * (1 - place):.1f}" for i, place in enumerate(places))
        first = row is rows[0]
        colour = BEST if first else _shade(on.place(row.valid.mean) ** 2)  # so that the best part stands out
        inside.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-opacity=".9" '
                      f'stroke-width="{3.2 if first else 1.6}">{_title(row)}</polyline>')  # fmt: skip
    ticks = [axes[key].ticks for key in keys] + [[(on.place(tick), f"{tick:.3g}") for tick in on.ticks]]
    for i, (name, marks) in enumerate(zip([*keys, "validation"], ticks, strict=True)):
        x = left + i * step
        inside.append(f'<path d="M{x:.1f} {top}V{top + tall}" stroke="#888"/>')
        inside.append(f'<text x="{x:.1f}" y="{top - 18}" text-anchor="middle" style="font-weight:600">'
                      f"{safe(printable(name, max(8, int(step / 7))))}</text>")  # fmt: skip
        outside = i == len(keys)  # right of the last axis no line passes
        inside += [
            _tick(x + 7 if outside else x - 7, top + tall * (1 - place) + 4, label, "start" if outside else "end", HALO)
            for place, label in marks
        ]
    return f'<svg viewBox="0 0 1000 {top + tall + 14}" width="1000" role="img">{"".join(inside)}</svg>'


def _slice(ranked: Ranking, key: str) -> str:
    rows = ranked.configurations
    dots: list[tuple[str, Run, bool]] = [(row.values[key], run, row is rows[0]) for row in rows for run in row.runs]
    dots = dots[:MOST_DOTS]
    at, on = axis(value for value, _, _ in dots), scale([run.valid or 0.0 for _, run, _ in dots])
    left, wide, top, tall = 60, 900, 30, 190
    inside = [f'<text x="{left}" y="14" style="font-weight:600">{safe(printable(key, 80))}</text>']
    for tick in on.ticks:
        y = top + tall * (1 - on.place(tick))
        inside += [f'<path d="M{left} {y:.1f}H{left + wide}" stroke="{GRID}"/>', _tick(left - 8, y + 4, f"{tick:.3g}")]
    inside += [_tick(left + wide * place, top + tall + 20, label, "middle") for place, label in at.ticks]
    groups: dict[str, list[float]] = {}
    for value, run, best in reversed(dots):
        groups.setdefault(value, []).append(run.valid or 0.0)
        x, y = left + wide * at.place[value], top + tall * (1 - on.place(run.valid or 0.0))
        inside.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if best else 4}" fill="{BEST if best else _shade(1)}" '
                      f'fill-opacity=".65"><title>{safe(run.folder)} {run.valid:.4f}</title></circle>')  # fmt: skip
    if len(groups) <= MOST_PLACES:
        for value, held in groups.items():
            x, y = left + wide * at.place[value], top + tall * (1 - on.place(math.fsum(held) / len(held)))
            inside.append(f'<path d="M{x - 22:.1f} {y:.1f}h44" stroke="#2a2a2a" stroke-width="2"/>')
    return f'<svg viewBox="0 0 1000 {top + tall + 30}" width="1000" role="img">{"".join(inside)}</svg>'


def _others(ranked: Ranking) -> list[str]:
    parts = []
    if ranked.repeated:
        names = "\n".join(safe(run.folder) for run in ranked.repeated[:MOST_ROWS])
        parts += ["<h2>Not counted: configuration and seed named again</h2>", f"<section><pre>{names}</pre></section>"]
    if ranked.others:
        lines = [
            f"<tr><td class=word>{safe(run.status)}<td class=word>{safe(run.folder)}<td class=word>"
            f"{safe(printable(ranked.own(run), 120))}"
            f"<td class=word>{safe(printable(run.reason, 200))}"
            for run in ranked.others[:MOST_ROWS]
        ]
        parts += [f"<h2>Not completed: {counts(ranked.others)}</h2>",
                  f"<section><table>{''.join(lines)}</table></section>"]  # fmt: skip
    return parts
