"""One run, from its settings to summary.json: trained, saved, measured, drawn.

The test split is touched once, after training, with the parameters that did best on the validation split.
"""

import gc
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn import (
    artefact,
    command,
    config,
    devices,
    fingerprints,
    flowlog,
    history,
    loggers,
    orders,
    outline,
    packing,
    progress,
    runs,
    stored,
)
from jaxrnn.errors import NumericalError, StorageError
from jaxrnn.group import Group, prepare
from jaxrnn.settings import Settings, dotted

Watch = Callable[[dict[str, Any]], bool]  # takes the record of an epoch; True ends the run there
Computing = Callable[[], AbstractContextManager[Any]]  # entered for as long as the run trains, not while it writes
Halt = Callable[[], KeyboardInterrupt | None]  # the polite stop that has come, if any


def run(
    settings: Settings,
    folder: Path | None = None,
    *,
    loud: bool = True,
    group: Group | None = None,
    watch: Watch | None = None,
    halt: Halt | None = None,
    computing: Computing = nullcontext,
) -> dict[str, Any]:
    """-> the content of summary.json, with the folder as "run".

    A folder that holds an unfinished run goes on with it (resume=auto); a completed one is left alone. `group` is what
    several runs share, made here if it is not given. `halt` is asked after every report; without it signals are.
    """
    began = time.perf_counter()
    say: Callable[[str], None] = print if loud else (lambda _: None)
    folder = folder or (Path(settings.directory) if settings.directory else None)
    own = group is None
    with ExitStack() as held:
        if known := folder is not None and bool(progress.traces(folder)):  # one writer: who else, is said first
            held.enter_context(runs.locked(folder))
        progress.holds_run(folder, settings)
        group = group or prepare(settings, say)
        folder = folder or runs.new_folder(settings.experiment)
        if not known:
            held.enter_context(runs.locked(folder))
        held_run = progress.holds_run(folder, settings)
        begun = held_run and not progress.completed(folder)
        summary: dict[str, Any] = {"status": "failed"}
        log = loggers.Logger()
        try:
            mark = fingerprints.fingerprint(settings, group)
            taken = progress.Opened()
            if held_run:
                taken = progress.opened(settings, mark, folder, say, group)
                # How many others train beside it decides its last bits, and so may the threads of a GPU.
                if taken.checkpoint and (group.members > 1 or not devices.repeatable(group.devices[0])):
                    taken = taken._replace(bitwise=False)
            if taken.finished is not None:
                return taken.finished | {"run": str(folder)}
            begun = held_run
            progress.room(folder, group)
            runs.write(folder / "config.yaml", runs.sealed(config.to_yaml(settings)))
            begun = True
            names = tuple(name for name in settings.logger if loud or name != "console")
            step = taken.checkpoint.step if taken.checkpoint else 0
            log = loggers.opened(names, folder, settings.epochs, dotted(settings), step)
            with closing(log):
                learn(
                    settings,
                    group,
                    folder,
                    summary,
                    loud,
                    mark,
                    taken,
                    own,
                    log,
                    watch=watch,
                    halt=halt,
                    computing=computing,
                )
            log.end(summary)  # before the record says that it completed: what is killed here is told again
        except BaseException as error:
            refusal = command.typed(error)
            code, message = (refusal.code, str(refusal)) if refusal else (1, repr(error))
            if isinstance(error, KeyboardInterrupt):
                summary["status"], code, message = "stopped", command.code_of(error), "interrupted"
            summary["error"] = {"code": code, "message": message}
            if isinstance(error, KeyboardInterrupt):
                raise type(error)(progress.stopped(folder)) from error
            raise
        finally:
            if begun:  # one refused before it began leaves no record
                summary |= {"seconds": time.perf_counter() - began, "overrides": list(settings.overrides)}
                summary |= {"config_dir": settings.config_dir} if settings.config_dir else {}
                try:
                    runs.write_json(folder / "summary.json", summary)
                except StorageError:
                    if "error" not in summary:  # otherwise what went wrong first is what has to be said
                        raise
                log.end(summary)  # if it failed or was stopped
    return summary | {"run": str(folder)}


