"""python -m docs.figures: the figures of derivation.md, drawn from measurements by the project itself."""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from jaxrnn import activations, config, flow, insight, job, plots, runs

FOLDER = Path(__file__).parent / "figures"
COLOURS = ("#4878a8", "#2f2f2f", "#d1603d")
STEPS, SIZE = 40, 32
WORDS = 60  # words of the texts that are trained on


def log_norms(scale: float, activation: str) -> flow.Flow:
    """The flow through a network whose W_hh is `scale` times an orthogonal matrix, over small random inputs."""
    cell = jaxrnn.vanilla(1, SIZE, activation=activations.named(activation))
    params = cell.init(jax.random.key(0))
    params = params._replace(W_hh=scale * params.W_hh)
    xs = jnp.asarray(0.3 * np.random.default_rng(0).normal(size=(STEPS, 1)), jnp.float32)
    return flow.gradient_flow(cell, params, insight.carried(cell, params, xs))


def draw_flow(path: Path) -> None:
    figure, axes = plots._figure(9.5, 3.8, 2)
    distance = np.arange(STEPS)[::-1]
    for axis, name in zip(axes, ("identity", "tanh"), strict=True):
        for scale, colour in zip((0.8, 1.0, 1.2), COLOURS, strict=True):
            found = log_norms(scale, name)
            axis.plot(distance, found.log_norm, "o", markersize=3, color=colour)
            label = f"g = {scale}: slope {found.log_slope:+.3f}, ln g = {np.log(scale):+.3f}"
            axis.plot(distance, found.fit, linewidth=1.2, color=colour, label=label)
        axis.set_title(f"activation {name}", fontsize=10.5, loc="left")
        axis.set_xlabel("distance T − t in steps", fontsize=9.5)
        axis.legend(frameon=False, fontsize=8.5)
        axis.axhline(0, color="#e6e6e6", zorder=0)
    axes[0].set_ylabel("ln ‖∂h_T/∂h_t‖", fontsize=9.5)
    plots._save(figure, path)


def draw_scalar(path: Path) -> None:
    figure, axes = plots._figure(9.5, 3.8, 2)
    for axis, name, most in zip(axes, ("sigmoid", "tanh"), (20.0, 4.0), strict=True):
        for steps, colour in zip((1, 3, 10), COLOURS, strict=True):
            w = np.linspace(-most, most, 161)
            activation = activations.named(name)
            found = jax.jit(jax.vmap(partial(flow.scalar_flow, start=0.3, steps=steps, activation=activation)))(w)
            axis.plot(w, np.abs(found.exact), color=colour, label=f"{steps} step{'s' if steps > 1 else ''}")
            axis.plot(w[::8], np.abs(found.measured)[::8], "o", markersize=4, color=colour)
        axis.set_title(f"h_t = {name}(w h_t−1), h_0 = 0.3; dots: measured", fontsize=10.5, loc="left")
        axis.set_xlabel("w", fontsize=9.5)
        axis.set_yscale("log")
        axis.set_ylim(1e-8, 1e2)
        axis.legend(frameon=False, fontsize=8.5, loc="upper center", ncols=3)
    axes[0].set_ylabel("|dh_t′/dh_0|", fontsize=9.5)
    plots._save(figure, path)


def trained(texts: Path, folder: Path, init_scale: float) -> list[dict]:
    """metrics.jsonl of a run over texts of 60 words that differs in its initial scale only."""
    keys = f"dataset=files dataset.path={texts} hidden_size=24 input.size=8 epochs=5 patience=null logger=jsonl "
    keys += f"optimizer.learning_rate=1e-3 clip_global_norm=null init_scale={init_scale} hydra.run.dir={folder}"
    job.run(config.compose(keys.split()), loud=False)
    return list(runs.read_lines(folder / "metrics.jsonl"))


def draw_training(path: Path) -> None:
    draw, filler = np.random.default_rng(0), ["of", "and", "to", "in", "it", "as", "for", "on"]
    rows = [f"{('no', 'yes')[y]} {' '.join(draw.choice(filler, WORDS - 1))}\t{y}" for y in draw.integers(0, 2, 3200)]
    figure, (left, right) = plots._figure(9.5, 3.8, 2)
    with tempfile.TemporaryDirectory() as place:
        texts = Path(place, "texts.tsv")
        texts.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
        for scale, colour in zip((0.3, 1.0, 4.0), COLOURS, strict=True):
            records = trained(texts, Path(place, str(scale)), scale)
            flows = [record for record in records if "flow" in record]
            epochs = [record for record in records if "train" in record]
            steps = epochs[0]["step"]
            slopes = [record["flow"][0]["log_slope"] for record in flows]
            left.plot([record["step"] / steps for record in flows], slopes, "o-", markersize=3, color=colour)
            accuracy = [record["valid"]["accuracy"] for record in epochs]
            label = f"init_scale={scale:g}: {flows[0]['flow'][0]['verdict']}"
            right.plot(range(1, len(epochs) + 1), accuracy, "o-", markersize=3, color=colour, label=label)
    left.axhspan(-flow.healthy(WORDS), flow.healthy(WORDS), color="#dcebd7", zorder=0)
    left.set_title("growth of the gradient per step back, ln (green: healthy)", fontsize=10.5, loc="left")
    right.set_title("validation accuracy; the first of 60 words decides", fontsize=10.5, loc="left")
    right.legend(frameon=False, fontsize=8.5)
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("epoch", fontsize=9.5)
    plots._save(figure, path)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m docs.figures", description=__doc__).parse_args()
    draw_flow(FOLDER / "flow.png")
    draw_scalar(FOLDER / "scalar.png")
    draw_training(FOLDER / "training.png")
    print(f"figures: {FOLDER}")
