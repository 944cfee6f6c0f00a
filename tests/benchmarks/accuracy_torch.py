"""SST-2 sentences in plain PyTorch, as the accuracy race runs it: packed rows, the mean of the states, fused Adam.

python -m tests.benchmarks.accuracy_torch data=FOLDER seed=0 epochs=10 threads=2
"""

import numpy as np
import torch
from torch import nn
from torch.nn.utils import rnn

from jaxrnn import orders
from tests.benchmarks import accuracy_data as shared


class Net(nn.Module):
    """Embedding, nn.RNN, mean over the real steps, readout; one dropout mask per text on embedding and features."""

    def __init__(self, first):
        super().__init__()
        first = {name: torch.from_numpy(value) for name, value in first.items()}
        self.embedding = nn.Embedding.from_pretrained(first["table"], freeze=False)
        self.rnn = nn.RNN(shared.SIZE, shared.SIZE)
        self.readout = nn.Linear(shared.SIZE, 2)
        with torch.no_grad():
            for name, key in {"rnn.weight_ih_l0": "W_xh", "rnn.weight_hh_l0": "W_hh", "rnn.bias_ih_l0": "b_h",
                              "readout.weight": "W_hy", "readout.bias": "b_y"}.items():  # fmt: skip
                self.get_parameter(name).copy_(first[key])
            self.rnn.get_parameter("bias_hh_l0").zero_()

    def forward(self, tokens, length):
        xs = self.embedding(tokens.T)
        if self.training:
            xs = xs * nn.functional.dropout(torch.ones_like(xs[0]), shared.DROPOUT)
        ys, _ = self.rnn(rnn.pack_padded_sequence(xs, length, enforce_sorted=True))
        ys, _ = rnn.pad_packed_sequence(ys)
        return self.readout(nn.functional.dropout(ys.sum(0) / length[:, None], shared.DROPOUT, self.training))


def batch(corpus, rows):
    rows = rows[rows >= 0]
    tokens, length, target = shared.rectangle(corpus, rows[np.argsort(-corpus.length[rows], kind="stable")])
    return torch.from_numpy(tokens), torch.from_numpy(length.astype(np.int64)), torch.from_numpy(target)


def main():
    given = shared.settings()
    seed = int(given["seed"])
    torch.set_num_threads(int(given["threads"]))
    torch.manual_seed(seed)
    corpus, vocabulary = shared.read(given["data"])
    net = Net(shared.weights(np.random.default_rng(seed), vocabulary))
    adam = torch.optim.Adam(net.parameters(), lr=shared.RATE, fused=True)
    valid = [batch(corpus, rows) for rows in orders.plain(corpus.valid, corpus.length, 128)]
    plan = orders.plan(corpus.train, corpus.length, shared.BATCH, seed)
    for epoch in range(int(given["epochs"])):
        net.train()
        for rows in plan(epoch):
            tokens, length, target = batch(corpus, rows)
            adam.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(net(tokens, length), target).backward()
            adam.step()
        net.eval()
        with torch.inference_mode():
            right = sum((net(x, n).argmax(1) == y).sum().item() for x, n, y in valid)
        print(f"epoch {epoch + 1}   valid accuracy {right / len(corpus.valid):.4f}", flush=True)


if __name__ == "__main__":
    main()
