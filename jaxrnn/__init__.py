"""jaxrnn: recurrent networks as pure functions in JAX, trained by configuration.

The names below are loaded when they are first used, so that a command can print its help without importing jax.
"""

import importlib

_HOMES = {
    "vanilla": "cells.vanilla", "gru": "cells.gru", "lstm": "cells.lstm", "rnn": "model",
    "tanh": "activations", "relu": "activations", "sigmoid": "activations", "softsign": "activations",
    "identity": "activations", "Batch": "types", "Noise": "types", "Hyper": "types", "Cell": "types", "Model": "types",
}  # fmt: skip
_MODULES = (
    "unroll", "layers", "heads", "activations", "initializers", "outputs", "optimizers", "fit", "types", "errors",
)  # fmt: skip

__all__ = [*_HOMES, *_MODULES]
__version__ = "0.1.0"


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(f"jaxrnn.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"jaxrnn.{name}")
    raise AttributeError(f"module 'jaxrnn' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
