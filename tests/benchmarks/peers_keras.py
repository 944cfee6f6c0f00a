"""Keras on jax: its layers as a pure loss, or the model with its own `train_on_batch`."""

import itertools
import time

import numpy as np

from tests.benchmarks.problem import CLASSES, EPS, RATE, Problem, parameters
from tests.benchmarks.worker import Contestant


def network(problem: Problem):
    """-> parameters, logits(params, tokens [T, B]), names of a tree like the parameters, the Keras model."""
    import keras as K

    p, H = parameters(problem), problem.H
    layer = {"vanilla": K.layers.SimpleRNN, "gru": K.layers.GRU, "lstm": K.layers.LSTM}[problem.cell]
    model = K.Sequential([K.Input((problem.T,), dtype="int32"), K.layers.Embedding(problem.V, problem.E),
                          layer(H), K.layers.Dense(CLASSES)])  # fmt: skip
    gates = np.arange(p["b_h"].size)
    if problem.cell == "gru":  # z, r, n there
        r, z, n = np.split(gates, 3)
        gates = np.concatenate([z, r, n])
    bias = p["b_h"][gates]
    if problem.cell == "gru":
        inner = np.zeros_like(bias)
        inner[2 * H :] = p["b_hn"]
        bias = np.stack([bias, inner])
    model.set_weights([p["table"], p["W_xh"][gates].T, p["W_hh"][gates].T, bias, p["W_hy"].T, p["b_y"]])
    fixed = [v.value for v in model.non_trainable_variables]

    def logits(params, tokens):
        return model.stateless_call(params, fixed, tokens.T)[0]

    def named(tree):
        table, kernel, recurrent, bias, W_hy, b_y = (np.asarray(leaf) for leaf in tree)
        found = {"table": table, "W_xh": kernel.T[gates], "W_hh": recurrent.T[gates], "W_hy": W_hy.T, "b_y": b_y}
        if problem.cell != "gru":
            return found | {"b_h": bias}
        return found | {"b_h": bias[0][gates], "b_hn": bias[1][2 * H :]}

    return [v.value for v in model.trainable_variables], logits, named, model


def own(problem: Problem, model, tokens: np.ndarray, target: np.ndarray) -> Contestant:
    """Keras's own step, `train_on_batch`."""
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(RATE, epsilon=EPS), loss=loss)
    rotation = itertools.cycle(zip(tokens, target, strict=True))
    began = time.perf_counter()
    first = [float(model.train_on_batch(*next(rotation)))]
    seconds = time.perf_counter() - began

    def turn():
        for _ in range(problem.updates):
            model.train_on_batch(*next(rotation))

    return Contestant(turn, problem.updates, first, seconds)
