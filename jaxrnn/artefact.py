"""What model.json records and what rebuilds it: the network's settings, its labels, how a text became tokens.

A record is read as a stranger's: its keys are the ones listed here, its names are looked up, never imported blindly.
"""

import importlib
import inspect
import os
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrnn import packing, stored, text
from jaxrnn.data import files
from jaxrnn.data.lines import Limits
from jaxrnn.errors import ArtefactError, ConfigurationError, JaxrnnError, unknown
from jaxrnn.settings import Settings
from jaxrnn.vocabulary import Vocabulary

FORMAT = 1
PLACES = ("path", "valid_path", "test_path", "root")  # settings of data sets that lead to files
KINDS = {"bidirectional": bool, "initializer": dict}  # of the network's settings
KINDS |= dict.fromkeys(("cell", "activation", "input", "head", "output", "unroll"), str)
KEYS = {"format": int, "network": dict, "labels": list, "dataset": dict, "tokenizer": dict, "max_length": int}


class Loaded(NamedTuple):
    """A trained network, ready to answer."""

    model: Any
    params: Any
    vocabulary: Vocabulary
    tokenizer: text.Tokenizer
    record: Mapping[str, Any]

    @property
    def labels(self) -> list[str]:
        return self.record["labels"]


def network(settings: Settings, vocabulary_size: int, classes: int) -> dict[str, Any]:
    """The arguments of `jaxrnn.rnn`, for any machine: without the kernel, which has to be compiled where it runs."""
    return {
        "vocabulary_size": vocabulary_size,
        "classes": classes,
        "cell": settings.cell.name,
        "activation": settings.activation.name,
        "input": settings.input.name,
        "input_size": settings.input.settings.get("size", 1),
        "hidden_size": settings.hidden_size,
        "layers": settings.layers,
        "bidirectional": settings.bidirectional,
        "head": settings.head.name,
        "output": settings.output.name,
        "unroll": "bptt" if settings.unroll.name == "kernel" else settings.unroll.name,
        "initializer": dict(settings.initializer),
    }


def work(built: Mapping[str, Any]) -> float:
    """Multiplications of one token's way forward and back through the recurrent layers, input side taken as wide."""
    import jax

    from jaxrnn.model import rnn

    shapes = jax.eval_shape(lambda: rnn(**built).init(jax.random.key(0)).layers)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return 12.0 * sum(leaf.size for path, leaf in leaves if jax.tree_util.keystr(path).endswith("W_hh"))


