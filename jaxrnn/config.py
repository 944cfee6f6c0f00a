"""From a command line to Settings: Hydra composes conf/, `settings.build` checks. All refusals are ConfigurationErrors.

Only Hydra's `compose` is used, never its launcher: nothing is created on disk, no logging is configured and a failure
is an exception, not an exit. Hydra is imported late, since --help does without it.
"""

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from jaxrnn import results, trackers
from jaxrnn import settings as schema
from jaxrnn.errors import ConfigurationError, unknown
from jaxrnn.refusals import as_it_stands, refusing
from jaxrnn.settings import Settings

VERSION_BASE = "1.3"
LARGEST_YAML = 1 << 16  # bytes of a member of the user's own
PLAIN = re.compile(r"[\w.+-]+")  # a word that stands for itself, unless it is a number
SWEEPERS = ("basic", "optuna")


def folder() -> Path:
    """The folder conf/: in the package of a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    for place in (here / "conf", here.parent / "conf"):
        if (place / "config.yaml").is_file():
            return place
    raise ConfigurationError(f"conf/config.yaml is missing beside {here}: install the package again")


def members(group: str) -> list[str]:
    """The names a group can be given: its yaml files."""
    return sorted(path.stem for path in (folder() / group).glob("*.yaml"))


def _check_yaml(folder: Path) -> None:
    """Refuses aliases, which OmegaConf expands without end, and files too large to look for them."""
    import yaml

    for group in ("", *schema.GROUPS, "logger", "experiment"):
        for path in (folder / group).glob("*.yaml"):
            try:
                small = path.stat().st_size <= LARGEST_YAML
                if not small or any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(path.read_bytes())):
                    raise ConfigurationError(f"{path}: expected yaml without aliases, at most {LARGEST_YAML:,} bytes")
            except (OSError, yaml.YAMLError) as error:
                raise ConfigurationError(f"{path}: {str(error).partition(chr(10))[0]}") from None


@contextmanager
def opened(config_dir: str | None) -> Iterator[Any]:
    """Hydra's config loader over conf/ and, before it, a folder of the user's own."""
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    node = {"_target_": "jaxrnn.launchers", "members": "auto"}
    ConfigStore.instance().store(group="hydra/launcher", name="population", node=node)
    own = []
    if config_dir is not None:
        check_words([config_dir])
        if not os.path.isdir(config_dir):
            raise ConfigurationError(f"--config-dir {config_dir!r}: no such folder")
        _check_yaml(Path(config_dir))
        own.append(f"file://{os.path.abspath(config_dir)}")

        class Own(SearchPathPlugin):
            def manipulate_search_path(self, search_path: Any) -> None:
                for path in own:
                    search_path.prepend(provider="command-line", path=path)

        Plugins.instance().register(Own)
    try:
        with initialize_config_dir(str(folder()), job_name="jaxrnn", version_base=VERSION_BASE):
            yield GlobalHydra.instance().config_loader()
    finally:
        own.clear()  # a plugin cannot be taken back, so it is emptied


def _compose(loader: Any, overrides: Sequence[str]) -> Any:
    """The DictConfig of these overrides, hydra's own node included."""
    from hydra import compose

    with refusing(loader, overrides):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


def tuned(overrides: Sequence[str]) -> list[str]:
    """The lines of conf/tuned/<dataset>.yaml for keys that the command line leaves open; none with an experiment.

    >>> [line for line in tuned(["dataset=sst2", "head=last"]) if line.startswith(("head", "hidden"))]
    ['hidden_size=128']
    """
    import yaml

    given = dict(line.split("=", 1) for line in overrides if "=" in line)
    path = folder() / "tuned" / f"{given.get('dataset')}.yaml"
    if "experiment" in given or not path.is_file():
        return []
    lines = yaml.safe_load(path.read_text(encoding="utf-8"))["overrides"]
    # input.size=128 is left out too where another member of its group is chosen: that one may not have the key
    return [line for line in lines if not {key := line.split("=")[0], key.split(".")[0]} & given.keys()]