def learn(
    settings: Settings,
    group: Group,
    folder: Path,
    summary: dict[str, Any],
    loud: bool,
    mark: dict[str, Any],
    taken: progress.Opened,
    own: bool,
    log: loggers.Logger,
    *,
    watch: Watch | None = None,
    halt: Halt | None = None,
    computing: Computing = nullcontext,
) -> None:
    """Compile, train, save, measure, draw; `summary` is filled on the way, so that it is right wherever this ends.

    `own`: the group is this run's alone, and may have been compiled while it was prepared.
    """
    import jax

    from jaxrnn import fit, metrics, resuming

    say = print if loud else (lambda *_: None)
    corpus, _, labels, report = group.encoded
    length = corpus.length
    steps, updates = outline.extent(settings, group)
    runs.write(folder / "vocabulary.json", group.vocabulary)
    runs.write_json(folder / "overrides.json", list(settings.overrides))
    runs.write_json(folder / "data_report.json", report)
    say(outline.rows(settings, group.encoded))

    began = time.perf_counter()
    programs = group.programs
    if not gc.isenabled():  # `train` starts without it; what there is by now stays
        gc.freeze()
        gc.enable()
    compiling = programs.compile_seconds if own else time.perf_counter() - began
    summary |= {"device": devices.described(group.devices), "compile_seconds": compiling, "steps": 0}
    summary |= {"parameters": sum(leaf.size for leaf in jax.tree.leaves(programs.shapes)), "bitwise": taken.bitwise}
    runs.write_json(folder / "environment.json", group.environment)
    spent = f"{programs.compiled} programs, ready to train after {programs.compile_seconds:.2f} s"
    say(f"device: {summary['device']}; unroll: {group.unroll}; {spent}")
    say(f"network: {outline.network(settings)}, {summary['parameters']:,} parameters")

    begin = best = saved = None
    told: dict[str, Any] = {}
    if taken.checkpoint:
        begin, best, told = progress.start(programs, taken.checkpoint, folder)
        saved = begin[1].step, begin[1].ended
        summary |= told | {"steps": begin[1].step} | taken.speeds
    reports = fit.fit(
        programs,
        hyper(settings, updates),
        orders.plan(corpus.train, length, settings.batch_size, settings.seed),
        group.orders["valid"],
        seed=settings.seed,
        epochs=settings.epochs,
        patience=settings.patience,
        max_steps=settings.max_steps,
        init_scale=settings.init_scale,
        start=begin,
        report_every=[n for n in (settings.checkpoint["every_steps"], flowlog.period(settings, group)) if n],
        nonfinite_limit=1 if settings.on_nonfinite == "stop" else settings.nonfinite_limit,
        go_back=(back := progress.way_back(programs, settings, folder, say)),
    )
    earlier = history.earlier(folder) if begin else []
    records, flows = ([record for record in earlier if kind in record] for kind in ("train", "flow"))

    def tell(record: dict[str, Any]) -> None:
        flows.append(record)
        log.flow(record)

    reports = flowlog.watched(reports, settings, group, tell, fresh=not flows and taken.bitwise)
    rows_seen = update_seconds = 0.0
    every, seconds = settings.checkpoint["every_steps"], settings.checkpoint["every_seconds"] or math.inf
    last, now = time.monotonic(), None
    try:
        with nullcontext(halt) if halt else command.put_off() as arrived:
            with computing():
                for now in reports:
                    rows_seen += float(now.log.weight.sum())
                    progress.tell_steps(log, now, settings.log_every_steps)
                    summary["steps"] = now.step
                    if now.refused:
                        progress.record_refused(folder, now, settings.seed)
                        say(f"update {now.refused.step} is not finite and was not applied")
                        if back:  # to whatever was saved last, which time may have decided
                            summary["bitwise"] = False
                    elif now.valid is None:
                        log.tick(now.epoch, now.batch, steps, float(now.log.loss[-1]))
                    elif not math.isfinite(now.valid["loss"]):  # the updates were, what they led to is too large
                        raise NumericalError(
                            f"the validation loss after epoch {now.epoch} is not finite: lower optimizer.learning_rate"
                        )
                    else:
                        update_seconds += now.seconds
                        record: dict[str, Any] = {"step": now.step, "epoch": now.epoch, "train": now.train}
                        record |= {"valid": now.valid, "best": now.best, "seconds": now.seconds}
                        record |= {"refused": now.position.refused} if now.position.refused else {}
                        record |= loggers.single_text(record["train"]) if len(corpus.train) == 1 else {}
                        records.append(record)
                        log.epoch(record)
                        if now.best:
                            best, told = (
                                fit.whole(programs, now.state.params),
                                {"best_epoch": now.epoch, "valid": now.valid},
                            )
                            summary |= told
                    stop = arrived()
                    due = (every and now.step % every == 0) or time.monotonic() - last >= seconds
                    if stop or due or (now.refused and now.position.step < now.refused.step):
                        log.flush()
                        progress.save(folder, settings, mark, programs, now, best, told, summary["bitwise"])
                        saved, last = (now.step, now.position.ended), time.monotonic()
                    if stop:
                        raise stop
                    if now.valid and watch and watch(records[-1]):
                        summary["status"] = "pruned"
                        break
            if now and saved != (now.step, now.position.ended):
                log.flush()
                progress.save(folder, settings, mark, programs, now, best, told, summary["bitwise"])
    finally:
        log.close()
        training = update_seconds + (now.seconds if now and now.valid is None else 0.0)
        if training > 0:
            each = rows_seen / training
            summary |= dict(zip(progress.SPEEDS, (each, each * float(length[corpus.train].mean())), strict=True))
        if best is not None and progress.there(folder):
            settled = artefact.record(settings, group.network, labels)
            stored.save_model(folder, stored.Saved(settled, packing.flat(best), group.vocabulary))
    if summary["status"] == "pruned":
        return
    at = now.position if now else begin[1] if begin else resuming.Position()
    by = progress.ended_by(settings, steps, at.step, at.epoch, at.batch, at.waited)
    summary["ended_by"] = by
    if by in ("patience", "max_steps"):
        say(outline.ended(settings, by, at))

    found, logits = fit.logits(programs, resuming.spread(programs.placed.params, best), group.orders["test"])
    summary["test"] = metrics.measure(logits, corpus.target[found]) | {"labels": labels}
    summary["baselines"] = group.baselines
    if settings.plots != "never":
        draw(settings, folder, [*records, *flows], summary["test"])
    progress.check_there(folder)
    summary["status"] = "completed"
    advice = flowlog.told(flows, settings, group)
    say(outline.results(summary) + (f"{advice}\n" if advice else ""))


