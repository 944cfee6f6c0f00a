"""The vmapped programs of a group for a few widths, and which of them a number of members takes.

A width is a power of two, or the most there may be. Where a narrower one does for those that are left it is compiled
beside the training, once that may pay, and then taken.
"""

import math
import time
from collections.abc import Callable

from jaxrnn import vmapped
from jaxrnn.errors import MemoryExceeded, too_large
from jaxrnn.programs import Programs

WORTH = 1.0  # a narrower program: seconds trained too wide, for each that it takes to compile


class Widths:
    """`most`: members at once, which may become fewer; wider programs that are there are not used then."""

    def __init__(self, alone: Programs, most: int, say: Callable[[str], None]):
        self.alone, self.most, self.say = alone, most, say
        self.made: dict[int, vmapped.Together] = {}
        self._failed: set[int] = set()  # did not compile, said
        self._begun = time.monotonic()  # when the first of them was
        self._compile_seconds = math.inf  # that it took
        self._wide_seconds = 0.0  # trained since then in a program that was wider than need be

    def right(self, members: int) -> int:
        """The width for so many."""
        return max(members, min(self.most, 1 << (members - 1).bit_length()))

    def of(self, width: int) -> vmapped.Together:
        """Its programs, compiled or on the way."""
        if width not in self.made:
            self._begun = self._begun if self.made else time.monotonic()
            self.made[width] = vmapped.begun(self.alone, width)
        return self.made[width]

    def begin(self, members: int) -> None:
        """Begin to compile for so many."""
        self.of(self.right(members))

    def needed(self, members: int) -> int:
        """Bytes that so many members take on the device, when it is compiled for them."""
        return vmapped.needed(self.of(self.right(members)))

    def fit(self, members: int, free: int | None) -> int:
        """-> how many of so many can be in `free` bytes at once; `most` is lowered to that. None: all of them."""
        needed = self.needed(members)
        while free is not None and needed > free:
            if self.most > members:
                self.most = members  # no wider than there are jobs
            elif members == 1:
                raise MemoryExceeded(too_large(needed, free))
            else:
                self.most = members = max(1, min(members - 1, int(members * free / needed)))
            needed = self.needed(members)
        return members

    def compiled(self) -> None:
        """One of them is there."""
        self._compile_seconds = min(self._compile_seconds, time.monotonic() - self._begun)

    def trained(self, members: int, width: int, seconds: float) -> None:
        """So many did, in programs for `width`."""
        self._wide_seconds += seconds * (self.right(members) < width)

    def ready(self, members: int, begin: bool = True) -> int:
        """The least width for so many whose programs are there, or the right one if there is none.

        The right one is begun, one at a time, once one that is too wide has cost what it takes to compile. Where it is
        not to be begun, the width may be one for fewer.
        """
        right, there = self.right(members), self.there()
        if begin and right not in self.made:
            idle = all(together.there() for together in list(self.made.values()))
            worth = idle and self._wide_seconds >= WORTH * self._compile_seconds
            if worth or not any(width >= members for width in there):
                self.of(right)
                self._wide_seconds, there = 0.0, self.there()
        enough = [width for width in there if width >= members]
        return min(enough or there[-1:] * (not begin), default=right)

    def there(self) -> list[int]:
        """The widths that can be called without waiting, least first; those that were found too wide are left out.

        Of one that did not compile it is said once: who could do with no other meets the error.
        """
        found = []
        for width, together in list(self.made.items()):
            if width > self.most or not together.there():
                continue
            error = together.error()
            if error is None:
                found.append(width)
            elif width not in self._failed:
                self._failed.add(width)
                self.say(f"no program for {width} jobs at once: {error}".splitlines()[0])
        return sorted(found)
