"""Many runs as they recorded themselves.

Only config.yaml, overrides.json, summary.json and sweep.json are read, and only as a stranger's: every run's folder
may be damaged, and one in a sweep that is does not take the others with it.
"""

import glob
import itertools
import math
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrnn import runs
from jaxrnn.errors import ArtefactError

MOST_RUNS, MOST_OVERRIDES = 100_000, 1_000
# what a job that did not complete may be called: by its summary, by the sweep's record, or by what is missing
ENDS = ("failed", "damaged", "stopped", "unfinished", "waiting", "pruned")


class Run(NamedTuple):
    """One run folder. Accuracies are those of the best epoch by validation, None where the run did not complete."""

    folder: Path
    overrides: tuple[str, ...]
    status: str  # completed, or one of ENDS
    reason: str = ""  # why it did not complete, as far as it is known
    valid: float | None = None
    test: float | None = None
    valid_loss: float | None = None
    best_epoch: int | None = None
    seconds: float | None = None
    settings: Mapping[str, str] = {}  # all of them, as config.yaml records them; none where there is no record
    config_dir: str | None = None  # that it was told

    @property
    def known(self) -> dict[str, str]:
        """Key -> value of all settings; of a run without record, of what it was told."""
        return {**self.values, **self.settings}

    @property
    def values(self) -> dict[str, str]:
        """Key -> value of what it was told, as written; of a key given twice the last."""
        return {key: value for key, _, value in (line.lstrip("+").partition("=") for line in self.overrides)}

    @property
    def command(self) -> str:
        """What trains it again, quoted for a shell."""
        own = ["--config-dir", self.config_dir] if self.config_dir else []
        words = [line for line in self.overrides if not line.lstrip("+").startswith("resume")]  # in a new folder
        return shlex.join(["python", "-m", "jaxrnn.train", *own, *words])


def collect(paths: Sequence[str]) -> list[Run]:
    """The runs that the paths name, each once: run folders, sweeps, globs of them, `latest`.

    ArtefactError for a path that is none of these, or is a damaged run.
    """
    found: dict[Path, Run] = {}
    for path in itertools.chain.from_iterable(map(_folders, paths)):
        for run in _sweep(path) if (path / "sweep.json").exists() else [read(path)]:
            found.setdefault(run.folder.resolve(), run)
            if len(found) > MOST_RUNS:
                raise ArtefactError(f"more than {MOST_RUNS:,} runs: expected fewer paths")
    if not found:
        raise ArtefactError(f"no runs in {', '.join(paths)}")
    return list(found.values())


def _folders(named: str) -> Iterator[Path]:
    if named == "latest":  # the whole sweep, if the newest run is one of its jobs
        path = runs.find(named)
        yield path.parent if (path.parent / "sweep.json").is_file() else path
    elif Path(named).is_dir():
        yield Path(named)
    elif glob.has_magic(named):
        paths = sorted(itertools.islice(glob.iglob(named), MOST_RUNS + 1))
        held = [Path(path) for path in paths if _is_run(Path(path)) or Path(path, "sweep.json").is_file()]
        if not held:
            raise ArtefactError(f"{named!r}: no run and no sweep among the {len(paths):,} names it stands for")
        yield from held
    else:
        raise ArtefactError(f"{named!r} is not a folder: expected a run folder, a sweep, a glob of them, or latest")


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("summary.json", "overrides.json"))


