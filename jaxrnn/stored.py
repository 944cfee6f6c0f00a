"""The folder model/ of a run: what predict and evaluate need, and nothing else.

params.safetensors model.json vocabulary.json manifest.json      {"files": {name: {"bytes", "sha256"}}}
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrnn.checkpoints import commit, parsed, verified
from jaxrnn.errors import ArtefactError
from jaxrnn.packing import Piece, arrays, packed
from jaxrnn.runs import check_config, newest

MODEL_FILES = ("model.json", "params.safetensors", "vocabulary.json")


class Saved(NamedTuple):
    """What a model/ folder holds."""

    settings: dict  # model.json: what rebuilds the network, its labels, how text became tokens
    arrays: dict[str, np.ndarray]
    vocabulary: str  # the text of vocabulary.json, not parsed yet


def save_model(run: Path, saved: Saved) -> Path:
    """Commit model/, in the place of the one there was."""
    content: dict[str, list[Piece]] = {
        "model.json": [json.dumps(saved.settings, indent=1, ensure_ascii=False, allow_nan=False).encode()],
        "params.safetensors": packed(saved.arrays),
        "vocabulary.json": [saved.vocabulary.encode()],
    }
    commit(run / "model", content, {})
    return run / "model"


def load_model(run: Path) -> Saved:
    """The model of a run. Each file is compared with the manifest, then parsed; ArtefactError says what differs."""
    folder = run / "model"
    if not folder.is_dir():
        if (run / "config.yaml").is_file():
            raise ArtefactError(
                f"{run} has no model yet: model/ is written when training ends or is stopped, after one epoch or more"
            )
        raise ArtefactError(f"{run} holds no model/: expected a run folder that jaxrnn.train has written{_near(run)}")
    check_config(run)
    _, content = verified(folder)
    if sorted(content) != sorted(MODEL_FILES):
        raise ArtefactError(f"{folder / 'manifest.json'}: expected the files {', '.join(MODEL_FILES)}")
    named = arrays(content["params.safetensors"], folder / "params.safetensors")
    settings = parsed(content["model.json"], folder / "model.json")
    if not isinstance(settings, dict):
        raise ArtefactError(f"{folder / 'model.json'}: expected a JSON object")
    try:
        vocabulary = content["vocabulary.json"].decode()
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{folder / 'vocabulary.json'}: not UTF-8: {error}") from None
    return Saved(settings, named, vocabulary)


def _near(folder: Path) -> str:
    """The run that may be meant where a folder of runs is given."""
    found = newest(folder)
    return f", such as {found}, the newest completed one in it" if found else ""