class Composed(NamedTuple):
    """What Hydra has made of a command line, not checked yet."""

    config: Any  # DictConfig, hydra's own node included
    overrides: list[str]
    default: Callable[[str], Mapping[str, Any]]  # the yaml of a group's chosen member as it stands

    @property
    def launcher(self) -> tuple[str, int | None]:
        """Its name, and how many jobs train at once in one program, None for auto: hydra.launcher.members."""
        name = self.config.hydra.runtime.choices["hydra/launcher"]
        members = self.config.hydra.launcher.get("members", "auto") if name == "population" else "auto"
        if members != "auto" and (type(members) is not int or members < 1):
            raise ConfigurationError(
                f"hydra.launcher.members={members!r}: expected auto, or how many jobs train at once in one program"
            )
        if name == "joblib" and self.config.hydra.launcher.n_jobs == 0:
            raise ConfigurationError("hydra.launcher.n_jobs=0: expected at least 1, or -1 for all cores")
        return name, members if isinstance(members, int) else None


def composed(loader: Any, given: Sequence[str]) -> Composed:
    """These overrides over conf/, and what is tuned for their data set."""
    overrides = [*tuned(given), *given]
    config = _compose(loader, overrides)
    check_effects(loader, overrides, config)
    choices = config.hydra.runtime.choices

    @functools.cache
    def default(group: str) -> Mapping[str, Any]:
        name = choices.get(group)
        if not isinstance(name, str) or name.startswith("["):
            raise ConfigurationError(f"{group}={name}: expected one of {', '.join(members(group))}")
        if (found := as_it_stands(loader, group, name)) is None:
            raise ConfigurationError(unknown(group, name, loader.get_group_options(group)))
        return found

    return Composed(config, overrides, default)


def check_effects(loader: Any, overrides: Sequence[str], config: Any) -> None:
    """ConfigurationError for a key of Hydra's that would do nothing here, wherever it was set."""
    from omegaconf import OmegaConf

    for key, why in IDLE.items():
        with refusing(loader, overrides):
            value = OmegaConf.select(config, key)
        if value:
            raise ConfigurationError(f"{key}={value}: it has no effect here: {why}")


def checked(loader: Any, found: Composed, config_dir: str | None = None, directory: str | None = None) -> Settings:
    """The settings, or a ConfigurationError for what is not allowed; `directory` is where the run is to be."""
    from omegaconf import OmegaConf

    config, overrides, default = found
    hydra, choices = config.hydra, config.hydra.runtime.choices
    if choices["hydra/sweeper"] not in SWEEPERS:
        raise ConfigurationError(unknown("hydra/sweeper", choices["hydra/sweeper"], SWEEPERS))
    with refusing(loader, overrides):
        keys = [key for key in config if key != "hydra"]
        tree = {key: config[key] for key in keys}
        tree = {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in tree.items()}
    tree.setdefault("logger", {})  # logger=[] leaves no node
    settings = schema.build(
        tree,
        default,
        experiment=choices.get("experiment") or "default",
        overrides=tuple(hydra.overrides.task),
        directory=directory,
        config_dir=config_dir,
    )
    for name in settings.logger:
        trackers.check(name)
    return settings


PLACES = {  # keys of Hydra's that name a folder -> why they do not here, alone and with -m
    "hydra.run.dir": ("", "it is the folder of one run: a sweep has hydra.sweep.dir=DIR"),
    "hydra.sweep.dir": ("it is the folder of a sweep: expected hydra.run.dir=DIR, or -m", ""),
    "hydra.run": ("expected hydra.run.dir=DIR",) * 2,
    "hydra.sweep": ("expected hydra.sweep.dir=DIR",) * 2,
    "hydra.sweep.subdir": ("it is of sweeps, and there job n is in the folder n",) * 2,
}


