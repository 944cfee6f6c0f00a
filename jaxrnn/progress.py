"""Progress that outlives its process: which run a folder holds, resuming it, saving it."""

import os
import secrets
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrnn import checkpoints, fingerprints, packing, runs
from jaxrnn.checkpoints import Checkpoint, storing
from jaxrnn.errors import ArtefactError, BusyError, NumericalError, StorageError
from jaxrnn.group import Group
from jaxrnn.loggers import Logger
from jaxrnn.settings import Settings

SPEEDS = ("examples_per_second", "tokens_per_second")  # of the summary: those of the updates
TOLD = ("best_epoch", "valid")  # of the summary: what stands before the run has ended
LOGS = ("metrics.jsonl", "metrics.csv")
WAYS_ON = {"patience": "patience=null", "max_steps": "a larger max_steps"}  # after what had ended a run
TRACES = ("config.yaml", "summary.json", *LOGS, "model")  # of a run; one with none of them can begin again
OF_SWEEPS = ("sweep.json", "study.json")
ROOM = 2.2  # checkpoints that must fit beside what there is: an old one stays until the new one is good


class Opened(NamedTuple):
    """What a locked run folder holds."""

    checkpoint: Checkpoint | None = None
    bitwise: bool = True  # going on is the run that never stopped, bit for bit
    finished: dict[str, Any] | None = None  # the summary of a completed run, which is left alone
    speeds: dict[str, float] = {}  # of its summary so far


def summary(folder: Path) -> dict[str, Any]:
    """summary.json; empty where there is none."""
    path = folder / "summary.json"
    held = runs.read_json(path) if path.exists() else None
    return held if isinstance(held, dict) else {}


def completed(folder: Path) -> bool:
    """Does its summary say so."""
    return summary(folder).get("status") == "completed"


def traces(folder: Path) -> list[str]:
    """What a run has left in a folder; nothing where it was killed before it wrote config.yaml, its first file."""
    found = [name for name in TRACES if os.path.lexists(folder / name)]
    return found + ["checkpoints"] * any(folder.glob("checkpoints/step_*"))


def holds_run(folder: Path | None, settings: Settings) -> bool:
    """Is there a run to go on with; BusyError where that was ruled out, or for a sweep. Call with a run's locked.

    ArtefactError where it lacks its config.yaml, or there is none and there must be one. None: a folder to be made.
    """
    if folder and any((folder / name).exists() for name in OF_SWEEPS):
        raise BusyError(f"{folder} holds a sweep: expected another hydra.run.dir, or its own command, with -m")
    found = traces(folder) if folder else []
    if folder is None or not found:
        if settings.resume == "must" or settings.resume_step is not None:
            word = "resume=must" if settings.resume_step is None else f"resume_step={settings.resume_step}"
            raise ArtefactError(f"{word}, but {folder or 'a new folder'} holds no run: expected the folder of one")
        return False
    if settings.resume == "never":
        raise BusyError(f"{folder} already holds a run and resume=never: choose another folder, or resume=auto")
    if "config.yaml" not in found:
        raise ArtefactError(
            f"{folder} holds {', '.join(found)} of a run, but not its config.yaml: bring that file back, "
            "or choose another folder"
        )
    runs.check_config(folder)
    return True


def ended_by(settings: Settings, steps: int, step: int, epoch: int, batch: int, waited: int) -> str | None:
    """What ends a run after an epoch: "epochs", "patience" or "max_steps"; None where training goes on.

    `steps`: the updates of an epoch, `batch`: those that it had, `waited`: the epochs since the best one.
    """
    if epoch >= settings.epochs and batch >= steps:
        return "epochs"
    if waited >= (settings.patience or np.inf):
        return "patience"
    if step >= (settings.max_steps or np.inf):
        return "max_steps"
    return "epochs" if epoch >= settings.epochs else None


def stopped(folder: Path, kind: str = "run") -> str:
    """What is said after a polite stop: where a run, or the jobs of a sweep, were saved, and how to go on."""
    held = [folder] if kind == "run" else list(folder.iterdir())
    steps = [step for place in held for step in checkpoints.steps(place)]
    if not steps:
        return f"stopped before a checkpoint was saved in {folder}; the same command begins again"
    saved = f"saved after update {steps[0]:,}" if kind == "run" else "saved"
    way = shlex.quote(f"hydra.{kind}.dir={folder}")
    return f"stopped, {saved} in {folder}; resume with the same command and {way}"


