"""Rows that cannot be used: the file is refused with all of them, or they are skipped, each one counted and named."""

from pathlib import Path
from typing import Any

from ..errors import DataError, many

SHOWN = 10  # places in a message
KEPT = 1000  # places in a report: what is wrong with a million rows must not need a million numbers


class Tally:
    """What is wrong with the rows of one file, by kind."""

    def __init__(self, path: Path, *, skip: bool, report: dict[str, Any]):
        self._path, self._skip, self._report = path, skip, report
        self._count: dict[str, int] = {}
        self._places: dict[str, list] = {}

    def note(self, problem: str, place: int | str) -> None:
        """One row, by its line number or the name of its file."""
        self._count[problem] = self._count.get(problem, 0) + 1
        if len(places := self._places.setdefault(problem, [])) < KEPT:
            places.append(place)

    def close(self, used: int) -> None:
        """At the end of the file: the report, or DataError where rows are wrong and must not be, or none is left."""
        if self._count and not self._skip:
            raise DataError(f"{self._path}: {self._told()}; correct them, or set dataset.on_bad_row=skip")
        if not used:
            why = f": {self._told()}" if self._count else ", expected at least one"
            raise DataError(f"{self._path}: holds no rows{why}")
        skipped = {p: {"rows": self._count[p], "lines": self._places[p]} for p in self._count}
        self._report[str(self._path)] = {"rows": used + sum(self._count.values()), "used": used, "skipped": skipped}

    def _told(self) -> str:
        def lines(problem: str) -> str:
            places, more = self._places[problem][:SHOWN], self._count[problem] > SHOWN
            kind = "line" if isinstance(places[0], int) else "file"
            return f"{kind}{'s' * (len(places) > 1)} " + ", ".join(map(str, places)) + ", ..." * more

        return "; ".join(f"{many(self._count[p], 'row')} with {p}, {lines(p)}" for p in self._count)
