"""Training as three compiled programs: `init`, `segment` (many updates) and `answers` (a pass over rows).

    state = init(seed, init_scale)
    state, log, made = segment(state, hyper, data, order [S, B], begin, end, last)    updates begin .. end - 1
    sums [3], logits = answers(params, data, order, end)

and, where it is asked for, a fourth that measures how the gradient flows (see `monitor`).

`begin` and `end` are values: an epoch is one call, or as many as there are things to write in between, and nothing is
compiled again. The data lie on the device, tokens end to end; each update gathers its rectangle. The order of an epoch
comes from outside, the randomness of update n is fold_in(key, n): a run can be taken up at any update.

On several devices each one carries its columns of an order through time. The embedding table and the optimizer's memory
of it are cut by rows: ids go to all, each device answers for the rows it holds, and the gradients of rows come back the
same way (see `tables`). The other gradients are added up, once per update.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn import ends, fused, gradients, keys, monitor, optimizers, tables
from jaxrnn.compiling import Compiler, Program
from jaxrnn.layers import Rows, fold_in
from jaxrnn.resuming import Log
from jaxrnn.tables import Table
from jaxrnn.types import Array, Batch, Corpus, Hyper, Model, Noise, Sums, TrainState

AXIS = "rows"  # of the mesh, where there is more than one device


class Data(NamedTuple):
    """A corpus on the device, without its splits."""

    tokens: Array  # [N] int32
    offset: Array  # [R + 1] int32
    target: Array  # [R] int32


class Pure(NamedTuple):
    """What `segment` and `answers` are made of, for who puts it together in another way (see `vmapped`)."""

    update: Callable  # see `make_update`
    settle: Callable  # state -> state with every parameter up to date
    gather: Callable  # (data, order [S, B], step) -> Batch
    answers: Callable
    order: tuple[int, int]


class Programs(NamedTuple):
    """For one set of shapes, compiled or on the way. `data` is the corpus on its device."""

    init: Program
    segment: Program | Callable[..., Any]  # the latter meets with the calls of other runs (see `population`)
    answers: Program | Callable[..., Any]
    data: Data
    shapes: Any  # of the parameters, as the model made them
    eval_order: tuple[int, int]
    compiled: int  # how many programs
    compile_seconds: float  # until `init` and `segment` were there
    placed: TrainState  # shapes and shardings of the state on its devices
    kept: TrainState  # shapes of the state on disk: no filler rows, the key as its numbers
    optimizer: Any  # as it was given, without the memory of a deferred table
    readings: monitor.Measure | None  # how the gradient flows through the texts given
    pure: Pure
    clock: Callable[[], float] = time.perf_counter  # seconds: by how much it advances during a call is what that took


def gather(data: Data, order: Array, step: Array, max_length: int) -> Batch:
    """The rectangle [B, T] of the rows order[step], order [S, B]; row -1 is filler of length and weight zero."""
    rows = order[step]
    real = rows >= 0
    rows = jnp.maximum(rows, 0)
    begin = data.offset[rows]
    length = jnp.where(real, data.offset[rows + 1] - begin, 0)
    time_ = jnp.arange(max_length)
    at = jnp.minimum(begin[:, None] + time_, data.tokens.shape[0] - 1)
    inputs = jnp.where(time_ < length[:, None], tables.rows_of(data.tokens, at), 0)
    return Batch(inputs, length, data.target[rows], real.astype(jnp.float32))


def _rectangle(max_length: int, in_c: bool) -> Callable:
    """rectangle(data, order, step) -> Batch: `gather`, or the same in C."""

    def rectangle(data: Data, order: Array, step: Array) -> Batch:
        return ends.gather(*data, order, step, max_length) if in_c else gather(data, order, step, max_length)

    return rectangle


def make_update(
    model: Model, table: Table, factor: Callable, axis: str | None = None, drawn: Callable = lambda key: key
) -> Callable:
    """update(state, hyper, batch) -> (state, Log of one step, finite). A step that is not finite changes nothing.

    With an axis, `batch` is this device's share of the rows. `drawn` may give a key another way to the same numbers.
    A fourth argument, a bool, may say that the step is not `wanted`: it then changes nothing either.
    """

    def total(tree):
        return tree if axis is None else lax.psum(tree, axis)

    def summed_loss(params, batch, key, noise):
        sums = model.summed(params, batch, key, noise)
        return sums.loss, sums

    def update(state: TrainState, hyper: Hyper, batch: Batch, wanted: Array | None = None):
        noise = Noise(hyper.dropout_rate, hyper.word_dropout_rate)
        key = fold_in(drawn(state.key), state.step)
        key = key if axis is None else fold_in(key, lax.axis_index(axis))
        params, ids, found = state.params, None, None
        if model.has_table:
            ids = model.tokens(batch, key, noise)
            values, found = table.read(state, ids, batch.length)
            params = params._replace(input=Rows(values))
        (_, sums), gradients = jax.value_and_grad(summed_loss, has_aux=True)(params, batch, key, noise)
        if model.has_table:
            values = gradients.input.values
            sums, gradients = total((sums, gradients._replace(input=None)))
            gradients = gradients._replace(input=values)
        else:
            sums, gradients = total((sums, gradients))
        rows = jnp.maximum(sums.weight, 1)
        loss, rate = sums.loss / rows, optimizers.rate(factor, state.step, hyper)
        finite = jnp.isfinite(loss) if wanted is None else jnp.isfinite(loss) & wanted
        params, memory, grad_norm, finite = table.learn(
            state, gradients, found, ids, batch.length, rows, rate, hyper, finite
        )
        after = TrainState(params, memory, state.step + finite.astype(jnp.int32), state.key)
        return after, Log(loss, sums.correct, sums.weight, grad_norm), finite

    return update


def make_segment(update: Callable, settle: Callable, gather: Callable) -> Callable:
    """segment(state, hyper, data, order [S, B], begin, end, last) -> (state, the fields of Log [4, S], updates made).

    It stops before a bad update. If none came and `last` is true the state is settled: every parameter is up to date.
    """

    def segment(state, hyper, data, order, begin, end, last):
        empty = jnp.zeros((len(Log._fields), len(order)))

        def going(carry):
            s, _, _, finite = carry
            return (s < end) & finite

        def one(carry):
            s, state, log, _ = carry
            state, now, finite = update(state, hyper, gather(data, order, s))
            return s + 1, state, lax.dynamic_update_index_in_dim(log, jnp.stack(now), s, 1), finite

        s, state, log, finite = lax.while_loop(going, one, (begin, state, empty, jnp.array(True)))
        return lax.cond(last & finite, settle, lambda state: state, state), log, s - begin - ~finite

    return segment


def make_answers(model: Model, max_length: int, axis: str | None = None, in_c: bool = False) -> Callable:
    """answers(params, data, order [S, B], end) -> (Sums over all rows as [3], logits [S, B, ...]), without noise.

    `in_c`: see `build`.
    """
    rectangle = _rectangle(max_length, in_c)

    def logits_of(params, batch):
        if model.has_table:
            ids = model.tokens(batch)
            rows = ends.rows(params.input, ids, batch.length) if in_c else tables.look_up(params.input, ids, axis)
            params = params._replace(input=Rows(rows))
        return model.apply(params, batch)

    def answers(params, data, order, end):
        def one(s, carry):
            total, logits = carry
            batch = rectangle(data, order, s)
            z = logits_of(params, batch)
            _, sums = model.score(z, batch)
            return total + jnp.stack(sums), logits.at[s].set(z)

        z = jax.eval_shape(lambda: logits_of(params, rectangle(data, order, 0)))
        nothing = (jnp.zeros(len(Sums._fields)), jnp.zeros((len(order), *z.shape), z.dtype))
        sums, logits = lax.fori_loop(0, end, one, nothing)
        return (sums if axis is None else lax.psum(sums, axis)), logits

    return answers


def build(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    factor: Callable,
    corpus: Corpus,
    *,
    order: tuple[int, int],
    eval_order: tuple[int, int],
    max_length: int,
    devices: Sequence | None = None,
    texts: tuple[Array, Array] | None = None,
    in_c: bool = False,
    before: Callable[[], None] | None = None,
    alone: bool = True,
) -> Programs:
    """Put the corpus on the devices and compile the programs ahead of time: those that begin a run are waited for.

    `order` and `eval_order` are the shapes [S, B] of the orders that will be trained on and evaluated;
    B is a multiple of the number of devices. With `texts`, from `monitor.texts`, there is a fourth program: `readings`.
    `in_c`: on one device, random numbers and the update by the C code (see `fused`), which `foreign.load` has loaded,
    or will have when `before` comes back, which is called before anything is compiled. A run that is not `alone` trains
    with others in their program: `segment` and `answers` are then compiled only if they are called.
    """
    began = time.perf_counter()
    devices = list(devices) if devices else jax.devices()[:1]
    axis = AXIS if len(devices) > 1 else None
    across = Mesh(np.array(devices), (AXIS,))
    in_c = in_c and axis is None
    rectangle = _rectangle(max_length, in_c)
    drawn, plain = (keys.in_c, keys.plain) if in_c and keys.usable() else (lambda key: key,) * 2

    fast = fused.update(optimizer, model.has_table) if in_c else None
    late = model.has_table and (fast is not None or _late(model, optimizer, order[1] * max_length))
    way = tables.deferred if late else tables.dense
    table = fast or way(optimizer, axis)
    given, optimizer = optimizer, tables.deferring(optimizer, order[0]) if late else optimizer

    def init(seed, init_scale):
        key_init, key_run = jax.random.split(drawn(jax.random.key(seed)))
        params = model.init(key_init, init_scale)
        if model.has_table:
            params = params._replace(input=_filled_up(params.input, len(devices)))
        return TrainState(params, optimizer.init(params), jnp.int32(0), plain(key_run))

    def like(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    state = jax.eval_shape(init, like(np.uint32), like(np.float32))
    whole = jax.tree.map(lambda _: P(), state.params)
    cut = whole._replace(input=P(axis)) if model.has_table else whole
    moments = state.optimizer.adam if late else state.optimizer
    memory = optax.tree.map_params(
        partial(jax.eval_shape, given.init), lambda _, spec: spec, moments, cut, transform_non_params=lambda _: P()
    )
    memory = tables.Memory(memory, tables.Behind(P(axis), P(), P(), P())) if late else memory
    spec = TrainState(cut, memory, P(), P())
    columns = P(None, axis)
    data = Data(*(jax.device_put(_aligned(part), NamedSharding(across, P())) for part in
                  (corpus.tokens, corpus.offset, corpus.target)))  # fmt: skip

    def traced(function, arguments, specs, out_specs, **settings):
        if axis is not None:
            function = jax.shard_map(function, mesh=across, in_specs=specs, out_specs=out_specs, check_vma=False)
        shardings = [jax.tree.map(partial(NamedSharding, across), s) for s in (specs, out_specs)]
        return jax.jit(function, in_shardings=shardings[0], out_shardings=shardings[1], **settings).lower(*arguments)

    hyper = Hyper(*(like(np.float32),) * len(Hyper._fields))
    pure = Pure(
        make_update(model, table, factor, axis, drawn),
        table.settle,
        rectangle,
        make_answers(model, max_length, axis, in_c),
        order,
    )

    def training():
        return traced(
            make_segment(pure.update, pure.settle, pure.gather),
            (state, hyper, data, like(np.int32, *order), like(np.int32), like(np.int32), like(np.bool_)),
            (spec, P(), P(), columns, P(), P(), P()),
            (spec, P(), P()),
            donate_argnums=0,
        )

    def measuring():
        return traced(
            pure.answers,
            (state.params, data, like(np.int32, *eval_order), like(np.int32)),
            (cut, P(), columns, P()),
            (P(), columns),
        )

    with Compiler(before) as compiler:
        segment = compiler.begin(training()) if alone else compiler.asked(training)
        shardings = jax.tree.map(partial(NamedSharding, across), (spec, P(), P()))
        begin = compiler.begin(jax.jit(init, out_shardings=shardings[0]).lower(like(np.uint32), like(np.float32)))
        answers = compiler.later(measuring) if alone else compiler.asked(measuring)
        if texts is not None:
            measured, texts = gradients.make(model), (np.ascontiguousarray(texts[0].T), texts[1])
            everywhere = table if axis is None else way(given)  # each device has all texts

            def readings(state, tokens, target):
                length = jnp.full(len(target), len(tokens))
                xs = everywhere.read(state, tokens, length)[0] if model.has_table else tokens
                return measured(state.params, xs, target)

            flow = compiler.later(lambda: jax.jit(readings, in_shardings=shardings).lower(state, *texts))
    for program in (begin, segment) if alone else (begin,):
        program.ready()
    spent = time.perf_counter() - began
    shapes = _shapes(model)
    placed = jax.tree.map(
        lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(across, p)), state, spec
    )
    kept = TrainState(
        shapes, jax.eval_shape(optimizer.init, shapes), state.step, jax.eval_shape(jax.random.key_data, state.key)
    )
    read, count = (None, 3) if texts is None else (monitor.Measure(flow, texts), 4)
    return Programs(begin, segment, answers, data, shapes, eval_order, count, spent, placed, kept, given, read, pure)


def _shapes(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0)))


def _late(model, optimizer, places) -> bool:
    """Are the rows of the table worth deferring, where a batch has so many places."""
    rows = getattr(optimizer, "rows", "dense")
    if rows != "auto":
        return rows == "deferred"
    return len(_shapes(model).input) >= tables.WORTH_DEFERRING * places


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
