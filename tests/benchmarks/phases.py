"""Where the time of a start goes: `jaxrnn.train` with clocks around its stages, ended after the first updates.

    python -m tests.benchmarks.phases OVERRIDES...        prints one JSON line of seconds

The clocks are put on from outside, here; the product has none. Tracing, lowering, compiling and reading the cache are
what jax reports of itself, two programs at once where they compile side by side, so their sum may pass `build`.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

BEGAN = time.perf_counter()
REPORTED = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile or read cache",
    "/jax/compilation_cache/cache_retrieval_time_sec": "read cache",
}
spent: dict[str, float] = {}


def clocked(home: Any, name: str, phase: str) -> None:
    """Replace home.name by itself with a clock."""
    function: Callable[..., Any] = getattr(home, name)

    def call(*arguments: Any, **settings: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **settings)
        finally:
            spent[phase] = spent.get(phase, 0.0) + time.perf_counter() - began

    setattr(home, name, call)


def main() -> None:
    from jaxrnn import artefact, config, devices, text, train

    spent["import commands"] = time.perf_counter() - BEGAN
    clocked(config, "compose", "compose")
    clocked(artefact, "splits", "data")
    clocked(text, "encode", "data")
    compose = config.compose

    def composed(*arguments: Any, **settings: Any) -> Any:
        made = compose(*arguments, **settings)
        devices.set_flags()
        began = time.perf_counter()
        import jax

        spent["import jax"] = time.perf_counter() - began
        began = time.perf_counter()
        from jaxrnn import fit

        spent["import network"] = time.perf_counter() - began
        began = time.perf_counter()
        devices.choose(made.device.name, made.device.count)
        spent["start device"] = time.perf_counter() - began
        jax.monitoring.register_event_duration_secs_listener(reported)
        clocked(fit, "build", "build")
        fit.fit = first(fit.fit)
        return made

    def reported(event: str, duration_secs: float, **_: Any) -> None:
        if event in REPORTED:
            spent[REPORTED[event]] = spent.get(REPORTED[event], 0.0) + duration_secs

    def first(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            began = time.perf_counter()
            for now in function(*arguments, **settings):
                spent["init and first updates"] = time.perf_counter() - began
                spent["all, without Python's own start"] = time.perf_counter() - BEGAN
                print(json.dumps({"updates": now.step} | spent), flush=True)
                os._exit(0)

        return call

    config.compose = composed
    train.main(sys.argv[1:])


if __name__ == "__main__":
    main()
