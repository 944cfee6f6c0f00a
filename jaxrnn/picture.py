"""What `explain` found, as one picture: states over the words, the answer so far, the gradient at each step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn.errors import ConfigurationError
from jaxrnn.plots import COLOURS, drawable, sheet
from jaxrnn.runs import storing
from jaxrnn.steptable import width

INK, GREY, PALE = "#2f2f2f", "#8a8a8a", "#e6e6e6"
ALL_WORDS = 40  # up to here every word is written below the picture
LARGEST = 230.0  # ln of 1e100: the ticks of an axis that reaches much further overflow
FORMATS = (".png", ".pdf", ".svg")
MOST_LINES = 6  # classes drawn after each word: the likeliest at the end


def format_of(path: Path) -> str:
    """What the file's name ends in, png where it has no ending; ConfigurationError for what is not drawn here."""
    ending = path.suffix.lower() or ".png"
    if ending not in FORMATS:
        raise ConfigurationError(f"cannot draw {path}: expected a name that ends in {', '.join(FORMATS)}")
    return ending[1:]


def picture(found: dict[str, Any], path: Path) -> Path:
    """Write the picture, in the format of the file's name."""
    steps = found["steps"]
    count, units = len(steps), len(steps[0]["state"]) if steps else 0
    wide = float(np.clip(4.5 + 0.5 * count, 8.0, 16.0))
    tall = float(np.clip(1.2 + 0.09 * units, 1.8, 4.2))
    figure = sheet(wide, tall + 4.8 if steps else 2.4, 150)
    p = found["probabilities"][found["label"]]
    told = "" if p is None else f"{p:.1%}"
    title = f"{drawable(found['text'], int(wide * 7))}   →   {drawable(found['label'])}  {told}"
    figure.suptitle(title, fontsize=14, color=INK, x=0.012, ha="left", parse_math=False)
    if steps:
        axes = figure.subplots(3, 1, sharex=True, height_ratios=[tall, 1.7, 1.7])
        _states(figure, axes[0], found)
        _answers(axes[1], found)
        _gradients(axes[2], found)
        _words(axes[2], [step["token"] for step in steps])
    else:
        told = f"The text has no {found['unit']}s: this is the answer of a state that nothing has moved."
        figure.text(0.012, 0.4, told, fontsize=11, color=INK)
    with storing(path, "name another file"):
        figure.savefig(path, format=format_of(path))
    return path


def _plain(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=10.5, loc="left", color=INK)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(GREY)
    axis.tick_params(colors="#444444", labelsize=9)
    axis.grid(axis="y", color=PALE, linewidth=0.8)
    axis.set_axisbelow(True)


def _states(figure: Any, axis: Any, found: dict[str, Any]) -> None:
    state = np.array([step["state"] for step in found["steps"]], float).T  # [H, T]
    net = found["network"]
    top = max(1e-6, float(np.nanmax(np.abs(state)))) if np.isfinite(state).any() else 1.0
    shown = axis.imshow(state, aspect="auto", cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest",
                        extent=(0.5, state.shape[1] + 0.5, len(state) + 0.5, 0.5))  # fmt: skip
    _plain(axis, f"hidden state h after each {found['unit']}   ({net['cell']}, {len(state)} units, {net['direction']})")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_ylabel("unit", fontsize=9.5)
    axis.yaxis.get_major_locator().set_params(integer=True, nbins=6)
    if len(state) <= 6:
        axis.set_yticks(range(1, len(state) + 1))
        if state.shape[1] <= 16:
            for (unit, t), value in np.ndenumerate(state):
                axis.text(t + 1, unit + 1, f"{value:.2f}", ha="center", va="center", fontsize=9,
                          color="white" if abs(value) > 0.6 * top else INK)  # fmt: skip
    if state.shape[1] <= ALL_WORDS:
        for edge in np.arange(1.5, state.shape[1]):
            axis.axvline(edge, color="white", linewidth=1.5)
    bar = figure.colorbar(shown, cax=axis.inset_axes((1.015, 0.2, 0.013, 0.6)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors="#444444", length=0)


def _answers(axis: Any, found: dict[str, Any]) -> None:
    steps = found["steps"]
    at = np.arange(1, len(steps) + 1)
    marker = "o" if len(steps) <= ALL_WORDS else None
    likeliest = sorted(found["probabilities"], key=lambda name: -(found["probabilities"][name] or 0))[:MOST_LINES]
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(found["probabilities"])}
    for name in likeliest:
        p = np.array([step["probabilities"][name] for step in steps], float)
        axis.plot(at, p, color=colour[name], marker=marker, markersize=4, linewidth=1.8, label=drawable(name))
    _plain(axis, "probability of each label if the text ended here")
    axis.set_ylim(-0.03, 1.03)
    axis.set_yticks([0, 0.5, 1])
    legend = axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _gradients(axis: Any, found: dict[str, Any]) -> None:
    steps = found["steps"]
    at = np.arange(1, len(steps) + 1)
    marker = "o" if len(steps) <= ALL_WORDS else None
    lines = (
        ("‖∂L/∂h‖", np.array([step["grad_state_norm"] for step in steps], float), COLOURS[0]),
        ("‖∂h_T/∂h_t‖", np.exp(np.clip(np.array(found["flow"]["log_norms"], float), -LARGEST, LARGEST)), COLOURS[1]),
    )
    for name, values, colour in lines:
        values = np.clip(np.where(values > 0, values, np.nan), np.exp(-LARGEST), np.exp(LARGEST))
        axis.plot(at, values, color=colour, marker=marker, markersize=4, linewidth=1.8, label=name)
    slope = found["flow"]["log_slope"]
    if slope is not None:
        fit = np.exp(np.clip(np.array(found["flow"]["fit"], float), -LARGEST, LARGEST))
        told = f"fit: × {np.exp(min(slope, 700)):.3g} a step"
        axis.plot(at, fit, color=COLOURS[1], linewidth=1, linestyle=(0, (4, 3)), label=told)
    _plain(axis, f"norm of the gradient at each step   (‖∂h_T/∂h_t‖: {found['flow']['verdict']})")
    axis.set_yscale("log")
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _words(axis: Any, tokens: Sequence[str]) -> None:
    count = len(tokens)
    axis.set_xlim(0.5, count + 0.5)
    if count > ALL_WORDS:
        axis.set_xlabel(f"step, 1 to {count:,}", fontsize=9.5)
        return
    names = [drawable(token, 14) for token in tokens]
    tilt = sum(map(width, names)) > 9 * 8 or max(map(width, names)) > 10
    axis.set_xticks(range(1, count + 1), names, rotation=45 if tilt else 0, ha="right" if tilt else "center",
                    rotation_mode="anchor" if tilt else None, fontsize=10.5, parse_math=False)  # fmt: skip
