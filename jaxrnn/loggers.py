"""Where progress goes: name(folder, stream, epochs) -> Logger. One function per member of conf/logger/.

An epoch is {"step", "epoch", "train": {"loss", "accuracy"}, "valid": {"loss", "accuracy"}, "best", "seconds"}, a logged
step {"step", "epoch", "loss", "grad_norm"}, a measurement of the gradient is what `monitor.record` says. A run that
learns from a single text has also "prediction", the probability of its label, and "loss_base10": -log10 of it, beside
the loss in nats. What is not a file or a terminal is in `trackers`.

A file gets its lines some `runs.HELD` seconds late: epochs of a millisecond would spend a tenth of it on each line. At
the end of a longer epoch, with `tick`, `flush` and `close` it gets them at once.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from jaxrnn import trackers
from jaxrnn.errors import ConfigurationError, unknown
from jaxrnn.runs import HELD, Lines

LINES = 100  # a plain log has no more epoch lines than about this
BAR = 24  # characters


def _nothing(*_: Any) -> None:
    return None


class Logger(NamedTuple):
    """What a place of record does with news; what it does not care for it leaves out."""

    epoch: Callable[[Mapping[str, Any]], None] = _nothing
    step: Callable[[Mapping[str, Any]], None] = _nothing
    flow: Callable[[Mapping[str, Any]], None] = _nothing
    tick: Callable[[int, int, int, float], None] = _nothing  # epoch, updates done, updates in all, loss
    flush: Callable[[], None] = _nothing  # everything told so far is handed to the system
    close: Callable[[], None] = _nothing  # it trains no more
    end: Callable[[Mapping[str, Any]], None] = _nothing  # the summary of the run, which has ended


def single_text(train: Mapping[str, float]) -> dict[str, float]:
    """How sure the network was of its one training text, and its loss in base 10.

    >>> {k: round(v, 3) for k, v in single_text({"loss": 0.2485}).items()}
    {'prediction': 0.78, 'loss_base10': 0.108}
    """
    return {"prediction": math.exp(-train["loss"]), "loss_base10": train["loss"] / math.log(10)}


def line(record: Mapping[str, Any], epochs: int) -> str:
    """One epoch for people."""
    width = len(str(epochs))
    text = f"epoch {record['epoch']:{width}d}/{epochs}"
    if "prediction" in record:
        text += f"  prediction {record['prediction']:.4f}"
        return f"{text}  loss {record['train']['loss']:.4f} nats, {record['loss_base10']:.4f} in base 10"
    for split in ("train", "valid"):  # a line of a terminal, which has 80 columns
        text += f"  {split} loss {record[split]['loss']:.4f}, {100 * record[split]['accuracy']:.1f} %"
    return f"{text}  {record['seconds']:.2f} s{'  best' if record['best'] else ''}"


def console(folder: Path, stream: TextIO | None = None, epochs: int = 1) -> Logger:
    """A bar on a terminal, plain lines elsewhere: never a carriage return in a file."""
    out = sys.stdout if stream is None else stream
    live = out.isatty()
    every = max(1, epochs // LINES)
    skipped: list[Mapping[str, Any]] = []

    def epoch(record: Mapping[str, Any]) -> None:
        skipped[:] = [record]
        if record["epoch"] == 1 or record["epoch"] % every == 0:
            show(record)

    def show(record: Mapping[str, Any]) -> None:
        skipped.clear()
        print(("\r\033[K" if live else "") + line(record, epochs), file=out, flush=True)

    def tick(epoch: int, done: int, whole: int, loss: float) -> None:
        if live:
            filled = BAR * done // max(whole, 1)
            bar = "█" * filled + "·" * (BAR - filled)
            print(f"\r\033[Kepoch {epoch}/{epochs} {bar} {done}/{whole}  loss {loss:.4f}", end="", file=out, flush=True)

    def close() -> None:
        if live:
            print("\r\033[K", end="", file=out, flush=True)
        for record in list(skipped):  # the last one, if it fell between two lines
            show(record)

    return Logger(epoch=epoch, tick=tick, close=close)


def jsonl(folder: Path, stream: TextIO | None = None, epochs: int = 1) -> Logger:
    """metrics.jsonl: every record, one JSON object per line."""
    lines = Lines(folder / "metrics.jsonl")

    def write(record: Mapping[str, Any]) -> None:
        lines.add(json.dumps(record, allow_nan=False))

    def epoch(record: Mapping[str, Any]) -> None:
        write(record)
        if record["seconds"] >= HELD:  # so long may the next one take
            lines.flush()

    return Logger(epoch, write, write, lines.flush, lines.flush, lines.close)


def csv(folder: Path, stream: TextIO | None = None, epochs: int = 1) -> Logger:
    """metrics.csv: one row per epoch, for a spreadsheet."""
    lines = Lines(folder / "metrics.csv")
    if lines.empty:
        lines.add("epoch,step,train_loss,train_accuracy,valid_loss,valid_accuracy,seconds")

    def write(record: Mapping[str, Any]) -> None:
        train, valid = record["train"], record["valid"]
        values = (train["loss"], train["accuracy"], valid["loss"], valid["accuracy"], record["seconds"])
        lines.add(",".join(map(str, (record["epoch"], record["step"], *values))))
        if record["seconds"] >= HELD:
            lines.flush()

    return Logger(epoch=write, tick=lines.flush, flush=lines.flush, close=lines.close)


MEMBERS = {"console": console, "jsonl": jsonl, "csv": csv}


def tracked(name: str, run: trackers.Run) -> Logger:
    """A tracker as a logger."""
    tracker = trackers.begun(name, run)

    def tell(record: Mapping[str, Any]) -> None:
        tracker.log(trackers.numbers(record), record["step"])

    return Logger(tell, tell, tell, flush=tracker.flush, close=tracker.flush, end=tracker.end)


def opened(
    names: tuple[str, ...], folder: Path, epochs: int, settings: Mapping[str, Any] | None = None, step: int = 0
) -> Logger:
    """The named loggers as one; ConfigurationError lists the known ones.

    `settings`, by dotted key, and where the run is resumed, after `step` updates, are for trackers.
    """
    for name in names:
        if name not in (*MEMBERS, *trackers.MEMBERS):
            raise ConfigurationError(unknown("logger", name, [*MEMBERS, *trackers.MEMBERS]))
    run = trackers.Run(folder, settings or {}, step)
    each: list[Logger] = []
    try:
        for name in names:
            each.append(MEMBERS[name](folder, None, epochs) if name in MEMBERS else tracked(name, run))
    except BaseException:
        for logger in each:
            logger.close()
            logger.end({"status": "failed"})
        raise

    def all_of(kind: str) -> Callable[..., None]:
        def call(*news: Any) -> None:
            for logger in each:
                getattr(logger, kind)(*news)

        return call

    def close() -> None:
        with ExitStack() as every:  # also where one of them fails
            for logger in each:
                every.callback(logger.close)

    return Logger(*(all_of(kind) for kind in Logger._fields))._replace(close=close)
