"""A sweep as a plain Hydra + JAX script does it: the network of `experiment=notes`, jitted again in every job.

    python -m tests.benchmarks.plain -m train=TSV test=TSV learning_rate=0.01,0.02 seed=0,1 [hydra/launcher=joblib]

One-hot words, vanilla tanh, the last state, softmax, plain SGD clipped elementwise, one text per update; after every
epoch the validation rows and a line of metrics, at the end the test rows with the best parameters, which are saved.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import hydra
import numpy as np
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig

WORDS = 10  # of the longest text


@dataclass
class Config:
    train: str = "???"
    test: str = "???"
    hidden_size: int = 64
    learning_rate: float = 0.02
    epochs: int = 200
    seed: int = 0


ConfigStore.instance().store(name="config", node=Config)


def read(path):
    with open(path, newline="") as file:
        return [(row["sentence"].split(), int(row["label"])) for row in csv.DictReader(file, delimiter="\t")]


@hydra.main(config_path=None, config_name="config", version_base="1.3")
def main(given: Config) -> None:
    import jax
    import jax.numpy as jnp
    import optax
    from jax import lax

    folder = Path(HydraConfig.get().runtime.output_dir)
    rows, test = read(given.train), read(given.test)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    valid, train = shuffled[:6], shuffled[6:]
    ids = {word: n + 1 for n, word in enumerate(sorted({word for words, _ in train for word in words}))}

    def packed(rows):
        tokens = np.zeros((len(rows), WORDS), np.int32)
        for row, (words, _) in zip(tokens, rows, strict=True):
            row[: len(words)] = [ids.get(word, 0) for word in words]
        return tokens, np.array([len(w) for w, _ in rows], np.int32), np.array([label for _, label in rows], np.int32)

    key_xh, key_hh, key_hy = jax.random.split(jax.random.key(given.seed), 3)
    size = given.hidden_size
    params = {
        "W_xh": jax.random.normal(key_xh, (size, len(ids) + 1)) / 1000,
        "W_hh": jax.random.normal(key_hh, (size, size)) / 1000,
        "b_h": jnp.zeros(size),
        "W_hy": jax.random.normal(key_hy, (2, size)) / 1000,
        "b_y": jnp.zeros(2),
    }
    optimizer = optax.chain(optax.clip(1.0), optax.sgd(given.learning_rate))

    def logits(params, tokens, length):
        def step(h, now):
            t, token = now
            new = jnp.tanh(params["W_xh"][:, token] + params["W_hh"] @ h + params["b_h"])
            return jnp.where(t < length, new, h), None

        h, _ = lax.scan(step, jnp.zeros(size), (jnp.arange(WORDS), tokens))
        return params["W_hy"] @ h + params["b_y"]

    def loss(params, tokens, length, label):
        found = jax.vmap(logits, (None, 0, 0))(params, tokens, length)
        return optax.softmax_cross_entropy_with_integer_labels(found, label).mean(), found

    @jax.jit
    def update(params, state, tokens, length, label):
        (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(params, tokens, length, label)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    @jax.jit
    def measure(params, tokens, length, label):
        value, found = loss(params, tokens, length, label)
        return value, (found.argmax(-1) == label).mean()

    tokens, length, label = packed(train)
    held, asked = packed(valid), packed(test)
    state, shuffle = optimizer.init(params), np.random.default_rng(given.seed)
    best, kept = (-1.0, 0.0), params
    for epoch in range(1, given.epochs + 1):
        losses = []
        for i in shuffle.permutation(len(tokens)):
            params, state, value = update(params, state, tokens[i : i + 1], length[i : i + 1], label[i : i + 1])
            losses.append(value)
        cost, accuracy = (float(number) for number in measure(params, *held))
        if (accuracy, -cost) > best:
            best, kept = (accuracy, -cost), params
        record = {"epoch": epoch, "train_loss": float(np.mean(losses)), "loss": cost, "accuracy": accuracy}
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
    np.savez(folder / "best.npz", **kept)  # type: ignore[arg-type]
    (folder / "summary.json").write_text(json.dumps({"valid": best[0], "test": float(measure(kept, *asked)[1])}))


if __name__ == "__main__":
    main()
