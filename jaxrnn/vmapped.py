"""The programs of `programs` for W members of a group at once, and their states side by side on the device.

    states [W], logs [W, 4, S], made [W] = segment(states, hypers [W], data, orders [W, S, B], begin, end, last [W])
    sums [W, 3], logits [W, S, B, C] = answers(params [W], data, order [S, B], end)

Row i is what `segment(state i, ...)` of the run alone gives, to the last few bits. Loops have one end for all: vmap of
a `while_loop` whose ends differ would choose between the old and the new value of all that it carries, at every step.
Here the loop over updates goes on until the last member is done, and an update that a member does not want changes
nothing, by the same means as one that is not finite; the loops over time end where the longest row of all members does.

A member that takes no part in a call has begin = end: so its state may stay where it is (see `rows`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn.compiling import Compiler, Program
from jaxrnn.programs import Programs, Pure
from jaxrnn.resuming import Log
from jaxrnn.types import Hyper


class Together(NamedTuple):
    """The programs of so many members, compiled or on the way."""

    segment: Program
    answers: Program

    def there(self) -> bool:
        """Has their compilation ended."""
        return all(program.done() for program in self)

    def error(self) -> BaseException | None:
        """Of their compilation, which has ended."""
        return next((error for program in self if (error := program.error())), None)


def make_segment(pure: Pure) -> Callable:
    """segment(states, hypers, data, orders, begin, end, last) -> (states, logs, made), as above."""

    def segment(states, hypers, data, orders, begin, end, last):
        W, S = orders.shape[:2]

        def wanted(carry):
            k, _, _, finite, _ = carry
            return (begin + k < end) & finite

        def going(carry):
            return jnp.any(wanted(carry))

        def one(carry):
            k, states, logs, finite, made = carry
            at, asked = begin + k, wanted(carry)
            batch = jax.vmap(pure.gather, (None, 0, 0))(data, orders, jnp.minimum(at, S - 1))
            states, now, good = jax.vmap(pure.update)(states, hypers, batch, asked)
            logs = logs.at[jnp.arange(W), :, jnp.where(asked, at, S)].set(jnp.stack(now, 1), mode="drop")
            return k + 1, states, logs, finite & (good | ~asked), made + (asked & good)

        logs = jnp.zeros((W, len(Log._fields), S))
        nothing = (jnp.int32(0), states, logs, jnp.ones(W, bool), jnp.zeros(W, jnp.int32))
        _, states, logs, finite, made = lax.while_loop(going, one, nothing)
        ended = last & finite

        def settled(states):
            return jax.vmap(lambda ended, state: lax.cond(ended, pure.settle, lambda s: s, state))(ended, states)

        return lax.cond(jnp.any(ended), settled, lambda states: states, states), logs, made

    return segment


def begun(programs: Programs, width: int) -> Together:
    """Begin to compile for so many members."""
    where, pure = programs.placed.step.sharding, programs.pure

    def like(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    def compiling(function, *arguments, **settings):
        def traced():
            return jax.jit(function, in_shardings=where, out_shardings=where, **settings).lower(*arguments)

        with Compiler() as compiler:
            return compiler.later(traced)

    states = jax.tree.map(lambda one: like(one.dtype, width, *one.shape), programs.placed)
    hypers = Hyper(*(like(np.float32, width),) * len(Hyper._fields))
    numbers = like(np.int32, width), like(np.int32, width), like(np.bool_, width)
    orders = like(np.int32, width, *pure.order)
    answers = jax.vmap(pure.answers, (0, None, None, None))
    order = like(np.int32, *programs.eval_order), like(np.int32)
    return Together(
        compiling(make_segment(pure), states, hypers, programs.data, orders, *numbers, donate_argnums=0),
        compiling(answers, states.params, programs.data, *order),
    )


def needed(together: Together) -> int:
    """Bytes on the device: states, orders, what the programs write and what they need meanwhile."""
    training, measuring = (program.ready().memory_analysis() for program in together)
    others = measuring.argument_size_in_bytes + measuring.output_size_in_bytes + measuring.temp_size_in_bytes
    meanwhile = max(training.output_size_in_bytes + training.temp_size_in_bytes, others)
    return int(training.argument_size_in_bytes + meanwhile)