def bare(settings: Settings) -> Settings:
    """A job of a sweep measures the flow of its gradient, and draws, only where that is asked for."""
    flow, plots = settings.flow, settings.plots
    flow = {"every_steps": None} if flow["every_steps"] == "auto" else flow
    return replace(settings, flow=flow, plots="never" if plots == "auto" else plots)


def draw(settings: Settings, folder: Path, records: list[dict[str, Any]], test: dict[str, Any]) -> None:
    """plots/: the course of the run, how its gradient flowed if that is in its records, and what it took for what."""
    from jaxrnn import plots

    epochs, flows = ([record for record in records if kind in record] for kind in ("train", "flow"))
    place, title = folder / "plots", outline.title(settings)
    plots.curves(epochs, place / "curves.png", title=title)
    if flows:
        steps = epochs[-1]["step"] / epochs[-1]["epoch"]
        flowlog.draw(flows, place / "gradient_flow.png", steps=steps, title=title)
    matrix = np.array(test["confusion"])
    plots.confusion(matrix, test["labels"], place / "confusion.png", title="test")


def hyper(settings: Settings, updates: int) -> Any:
    """The numbers of training as the compiled step takes them; off is infinite."""
    from jaxrnn.types import Hyper

    return Hyper(
        learning_rate=settings.optimizer.learning_rate,
        weight_decay=settings.optimizer.weight_decay,
        clip_global_norm=settings.clip_global_norm or math.inf,
        clip_value=settings.clip_value or math.inf,
        dropout_rate=settings.dropout_rate,
        word_dropout_rate=settings.word_dropout_rate,
        warmup_steps=settings.schedule.warmup_steps,
        decay_steps=updates,
        final_fraction=settings.schedule.settings.get("final_fraction", 0.0),
    )