def opened(settings: Settings, mark: dict[str, Any], folder: Path, say: Callable[[str], None], group: Group) -> Opened:
    """Find what to go on from, and bring the records back to where it stood. Call with the folder locked."""
    checkpoints.tidied(folder, say)
    done = completed(folder)
    if settings.resume_step is not None:
        found: Checkpoint | None = checkpoints.load(folder, settings.resume_step)
    else:
        found = None if done and not checkpoints.steps(folder) else checkpoints.newest(folder, say)
    if found is None and settings.resume == "must":
        raise ArtefactError(f"resume=must, but {folder} holds no checkpoint: expected one, or resume=auto")
    if done and found is None and not fingerprints.recorded(folder, settings):
        raise ArtefactError(f"{folder} holds another run, its config.yaml not as given here. Choose another folder")
    more = False
    changed: set[str] = set()
    if found:
        more, changed = fingerprints.compared(found.fingerprint, mark, settings.resume_allow, folder)
        for name in sorted(changed):
            say(f"not as it was: {fingerprints.difference(name, found.fingerprint, mark)}")
        check_reached(settings, found, folder)
        more |= bool(changed & {"patience", "max_steps"})
        if named := sorted(changed - fingerprints.SAID - {"epochs"}):
            try:
                start(group.programs, found, folder)
            except ArtefactError as error:
                raise ArtefactError(f"{error}; choose another folder, or leave {', '.join(named)} as before") from None
    if found and fingerprints.whole(changed) & fingerprints.MEASURED:
        found = forgotten(found)
    by = ended(settings, group.steps, found) if found else None
    if done and (by or not more):
        if more and by in WAYS_ON:
            say(f"{by} had ended this run: {WAYS_ON[by]}, with resume_allow=[{by}], trains on")
        say(f"{folder} holds a completed run: left alone")
        return Opened(finished=runs.read_json(folder / "summary.json"))
    if by and found and found.best is None:
        raise ArtefactError(
            f"{folder}: nothing is left to train ({by}={getattr(settings, by)}), and no epoch would be measured"
        )
    held = summary(folder) if found else {}
    taken = Opened(
        found,
        not changed and (found is None or found.position.get("bitwise") is True),
        speeds={key: held[key] for key in SPEEDS if type(held.get(key)) is float},
    )
    rewind(folder, found)
    if found:
        for step in [step for step in checkpoints.steps(folder) if step > found.step]:
            with storing(folder):
                os.rename(
                    folder / "checkpoints" / f"step_{step}",
                    folder / "checkpoints" / f"step_{step}.left-{secrets.token_hex(3)}",
                )
        say(f"resuming at step {found.step} of {folder}")
        if changed & fingerprints.RESTARTS and not found.position.get("ended"):
            state = {name: array[:0] if name.startswith("log.") else array for name, array in found.state.items()}
            taken = taken._replace(checkpoint=found._replace(batch=0, state=state))
    return taken


def check_reached(settings: Settings, found: Checkpoint, folder: Path) -> None:
    """ArtefactError where fewer epochs or updates are asked for than a checkpoint has had."""
    for key, asked, there in ("epochs", settings.epochs, found.epoch), ("max_steps", settings.max_steps, found.step):
        if asked is not None and asked < there:
            raise ArtefactError(f"{key}={asked}: {folder} has come to {there:,} of them; expected at least so many")


def ended(settings: Settings, steps: int, found: Checkpoint) -> str | None:
    """What ends a run at a checkpoint of it, as `ended_by` says."""
    waited = found.position.get("waited")
    if found.position.get("ended") is not True or type(waited) is not int:
        return None
    return ended_by(settings, steps, found.step, found.epoch, found.batch, waited)


def room(folder: Path, group: Group, jobs: int = 1) -> None:
    """StorageError where the checkpoints to come would not fit: asked before compilation, not after hours.

    `jobs`: of a sweep in that folder, that are yet to begin; each leaves one checkpoint at least.
    """
    needed, free = int(max(ROOM, jobs) * group.checkpoint_bytes), shutil.disk_usage(folder).free
    if free < needed:
        what, key = (f"the checkpoints of {jobs} jobs", "sweep") if jobs > ROOM else (f"{ROOM} checkpoints", "run")
        raise StorageError(
            f"{folder}: expected room for {what}, {needed:,} bytes, found {free:,} bytes free: make room, "
            f"or choose another place with hydra.{key}.dir=DIR"
        )


def forgotten(found: Checkpoint) -> Checkpoint:
    """The checkpoint without the best epoch so far: the next one is it."""
    return found._replace(best=None, position=found.position | {"score": None, "waited": 0, "told": {}})


def rewind(folder: Path, found: Checkpoint | None) -> None:
    """Cut the logs where the checkpoint recorded them; what is written again must not stand twice."""
    for name in LOGS:
        sizes: Any = found.position.get("logs") if found else {}
        path, size = folder / name, sizes.get(name, 0) if isinstance(sizes, dict) else None
        held = checkpoints.plain_size(path) if path.exists() else 0
        if type(size) is not int or not 0 <= size <= held or (size and not runs.ends_line(path, size)):
            raise ArtefactError(f"{path}: {held:,} bytes, the checkpoint was made at {size!r}: records are missing")
        if held > size:
            with storing(path):
                os.truncate(path, size)
    with storing(folder):
        (folder / "summary.json").unlink(missing_ok=True)


