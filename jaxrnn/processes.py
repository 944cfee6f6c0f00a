"""Sweeps through a launcher of Hydra's: joblib on this machine, submitit on a cluster. Jobs are in other processes.

The launcher is told the overrides of each job and `hydra.sweep.subdir`, its number; what it calls, `Job`, composes the
settings again where it finds itself and runs them in the sweep's folder, which all processes must see.

    stop    in that folder while a polite stop waits for its jobs: they save and end, others do not begin
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

from jaxrnn import command, config, job, progress
from jaxrnn.launchers import Ended, Outcome, Task

STOP = "stop"
WAITED_FOR = ("joblib",)  # launchers whose workers end with this process: a polite stop waits until they have saved
HERE = ("joblib", "submitit_local")  # launchers whose jobs have this machine's devices


class Job(NamedTuple):
    """What is called in the other process."""

    folder: str
    config_dir: str | None

    def __call__(self, _: Any) -> Outcome:
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        GlobalHydra.instance().clear()  # it came with the launcher; to compose takes one of its own
        number, asked = int(hydra.sweep.subdir), Path(self.folder, STOP)
        summary: dict[str, Any] = {}
        try:
            with command.put_off() as arrived:

                def halt() -> KeyboardInterrupt | None:
                    return arrived() or (command.Terminated() if asked.exists() else None)

                if stop := halt():
                    return Outcome(number, "waiting", command.code_of(stop), summary)
                settings = job.bare(config.compose(list(hydra.overrides.task), config_dir=self.config_dir))
                summary = job.run(settings, Path(self.folder, str(number)), loud=False, halt=halt)
            return Outcome(number, summary["status"], 0, summary)
        except KeyboardInterrupt as stopped:
            return Outcome(number, "stopped", command.code_of(stopped), summary)
        except Exception as error:
            refusal = command.typed(error)
            told = refusal or RuntimeError(traceback.format_exc())  # the error itself may not travel
            return Outcome(number, "failed", refusal.code if refusal else 1, summary, told)


class Processes(NamedTuple):
    """A launcher as `launchers` has them. `hydra`: the words of the command line that are about hydra itself."""

    folder: Path
    hydra: Sequence[str]
    config_dir: str | None

    def __call__(self, tasks: Sequence[Task], ended: Ended) -> None:
        """`ended` is told when all have: a launcher returns once. What a lost process left is read from its folder."""
        from hydra._internal.callbacks import Callbacks
        from hydra.core.plugins import Plugins
        from hydra.types import HydraContext

        if not tasks:
            return
        place = str(self.folder.resolve())
        words = [*self.hydra, f"hydra.sweep.dir={place}"]
        with config.opened(self.config_dir) as loader:
            whole = config.composed(loader, [*tasks[0].settings.overrides, *words]).config
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
                task_function=cast(Any, Job)(place, self.config_dir),
                config=whole,
            )
            lines = [[*task.settings.overrides, f"hydra.sweep.subdir={task.number}"] for task in tasks]
            waits = whole.hydra.runtime.choices["hydra/launcher"] in WAITED_FOR
            with self.stoppable() if waits else nullcontext(lambda: None) as arrived:
                try:
                    found = {r.return_value.number: r.return_value for r in launcher.launch(lines, initial_job_idx=0)}
                except Exception as error:
                    found = {task.number: self.left(task.number, error) for task in tasks}
                stop = arrived()
        outcomes = [found[task.number] for task in tasks]
        ended([outcome for outcome in outcomes if outcome.status != "waiting"])
        for outcome in outcomes:
            if stop or outcome.status in ("stopped", "waiting"):
                raise stop or (command.Terminated() if outcome.code == 143 else KeyboardInterrupt())

    @contextmanager
    def stoppable(self) -> Iterator[Callable[[], KeyboardInterrupt | None]]:
        """Inside, a polite stop is handed on to the jobs and waits for them. The function given returns it."""
        asked = self.folder / STOP
        asked.unlink(missing_ok=True)  # of a process that was killed
        try:
            with command.put_off(asked.touch) as arrived:
                yield arrived
        finally:
            asked.unlink(missing_ok=True)

    def left(self, number: int, error: Exception) -> Outcome:
        """How a job stands after its launcher gave up."""
        summary = progress.summary(self.folder / str(number))
        if summary.get("status") in ("completed", "pruned"):
            return Outcome(number, summary["status"], 0, summary)
        code = summary.get("error", {}).get("code", 1)
        return Outcome(number, "failed", code, summary, RuntimeError(f"the launcher gave up: {error!r}"))
