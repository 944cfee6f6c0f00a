"""jaxrnn itself: the compiled `segment` of `fit.build`, as `python -m jaxrnn.train` runs it.

One timed call is one segment of `updates` updates; the corpus lies on the device and each update gathers its rows. The
time holds everything the product does: lengths, the gradient norm, the check that a step is finite.
"""

import itertools

import numpy as np

from jaxrnn import devices
from tests.benchmarks.problem import CLASSES, EPS, RATE, Problem, batches, parameters
from tests.benchmarks.worker import Contestant


def model_of(problem: Problem, unroll: str = "bptt"):
    import jaxrnn
    from jaxrnn import foreign

    if unroll == "kernel":
        foreign.load()

    return jaxrnn.rnn(
        vocabulary_size=problem.V, classes=CLASSES, cell=problem.cell, input_size=problem.E, hidden_size=problem.H,
        unroll=unroll,
    )  # fmt: skip


def packed(problem: Problem, like):
    """The given parameters as the tree of the model; `like` says its cell's fields."""
    p = parameters(problem)
    cell = type(like.layers[0])(*(p[name] for name in type(like.layers[0])._fields))
    return like._replace(input=p["table"], layers=(cell,), W_hy=p["W_hy"], b_y=p["b_y"])


def named(params) -> dict[str, np.ndarray]:
    """A tree of the model by the names of `problem.parameters`."""
    cell = params.layers[0]._asdict()
    found = {"table": params.input, "W_hy": params.W_hy, "b_y": params.b_y} | cell
    return {name: np.asarray(value) for name, value in found.items()}


def gradients(problem: Problem, *, count: int = 1, rows: str = "auto",
              unroll: str = "kernel") -> tuple[float, dict[str, np.ndarray]]:  # fmt: skip
    """The loss and the gradients of batch 0, on one device."""
    devices.set_flags()
    chosen = devices.choose(problem.device, count)
    import jax

    from jaxrnn.types import Batch

    model = model_of(problem, unroll=unroll)
    tokens, target = (part[0] for part in batches(problem))
    full = np.full(problem.B, problem.T, np.int32)
    params = packed(problem, jax.eval_shape(model.init, jax.random.key(0)))
    batch = jax.device_put(Batch(tokens, full, target, np.ones(problem.B, np.float32)), chosen[0])
    (loss, _), found = jax.jit(jax.value_and_grad(model.loss, has_aux=True))(params, batch)
    return float(loss), named(found)


def corpus_of(problem: Problem):
    """-> Corpus and orders [epochs, S, B]: the drawn batches, or the rows of an .npz."""
    from jaxrnn.types import Corpus

    if problem.corpus:
        with np.load(problem.corpus) as file:
            tokens, offset, target, order = (file[name] for name in ("tokens", "offset", "target", "order"))
    else:
        drawn, target = batches(problem)
        order = np.arange(target.size, dtype=np.int32).reshape(target.shape)
        tokens, target = drawn.ravel(), target.ravel()
        offset = np.arange(target.size + 1, dtype=np.int32) * np.int32(problem.T)
    return Corpus(tokens, offset, target, *(np.arange(1, dtype=np.int32),) * 3), order.reshape(-1, *order.shape[-2:])


def build(problem: Problem, *, count: int = 1, rows: str = "auto", unroll: str = "kernel") -> Contestant:
    """`count` devices that share the rows of a batch; `rows` is the optimizer's way with the embedding table, `unroll`
    that of the loops: kernel, as a run has it where there is a C compiler, or bptt, XLA's loops."""
    devices.set_flags()
    chosen = devices.choose(problem.device, count)
    import jax

    from jaxrnn import fit, optimizers
    from jaxrnn.types import Hyper

    corpus, orders = corpus_of(problem)
    model = model_of(problem, unroll)
    adam = optimizers.transformation("adam", eps=EPS, rows=rows)
    programs = fit.build(
        model, adam, optimizers.constant, corpus, order=orders.shape[1:],
        eval_order=(1, orders.shape[2]), max_length=problem.T, devices=chosen,
        in_c=unroll == "kernel",
    )  # fmt: skip
    hyper = Hyper(*(np.float32(number) for number in Hyper(RATE)))
    state = programs.init(np.uint32(0), np.float32(1))

    def placed(new, old):
        filled = np.zeros(old.shape, old.dtype)  # the table ends with rows that only fill up the last device
        filled[: len(new)] = new
        return jax.device_put(filled, old.sharding)

    state = state._replace(params=jax.tree.map(placed, packed(problem, state.params), state.params))
    end = np.int32(orders.shape[1])
    epochs = itertools.cycle(orders)
    first, log, made = programs.segment(state, hyper, programs.data, next(epochs), np.int32(0), end, np.bool_(True))
    assert made == end, "the loss is not finite"
    now = [first]

    def turn():
        state, _, _ = programs.segment(now[0], hyper, programs.data, next(epochs), np.int32(0), end, np.bool_(True))
        now[0] = jax.block_until_ready(state)

    return Contestant(turn, int(end), [float(x) for x in np.asarray(log)[0]], programs.compile_seconds)


def cell_of(problem: Problem):
    """The cell of the model."""
    from jaxrnn import model

    return model.member("cells", problem.cell)(problem.E, problem.H)
