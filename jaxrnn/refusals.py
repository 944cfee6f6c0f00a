"""What Hydra or OmegaConf raised, as one line of ours: the key, what was given, what is allowed, the nearest match."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from jaxrnn import settings as schema
from jaxrnn.errors import ConfigurationError, unknown

LAUNCHERS = {"joblib": "hydra-joblib-launcher", "submitit": "hydra-submitit-launcher", "ray": "hydra-ray-launcher"}


@contextmanager
def refusing(loader: Any, overrides: Sequence[str]) -> Iterator[None]:
    """Inside, what Hydra or OmegaConf raises about these overrides becomes a ConfigurationError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise refusal(error, loader, overrides) from error


def refusal(error: BaseException, loader: Any, overrides: Sequence[str]) -> ConfigurationError:
    """The ConfigurationError that stands for an error of composing these overrides."""
    from hydra.errors import MissingConfigException, OverrideParseException

    first = str(error).partition("\n")[0]
    if isinstance(error, OverrideParseException):
        return ConfigurationError(f"cannot read {error.override!r}: expected {_quoted(str(error.override))}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group == "hydra/launcher" and (package := LAUNCHERS.get(name.partition("_")[0])):
            return ConfigurationError(f"{group}={name} needs a package that is not here: pip install {package}")
        return ConfigurationError(unknown(group, name, error.options or loader.get_group_options(group)))
    if "--multirun" in str(error):
        line = re.findall(r"'([^']*=[^']*)'", first)
        way = f"a path is written {_quoted(line[0])}" if line and _is_path(line[0]) else "a list is written [a,b]"
        return ConfigurationError(f"{' '.join(line[:1])}: several values need -m (a sweep); {way}")
    if found := re.match(r"Could not override '([^']*)'", first):
        key = max([found[1], *_keys(error)], key=len)
        return schema.unknown_key(key, _known(loader, overrides), _owners(loader, key))
    if found := re.match(r"Multiple values for (\S+)\.", first):
        return ConfigurationError(f"+{found[1]}: the group is chosen already; change it without the +, as in cell=gru")
    if "Config group override must be" in first:
        return ConfigurationError("a group takes the name of one of its members, as in cell=gru")
    reasons = [str(e).partition("\n")[0] for e in _chain(error)]
    key = next(_keys(error), None)
    reason = ": ".join(dict.fromkeys(filter(None, reasons[:2]))) or type(error).__name__
    return ConfigurationError(reason if key is None or key in reason else f"{key}: {reason}")


def as_it_stands(loader: Any, group: str, name: str) -> dict[str, Any] | None:
    """A group's member as it stands, None where there is none of that name."""
    from omegaconf import OmegaConf

    for source in loader.get_sources():
        if source.available() and source.is_config(f"{group}/{name}"):
            return cast(dict, OmegaConf.to_container(source.load_config(f"{group}/{name}").config))
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _keys(error: BaseException) -> Iterator[str]:
    """The dotted keys that OmegaConf's errors along the chain are about."""
    yield from filter(None, (getattr(e, "full_key", None) for e in _chain(error)))


def _is_path(line: str) -> bool:
    return line.partition("=")[0].rpartition(".")[2] in ("path", "valid_path", "test_path", "root", "dir")


def _quoted(line: str) -> str:
    """How a path is written that Hydra would take apart: "dataset.path='a b.tsv'", both pairs of quotes."""
    key, _, value = line.partition("=")
    plain = _is_path(line) and not set(value) & set("'\"\\$")
    return f"\"{key}='{value}'\", with both pairs of quotes" if plain else "key=value, quoted where it has blanks"


def _chooses(line: str, groups: set[str]) -> bool:
    group, _, member = line.partition("=")
    return group in groups and "{" not in member


def _known(loader: Any, overrides: Sequence[str]) -> list[str]:
    """Every dotted key there is under the chosen members: what the command line without its values would compose."""
    from hydra import compose

    groups = {*schema.GROUPS, "logger", "experiment", "hydra/launcher", "hydra/sweeper"}
    lines = [line for line in overrides if _chooses(line, groups)]
    config = compose("config", overrides=lines, return_hydra_config=True)
    keys = [f"hydra.{part}.{key}" for part in ("launcher", "sweeper") for key in config.hydra[part] if key[0] != "_"]
    for key, value in config.items():
        if key == "hydra":
            continue
        keys.append(str(key))
        if hasattr(value, "keys") and key != "logger":
            keys.extend(f"{key!s}.{inner!s}" for inner in value)
    return keys


def _owners(loader: Any, key: str) -> str:
    """The members of the key's group that have it: "dataset=files" for dataset.path, "" for none."""
    group, _, last = key.rpartition(".")
    group = group.replace(".", "/")
    names = loader.get_group_options(group) if group else []
    held = [name for name in names if last in (as_it_stands(loader, group, name) or {})]
    return f"{group}={' or '.join(held)}" if held else ""
