"""Ways to carry a cell over time: one file per member, all with one signature and one answer.

    name(cell, params, xs [T, B, D], length [B] = None, *, reverse=False) -> (state [B, ...], ys [T, B, H])

Padding is to the right: at a step t >= length[b] row b keeps its state and its output is zero. `reverse=True` reads
each row from its last real step to its first; ys[t] is the output at the reading of step t. xs may be integers
[T, B], which name one-hot vectors. `length=None` says that every row has all T steps.
"""

from jaxrnn.unroll.bptt import bptt
from jaxrnn.unroll.scan import scan

__all__ = ["bptt", "scan"]
