"""SST-2 sentences in Keras on jax, as the accuracy race runs it: one length for all batches, so that it compiles once.

    python -m tests.benchmarks.accuracy_keras data=FOLDER seed=0 epochs=10

Keras has no cache of compiled programs of its own; it gets the one of jax, in the folder that jaxrnn would use.
"""

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
if os.environ.get("XDG_CACHE_HOME"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(os.environ["XDG_CACHE_HOME"]) / "keras")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import keras
import numpy as np

from tests.benchmarks import accuracy_data as shared


def main():
    given = shared.settings()
    seed = int(given["seed"])
    keras.utils.set_random_seed(seed)
    corpus, vocabulary = shared.read(given["data"])
    longest = int(corpus.length.max())
    x, _, y = shared.rectangle(corpus, corpus.train, longest)
    valid_x, _, valid_y = shared.rectangle(corpus, corpus.valid, longest)
    model = keras.Sequential([
        keras.Input((longest,), dtype="int32"),
        keras.layers.Embedding(vocabulary, shared.SIZE, mask_zero=True),
        keras.layers.SpatialDropout1D(shared.DROPOUT),
        keras.layers.SimpleRNN(shared.SIZE, return_sequences=True),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dropout(shared.DROPOUT),
        keras.layers.Dense(2),
    ])  # fmt: skip
    first = shared.weights(np.random.default_rng(seed), vocabulary)
    own = [[first["table"]], [first["W_xh"].T, first["W_hh"].T, first["b_h"]], [first["W_hy"].T, first["b_y"]]]
    for layer, values in zip((layer for layer in model.layers if layer.trainable_weights), own, strict=True):
        layer.set_weights(values)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    adam = keras.optimizers.Adam(shared.RATE, epsilon=1e-8)
    model.compile(optimizer=adam, loss=loss, metrics=["accuracy"])

    class Say(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            print(f"epoch {epoch + 1}   valid accuracy {logs['val_accuracy']:.4f}", flush=True)

    model.fit(x, y, batch_size=shared.BATCH, epochs=int(given["epochs"]), verbose=0, callbacks=[Say()],
              validation_data=(valid_x, valid_y))  # fmt: skip


if __name__ == "__main__":
    main()
