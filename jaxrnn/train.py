"""python -m jaxrnn.train [key=value ...]: one run, or with -m a sweep.

Configuration first, then data, then the run folder: a refusal before that leaves nothing behind.
"""

import gc
import re
from collections.abc import Sequence

from jaxrnn import command, config, devices, foreign, job, outline, planning, space
from jaxrnn.errors import ConfigurationError
from jaxrnn.group import prepare

SHOWS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc", "--version", "--resolve")

WITHOUT_C = re.compile(  # words of sweeps
    r"unroll|activation|device|dry_run|hydra/launcher=(?!basic$|population$)|hydra.launcher.members=(?!auto$|1$)"
)


def main(arguments: Sequence[str]) -> int:
    """The command: -> exit code."""
    try:
        return started(arguments)
    except KeyboardInterrupt as error:  # one that says nothing came too early
        raise type(error)(str(error) or "stopped before training began, nothing was saved") from error


def started(arguments: Sequence[str]) -> int:
    """What the command line asks for, done."""
    if any(argument.partition("=")[0] == "--experimental-rerun" for argument in arguments):
        raise ConfigurationError("--experimental-rerun reads a pickle, which can run code: give the overrides instead")
    if any(argument.partition("=")[0] in SHOWS for argument in arguments):
        return config.show(arguments)
    parser = command.Parser(prog="jaxrnn-train", add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    given = parser.parse_intermixed_args(arguments)
    if given.help:
        from jaxrnn import usage

        print(usage.text())
        return 0
    devices.large_pages()
    if given.multirun:
        if not any(map(WITHOUT_C.match, given.overrides)):
            foreign.begin()  # before it is known whether it will be asked for: it mostly is, and takes longest
        if plan := planning.planned(given.overrides, config_dir=given.config_dir):
            from jaxrnn.sweep import sweep

            return sweep(plan)
        with space.search(given.overrides, config_dir=given.config_dir) as search:
            from jaxrnn import study

            return study.run(search)
    settings = config.compose(given.overrides, config_dir=given.config_dir)
    if settings.dry_run:
        print(outline.plan(settings, prepare(settings, print)))
        return 0
    summary = job.run(settings)
    print(f"run: {summary['run']}", flush=True)
    return 0


def entry() -> None:
    gc.disable()  # until `job.learn`: importing and tracing leave little behind, and looking for it takes 0.15 s
    command.run("train", main, unread=True)


if __name__ == "__main__":
    entry()
