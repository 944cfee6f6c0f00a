"""python -m jaxrnn.explain RUN TEXT [--label L] [--json] [--html F] [--png F]: one text through a trained network.

Forward, each step's input, products, state and the answer so far; backward, the gradient at each state and what the
step adds to the gradient of each weight; how far the gradient travels; which words the answer rests on.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn import artefact, command, devices, picture, runs
from jaxrnn.errors import ConfigurationError, unknown
from jaxrnn.ranking import as_number

DENSE = 1024  # the largest vocabulary whose one-hot words are written out as vectors; beyond it, as their number


def explain(
    trained: artefact.Loaded,
    text: str,
    label: str | None = None,
    *,
    layer: int = 1,
    backward: bool = False,
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The object of `--json`; `label` is the answer by default. Numbers that are not finite become None.

    `training`: what `flow.advice` knows of the run beside its network (see `numbers`). Computed in 64-bit floats: the
    gradient of an answer that is almost certain is lost in 32.
    """
    import jax

    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, np.float64), trained.params)
        return _explain(trained._replace(params=params), text, label, layer, backward, training or {})


def _explain(trained: artefact.Loaded, text, label, layer: int, backward: bool, training) -> dict[str, Any]:
    import jax.numpy as jnp

    from jaxrnn import insight
    from jaxrnn import text as texts

    settings, labels = trained.record["network"], trained.labels
    if label is not None and label not in labels:
        raise ConfigurationError(unknown("label", label, labels))
    parts = trained.model.parts
    if not 1 <= layer <= len(parts.cells):
        raise ConfigurationError(f"--layer {layer}: expected 1 to {len(parts.cells)}")
    if backward and len(parts.cells[0]) == 1:
        raise ConfigurationError("--backward: this network reads in one direction only")
    text = text.encode("utf-8", "replace").decode()  # half a character on the command line is no character
    ids, *_ = texts.encode_texts([text], trained.tokenizer, trained.vocabulary, trained.record["max_length"])
    tokens = trained.tokenizer.split(text)
    found: dict[str, Any] = {
        "text": text,
        "network": {key: settings.get(key) for key in ("cell", "activation", "hidden_size", "layers", "head")}
        | {"layer": layer, "direction": insight.DIRECTIONS[backward]},
        "unit": trained.record["tokenizer"]["name"].removesuffix("s"),
        "tokens": len(tokens) + (trained.tokenizer.end and bool(tokens)),
    }
    if not len(ids):
        return found | _of_nothing(trained, label)
    names = tokens[: len(ids) - trained.tokenizer.end] + ["<end>"] * trained.tokenizer.end
    so_far = np.asarray(insight.so_far(trained.model, trained.params, jnp.asarray(ids)))
    target = _target(so_far, parts.every, labels, label)
    seen = insight.trace(trained.model, trained.params, jnp.asarray(ids), jnp.asarray(target))
    p = _probabilities(so_far)
    told = label or labels[int(p[-1].argmax())]
    cell_params = insight.cell_params(parts, trained.params)
    stacks = parts.cells, cell_params, seen.passes, seen.shares
    cell, params, run, share = (stack[layer - 1][backward] for stack in stacks)
    found |= {"label": told, "probabilities": _named(labels, p[-1]), "loss": float(seen.loss)}
    found |= {"steps": _steps(trained, params, run, share, names, ids, p)}
    found |= {"gradients_error": float(seen.error), "attribution": _attribution(trained, ids, target)}
    return _finite(found | _summary(settings | training, cell, params, run, share))


def _target(so_far, every: bool, labels, label):
    best = so_far.argmax(-1) if so_far.shape[1] > 1 else (so_far[:, 0] > 0)
    chosen = best if label is None else np.full(len(so_far), labels.index(label))
    return (chosen if every else chosen[-1]).astype(np.int32)


def _probabilities(logits: np.ndarray) -> np.ndarray:
    from jaxrnn import metrics

    return metrics.probabilities(logits)


def _named(labels: Sequence[str], p: np.ndarray) -> dict[str, float]:
    return dict(zip(labels, p.tolist(), strict=True))


def _steps(trained, params, run, share, names, ids, p) -> list[dict[str, Any]]:
    """One object per step of the chosen layer and direction."""
    from jaxrnn import insight

    inputs, words = np.asarray(run.inputs), trained.model.parts.one_hot
    if inputs.ndim == 1 and words <= DENSE:
        inputs = np.eye(words)[inputs]
    columns = {"input": inputs, "state": run.outputs, "delta": share.delta}
    columns |= dict(zip(("from_input", "from_state"), insight.products(params, run), strict=True))
    rows = {name: _lists(values, len(ids)) for name, values in columns.items()}
    norms = {name: np.asarray(norm).tolist() for name, norm in _fields(share.norms).items()}
    saturation = [None] * len(ids) if share.saturation is None else np.asarray(share.saturation).tolist()
    grad = np.asarray(share.grad_state).tolist()
    return [
        {
            "t": t + 1,
            "token": names[t],
            "known": int(ids[t]) != 1,
            **{name: rows[name][t] for name in ("input", "from_input", "from_state", "state")},
            "probabilities": _named(trained.labels, p[t]),
            "grad_state_norm": grad[t],
            "saturation": saturation[t],
            "delta": rows["delta"][t],
            "shares": {name: norm[t] for name, norm in norms.items()},
        }
        for t in range(len(ids))
    ]


