"""The text of `python -m jaxrnn.train --help`: groups, members, keys with defaults and meaning, read from conf/."""

import re
import textwrap
from dataclasses import fields
from typing import Any

from jaxrnn import config
from jaxrnn.allowed import anything, like
from jaxrnn.settings import CHECKPOINT, FLOW, GROUPS, KEYS, RANGES, SAVED, Settings

EXAMPLES = """\
python -m jaxrnn.train                                         the default: phrases of a small grammar, seconds
python -m jaxrnn.train cell=gru hidden_size=128 seed=1         change anything
python -m jaxrnn.train dataset=files dataset.path=mine.tsv     your own texts
python -m jaxrnn.train -m cell=vanilla,gru seed=0,1,2          a sweep: six runs
python -m jaxrnn.train experiment=notes                        a recipe; its file says what it reaches"""

FLAGS = """\
-m, --multirun           a sweep: every combination of the values given as a,b,c
hydra/launcher=NAME      of a sweep: population runs a job per core; basic (one by one), joblib, submitit_slurm
hydra.launcher.members=N of population: N jobs train at once in one vmapped program; auto: only on an accelerator
-m hydra/sweeper=optuna  a study: Optuna chooses, also from range(1,9), interval(0,1), tag(log,interval(1e-4,1e-1))
--cfg job                print the composed configuration and stop
--config-dir DIR         a folder of your own yaml members, looked up first; only one that you trust
hydra.run.dir=DIR        the run folder; hydra.sweep.dir=DIR that of a sweep
-sc install=bash         tab completion: eval "$(jaxrnn-train -sc install=bash)"; also zsh through bash, and fish"""

NOTE = re.compile(r"^(\w+):[^#\n]*#\s*(.*?)\s*$", re.MULTILINE)  # key: value  # what it is

HEADER = """\
usage: python -m jaxrnn.train [key=value ...]        trains one run, writes runs/<experiment>/<date>_<time>_<id>/
       python -m jaxrnn.train -m key=a,b ...         a sweep: one job for every combination
"""


def _yaml(path: Any) -> dict:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_shown, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return "NEEDED" if value == "???" else str(value)


def _wrapped(head: str, text: str, width: int) -> str:
    return textwrap.fill(f"{head:<{width}}{text}", 118, subsequent_indent=" " * width, break_on_hyphens=False)


def text() -> str:
    """Everything that can be typed, in one page."""
    folder = config.folder()
    main = _yaml(folder / "config.yaml")
    chosen = {key: value for entry in main["defaults"] if isinstance(entry, dict) for key, value in entry.items()}
    meaning = {f.name: f.metadata.get("meaning", "") for f in fields(Settings)}
    lines = [HEADER, "groups: name=member (the first is the default)"]
    for group in (*GROUPS, "logger", "experiment"):
        default = chosen.get(group)
        first = [_shown(default)] if default else []
        names = first + [name for name in config.members(group) if name != default]
        about = meaning.get(group) or "a recipe: members and numbers that go together"
        lines.append(_wrapped(f"  {group}=", " · ".join(names), 18) + f"\n{'':18}{about}")
    lines.append("\nsettings of members: group.key=value, where the chosen member has it")
    for group in GROUPS:
        lines.extend(_member_lines(group))
    lines.append("\nkeys: key=value")
    for key, allowed in KEYS.items():
        lines.append(_wrapped(f"  {key}={_shown(main[key])}", f"{meaning[key]}; {allowed.text}", 30))
    lines.append(_wrapped(f"  initializer.{{{','.join(main['initializer'])}}}=default", "", 30))
    lines.append(_wrapped("", meaning["initializer"], 30))
    for group, known in (("flow", FLOW), ("checkpoint", CHECKPOINT)):
        for key, allowed in known.items():
            about = SAVED[key] if group == "checkpoint" else meaning[group]
            lines.append(_wrapped(f"  {group}.{key}={_shown(main[group][key])}  ", f"{about}; {allowed.text}", 30))
    flags = textwrap.indent(FLAGS, "  ")
    return "\n".join([*lines, "", "flags", flags, "", "examples", textwrap.indent(EXAMPLES, "  ")])


def _member_lines(group: str) -> list[str]:
    """One line per setting of the group's members: default, meaning, range, and the members that have it."""
    names = config.members(group)
    held: dict[str, dict[str, Any]] = {}
    notes: dict[str, str] = {}
    for name in names:
        path = config.folder() / group / f"{name}.yaml"
        notes = dict(NOTE.findall(path.read_text(encoding="utf-8"))) | notes
        for key, value in _yaml(path).items():
            if key != "name":
                held.setdefault(key, {})[name] = value
    lines = []
    for key, owners in held.items():
        values = {_shown(value) for value in owners.values()}
        where = "" if len(owners) == len(names) else f" ({', '.join(owners)})"
        if len(values) > 1:
            where = f" ({', '.join(f'{name} {_shown(value)}' for name, value in owners.items())})"
        default = values.pop() if len(values) == 1 else ""
        allowed = RANGES.get(group, {}).get(key) or like(next(iter(owners.values())))
        about = "; ".join(filter(None, (notes.get(key), "" if allowed is anything else allowed.text)))
        lines.append(_wrapped(f"  {group}.{key}={default} ", about + where, 36))
    return lines
