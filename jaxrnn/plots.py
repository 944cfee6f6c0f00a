"""Pictures of a run, drawn without a screen: learning curves and the confusion matrix. matplotlib is imported late."""

import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn.runs import storing
from jaxrnn.steptable import printable

COLOURS = ("#4878a8", "#d1603d", "#6a9f58", "#8f6bb3", "#c2a23a", "#5aa9a4")  # of curves
TRAIN, VALID, BEST, GREY = *COLOURS[:2], "#2f2f2f", "#8a8a8a"
CJK = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "Noto Sans JP", "Noto Sans SC", "WenQuanYi Micro Hei",
       "WenQuanYi Zen Hei", "Droid Sans Fallback", "IPAexGothic", "Hiragino Sans", "PingFang SC", "Arial Unicode MS",
       "Yu Gothic", "Microsoft YaHei", "SimHei", "Malgun Gothic")  # fmt: skip
MOST_MAPS = 4  # of layers and directions, from below
MOST_CLASSES = 30  # of a confusion matrix whose cells are still legible
MOST_NAMES = 150  # of one whose margins are


def sheet(width: float, height: float, dpi: int) -> Any:
    """An empty figure in the fonts that `drawable` knows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    matplotlib.rcParams["font.family"] = list(fonts())
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


@cache
def fonts() -> dict[str, frozenset[int]]:
    """The fonts that are drawn with, the first that has a character first: name -> its characters."""
    from matplotlib import font_manager, ft2font

    here = set(font_manager.get_font_names())
    names = ("DejaVu Sans", *(name for name in CJK if name in here))
    return {name: frozenset(ft2font.FT2Font(font_manager.findfont(name)).get_charmap()) for name in names}


def _figure(width: float, height: float, columns: int = 1, rows: int = 1) -> Any:
    figure = sheet(width, height, 130)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=rows > 1).ravel()
    for axis in axes:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axis.spines[side].set_color(GREY)
        axis.tick_params(colors="#444444", labelsize=9)
    return figure, axes


def drawable(text: str, most: int = 1000) -> str:
    """On one line of `most` columns; an escape for what no font has, so that nothing is warned about or lost."""
    held = frozenset[int]().union(*fonts().values())
    seen = (c if ord(c) in held else "" if unicodedata.category(c) in ("Cf", "Mn") else
            c.encode("unicode_escape").decode() for c in " ".join(text.split()))  # fmt: skip
    return printable("".join(seen), most)


def _save(figure: Any, path: Path) -> Path:
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return path


def curves(records: Sequence[Mapping[str, Any]], path: Path, *, title: str = "") -> Path:
    """Loss and accuracy of training and validation by epoch, the best epoch marked."""
    figure, axes = _figure(9.0, 3.6, 2)
    epochs = [record["epoch"] for record in records]
    best = max((record["epoch"] for record in records if record["best"]), default=None)
    marker = "o" if len(epochs) <= 30 else None
    for axis, key, label in zip(axes, ("loss", "accuracy"), ("loss (nats)", "accuracy"), strict=True):
        for split, colour, name in (("train", TRAIN, "training"), ("valid", VALID, "validation")):
            values = [record[split][key] for record in records]
            axis.plot(epochs, values, color=colour, marker=marker, markersize=3, linewidth=1.6, label=name)
        if best is not None:
            axis.axvline(best, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
            found = next(record for record in records if record["epoch"] == best)["valid"][key]
            axis.plot([best], [found], "o", color=VALID, markeredgecolor=BEST, markersize=7, zorder=5)
            told = f"{found:.3f} at epoch {best}, the best by validation accuracy"
            axis.set_title(told, fontsize=8.5, loc="right", color="#555555")
        axis.set_xlabel("epoch", fontsize=9.5)
        axis.set_title(label, fontsize=10.5, loc="left")
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.margins(x=0.03)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(top=min(1.02, axes[1].get_ylim()[1] + 0.02))
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside upper right", ncols=2)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return _save(figure, path)


def confusion(matrix: np.ndarray, labels: Sequence[str], path: Path, *, title: str = "") -> Path:
    """Rows: the label a text has; columns: the label it was given. Coloured by share of the row."""
    matrix = np.asarray(matrix)
    count = len(labels)
    size = min(3.0 + 0.55 * count, 14.0)
    figure, (axis,) = _figure(size + 0.6, size)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.set_xticks(np.arange(count) - 0.5, minor=True)
    axis.set_yticks(np.arange(count) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=min(2, 40 / count))
    axis.tick_params(which="both", length=0)
    many = count > 12
    if count <= MOST_NAMES:
        names = [drawable(label, 28 if many else 14) for label in labels]
        long = count > 4 and max(map(len, names)) > 4
        tilt, side = (90, "center") if many else (45, "right") if long else (0, "center")
        small = min(9.0, 800 / count)
        axis.set_xticks(range(count), names, rotation=tilt, ha=side, fontsize=small, parse_math=False)  # it may hold $
        axis.set_yticks(range(count), names, fontsize=small, parse_math=False)
    if count <= MOST_CLASSES:
        small = 8.5 if count > 8 else 10
        for row, column in np.ndindex(matrix.shape):
            text = f"{matrix[row, column]:,}"
            if count <= 8 and matrix[row].sum():
                text += f"\n{share[row, column]:.1%}"
            colour = "white" if share[row, column] > 0.55 else BEST
            axis.text(column, row, text, ha="center", va="center", fontsize=small, color=colour)
    number = "" if count <= MOST_NAMES else ": its place among the labels of summary.json, from 0"
    axis.set_xlabel(f"answered{number}", fontsize=9.5)
    axis.set_ylabel(f"true{number}", fontsize=9.5)
    told = f"{'share' if count <= 8 else 'colour: share'} of the texts with the same true label, a row is 100 %"
    axis.set_title(f"{title}\n{told}".strip(), fontsize=9, loc="left")
    return _save(figure, path)


def over_largest(log_norms: Sequence[float | None]) -> np.ndarray:
    """log10 of each norm over the largest of them, from their ln; nan where nothing arrives.

    >>> over_largest([None, np.log(0.1), np.log(100.0)])
    array([nan, -3.,  0.])
    """
    values = np.array(log_norms, float) / np.log(10)
    return values - np.max(values, initial=-np.inf, where=np.isfinite(values))


def gradient_flow(
    records: Sequence[Mapping[str, Any]], path: Path, *, steps: float, healthy: float, title: str = ""
) -> Path:
    """Where the gradient is, by distance from the end over training, a map per layer and direction; then its growth.

    `records` are those of `monitor.record`, `steps` the updates of an epoch; up to the rate `healthy` all is well. A
    map is over the largest norm of each time: with most heads the last state is not the one that learns most.
    """
    names = [f"layer {one['layer']}, {one['direction']}" for one in records[0]["flow"]]
    epochs = np.array([record["step"] / steps for record in records])
    edges = np.concatenate([epochs[:1], (epochs[1:] + epochs[:-1]) / 2, epochs[-1:]])
    maps = [np.array([over_largest(record["flow"][place]["log_norms"]) for record in records]).T
            for place in range(min(len(names), MOST_MAPS))]  # fmt: skip
    smallest = min(values.min(initial=-0.5, where=np.isfinite(values)) for values in maps)
    least = max(int(np.floor(smallest)), -6)
    beyond = "min" if smallest < least else "neither"
    figure, (*above, below) = _figure(9.0, 3.0 + 1.8 * len(maps), rows=len(maps) + 1)
    for axis, values, name in zip(above, maps, names, strict=False):
        drawn = axis.pcolormesh(edges, np.arange(len(values) + 1) - 0.5, values, cmap="Blues", vmin=least, vmax=0)
        axis.set_facecolor("#bdbdbd")  # nothing arrives
        axis.set_ylim(len(values) - 0.5, -0.5)
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.set_ylabel("steps from the end", fontsize=9.5)
        told = f"gradient of the loss at each state, log10, over the largest of all steps   ({name})"
        axis.set_title(told, fontsize=10, loc="left")
        bar = figure.colorbar(drawn, ax=axis, fraction=0.03, pad=0.01, ticks=range(least, 1), extend=beyond)
        bar.ax.tick_params(labelsize=8)
    log10 = 1 / np.log(10)
    below.axhspan(-healthy * log10, healthy * log10, color="#dcebd7", zorder=0)
    for place, (name, colour) in enumerate(zip(names, COLOURS * len(names), strict=False)):
        slopes = np.array([record["flow"][place]["log_slope"] for record in records], float) * log10
        below.plot(epochs, slopes, color=colour, linewidth=1.6, marker="o", markersize=3, label=name)
    told = "what one step back through the recurrence multiplies the gradient by, log10   (the verdict; green: healthy)"
    below.set_title(told, fontsize=10, loc="left")
    below.set_xlabel("epoch", fontsize=9.5)
    below.set_xlim(epochs[0], max(epochs[-1], epochs[0] + 1e-9))
    if len(names) > 1:
        below.legend(frameon=False, fontsize=8.5, ncols=3, loc="upper right")
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return _save(figure, path)