IDLE = {  # keys of Hydra's, off in conf/ -> what there is in their place
    "hydra.job.chdir": "a run changes no folder, its own is hydra.run.dir=DIR",
    "hydra.output_subdir": "the settings are in config.yaml of the run's folder",
    "hydra.sweeper.max_batch_size": "jobs are not run in batches",
    "hydra.mode": "-m asks for a sweep",
    "hydra.verbose": "logger= says what is printed",
}


def directory(loader: Any, found: Composed, kind: str) -> str | None:
    """The folder that hydra.run.dir or hydra.sweep.dir names, kind "run" or "sweep"; ~ is the user's.

    None where neither the command line nor a yaml of the user's names one. A plain word is taken as it was typed:
    Hydra makes 20261126 of 2026_11_26.
    """
    with refusing(loader, found.overrides):
        value = str(found.config.hydra[kind].dir)
    if not value:
        return None
    words = (line.lstrip("+").partition("=") for line in found.overrides)
    typed = [text.strip() for key, _, text in words if key == f"hydra.{kind}.dir"]
    return os.path.expanduser(typed[-1] if typed and PLAIN.fullmatch(typed[-1]) else value)


def plain(loader: Any, found: Composed, part: str) -> dict[str, Any]:
    """A part of hydra's own node, "sweeper", as plain values."""
    from omegaconf import OmegaConf

    with refusing(loader, found.overrides):
        return cast(dict, OmegaConf.to_container(found.config.hydra[part], resolve=True))


def check_words(words: Iterable[str]) -> None:
    """ConfigurationError for a word that no report would show."""
    for word in words:
        if not results.showable(word):
            raise ConfigurationError(f"{word!r}: expected printable characters only, no control or formatting ones")


def check_places(lines: Iterable[str], multirun: bool) -> None:
    """ConfigurationError for a word about a folder that would not be made."""
    for line in lines:
        key, _, value = line.lstrip("+").partition("=")
        why = PLACES.get(key, ("", ""))[multirun]
        if why or (key in PLACES and value.strip("'\"") in ("", "???")):
            raise ConfigurationError(f"{line}: {why or 'expected a folder'}")


def compose(overrides: Sequence[str], *, config_dir: str | None = None) -> Settings:
    """The checked settings of one run.

    >>> compose(["cell=gru", "optimizer.learning_rate=0.01"]).optimizer.learning_rate
    0.01
    """
    check_words(overrides)
    check_places(overrides, multirun=False)
    with opened(config_dir) as loader:
        found = composed(loader, overrides)
        settings = checked(loader, found, config_dir, directory(loader, found, "run"))
    for group in ("hydra/launcher", "hydra/sweeper"):
        if any(line.lstrip("+").startswith((f"{group}=", f"{group.replace('/', '.')}.")) for line in overrides):
            raise ConfigurationError(f"{group} says who chooses or runs the jobs of a sweep: add -m")
    return settings


def show(arguments: Sequence[str]) -> int:
    """Hydra's own --cfg, --info, --hydra-help and tab completion. -> exit code."""
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, where Hydra would print and exit with 1
    parser = get_args_parser()
    parser.exit_on_error = False
    given = sys.argv
    try:
        words, unknown_flags = parser.parse_known_intermixed_args(arguments)
        if unknown_flags:
            raise ConfigurationError(f"unknown arguments {' '.join(unknown_flags)}; see --help and --hydra-help")
        flags = [word for word in arguments if word not in words.overrides]
        sys.argv = [given[0], *flags, *tuned(words.overrides), *words.overrides]  # hydra.main wants flags first
        hydra.main(config_path=str(folder()), config_name="config", version_base=VERSION_BASE)(lambda _: None)()
    except (HydraException, OmegaConfBaseException, ValueError, argparse.ArgumentError) as error:
        raise ConfigurationError(str(error).partition("\n")[0]) from error
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 0
    finally:
        sys.argv = given
    return 0


def to_yaml(settings: Settings) -> str:
    """config.yaml of a run folder: every setting, in the shape of conf/."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # in C it takes 1 ms in place of 5
    return yaml.dump(schema.plain(settings), Dumper=dumper, sort_keys=False, allow_unicode=True)