def read(folder: Path, planned: Sequence[str] | None = None) -> Run:
    """A run folder; `planned` are the overrides that its sweep recorded, where it has none yet."""
    if not _is_run(folder) and planned is None:
        raise ArtefactError(f"{folder} holds no summary.json, overrides.json or sweep.json: expected a run or a sweep")
    summary = _read(folder / "summary.json", {})
    if not isinstance(summary, dict):
        raise ArtefactError(f"{folder / 'summary.json'}: expected a JSON object")
    recorded = _read(folder / "overrides.json", None)
    told = next((lines for lines in (recorded, summary.get("overrides"), planned) if lines is not None), [])
    overrides = _overrides(told, folder / "overrides.json")
    settings = {key: _shown(value) for key, value in itertools.islice(runs.settings(folder).items(), MOST_OVERRIDES)}
    config_dir, status = summary.get("config_dir"), summary.get("status", "unfinished")
    if config_dir is not None:
        _overrides([config_dir], folder / "summary.json")
    if status == "completed":
        return _completed(folder, overrides, summary)._replace(settings=settings, config_dir=config_dir)
    error = summary.get("error")
    if status not in ENDS or not isinstance(error, dict | None):
        raise ArtefactError(f"{folder / 'summary.json'}: expected a status and an error as train writes them")
    reason = f"exit {error.get('code')}: {error.get('message')}"[:400] if error else ""
    return Run(folder, overrides, status, reason.partition("\n")[0], settings=settings)


def _read(path: Path, missing: Any) -> Any:
    return runs.read_json(path) if path.exists() else missing


def _overrides(lines: Any, path: Path) -> tuple[str, ...]:
    """key=value lines that can be shown and pasted: no control or formatting characters."""
    if (
        not isinstance(lines, list | tuple)
        or len(lines) > MOST_OVERRIDES
        or not all(isinstance(line, str) and showable(line) for line in lines)
    ):
        raise ArtefactError(f"{path}: expected at most {MOST_OVERRIDES:,} printable lines, as in cell=gru")
    return tuple(lines)


def showable(text: str) -> bool:
    """Can it be shown and pasted: it has no control or formatting characters."""
    return all(map(_printable, text))


def _shown(text: str) -> str:
    return "".join(c if _printable(c) else "\ufffd" for c in text)


def _printable(character: str) -> bool:
    """A letter, a sign, a space, or one of the two that join and part letters: Persian words need them."""
    return character.isprintable() or character in "\u200c\u200d" or unicodedata.category(character) == "Zs"


def _completed(folder: Path, overrides: tuple[str, ...], summary: Mapping[str, Any]) -> Run:
    """ArtefactError where a completed run's numbers are missing or no numbers."""

    def number(high: float, *names: str) -> float:
        value: Any = summary
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= high:
            told = f"expected {'.'.join(names)}, a number of at least 0"
            raise ArtefactError(f"{folder / 'summary.json'}: {told}{' and at most 1' if high == 1 else ''}")
        return value

    return Run(
        folder, overrides, "completed", "", number(1, "valid", "accuracy"), number(1, "test", "accuracy"),
        number(math.inf, "valid", "loss"), int(number(2**63, "best_epoch")), number(math.inf, "seconds"),
    )  # fmt: skip


def _sweep(folder: Path) -> list[Run]:
    """The jobs of a sweep, as their folders tell; where one does not, as sweep.json does."""
    path = folder / "sweep.json"
    held = runs.read_json(path)
    jobs = held.get("jobs") if isinstance(held, dict) else None
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs) or len(jobs) > MOST_RUNS:
        raise ArtefactError(f"{path}: expected a list of at most {MOST_RUNS:,} jobs")
    found = []
    for job in jobs:
        if type(job.get("job")) is not int or job["job"] < 0:
            raise ArtefactError(f"{path}: expected a job's number, found {job.get('job')!r:.80}")
        planned = _overrides(job.get("overrides"), path)
        where = folder / str(job["job"])
        try:
            run = read(where, planned)
        except ArtefactError as error:
            run = Run(where, planned, "damaged", str(error))
        if run.status in ("unfinished", "stopped") and job.get("status") in ("pruned", "waiting", "failed"):
            reason = _shown(str(job.get("reason", run.reason))[:400])  # of a job that failed before it had a folder
            run = run._replace(status=job["status"], reason=reason)
        found.append(run)
    return found


def counts(found: Sequence[Run]) -> str:
    """2 failed, 1 waiting"""
    held = Counter(run.status for run in found)
    return ", ".join(f"{held[status]:,} {status}" for status in ENDS if held[status])
