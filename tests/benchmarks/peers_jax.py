"""Peers that run on jax: a plain `lax.scan`, flax nnx, equinox, haiku, keras.

Each gives the pure loss of its own layers; around it stands one training step, optax.adam on donated arrays, called
once per update or, where that is faster for it, many updates in one `lax.scan` over batches that lie on the device.
Keras may also run its own `train_on_batch`. Haiku's vanilla core is relu and its GRU resets before the product: the
cores here are written with its own Linear so that all train the same network.
"""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.problem import CLASSES, EPS, RATE, Problem, batches, parameters
from tests.benchmarks.worker import Contestant


class Peer(NamedTuple):
    """A library's network as pure functions; tokens come time-major, [T, B]."""

    params: Any
    logits: Callable  # (params, tokens [T, B]) -> [B, C]
    named: Callable  # a tree like params -> arrays by the names of `problem.parameters`
    keras: Any = None  # the Keras model, for its own training step


def start(flags: str) -> None:
    """Before jax is imported: XLA's flags as this project sets them ("ours"), or as they are ("default")."""
    os.environ["KERAS_BACKEND"] = "jax"
    if flags == "ours":
        from jaxrnn import devices

        devices.set_flags()


def plain(problem: Problem, unroll: int) -> Peer:
    """`lax.scan` over the cell of jaxrnn, its input projection hoisted out of the loop, differentiated by jax."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from tests.benchmarks import ours

    model = ours.model_of(problem)
    cell = ours.cell_of(problem)

    def logits(params, tokens):
        p = params.layers[0]
        begin = jax.tree.map(lambda s: jnp.broadcast_to(s, (tokens.shape[1], *s.shape)), cell.start(p))
        projected = cell.split.before_loop(p, params.input[tokens])
        end, _ = lax.scan(lambda s, x: (cell.split.advance(p, s, x)[0], None), begin, projected, unroll=unroll)
        return cell.output(end) @ params.W_hy.T + params.b_y

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return Peer(ours.packed(problem, shapes), logits, ours.named)


def flax(problem: Problem, unroll: int) -> Peer:
    import jax.numpy as jnp
    from flax import nnx

    p, (E, H) = parameters(problem), (problem.E, problem.H)
    make = {"vanilla": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}[problem.cell]

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.embedding = nnx.Embed(problem.V, E, rngs=rngs)
            self.rnn = nnx.RNN(make(E, H, rngs=rngs), time_major=True, return_carry=True, unroll=unroll)
            self.readout = nnx.Linear(H, CLASSES, rngs=rngs)

        def __call__(self, tokens):
            zeros = jnp.zeros((tokens.shape[1], H))
            begin = (zeros, zeros) if problem.cell == "lstm" else zeros
            carry, _ = self.rnn(self.embedding(tokens), initial_carry=begin)
            return self.readout(carry[1] if problem.cell == "lstm" else carry)

    def leaves(net):
        cell = net.rnn.cell
        biased = cell.dense_h if problem.cell == "lstm" else cell.dense_i
        return {"table": net.embedding.embedding, "W_xh": cell.dense_i.kernel, "W_hh": cell.dense_h.kernel,
                "b_h": biased.bias, "W_hy": net.readout.kernel, "b_y": net.readout.bias}  # fmt: skip

    net = Net(nnx.Rngs(0))
    for name, variable in leaves(net).items():
        variable[...] = p[name].T if name.startswith("W_") else p[name]
    parts: Any = nnx.split(net, nnx.Param, ...)
    graph, params, rest = parts

    def named(tree):
        found = {name: np.asarray(v[...]) for name, v in leaves(nnx.merge(graph, tree, rest)).items()}
        return {name: v.T if name.startswith("W_") else v for name, v in found.items()}

    return Peer(params, lambda params, tokens: nnx.merge(graph, params, rest)(tokens), named)


def equinox(problem: Problem, unroll: int) -> Peer:
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    p, key, (E, H) = parameters(problem), jax.random.key(0), (problem.E, problem.H)

    class Vanilla(eqx.Module):
        into: eqx.nn.Linear
        back: eqx.nn.Linear

        def __call__(self, x, h):
            return jnp.tanh(self.into(x) + self.back(h))

    class Net(eqx.Module):
        embedding: eqx.nn.Embedding
        cell: Any
        readout: eqx.nn.Linear

        def __call__(self, tokens):  # [T], one row
            xs = jax.vmap(self.embedding)(tokens)
            begin = (jnp.zeros(H), jnp.zeros(H)) if problem.cell == "lstm" else jnp.zeros(H)
            end: Any
            end, _ = jax.lax.scan(lambda state, x: (self.cell(x, state), None), begin, xs, unroll=unroll)
            return self.readout(end[0] if problem.cell == "lstm" else end)

    if problem.cell == "vanilla":
        cell: Any = Vanilla(eqx.nn.Linear(E, H, key=key), eqx.nn.Linear(H, H, use_bias=False, key=key))
    else:
        cell = (eqx.nn.GRUCell if problem.cell == "gru" else eqx.nn.LSTMCell)(E, H, key=key)
    net = Net(eqx.nn.Embedding(weight=jnp.asarray(p["table"])), cell, eqx.nn.Linear(H, CLASSES, key=key))

    def leaves(net) -> dict[str, Any]:
        c = net.cell
        inner = ({"W_xh": c.into.weight, "W_hh": c.back.weight, "b_h": c.into.bias} if problem.cell == "vanilla" else
                 {"W_xh": c.weight_ih, "W_hh": c.weight_hh, "b_h": c.bias})  # fmt: skip
        inner |= {"b_hn": c.bias_n} if problem.cell == "gru" else {}
        return inner | {"table": net.embedding.weight, "W_hy": net.readout.weight, "b_y": net.readout.bias}

    names = list(leaves(net))
    net = eqx.tree_at(lambda n: [leaves(n)[k] for k in names], net, [jnp.asarray(p[k]) for k in names])
    params, rest = eqx.partition(net, eqx.is_inexact_array)
    return Peer(params, lambda params, tokens: jax.vmap(eqx.combine(params, rest))(tokens.T), leaves)


def haiku(problem: Problem, unroll: int) -> Peer:
    import haiku as hk
    import jax
    import jax.numpy as jnp

    p, H = parameters(problem), problem.H

    class Vanilla(hk.RNNCore):
        def __call__(self, x, h):
            h = jnp.tanh(hk.Linear(H, name="into")(x) + hk.Linear(H, with_bias=False, name="back")(h))
            return h, h

        def initial_state(self, batch_size):
            return jnp.zeros((batch_size, H))

    class ResetAfter(Vanilla):
        def __call__(self, x, h):
            x_r, x_z, x_n = jnp.split(hk.Linear(3 * H, name="into")(x), 3, -1)
            h_r, h_z, h_n = jnp.split(hk.Linear(3 * H, with_bias=False, name="back")(h), 3, -1)
            r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
            n = jnp.tanh(x_n + r * (h_n + hk.get_parameter("b_hn", [H], init=jnp.zeros)))
            h = (1 - z) * n + z * h
            return h, h

    def forward(tokens):
        core = {"vanilla": Vanilla, "gru": ResetAfter}[problem.cell](name="core") if problem.cell != "lstm" else (
            hk.LSTM(H, name="core"))  # fmt: skip
        xs = hk.Embed(problem.V, problem.E, name="embedding")(tokens)
        _, end = hk.dynamic_unroll(core, xs, core.initial_state(tokens.shape[1]), unroll=unroll)
        return hk.Linear(CLASSES, name="readout")(end.hidden if problem.cell == "lstm" else end)

    net: Any = hk.without_apply_rng(hk.transform(forward))
    i, f, g, o = np.split(np.arange(4 * H), 4)
    theirs = np.concatenate([i, g, f, o])  # the order of hk.LSTM's gates, which adds 1 to the forget bias itself
    one = np.zeros(4 * H, np.float32)
    one[H : 2 * H] = 1
    params = {"embedding": {"embeddings": p["table"]}, "readout": {"w": p["W_hy"].T, "b": p["b_y"]}}
    if problem.cell == "lstm":
        both = np.concatenate([p["W_xh"], p["W_hh"]], 1)
        params["core/linear"] = {"w": both[theirs].T, "b": (p["b_h"] - one)[theirs]}
    else:
        params |= {"core/into": {"w": p["W_xh"].T, "b": p["b_h"]}, "core/back": {"w": p["W_hh"].T}}
        params |= {"core": {"b_hn": p["b_hn"]}} if problem.cell == "gru" else {}

    def named(tree):
        tree = jax.tree.map(np.asarray, tree)
        found = {"table": tree["embedding"]["embeddings"], "W_hy": tree["readout"]["w"].T, "b_y": tree["readout"]["b"]}
        if problem.cell == "lstm":  # the permutation is its own inverse
            w, b = tree["core/linear"]["w"].T[theirs], tree["core/linear"]["b"][theirs]
            return found | {"W_xh": w[:, : problem.E], "W_hh": w[:, problem.E :], "b_h": b}
        found |= {"W_xh": tree["core/into"]["w"].T, "W_hh": tree["core/back"]["w"].T, "b_h": tree["core/into"]["b"]}
        return found | ({"b_hn": tree["core"]["b_hn"]} if problem.cell == "gru" else {})

    return Peer(params, net.apply, named)


def keras(problem: Problem, unroll: int) -> Peer:
    from tests.benchmarks import peers_keras

    params, logits, named, model = peers_keras.network(problem)
    return Peer(params, logits, named, model)


MEMBERS = {"plain": plain, "flax": flax, "equinox": equinox, "haiku": haiku, "keras": keras}


def mean_loss(peer: Peer) -> Callable:
    import optax

    def loss(params, tokens, target):
        return optax.softmax_cross_entropy_with_integer_labels(peer.logits(params, tokens), target).mean()

    return loss


def gradients(problem: Problem, *, library: str, flags: str = "ours", many: bool = False, unroll: int = 1,
              step: str = "jit") -> tuple[float, dict[str, np.ndarray]]:  # fmt: skip
    """The loss and the gradients of batch 0."""
    start(flags)
    import jax

    tokens, target = (part[0] for part in batches(problem))
    peer = MEMBERS[library](problem, unroll)
    loss, found = jax.jit(jax.value_and_grad(mean_loss(peer)))(peer.params, tokens.T, target)
    return float(loss), {name: np.asarray(value) for name, value in peer.named(found).items()}


def build(problem: Problem, *, library: str, flags: str = "ours", many: bool = False, unroll: int = 1,
          step: str = "jit") -> Contestant:  # fmt: skip
    """step="own" is the library's own training call, where it has one; `many` updates run in one scan."""
    start(flags)
    import jax
    import optax

    peer = MEMBERS[library](problem, unroll)
    tokens, target = batches(problem)
    if step == "own":
        from tests.benchmarks import peers_keras

        return peers_keras.own(problem, peer.keras, tokens, target)
    tokens, target = jax.device_put((np.ascontiguousarray(tokens.transpose(0, 2, 1)), target))
    optimizer, loss = optax.adam(RATE, eps=EPS), mean_loss(peer)

    def update(carry, batch):
        params, memory = carry
        now, found = jax.value_and_grad(loss)(params, *batch)
        updates, memory = optimizer.update(found, memory, params)
        return (optax.apply_updates(params, updates), memory), now

    program: Any = (lambda carry, batch: jax.lax.scan(update, carry, batch)) if many else update
    rotated = [(tokens, target)] if many else [(x, y) for x, y in zip(tokens, target, strict=True)]
    params = jax.tree.map(lambda leaf: jax.device_put(np.array(leaf)), peer.params)
    carry = (params, optimizer.init(params))
    began = time.perf_counter()
    compiled = jax.jit(program, donate_argnums=0).lower(carry, rotated[0]).compile()
    seconds = time.perf_counter() - began
    now = [carry]

    def turn():
        carry, losses = now[0], []
        for batch in rotated:
            carry, loss = compiled(carry, batch)
            losses.append(loss)
        now[0] = jax.block_until_ready(carry)
        return losses

    first = np.ravel(turn()).tolist()
    return Contestant(turn, problem.updates, first, seconds)
