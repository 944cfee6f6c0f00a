"""What a run is told, as frozen plain values, each checked against what is allowed. Imports neither Hydra nor jax.

Values come from conf/*.yaml and the command line; this page says which keys there are, what they mean and what they
may be. A member's settings are the keys of its yaml: `Member.settings` is what its function is called with.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxrnn.allowed import Allowed, labels, like, names, number, one_of, or_null, path, switch, whole
from jaxrnn.errors import ConfigurationError

_POSITIVE, _SHARE, _DECAY = number(above=True), number(0, 1, below=True), number(0, 1, below=True)

# Keys of members whose range is narrower than the type of their default in yaml.
RANGES: dict[str, dict[str, Allowed]] = {
    "input": {"size": whole(1)},
    "optimizer": {
        "learning_rate": _POSITIVE,
        "weight_decay": number(),
        "eps": _POSITIVE,
        "rows": one_of("auto", "dense", "deferred"),
        **dict.fromkeys(("b1", "b2", "decay", "momentum"), _DECAY),
    },
    "schedule": {"warmup_steps": whole(0), "final_fraction": number(0, 1)},
    "unroll": {"kernel": one_of("auto", "never")},
    "device": {"count": or_null(whole(1))},
    "tokenizer": {"size": or_null(whole(1)), "min_count": whole(1), "unicode": one_of("none", "NFC", "NFKC")},
    "dataset": {
        "valid_share": _SHARE,
        "test_share": _SHARE,
        **dict.fromkeys(("path", "valid_path", "test_path", "root"), or_null(path)),
        "max_characters": or_null(whole(1)),
        "on_bad_row": one_of("error", "skip"),
        "labels": labels,
    },
}

CHECKPOINT = {"every_steps": or_null(whole(1)), "every_seconds": or_null(_POSITIVE), "keep": whole(1)}
SAVED = {"every_steps": "a run is saved after so many updates, and wherever it ends", "keep": "so many are kept"}
SAVED |= {"every_seconds": "and this often"}


def _read_period(value):
    return value if value == "auto" else whole(0).read(value)


FLOW = {"every_steps": or_null(Allowed("auto, or a whole number of at least 0", _read_period))}
INITIALIZERS = (
    "default orthogonal identity glorot_uniform glorot_normal lecun_normal he_normal normal notes zeros".split()
)


@dataclass(frozen=True)
class Member:
    """The chosen member of a group and its settings: `optimizer.name`, `optimizer.learning_rate`."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key not in self.settings:
            raise AttributeError(key)
        return self.settings[key]


def _key(allowed: Allowed, meaning: str) -> Any:
    return field(metadata={"allowed": allowed, "meaning": meaning})


