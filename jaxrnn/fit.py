"""Training as three compiled programs: `init`, `segment` (many updates) and `answers` (a pass over rows).

    state = init(seed, init_scale)
    state, log = segment(state, hyper, data, order [S, B], begin, end)        updates begin .. end - 1 of one epoch
    sums, logits = answers(params, data, order, end)

`begin` and `end` are values: an epoch is one call, or as many as there are things to write in between, and nothing is
compiled again. The data lie on the device, tokens end to end; each update gathers its rectangle. The order of an epoch
comes from outside, the randomness of update n is fold_in(key, n): a run can be taken up at any update.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn import optimizers
from jaxrnn.errors import NumericalError
from jaxrnn.resuming import EMPTY, Log, Position, Refused
from jaxrnn.types import Array, Batch, Corpus, Hyper, Model, Noise, Sums, TrainState


class Data(NamedTuple):
    """A corpus on the device, without its splits."""

    tokens: Array  # [N] int32
    offset: Array  # [R + 1] int32
    target: Array  # [R] int32


class Programs(NamedTuple):
    """Compiled for one set of shapes. `data` is the corpus on its device."""

    init: Callable
    segment: Callable
    answers: Callable
    data: Data
    shapes: Any  # of the parameters, as the model made them
    eval_order: tuple[int, int]
    compiled: int  # how many programs
    compile_seconds: float
    placed: TrainState  # shapes and shardings of the state on its devices
    kept: TrainState  # shapes of the state on disk: no filler rows, the key as its numbers


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
    state: TrainState  # given away to the next update: copy it before asking for the next report
    position: Position  # with `state`, all that `fit` needs to go on from here
    refused: Refused | None = None  # an update that was not finite


def gather(data: Data, rows: Array, max_length: int) -> Batch:
    """The rectangle [B, T] of the rows [B]; row -1 is filler of length and weight zero."""
    real = rows >= 0
    rows = jnp.maximum(rows, 0)
    begin = data.offset[rows]
    length = jnp.where(real, data.offset[rows + 1] - begin, 0)
    time_ = jnp.arange(max_length)
    at = jnp.minimum(begin[:, None] + time_, data.tokens.shape[0] - 1)
    inputs = jnp.where(time_ < length[:, None], data.tokens[at], 0)
    return Batch(inputs, length, data.target[rows], real.astype(jnp.float32))


def make_update(model: Model, optimizer: optax.GradientTransformation, factor: Callable) -> Callable:
    """update(state, hyper, batch) -> (state, Log of one step, finite). A step that is not finite changes nothing.

    On several devices `batch` is this device's share of the rows: gradients are added up, but for those of the leaves
    that are spread, which are whole where they live.
    """
    axis = model.axis

    def total(tree):
        return tree if axis is None else lax.psum(tree, axis)

    def summed_loss(params, batch, key, noise):
        _, sums = model.score(model.apply(params, batch, key, noise), batch)
        return sums.loss, sums

    def update(state: TrainState, hyper: Hyper, batch: Batch):
        noise = Noise(hyper.dropout_rate, hyper.word_dropout_rate)
        key = jax.random.fold_in(state.key, state.step)
        key = key if axis is None else jax.random.fold_in(key, lax.axis_index(axis))
        (_, sums), gradients = jax.value_and_grad(summed_loss, has_aux=True)(state.params, batch, key, noise)
        here = model.spread(state.params)
        shared = jax.tree.map(lambda g, h: None if h else g, gradients, here)
        sums, shared = total((sums, shared))
        rows = jnp.maximum(sums.weight, 1)
        gradients = jax.tree.map(lambda g, h, s: (g if h else s) / rows, gradients, here, shared)

        def norm(tree):
            squares = jax.tree.map(lambda g: jnp.sum(jnp.square(g)), tree)
            spread = sum(jax.tree.leaves(jax.tree.map(lambda s, h: s if h else None, squares, here)))
            rest = sum(jax.tree.leaves(jax.tree.map(lambda s, h: None if h else s, squares, here)))
            return jnp.sqrt(total(spread) + rest)

        gradients, grad_norm = optimizers.clip(gradients, hyper, norm)
        updates, memory = optimizer.update(gradients, state.optimizer, state.params)
        rate = optimizers.rate(factor, state.step, hyper)
        params = optimizers.apply(state.params, updates, rate, hyper)
        loss = sums.loss / rows
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new, old = (params, memory, state.step + 1), state[:3]  # the key never changes
        params, memory, step = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        return TrainState(params, memory, step, state.key), Log(loss, sums.correct, sums.weight, grad_norm), finite

    return update


def make_segment(update: Callable, max_length: int) -> Callable:
    """segment(state, hyper, data, order [S, B], begin, end) -> (state, Log [S], finite); stops before a bad update."""

    def segment(state, hyper, data, order, begin, end):
        empty = Log(*(jnp.zeros(order.shape[0]) for _ in Log._fields))

        def going(carry):
            s, _, _, finite = carry
            return (s < end) & finite

        def one(carry):
            s, state, log, _ = carry
            state, now, finite = update(state, hyper, gather(data, order[s], max_length))
            return s + 1, state, jax.tree.map(lambda whole, part: whole.at[s].set(part), log, now), finite

        _, state, log, finite = lax.while_loop(going, one, (begin, state, empty, jnp.array(True)))
        return state, log, finite

    return segment


def make_answers(model: Model, max_length: int) -> Callable:
    """answers(params, data, order [S, B], end) -> (Sums over all rows, logits [S, B, ...]), without noise."""

    def answers(params, data, order, end):
        def one(s, carry):
            total, logits = carry
            batch = gather(data, order[s], max_length)
            z = model.apply(params, batch)
            _, sums = model.score(z, batch)
            return jax.tree.map(jnp.add, total, sums), logits.at[s].set(z)

        z = jax.eval_shape(lambda: model.apply(params, gather(data, order[0], max_length)))
        nothing = (Sums(*(jnp.zeros(()),) * 3), jnp.zeros((len(order), *z.shape), z.dtype))
        sums, logits = lax.fori_loop(0, end, one, nothing)
        return (sums if model.axis is None else lax.psum(sums, model.axis)), logits

    return answers


def build(
    model: Model,
    optimizer: optax.GradientTransformation,
    factor: Callable,
    corpus: Corpus,
    *,
    order: tuple[int, int],
    eval_order: tuple[int, int],
    max_length: int,
    devices: Sequence | None = None,
) -> Programs:
    """Put the corpus on the devices and compile the three programs ahead of time, two at once.

    `order` and `eval_order` are the shapes [S, B] of the orders that will be trained on and evaluated. With a model
    made for a mesh axis, every device runs its columns of an order, and B is a multiple of the number of devices.
    """
    began = time.perf_counter()
    devices = list(devices) if devices else jax.devices()[:1]
    across = Mesh(np.array(devices), (model.axis or "one",))

    def init(seed, init_scale):
        key_init, key_run = jax.random.split(jax.random.key(seed))
        params = model.init(key_init, init_scale)
        params = jax.tree.map(lambda p, h: _filled_up(p, len(devices)) if h else p, params, model.spread(params))
        return TrainState(params, optimizer.init(params), jnp.int32(0), key_run)

    def number(dtype):
        return jax.ShapeDtypeStruct((), dtype)

    state = jax.eval_shape(init, number(np.uint32), number(np.float32))
    here = model.spread(state.params)
    kept = jax.tree.map(lambda h: P(model.axis) if h else P(), here)
    memory = optax.tree.map_params(
        optimizer, lambda _, spec: spec, state.optimizer, kept, transform_non_params=lambda _: P()
    )
    spec = TrainState(kept, memory, P(), P())
    columns = P(None, model.axis)
    data = Data(*(jax.device_put(_aligned(part), NamedSharding(across, P())) for part in
                  (corpus.tokens, corpus.offset, corpus.target)))  # fmt: skip

    def compiled(function, arguments, specs, out_specs, **settings):
        if model.axis is not None:
            function = jax.shard_map(function, mesh=across, in_specs=specs, out_specs=out_specs, check_vma=False)
        shardings = [jax.tree.map(partial(NamedSharding, across), s) for s in (specs, out_specs)]
        return jax.jit(function, in_shardings=shardings[0], out_shardings=shardings[1], **settings).lower(*arguments)

    def integers(*shape):
        return jax.ShapeDtypeStruct(shape, np.int32)

    hyper = Hyper(*(number(np.float32),) * len(Hyper._fields))
    lowered = [
        compiled(
            make_segment(make_update(model, optimizer, factor), max_length),
            (state, hyper, data, integers(*order), integers(), integers()),
            (spec, P(), P(), columns, P(), P()),
            (spec, P(), P()),
            donate_argnums=0,
        ),
        compiled(
            make_answers(model, max_length),
            (state.params, data, integers(*eval_order), integers()),
            (kept, P(), columns, P()),
            (P(), columns),
        ),
        jax.jit(init, out_shardings=jax.tree.map(partial(NamedSharding, across), spec)).lower(
            number(np.uint32), number(np.float32)
        ),
    ]
    with ThreadPoolExecutor(2) as pool:
        segment, answers, init = pool.map(lambda program: program.compile(), lowered)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    placed = jax.tree.map(
        lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(across, p)), state, spec
    )
    kept = TrainState(
        shapes, jax.eval_shape(optimizer.init, shapes), state.step, jax.eval_shape(jax.random.key_data, state.key)
    )
    spent = time.perf_counter() - began
    return Programs(init, segment, answers, data, shapes, eval_order, len(lowered), spent, placed, kept)


def whole(programs: Programs, params):
    """The parameters as numpy arrays of their own, without the rows that only fill up the last device."""
    return jax.tree.map(lambda p, shape: np.array(p)[: shape.shape[0]], params, programs.shapes)


def _filled_up(rows, count):
    return jnp.pad(rows, ((0, -len(rows) % count),) + ((0, 0),) * (rows.ndim - 1))


def _aligned(array):
    """The array at an address that the CPU backend can use without a copy, on however many devices."""
    if array.ctypes.data % 64 == 0:
        return array
    room = np.empty(array.size + 16, array.dtype)
    start = -room.ctypes.data % 64 // array.itemsize
    room[start : start + array.size] = array
    return room[start : start + array.size]


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
    report_every: int | None = None,
    nonfinite_limit: int = 1,
) -> Iterator[Report]:
    """Train, and yield a Report about every `seconds_between` seconds and at the end of every epoch.

    `plan(epoch)` is the order [S, B] of epoch 0, 1, ...; `valid_order` that of the validation rows. Ends after
    `epochs`, after `max_steps` updates, or when `patience` epochs brought nothing better. From `start`, a state and
    position that a report had, it goes on as if it had never stopped, bit for bit. With `report_every`, no update with
    a multiple of that number passes without a report. An update that is not finite is not applied but reported as
    refused, its batch left out; at the `nonfinite_limit`-th of them NumericalError, the position before it.
    """
    hyper = Hyper(*(np.float32(number) for number in hyper))
    state, now = start or (programs.init(np.uint32(seed), np.float32(init_scale)), Position())
    best, waited, done, pace, refused = now.score, now.waited, now.step, None, now.refused
    for epoch in range(now.epoch + now.ended, epochs + 1):
        if now.ended and (waited >= (patience or np.inf) or done >= (max_steps or np.inf)):
            return
        order = plan(epoch - 1)
        at, logs = (0, [EMPTY]) if now.ended else (now.batch, [now.log])
        stop = len(order) if max_steps is None else min(len(order), at + max_steps - done)
        seconds, news = 0.0, []
        while at < stop:
            until = stop if pace is None and stop <= 8 else min(stop, at + (8 if pace is None else max(1, int(pace))))
            until = min(until, at + report_every - done % report_every) if report_every else until
            began = time.perf_counter()
            state, log, finite = programs.segment(state, hyper, programs.data, order, np.int32(at), np.int32(until))
            good = bool(finite)  # waits for the device
            spent = time.perf_counter() - began
            log = Log(*(np.asarray(field)[at:until] for field in log))
            if not good:
                bad = int(np.flatnonzero(~(np.isfinite(log.loss) & np.isfinite(log.grad_norm)))[0])
                numbers = float(log.loss[bad]), float(log.grad_norm[bad])
                log, until = Log(*(field[:bad] for field in log)), at + bad
            else:
                pace = (until - at) * seconds_between / spent
            done, at, seconds = done + until - at, until, seconds + spent
            logs.append(log)
            news.append(log)
            if at < stop and (good or len(log.loss)):
                now = Position(done, epoch, at, False, best, waited, refused, _joined(logs))
                yield Report(epoch, done, at, _joined(news), None, None, False, seconds, state, now)
                news = []
            if not good:
                guilty, last = Refused(done + 1, epoch, at, *numbers, order[at]), refused + 1 >= nonfinite_limit
                if not last:
                    refused, done, at = refused + 1, done + 1, at + 1
                now = Position(done, epoch, at, False, best, waited, refused, _joined(logs))
                yield Report(epoch, done, at, EMPTY, None, None, False, seconds, state, now, guilty)
                if last:
                    raise NumericalError(_not_finite(guilty))
        whole = Log(*(field.astype(np.float64) for field in _joined(logs)))
        rows = max(whole.weight.sum(), 1.0)
        train = {"loss": float((whole.loss * whole.weight).sum() / rows), "accuracy": float(whole.correct.sum() / rows)}
        valid = measure(programs, state.params, valid_order)
        score = (valid["accuracy"], -valid["loss"])
        improved = score > best
        best, waited = (score, 0) if improved else (best, waited + 1)
        now = Position(done, epoch, at, True, best, waited, refused)
        yield Report(epoch, done, at, _joined(news), train, valid, improved, seconds, state, now)


def _joined(logs):
    return Log(*(np.concatenate(fields) for fields in zip(EMPTY, *logs, strict=True)))


def measure(programs: Programs, params, order: np.ndarray) -> dict:
    """{"loss", "accuracy"} over the rows of `order`, which may be shorter than the compiled [S, B]."""
    sums, _ = programs.answers(params, programs.data, _padded(programs, order), np.int32(len(order)))
    rows = float(sums.weight)
    return {"loss": float(sums.loss) / rows, "accuracy": float(sums.correct) / rows}


def logits(programs: Programs, params, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `order` that are real, and their logits, in that order."""
    _, answers = programs.answers(params, programs.data, _padded(programs, order), np.int32(len(order)))
    real = order >= 0
    return order[real], np.asarray(answers)[: len(order)][real]


def _padded(programs, order):
    full = np.full(programs.eval_order, -1, np.int32)
    full[: len(order), : order.shape[1]] = order
    return full


def _not_finite(update):
    return (
        f"update {update.step} (epoch {update.epoch}) is not finite: loss {update.loss:g}, gradient norm "
        f"{update.grad_norm:g}; it was not applied. Lower optimizer.learning_rate or set clip_global_norm"
    )
