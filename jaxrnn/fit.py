"""The course of a training run: epochs, early stopping, the best parameters so far, and where it may be taken up again.

`build` makes the compiled programs (see `programs`); `fit` runs them and yields a Report whenever there is something
to say.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxrnn.errors import NumericalError
from jaxrnn.programs import Programs, build, gather, make_answers, whole
from jaxrnn.resuming import EMPTY, Log, Position, Refused
from jaxrnn.types import Hyper, TrainState

__all__ = ["Programs", "Report", "build", "fit", "gather", "logits", "make_answers", "measure", "whole"]


class Report(NamedTuple):
    """Where training stands: after some updates (`valid` is None), or at the end of an epoch."""

    epoch: int  # counts from 1
    step: int  # updates so far, all epochs
    batch: int  # updates of this epoch so far
    log: Log  # numpy, the updates since the last report
    train: dict | None  # {"loss", "accuracy"} over the epoch as it was trained, noise included
    valid: dict | None
    best: bool  # the best epoch so far, by validation accuracy, then loss
    seconds: float  # in updates, this epoch, by this process
    state: TrainState
    position: Position  # with `state`, all that `fit` needs to go on from here
    refused: Refused | None = None  # an update that was not finite


def fit(
    programs: Programs,
    hyper: Hyper,
    plan: Callable[[int], np.ndarray],
    valid_order: np.ndarray,
    *,
    seed: int,
    epochs: int,
    patience: int | None = None,
    max_steps: int | None = None,
    init_scale: float = 1.0,
    seconds_between: float = 1.0,
    start: tuple[TrainState, Position] | None = None,
    report_every: Sequence[int] = (),
    nonfinite_limit: int = 1,
    go_back: Callable[[], TrainState] | None = None,
) -> Iterator[Report]:
    """Train, and yield a Report about every `seconds_between` seconds and at the end of every epoch.

    `plan(epoch)` is the order [S, B] of epoch 0, 1, ...; `valid_order` that of the validation rows. Ends after
    `epochs`, after `max_steps` updates, or when `patience` epochs brought nothing better. From `start`, a state and
    position that a report had, it goes on as if it had never stopped, bit for bit. No update with a multiple of a
    number in `report_every` passes without a report. An update that is not finite, or makes the state so, is not
    applied but reported as refused, its batch left out; at the `nonfinite_limit`-th of them NumericalError, the
    position before it. With `go_back`, training goes on after each of the others from the state that it returns.
    """
    hyper = jax.device_put(Hyper(*(np.float32(number) for number in hyper)))  # once, not at every call
    valid_rows = jax.device_put(_padded(programs, valid_order))
    state, now = start or (programs.init(np.uint32(seed), np.float32(init_scale)), Position())
    best, waited, done, pace, refused = now.score, now.waited, now.step, None, now.refused
    for epoch in range(now.epoch + now.ended, epochs + 1):
        if now.ended and (waited >= (patience or np.inf) or done >= (max_steps or np.inf)):
            return
        order = plan(epoch - 1)
        at, logs = (0, [EMPTY]) if now.ended else (now.batch, [now.log])
        stop = len(order) if max_steps is None else min(len(order), at + max_steps - done)
        seconds, news, settled = 0.0, [], False
        if start and not at and not now.ended:  # the epoch begins again, with a state of its middle
            state, start = _settled(programs, state, hyper, order), None
        while at < stop:
            until = stop if pace is None and stop <= 8 else min(stop, at + (8 if pace is None else max(1, int(pace))))
            until = min([until, *(at + every - done % every for every in report_every)])
            began = programs.clock()
            state, log, made = programs.segment(state, hyper, programs.data, order, *_from_to(at, until, until == stop))
            made = int(np.asarray(made))  # waits for the device
            spent, good = programs.clock() - began, made == until - at
            settled = good and until == stop
            pace = made * seconds_between / spent if good else pace
            log = Log(*np.asarray(log)[:, at : at + made + 1])
            logs.append(Log(*(field[:made] for field in log)))
            news.append(logs[-1])
            done, at, seconds = done + made, at + made, seconds + spent
            if at < stop and (good or made):
                now = Position(done, epoch, at, False, best, waited, refused, _joined(logs))
                yield Report(epoch, done, at, _joined(news), None, None, False, seconds, state, now)
                news = []
            if not good:
                guilty = Refused(done + 1, epoch, at, float(log.loss[made]), float(log.grad_norm[made]), order[at])
                last = refused + 1 >= nonfinite_limit
                if not last:
                    refused, done, at = refused + 1, done + 1, at + 1
                    if go_back:  # settled: it may have had more updates of an epoch than there will be room for
                        state = _settled(programs, go_back(), hyper, order)
                now = Position(done, epoch, at, False, best, waited, refused, _joined(logs))
                yield Report(epoch, done, at, EMPTY, None, None, False, seconds, state, now, guilty)
                if last:
                    raise NumericalError(_not_finite(guilty))
        if not settled:
            state = _settled(programs, state, hyper, order)
        whole = Log(*(field.astype(np.float64) for field in _joined(logs)))
        rows = max(whole.weight.sum(), 1.0)
        train = {"loss": float((whole.loss * whole.weight).sum() / rows), "accuracy": float(whole.correct.sum() / rows)}
        valid = _measured(programs, state.params, valid_rows)
        score = (valid["accuracy"], -valid["loss"])
        improved = score > best
        best, waited = (score, 0) if improved else (best, waited + 1)
        now = Position(done, epoch, at, True, best, waited, refused)
        yield Report(epoch, done, at, _joined(news), train, valid, improved, seconds, state, now)


def _settled(programs, state, hyper, order):
    """The state with every parameter up to date, and room for the updates of an epoch."""
    return programs.segment(state, hyper, programs.data, order, *_from_to(0, 0, True))[0]


def _from_to(begin, end, last):
    return np.int32(begin), np.int32(end), np.bool_(last)


def _joined(logs):
    logs = [log for log in logs if len(log.loss)] or [EMPTY]
    return logs[0] if len(logs) == 1 else Log(*map(np.concatenate, zip(*logs, strict=True)))


def measure(programs: Programs, params, order: np.ndarray) -> dict:
    """{"loss", "accuracy"} over the rows of `order`, which may be shorter than the compiled [S, B]."""
    return _measured(programs, params, _padded(programs, order))


def _measured(programs, params, rows):
    sums, _ = programs.answers(params, programs.data, *rows)
    loss, correct, rows = np.asarray(sums).tolist()
    return {"loss": loss / rows, "accuracy": correct / rows}


def logits(programs: Programs, params, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `order` that are real, and their logits, in that order."""
    _, answers = programs.answers(params, programs.data, *_padded(programs, order))
    real = order >= 0
    return order[real], np.asarray(answers)[: len(order)][real]


def _padded(programs, order):
    """The order as `answers` takes it: in the compiled shape, and how many passes it is."""
    full = np.full(programs.eval_order, -1, np.int32)
    full[: len(order), : order.shape[1]] = order
    return full, np.int32(len(order))


def _not_finite(update):
    what = "is not finite" if not np.isfinite([update.loss, update.grad_norm]).all() else "leaves the finite numbers"
    return (
        f"update {update.step} (epoch {update.epoch}) {what}: loss {update.loss:g}, gradient norm "
        f"{update.grad_norm:g}; it was not applied. Lower optimizer.learning_rate or set clip_global_norm"
    )