def _group(meaning: str) -> Any:
    return field(metadata={"meaning": meaning})


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run. One field per key or group; the order is that of --help."""

    dataset: Member = _group("where the rows come from")
    tokenizer: Member = _group("how a text becomes tokens")
    input: Member = _group("how a token becomes numbers")
    cell: Member = _group("the recurrent cell")
    activation: Member = _group("the cell's activation")
    head: Member = _group("which states answer")
    output: Member = _group("softmax: one logit per class; sigmoid: one logit, two classes")
    unroll: Member = _group("how time is run; bptt: backward pass by hand, kernel: the same in C, scan: the reference")
    optimizer: Member = _group("the update rule (optax)")
    schedule: Member = _group("the learning rate over time")
    device: Member = _group("where it computes")
    logger: tuple[str, ...] = _group("where progress is written: one, or [several]")
    hidden_size: int = _key(whole(1), "units of a recurrent layer")
    layers: int = _key(whole(1), "recurrent layers, one on the other")
    bidirectional: bool = _key(switch, "read right-to-left too")
    initializer: Mapping[str, str] = _group("initial weights: " + ", ".join(INITIALIZERS))
    init_scale: float = _key(_POSITIVE, "factor on all initial weights")
    epochs: int = _key(whole(1), "passes over the training rows, at most")
    batch_size: int = _key(whole(1), "rows per update")
    max_length: int = _key(whole(1), "tokens kept of a text")
    max_steps: int | None = _key(or_null(whole(1)), "end after this many updates")
    patience: int | None = _key(or_null(whole(1)), "stop after this many epochs that brought nothing better")
    seed: int = _key(whole(0, 2**32 - 1), "of the weights, the order of the rows and all noise")
    clip_global_norm: float | None = _key(or_null(_POSITIVE), "longest gradient")
    clip_value: float | None = _key(or_null(_POSITIVE), "largest element of a gradient")
    dropout_rate: float = _key(_SHARE, "share of activations dropped while training")
    word_dropout_rate: float = _key(_SHARE, "share of tokens made unknown while training")
    precision: str = _key(one_of("float32"), "of the arithmetic")
    log_every_steps: int | None = _key(or_null(whole(1)), "also log every this many updates")
    plots: str = _key(one_of("auto", "always", "never"), "draw how it went; auto: in sweeps the best job only")
    flow: Mapping[str, Any] = _group("the gradient's flow is logged this often; auto: 20 times, in sweeps never")
    checkpoint: Mapping[str, Any] = _group("when a run is saved")
    resume: str = _key(one_of("auto", "must", "never"), "a run that hydra.run.dir=DIR holds: resume it")
    resume_step: int | None = _key(or_null(whole(1)), "the checkpoint to go on from; null: the newest good one")
    resume_allow: tuple[str, ...] = _key(names, "keys that may differ from the run that is resumed")
    on_nonfinite: str = _key(
        one_of("stop", "skip", "rollback"),
        "what follows an update that is not finite, which is never applied; skip: its batch is left out; rollback: and "
        "training goes on from the newest checkpoint",
    )
    nonfinite_limit: int = _key(whole(1), "with on_nonfinite=skip or rollback, stop at this many of them")
    dry_run: bool = _key(switch, "compose, read, check, say what would run; make no folder")
    experiment: str = dataclasses.field(default="default")
    overrides: tuple[str, ...] = ()
    directory: str | None = None
    config_dir: str | None = None  # --config-dir, as it was given


GROUPS = tuple(f.name for f in dataclasses.fields(Settings) if f.type is Member)
KEYS = {f.name: f.metadata["allowed"] for f in dataclasses.fields(Settings) if "allowed" in f.metadata}
_CHOSEN = (*GROUPS, "logger", "initializer", "flow", "checkpoint")
INITIALIZED = ("recurrent", "input", "readout", "embedding")


def unknown_key(key: str, known: Iterable[str], owners: str = "") -> ConfigurationError:
    """The refusal of a key: its nearest match, or who else has it, and, inside a group, the keys beside it."""
    names = list(known)
    group, _, last = key.rpartition(".")
    beside = [name.removeprefix(group + ".") for name in names if group and name.startswith(group + ".")]
    near = difflib.get_close_matches(last, beside, n=1) if beside else difflib.get_close_matches(key, names, n=1)
    where = f"{group}." if beside else ""
    meant = [where + name for name in near] or [name for name in names if _initials(name) == last != ""]
    hint = f"did you mean {meant[0]!r}? " if meant else ""
    hint = f"{owners} has it; " if owners else hint
    listed = f"{group} has: {', '.join(beside)}" if beside else "every key: python -m jaxrnn.train --help"
    return ConfigurationError(f"unknown key {key!r}; {hint}{listed}")


def _initials(key: str) -> str:
    """optimizer.learning_rate -> lr; nothing where the name is one word."""
    words = key.rpartition(".")[2].split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def _member(group: str, value: Any, default: Mapping[str, Any]) -> Member:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{group}={value!r}: expected the name of a member")
    for key in value:
        if key not in default:
            raise unknown_key(f"{group}.{key}", (f"{group}.{k}" for k in default))
    settings = {}
    for key, standard in default.items():
        if key not in value or value[key] == "???":
            raise ConfigurationError(f"{group}={default['name']} needs {group}.{key}=VALUE")
        if key == "name":
            if value[key] != standard:
                raise ConfigurationError(f"{group}.name={value[key]!r}: choose a member by {group}={value[key]}")
        else:
            allowed = RANGES.get(group, {}).get(key) or like(standard)
            settings[key] = allowed.check(f"{group}.{key}", value[key])
    return Member(default["name"], settings)


def checked(group: str, tree: Mapping[str, Any], known: Mapping[str, Allowed]) -> dict[str, Any]:
    """The keys below `group` that have no members to choose from."""
    value = tree[group]
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{group}={value!r}: expected {group}.{next(iter(known))}=VALUE and so on")
    for key in (*value, *known):
        if key not in known:
            raise unknown_key(f"{group}.{key}", (f"{group}.{k}" for k in known))
        if key not in value:
            raise ConfigurationError(f"{group}.{key} is missing: it can be changed, not taken away")
    return {key: allowed.check(f"{group}.{key}", value[key]) for key, allowed in known.items()}


def build(tree: Mapping[str, Any], default: Callable[[str], Mapping[str, Any]], **record: Any) -> Settings:
    """Settings from a tree of plain values; ConfigurationError names the key, what was given and what is allowed.

    `default(group)` is the yaml of the chosen member as it stands: its keys are the keys there are.
    """
    known = (*KEYS, *_CHOSEN)
    for key in tree:
        if key not in known:
            raise unknown_key(key, known)
    for key in known:
        if key not in tree:
            raise ConfigurationError(f"{key} is missing: it can be changed, not taken away")
    values: dict[str, Any] = {key: allowed.check(key, tree[key]) for key, allowed in KEYS.items()}
    values.update({group: _member(group, tree[group], default(group)) for group in GROUPS})
    logger = tree["logger"]
    if not isinstance(logger, Mapping):
        raise ConfigurationError(f"logger={logger!r}: expected one name or a list, as in logger=[console,jsonl]")
    for name, chosen in logger.items():
        if chosen != {"name": name}:
            raise ConfigurationError(f"logger.{name}={chosen!r}: a logger has no settings; expected logger=[{name}]")
    values["logger"] = tuple(logger)
    values["initializer"] = checked("initializer", tree, dict.fromkeys(INITIALIZED, one_of(*INITIALIZERS)))
    values["flow"] = checked("flow", tree, FLOW)
    values["checkpoint"] = checked("checkpoint", tree, CHECKPOINT)
    return _together(Settings(**values, **record))


def _together(settings: Settings) -> Settings:
    """Refuses what is allowed alone but not together."""
    if settings.head.name == "every":
        raise ConfigurationError(
            f"head=every answers at every step, but dataset={settings.dataset.name} has one label per text: "
            "expected head=last, mean, max or attention"
        )
    return settings


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as a tree of plain values, in the shape of conf/: what config.yaml and model.json record."""
    tree: dict[str, Any] = {}
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if f.name in GROUPS:
            tree[f.name] = {"name": value.name, **value.settings}
        elif f.name not in ("overrides", "directory", "config_dir"):
            tree[f.name] = list(value) if isinstance(value, tuple) else value
    return tree


def dotted(settings: Settings) -> dict[str, Any]:
    """The same by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in plain(settings).items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat
