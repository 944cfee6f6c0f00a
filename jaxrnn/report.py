"""python -m jaxrnn.report PATH ... [--by KEY ...] [--csv F] [--html F] [--json]: one table over many runs.

Configurations are ranked by the mean of their validation accuracy over seeds; the test accuracy stands beside it and
decides nothing. Two runs on the same test rows are compared row by row as well.
"""

import csv
import io
import json
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from jaxrnn import command, ranking, results, runs
from jaxrnn.errors import ArtefactError, JaxrnnError, many
from jaxrnn.ranking import Configuration, Mean, Ranking
from jaxrnn.results import Run
from jaxrnn.steptable import padded, printable, width

MOST_ROWS, MOST_OTHERS = 40, 20  # lines of a table in a terminal; all of them are in --csv and --json
MOST_KEYS = 6  # with a column each


def text(ranked: Ranking) -> str:
    """Ranking, runs that are not counted, the best command."""
    rows = ranked.configurations
    lines = [f"{many(ranked.size, 'completed run')}, {many(len(rows), 'configuration')}", *_ranked(ranked)]
    if ranked.mixed:
        lines.append("  the rows are of different data sets: their accuracies are not comparable")
    if ranked.repeated:
        lines += ["", f"{many(len(ranked.repeated), 'run')} not counted: the same configuration and seed named again"]
        lines += _listed([f"  {run.folder}" for run in ranked.repeated], MOST_OTHERS)
    if ranked.others:
        lines += ["", f"not completed, not counted: {results.counts(ranked.others)}"]
        shown = [run for run in _worst_first(ranked.others) if run.status != "pruned"]  # these are no trouble
        lines += _listed([_other(run, ranked.own(run)) for run in shown], MOST_OTHERS)
    if rows:
        top = rows[0]
        lines += ["", f"best: {top.valid} on validation over {many(len(top.runs), 'run')}; its best run is"]
        lines += [f"  {top.runs[0].folder}, trained again by", f"  {top.runs[0].command}"]
    return "\n".join(lines)


def _worst_first(others: Sequence[Run]) -> list[Run]:
    return sorted(others, key=lambda run: results.ENDS.index(run.status))


def _other(run: Run, own: str) -> str:
    return "  ".join(filter(None, (f"  {run.status:<10}", str(run.folder), own, printable(run.reason, 160))))


def _listed(lines: list[str], most: int) -> list[str]:
    more = len(lines) - most
    return lines if more <= 0 else [*lines[:most], f"  and {more:,} more; --csv and --json list all"]


def _ranked(ranked: Ranking) -> list[str]:
    rows = ranked.configurations
    if not rows:
        return []
    wide = len(ranked.keys) > MOST_KEYS
    counted, measured = ["rank", "runs"], ["valid accuracy", "test accuracy"]
    heads = [*counted, *measured, "settings"] if wide else ["rank", *ranked.keys, "runs", *measured]
    told = {key for row in rows for run in row.runs for key in run.values}
    cells = []
    for place, row in enumerate(rows, 1):
        values = [printable(value, 40) for value in row.values.values()]
        runs, means = str(len(row.runs)), [str(row.valid), str(row.test)]
        words = printable(" ".join(_words(row, told)), 400)
        cells.append([str(place), runs, *means, words] if wide else [str(place), *values, runs, *means])
    size = [max(width(line[i]) for line in (heads, *cells)) for i in range(len(heads))]
    head, *lines = [
        "  " + "  ".join(padded(cell, size[i], right=heads[i] in counted) for i, cell in enumerate(line)).rstrip()
        for line in (heads, *cells)
    ]
    return [ranking.NOTE, "", head, *_listed(lines, MOST_ROWS)]


def _words(row: Configuration, told: Container[str]) -> list[str]:
    """What the best run of a row was told of what varies, and what parts it from the others that none was told."""
    own = row.runs[0].values
    return [
        f"{key}={value}"
        for key, value in row.values.items()
        if key in own or (key not in told and value not in (ranking.ABSENT, ranking.NONE))
    ]


