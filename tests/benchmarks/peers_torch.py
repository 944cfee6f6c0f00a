"""PyTorch: nn.RNN, nn.GRU, nn.LSTM and torch.optim.Adam, its variants of threads and of Adam as options."""

import itertools
import time
from typing import Any

import numpy as np

from tests.benchmarks.problem import CLASSES, EPS, GATES, RATE, Problem, batches, parameters
from tests.benchmarks.worker import Contestant

ADAM: dict[str, dict[str, Any]] = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def network(problem: Problem, *, sparse: bool = False):
    """Embedding, recurrence, readout with the given parameters; the second bias starts at zero, or holds b_hn."""
    import torch
    from torch import nn

    p, H = parameters(problem), problem.H
    layer = {"vanilla": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[problem.cell]
    net = nn.ModuleDict({
        "embedding": nn.Embedding(problem.V, problem.E, sparse=sparse, _weight=torch.from_numpy(p["table"])),
        "rnn": layer(problem.E, H),
        "readout": nn.Linear(H, CLASSES),
    })  # fmt: skip
    second = np.zeros(GATES[problem.cell] * H, np.float32)
    second[-H:] = p.get("b_hn", 0)
    values = {"rnn.weight_ih_l0": p["W_xh"], "rnn.weight_hh_l0": p["W_hh"], "rnn.bias_ih_l0": p["b_h"],
              "rnn.bias_hh_l0": second, "readout.weight": p["W_hy"], "readout.bias": p["b_y"]}  # fmt: skip
    with torch.no_grad():
        for name, value in values.items():
            net.get_parameter(name).copy_(torch.from_numpy(value))
    return net.to("cuda" if problem.device == "gpu" else "cpu")


def last_state(net, xs):
    """The state after the last word: of xs [T, B, E], or of packed rows, in their order."""
    _, end = net["rnn"](xs)
    return (end[0] if isinstance(end, tuple) else end)[0]


def optimizers(net, adam: str, sparse: bool) -> list:
    """Adam over everything; with sparse rows the table has torch's SparseAdam, which moves touched rows only."""
    import torch

    if not sparse:
        return [torch.optim.Adam(net.parameters(), lr=RATE, eps=EPS, **ADAM[adam])]
    rest = [p for name, p in net.named_parameters() if not name.startswith("embedding")]
    table = torch.optim.SparseAdam(net["embedding"].parameters(), lr=RATE, eps=EPS)
    return [table, torch.optim.Adam(rest, lr=RATE, eps=EPS, **ADAM[adam])]


def gradients(problem: Problem, *, threads: int = 1, adam: str = "fused", sparse: bool = False,
              way: str = "") -> tuple[float, dict[str, np.ndarray]]:  # fmt: skip
    """The loss and the gradients of batch 0."""
    import torch

    net = network(problem)
    tokens, target = (torch.from_numpy(part[0].astype(np.int64)) for part in batches(problem))
    device = net["embedding"].weight.device
    features = last_state(net, net["embedding"](tokens.T.to(device)))
    loss = torch.nn.functional.cross_entropy(net["readout"](features), target.to(device))
    loss.backward()
    found = {name: p.grad.cpu().numpy() for name, p in net.named_parameters()}
    named = {"table": found["embedding.weight"], "W_xh": found["rnn.weight_ih_l0"], "W_hh": found["rnn.weight_hh_l0"],
             "b_h": found["rnn.bias_ih_l0"], "W_hy": found["readout.weight"], "b_y": found["readout.bias"]}  # fmt: skip
    if problem.cell == "gru":
        named["b_hn"] = found["rnn.bias_hh_l0"][-problem.H :]
    return loss.item(), named


def build(problem: Problem, *, threads: int = 1, adam: str = "fused", sparse: bool = False,
          way: str = "rectangle") -> Contestant:  # fmt: skip
    """way: "rectangle" (all rows of length T), "packed" or "padded" (real rows, an epoch of batches made ready)."""
    import torch

    torch.set_num_threads(threads)
    net = network(problem, sparse=sparse)
    device = net["embedding"].weight.device
    steps = optimizers(net, adam, sparse)
    if way == "rectangle":
        tokens, target = (torch.from_numpy(part.astype(np.int64)).to(device) for part in batches(problem))
        ready = [(x.T.contiguous(), None, y) for x, y in zip(tokens, target, strict=True)]
        epochs = itertools.cycle([ready])
    else:
        epochs = itertools.cycle(real(problem, way, device))

    def features(tokens, length):
        if length is None:
            return last_state(net, net["embedding"](tokens))
        if way == "packed":
            packed = torch.nn.utils.rnn.PackedSequence(net["embedding"](tokens.data), tokens.batch_sizes)
            return last_state(net, packed)
        if problem.cell == "lstm":
            raise NotImplementedError("padded rows of an LSTM: use packed")
        ys, _ = net["rnn"](net["embedding"](tokens))
        return ys[length - 1, torch.arange(len(length), device=device)]

    def turn():
        losses = []
        for tokens, length, target in next(epochs):
            for step in steps:
                step.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(net["readout"](features(tokens, length)), target)
            loss.backward()
            for step in steps:
                step.step()
            losses.append(loss.detach())
        if device.type == "cuda":
            torch.cuda.synchronize()
        return losses

    began = time.perf_counter()
    first = [loss.item() for loss in turn()]
    return Contestant(turn, len(first), first, time.perf_counter() - began)


def real(problem: Problem, way: str, device) -> list[list[tuple]]:
    """The epochs of an .npz, made ready outside of the time: longest row first, each batch to its own longest row."""
    import torch
    from torch.nn.utils import rnn

    with np.load(problem.corpus or "") as file:
        flat, offset, target, order = (file[name] for name in ("tokens", "offset", "target", "order"))
    length = np.diff(offset)

    def batch(rows):
        rows = rows[rows >= 0]
        rows = rows[np.argsort(-length[rows], kind="stable")]
        texts = [torch.from_numpy(flat[offset[r] : offset[r + 1]].astype(np.int64)) for r in rows]
        tokens = rnn.pack_sequence(texts) if way == "packed" else rnn.pad_sequence(texts)
        lengths = torch.from_numpy(length[rows].astype(np.int64))
        return tokens.to(device), lengths.to(device), torch.from_numpy(target[rows].astype(np.int64)).to(device)

    return [[batch(rows) for rows in epoch] for epoch in order.reshape(-1, *order.shape[-2:])]
