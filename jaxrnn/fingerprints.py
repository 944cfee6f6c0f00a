"""What tells runs apart: every setting that decides the arithmetic, the data and the versions.

Where a key differs from the run that a folder holds, the table below says what follows: FREE is ignored, SAID makes
the record say "bitwise": false, the rest is refused unless resume_allow names it.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxrnn import checkpoints, config, devices, runs
from jaxrnn.errors import ArtefactError
from jaxrnn.group import Group
from jaxrnn.settings import Settings, dotted

FREE = {"dataset", "device", "logger", "log_every_steps", "experiment", "checkpoint", "on_nonfinite", "nonfinite_limit"}
FREE |= {"resume", "resume_step", "resume_allow", "dry_run", "plots", "flow"}  # the dataset's rows are compared: "data"
FREE_WORDS = FREE - {"dataset", "experiment"}  # of a command line: these two may stand for anything
SAID = {"jax", "jaxlib", "device", "loops"}
NETWORK = {"hidden_size", "layers", "bidirectional", "cell", "input", "head", "output", "tokenizer", "data"}
SHAPES = NETWORK | {"optimizer.name", "optimizer.momentum"}  # want other arrays: resume_allow is not advised
MEASURED = NETWORK | {"activation", "max_length"}  # with another one, the best epoch so far means nothing
RESTARTS = {"data", "batch_size", "seed"}  # with another one, a place in the middle of an epoch means nothing
TOP = re.compile(r"(\w+):")  # a line of config.yaml that begins a key or a group


def fingerprint(settings: Settings, group: Group) -> dict[str, Any]:
    """Everything that decides the arithmetic, by dotted key."""
    flat = {key: value for key, value in dotted(settings).items() if key.partition(".")[0] not in FREE}
    flat.pop("unroll.kernel", None)  # what became of it is "loops"
    flat["loops"] = group.loops
    versions = {name: devices.version(name) for name in ("jax", "jaxlib")}
    flat |= {"data": group.digest, **versions, "device": devices.described(group.devices)}
    return json.loads(json.dumps(flat))


def deciding(text: str) -> list[str]:
    """The lines of a config.yaml that are compared: those of FREE keys are left out."""
    found, name = [], ""
    for line in text.split("\n"):
        if key := TOP.match(line):
            name = key[1]
        if name not in FREE and not (name == "unroll" and line.startswith("  kernel:")):
            found.append(line)
    return found


def recorded(folder: Path, settings: Settings) -> bool:
    """Does the config.yaml of a run say what these settings do; ArtefactError where it was changed."""
    return deciding(runs.check_config(folder)) == deciding(config.to_yaml(settings))


def rows_of(folder: Path) -> Any:
    """The digest of the rows that the newest checkpoint was trained on; None where there is no checkpoint."""
    if not (steps := checkpoints.steps(folder)):
        return None
    manifest = runs.read_json(folder / "checkpoints" / f"step_{steps[0]}" / "manifest.json")
    mark = manifest.get("fingerprint") if isinstance(manifest, dict) else None
    return mark.get("data") if isinstance(mark, dict) else ""


def compared(
    recorded: dict[str, Any], here: dict[str, Any], allow: tuple[str, ...], folder: Path
) -> tuple[bool, set[str]]:
    """-> are more epochs asked for, the keys that differ and may; ArtefactError lists those that may not."""
    differ = {key for key in {*recorded, *here} if recorded.get(key) != here.get(key)}
    before, now = recorded.get("epochs"), here["epochs"]
    more = "epochs" in differ and type(before) is int and now > before
    if more and here.get("schedule.name") == "constant":
        differ.discard("epochs")
    allowed = {key for key in differ if key in SAID or key in allow or key.partition(".")[0] in allow}
    allowed |= {"epochs"} & differ if more else set()
    if "tokenizer" in allow or "dataset" in allow:
        allowed |= {"data"} & differ
    if refused := sorted(differ - allowed):
        read_otherwise = any(key == "max_length" or key.startswith("tokenizer.") for key in refused)
        named = [key for key in refused if key != "data" or not read_otherwise]
        told = "; ".join(difference(key, recorded, here) for key in named)
        hopeless = bool(whole(refused) & SHAPES)
        way = "" if hopeless else f", or resume_allow=[{','.join(refused)}]"
        raise ArtefactError(f"{folder} holds another run: {told}. Choose another folder{way}")
    return more, allowed


def whole(keys: Iterable[str]) -> set[str]:
    """Dotted keys, and the groups they are of."""
    return {part for key in keys for part in (key, key.partition(".")[0])}


def difference(key: str, recorded: dict[str, Any], here: dict[str, Any]) -> str:
    """How a key of two fingerprints differs, for people."""
    if key == "data":
        return "the rows of the data are not those it was trained on"
    return f"{key}: {recorded.get(key)!r} there, {here.get(key)!r} here"