def found(ranked: Ranking, paired: dict[str, Any] | None) -> dict[str, Any]:
    """The object of `--json`."""
    rows = ranked.configurations

    def mean(value: Mean) -> dict[str, float | None]:
        return {"mean": value.mean, "half95": value.half}

    return {
        "keys": list(ranked.keys),
        "configurations": [
            {
                "rank": place,
                "values": row.values,
                "valid_accuracy": mean(row.valid),
                "test_accuracy": mean(row.test),
                "runs": [_run(run) for run in row.runs],
            }
            for place, row in enumerate(rows, 1)
        ],
        "repeated": [str(run.folder) for run in ranked.repeated],
        "not_completed": [_run(run) for run in ranked.others],
        "best": {"run": str(rows[0].runs[0].folder), "command": rows[0].runs[0].command} if rows else None,
        "paired": paired,
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "run": str(run.folder),
        "status": run.status,
        "reason": run.reason,
        "values": run.values,
        "valid_accuracy": run.valid,
        "valid_loss": run.valid_loss,
        "test_accuracy": run.test,
        "best_epoch": run.best_epoch,
        "seconds": run.seconds,
    }


def as_csv(ranked: Ranking) -> str:
    """One line per run, the rank that of its configuration, whatever became of it."""
    every: list[tuple[int | None, Run]] = [
        (place, run) for place, row in enumerate(ranked.configurations, 1) for run in row.runs
    ]
    every += [(None, run) for run in (*ranked.repeated, *ranked.others)]
    keys = [*(key for key in ranked.keys if key != ranking.SEED), ranking.SEED]
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["rank", *keys, "valid_accuracy", "test_accuracy", "valid_loss", "best_epoch", "seconds",
                    "status", "reason", "run"])  # fmt: skip
    for place, run in every:
        known = run.known
        told = [known.get(key, ranking.absent(run)) for key in keys]
        lines.writerow([place, *told, run.valid, run.test, run.valid_loss, run.best_epoch, run.seconds,
                        run.status, run.reason, run.folder])  # fmt: skip
    return out.getvalue()


def main(arguments: Sequence[str]) -> int:
    """The command: -> exit code."""
    parser = command.Parser(prog="jaxrnn-report", description="One table over many runs, or a sweep.")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="run folders, sweeps, globs of them, or latest")
    parser.add_argument("--by", metavar="KEY", nargs="+", help="rows by these keys; default: all that vary")
    parser.add_argument("--csv", metavar="F", type=Path, help="write one line per run")
    parser.add_argument("--html", metavar="F", type=Path, help="write a page with plots that needs no network")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="to compare two runs")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    given = parser.parse_intermixed_args(arguments)
    command.check_outputs(given.csv, given.html)
    every = results.collect(given.paths)
    ranked = ranking.ranked(every, given.by)
    if not ranked.configurations:
        print(json.dumps(found(ranked, None), ensure_ascii=False) if given.json else text(ranked))
        raise ArtefactError(f"expected at least one completed run, found {results.counts(every)}")
    compared, refusal = None, None
    completed = [run.folder for run in every if run.status == "completed"]
    if len(completed) == 2:
        from jaxrnn import paired

        try:
            compared = paired.compared(*completed, device=given.device)
        except JaxrnnError as error:  # the table stands without it: told first, refused last
            compared, refusal = {"runs": list(map(str, completed)), "refused": str(error)}, error
    pair = paired.told(compared) if compared else ""
    if given.json:
        print(json.dumps(found(ranked, compared), ensure_ascii=False))
    else:
        print(f"{text(ranked)}\n\n{pair}".rstrip())
    contents = {}
    if given.csv:
        contents[given.csv] = as_csv(ranked)
    if given.html:
        from jaxrnn import reportpage

        contents[given.html] = reportpage.page(ranked, pair)
    for file, content in contents.items():
        runs.write(file, content, "name another file")
        print(f"written to {file}", file=sys.stderr if given.json else sys.stdout)
    if refusal:
        raise refusal
    return 0


def entry() -> None:
    command.run("report", main)


if __name__ == "__main__":
    entry()