def _lists(values, count: int) -> list:
    if values is None:
        return [None] * count
    array = np.asarray(values)
    if array.ndim == 1:
        return array.tolist()
    return [[float(f"{number:.9g}") for number in row] for row in array.tolist()]


def _fields(params) -> dict[str, Any]:
    return params._asdict() if hasattr(params, "_asdict") else {"params": params}


def _summary(settings, cell, params, run, share) -> dict[str, Any]:
    """The gradients as sums of the shares, and how the gradient flows."""
    from jaxrnn import flow

    found = flow.gradient_flow(cell, params, run)
    saturation = None if share.saturation is None else float(np.mean(share.saturation))
    return {
        "spectral_radius": flow.spectral_radius(params.W_hh) if hasattr(params, "W_hh") else None,
        "flow": {
            "log_slope": found.log_slope,
            "verdict": found.verdict,
            "log_norms": found.log_norm.tolist(),
            "fit": found.fit.tolist(),
            "exact": found.exact,
            "advice": flow.advice(found.verdict, settings, saturation),
        },
        "gradients": {name: float(np.linalg.norm(total)) for name, total in _fields(share.total).items()},
    }


def _attribution(trained, ids, target) -> dict[str, Any] | None:
    import jax.numpy as jnp

    from jaxrnn import attribution

    found = attribution.attributions(trained.model, trained.params, jnp.asarray(ids), jnp.asarray(target))
    if found is None:
        return None
    methods = ("leave_one_out", "gradient_input", "integrated")
    pairs = [(one, other) for i, one in enumerate(methods) for other in methods[i + 1 :]]
    values = {name: getattr(found, name) for name in methods}
    return {
        **{name: array.tolist() for name, array in values.items()},
        "complete": found.complete,
        "completeness_error": found.completeness_error,
        "agreement": [
            {"methods": [one, other], "rank_correlation": attribution.rank_correlation(values[one], values[other])}
            for one, other in pairs
        ],
    }


def _of_nothing(trained, label: str | None) -> dict[str, Any]:
    """A text without tokens is answered at length zero, as predict does."""
    from jaxrnn.types import Batch

    batch = Batch(np.zeros((1, 1), np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.float32))
    logits = np.asarray(trained.model.apply(trained.params, batch))
    p = _probabilities(logits.reshape(-1, logits.shape[-1])[:1])[0]
    told = label or trained.labels[int(p.argmax())]
    return {
        "label": told,
        "probabilities": _named(trained.labels, p),
        "loss": float(-np.log(p[trained.labels.index(told)])),
        "steps": [],
        "spectral_radius": None,
        "flow": {"log_slope": None, "verdict": "healthy", "log_norms": [], "fit": [], "exact": True, "advice": []},
        "gradients": {},
        "gradients_error": 0.0,
        "attribution": None,
        "empty": True,
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def numbers(run: Path) -> dict[str, float | None]:
    """The numbers of training that advice depends on, of those that the folder of the run records."""
    recorded = runs.settings(run)
    keys = ("init_scale", "clip_global_norm", "optimizer.learning_rate")
    return {key.rpartition(".")[2]: as_number(recorded[key]) for key in keys if key in recorded}


def main(arguments: Sequence[str]) -> int:
    """The command: -> exit code."""
    parser = command.Parser(prog="jaxrnn-explain", description="Show the computation on a text, forward and backward.")
    parser.add_argument("run", metavar="RUN", help="a run folder, a job folder of a sweep, or latest")
    parser.add_argument("text", metavar="TEXT", help="the text; in quotes, as one argument")
    parser.add_argument("--label", metavar="L", help="the label the loss is measured against; default: the answer")
    parser.add_argument("--layer", metavar="N", type=int, default=1, help="which layer, from below; default: 1")
    parser.add_argument("--backward", action="store_true", help="the direction that reads right to left")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the tables")
    parser.add_argument("--html", metavar="F", type=Path, help="write a page that needs nothing else")
    parser.add_argument("--png", metavar="F", type=Path, help="write a picture: .png, .pdf or .svg")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="default: auto")
    given, more = parser.parse_known_args(arguments)
    if more:
        quote = "" if any(word.startswith("-") for word in more) else "; quote the text"
        parser.error(f"unrecognized arguments: {' '.join(more)}{quote}")
    command.check_outputs(given.html, given.png)
    if given.png:
        picture.format_of(given.png)
    devices.set_flags()
    run = runs.find(given.run)
    trained, training = artefact.load(run), numbers(run)
    import jax

    devices.open_cache(lambda line: None)
    with jax.default_device(*devices.choose(given.device)):
        found = explain(trained, given.text, given.label, layer=given.layer, backward=given.backward, training=training)
    if len(found["steps"]) < found["tokens"]:
        print(f"jaxrnn.explain: cut to the first {len(found['steps']):,} of {found['tokens']:,} tokens, as in training "
              "(max_length)", file=sys.stderr)  # fmt: skip
    from jaxrnn import steptable

    if given.html:
        from jaxrnn import page

        with runs.storing(given.html, "name another file"):
            given.html.write_text(page.page(found), encoding="utf-8")
    if given.png:
        picture.picture(found, given.png)
    print(json.dumps(found, ensure_ascii=False, allow_nan=False) if given.json else steptable.tables(found))
    for file in filter(None, (given.html, given.png)):
        print(f"written to {file}", file=sys.stderr if given.json else sys.stdout)
    return 0


def entry() -> None:
    command.run("explain", main)


if __name__ == "__main__":
    entry()
