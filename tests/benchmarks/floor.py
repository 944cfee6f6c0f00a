"""What no step can be faster than: its products as large GEMMs, and Adam alone over all parameters, in place.

FLOPs of a step = 6 B T H (E + H) * gates        (forward, and twice that backward)
"""

import time

import numpy as np

from jaxrnn import devices
from tests.benchmarks.problem import EPS, GATES, RATE, Problem, parameters
from tests.benchmarks.worker import Contestant

SIZE = 1536  # of the square product: 7.2 GFLOP, far past every cache


def flops(problem: Problem) -> float:
    return 6.0 * problem.B * problem.T * problem.H * (problem.E + problem.H) * GATES[problem.cell]


def build(problem: Problem, *, part: str, flags: str = "ours", barrier: bool = False) -> Contestant:
    """part="gemm": one `update` is the FLOPs of a step at the rate of a large product; part="adam"."""
    if flags == "ours":
        devices.set_flags()
    import jax

    return gemm(jax) if part == "gemm" else adam(jax, problem, barrier)


def gemm(jax) -> Contestant:
    """One turn is one product of SIZE^3: `steps` turns its seconds into those of a step."""
    size = (SIZE, SIZE)
    a, b = (jax.device_put(np.random.default_rng(k).standard_normal(size, np.float32)) for k in (0, 1))
    began = time.perf_counter()
    product = jax.jit(jax.numpy.matmul).lower(a, b).compile()
    seconds = time.perf_counter() - began
    return Contestant(lambda: product(a, b).block_until_ready(), 1, [], seconds)


def adam(jax, problem: Problem, barrier: bool) -> Contestant:
    """`updates` updates of all parameters in one loop; two gradients take turns, so that nothing leaves the loop."""
    jnp = jax.numpy
    p = parameters(problem)

    def one(n, carry):
        p, m, v, gradients = carry
        count = jnp.float32(n + 1)

        def leaf(p, m, v, g):
            g = g[n % 2]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            if barrier:  # p is moved by the moments as written, not by the same ones computed again
                m, v = jax.lax.optimization_barrier((m, v))
            p = p - RATE * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + EPS)
            return p, m, v

        moved = {name: leaf(p[name], m[name], v[name], gradients[name]) for name in p}
        p, m, v = ({name: moved[name][k] for name in moved} for k in range(3))
        return p, m, v, gradients

    def program(p, m, v, gradients):
        return jax.lax.fori_loop(0, problem.updates, one, (p, m, v, gradients))[:3]

    gradients = {name: jax.device_put(np.stack([value, -value])) for name, value in p.items()}
    state = tuple(jax.device_put({n: np.array(value * k) for n, value in p.items()}) for k in (1, 0, 0))
    began = time.perf_counter()
    compiled = jax.jit(program, donate_argnums=(0, 1, 2)).lower(*state, gradients).compile()
    seconds = time.perf_counter() - began
    now = [state]

    def turn():
        now[0] = jax.block_until_ready(compiled(*now[0], gradients))

    return Contestant(turn, problem.updates, [], seconds)