def start(programs: Any, found: Checkpoint, where: Path) -> tuple[tuple[Any, Any], Any, dict[str, Any]]:
    """-> (state on its devices, position) for fit.fit, the best parameters so far, what the summary said of them."""
    from jaxrnn import resuming

    place = str(where / "checkpoints" / f"step_{found.step}")
    named = {name: array for name, array in found.state.items() if not name.startswith("log.")}
    log = {name[4:]: array for name, array in found.state.items() if name.startswith("log.")}
    held = found.position
    try:
        score = (-np.inf, -np.inf) if held["score"] is None else (float(held["score"][0]), float(held["score"][1]))
        counts, told = (
            (int(held["waited"]), int(held["refused"])),
            {key: held["told"][key] for key in TOLD if key in held["told"]},
        )
        position = resuming.Position(
            found.step, found.epoch, found.batch, bool(held["ended"]), score, *counts, resuming.Log(**log)
        )
        if len({array.shape for array in log.values()}) != 1 or log["loss"].ndim != 1 or log["loss"].dtype.kind != "f":
            raise ValueError("the losses of the epoch")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ArtefactError(f"{place}/position.json: expected a position, found {error!r}") from None
    filled = packing.filled(resuming.recorded(programs, named), named, place)
    if not resuming.sound(filled):
        raise ArtefactError(f"{place}: optimizer.behind names updates that the epoch has not had")
    state = resuming.placed(programs, resuming.refitted(programs, filled))
    best = None if found.best is None else packing.filled(programs.shapes, found.best, place)
    return (state, position), best, told


def way_back(programs: Any, settings: Settings, folder: Path, say: Callable[[str], None]) -> Callable | None:
    """With on_nonfinite=rollback, what gives the state to go on from: the newest checkpoint, or the very first one."""

    def state() -> Any:
        found = checkpoints.newest(folder, say)
        if found is None:
            return programs.init(np.uint32(settings.seed), np.float32(settings.init_scale))
        (state, _), *_ = start(programs, found, folder)
        return state

    return state if settings.on_nonfinite == "rollback" else None


def save(
    folder: Path, settings: Settings, mark: dict, programs: Any, now: Any, best: Any, told: dict, bitwise: bool
) -> None:
    """A checkpoint of the report `now`; NumericalError, and nothing written, where the state is not finite."""
    from jaxrnn import resuming

    check_there(folder)
    at = now.position
    state = packing.flat(resuming.kept(programs, now.state))
    for name, array in state.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NumericalError(
                f"after update {at.step} {name} is not finite and was not saved; lower optimizer.learning_rate"
            )
    state |= {f"log.{name}": array for name, array in at.log._asdict().items()}
    position = {"ended": at.ended, "score": at.score if np.isfinite(at.score[0]) else None, "waited": at.waited}
    position |= {"refused": at.refused, "told": told, "bitwise": bitwise}
    position |= {"logs": {name: synced_size(folder / name) for name in LOGS}}
    found = Checkpoint(at.step, at.epoch, at.batch, mark, position, state, None if best is None else packing.flat(best))
    checkpoints.save(folder, found, settings.checkpoint["keep"])


def there(folder: Path) -> bool:
    """Is it still the folder of a run that has begun."""
    return (folder / "config.yaml").exists()


def check_there(folder: Path) -> None:
    """StorageError where somebody has removed the folder of a run that trains, or its config.yaml."""
    if not there(folder):
        raise StorageError(
            f"{folder / 'config.yaml'} has vanished while the run trained: remove what is left of the folder, "
            "and the same command begins again"
        )


def synced_size(path: Path) -> int:
    """Bytes of a log, all of them on the disk; 0 where there is none."""
    if not path.exists():
        return 0
    with storing(path), path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def record_refused(folder: Path, now: Any, seed: int) -> None:
    """nonfinite.json: what is needed to look at the update again."""
    import jax

    update = now.refused
    record = {"step": update.step, "epoch": update.epoch, "batch": update.batch}
    record |= {"loss": repr(update.loss), "grad_norm": repr(update.grad_norm)}  # JSON has no nan
    record |= {"rows": [int(row) for row in update.rows if row >= 0], "seed": seed}
    record |= {"key": np.asarray(jax.random.key_data(now.state.key)).tolist(), "fold_in": int(now.state.step)}
    runs.write_json(folder / "nonfinite.json", record | {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def tell_steps(log: Logger, now: Any, every: int | None) -> None:
    """Every so many updates: one record each."""
    first = now.step - len(now.log.loss) + 1
    for at in range(len(now.log.loss)) if every else ():
        if (first + at) % every == 0:
            loss, norm = float(now.log.loss[at]), float(now.log.grad_norm[at])
            log.step({"step": first + at, "epoch": now.epoch, "loss": loss, "grad_norm": norm})