def record(settings: Settings, built: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """model.json."""
    return {
        "format": FORMAT,
        "network": dict(built),
        "labels": list(labels),
        "dataset": {"name": settings.dataset.name, **settings.dataset.settings, **_started(settings.dataset.settings)},
        "tokenizer": {"name": settings.tokenizer.name, **settings.tokenizer.settings},
        "max_length": settings.max_length,
    }


def splits(name: str, settings: Mapping[str, Any]) -> Any:
    """The rows of a data set: jaxrnn.data.<name>.<name>(**settings)."""
    package = importlib.import_module("jaxrnn.data")
    known = [module.name for module in pkgutil.iter_modules(package.__path__)]
    module = importlib.import_module(f"jaxrnn.data.{name}") if name in known else None
    make = getattr(module, name, None)
    if make is None:
        raise ConfigurationError(unknown("dataset", name, known))
    for key in settings:
        if key not in inspect.signature(make).parameters:
            raise ConfigurationError(unknown(f"setting of dataset {name}", key, inspect.signature(make).parameters))
    return make(**settings)


def _started(settings: Mapping[str, Any]) -> dict[str, str]:
    """Where relative paths start, if there are any."""
    relative = any(settings.get(key) and not os.path.isabs(settings[key]) for key in PLACES)
    return {"folder": os.getcwd()} if relative else {}


def again(recorded: Mapping[str, Any]) -> Any:
    """The rows of the data set in a model.json; a relative path starts here, or where the run did if here is none."""
    settings = dict(recorded)
    name, start = settings.pop("name", ""), settings.pop("folder", None)
    for key in PLACES:
        place = settings.get(key)
        if isinstance(place, str) and isinstance(start, str) and not os.path.exists(place):
            settings[key] = os.path.join(start, place)
    return splits(name, settings)


def reading(recorded: Mapping[str, Any]) -> tuple[str, str, Limits]:
    """Columns of text and label of another file, and how to decode it: as the run's own files, if it had any."""
    own = recorded if recorded.get("name") == "files" else {}
    text, label = own.get("text", "text"), own.get("label", "label")
    given = {key: own[key] for key in ("encoding", "max_characters", "max_ratio", "max_gigabytes") if key in own}
    kinds = {"encoding": str, "max_characters": int | None}
    if not all(isinstance(value, kinds.get(key, int)) for key, value in given.items()) or not (
        isinstance(text, str) and isinstance(label, str)
    ):
        raise ArtefactError(f"model.json: expected settings of dataset=files, found {dict(own)!r:.200}")
    return text, label, files.limits_of(**given)._replace(ask="give --")


def tokenizer(name: str, settings: Mapping[str, Any]) -> text.Tokenizer:
    """The tokenizer of that name."""
    if name not in text.TOKENIZERS:
        raise ConfigurationError(unknown("tokenizer", name, text.TOKENIZERS))
    return text.TOKENIZERS[name](**settings)


def load(run: Any) -> Loaded:
    """The network of a run folder; ArtefactError where the record, the arrays or the vocabulary do not fit together."""
    import jax

    from jaxrnn.model import rnn

    saved = stored.load_model(run)
    where = run / "model"
    for key, kind in KEYS.items():
        if not isinstance(saved.settings.get(key), kind):
            raise ArtefactError(f"{where / 'model.json'}: expected {key!r}, {kind.__name__}")
    strange = sorted(set(saved.settings) - set(KEYS))
    if strange or saved.settings["format"] != FORMAT:
        raise ArtefactError(f"{where / 'model.json'}: expected format {FORMAT} and no keys but {', '.join(KEYS)}")
    vocabulary = Vocabulary.from_json(saved.vocabulary)
    labels, built = saved.settings["labels"], saved.settings["network"]
    if built.get("vocabulary_size") != len(vocabulary) or built.get("classes") != len(labels):
        raise ArtefactError(
            f"{where / 'model.json'}: vocabulary_size {built.get('vocabulary_size')} and classes {built.get('classes')}"
            f" do not match {len(vocabulary)} tokens and {len(labels)} labels"
        )
    _bounded(saved, vocabulary, where / "model.json")
    try:
        model = rnn(**built)
        split = tokenizer(saved.settings["tokenizer"].get("name", ""), _without_name(saved.settings["tokenizer"]))
        template = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    except (JaxrnnError, TypeError, ValueError) as error:
        raise ArtefactError(f"{where / 'model.json'}: {error}") from None
    params = packing.filled(template, saved.arrays, str(where / "params.safetensors"))
    for name, array in saved.arrays.items():
        if not np.isfinite(array).all():
            raise ArtefactError(f"{where / 'params.safetensors'}: array {name!r} is not finite")
    return Loaded(model, params, vocabulary, split, saved.settings)


def _bounded(saved: stored.Saved, vocabulary: Vocabulary, where: Path) -> None:
    """ArtefactError for sizes that the arrays beside the record cannot have: nothing is built to find that out."""
    built, numbers = saved.settings["network"], sum(array.size for array in saved.arrays.values())
    most = {"input_size": numbers, "hidden_size": numbers, "layers": len(saved.arrays)}
    for key, limit in most.items():
        found = built.get(key, 1)  # one that is left out has the default of `rnn`
        if type(found) is not int or not 1 <= found <= limit:
            raise ArtefactError(f"{where}: {key} {found!r:.40}, expected 1 to {limit:,}, as the arrays beside it allow")
    for key, kind in KINDS.items():
        if key in built and type(built[key]) is not kind:
            raise ArtefactError(f"{where}: {key} {built[key]!r:.40}, expected {kind.__name__}")
    if saved.settings["max_length"] < 1 or not all(type(label) is str for label in saved.settings["labels"]):
        raise ArtefactError(f"{where}: expected max_length of at least 1 and labels that are texts")
    if (saved.settings["tokenizer"].get("end") is True) != (vocabulary.end is not None):
        raise ArtefactError(f"{where}: tokenizer.end does not match the vocabulary, where id 2 is or is not an end")


def _without_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "name"}
