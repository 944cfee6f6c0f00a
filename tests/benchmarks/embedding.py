"""What does a wide vocabulary cost? One training step at V = 400,000, E = 300 (B = 64, T = 32, H = 128).

    python -m tests.benchmarks.embedding [--quick] [--only vanilla gru lstm] [--json]

Dense Adam moves every row of the table at every step, whatever the batch touches. Ours, deferred, takes the same path
at the cost of the rows touched (see jaxrnn/tables.py). torch's SparseAdam is other mathematics (rows that are not
touched stay where they are), so only first losses are compared. An epoch of ours is 100 updates long, about that of
SST-2, and ends with bringing every row up to date: the time of a step holds its share of that. Where every step costs
the same, PART of them are a turn: 100 dense ones would take half a minute. `--only` names cells.
"""

from typing import Any

from tests.benchmarks import arena
from tests.benchmarks.problem import Problem

WIDE = ("vanilla", 400_000, 300, 128, 64, 32, 100)
QUICK = ("vanilla", 4_000, 16, 8, 4, 6, 4)
PART = 5  # updates


def contenders(cores: int) -> dict[str, arena.Contender]:
    threads = sorted({cores, 1}, reverse=True)
    adam: dict[str, list[Any]] = {"threads": threads, "adam": ["fused", "foreach"]}
    found: dict[str, arena.Contender] = {f"ours {rows}": ("ours", {"rows": rows}, {}) for rows in ("dense", "deferred")}
    found |= {"torch dense": ("peers_torch", {}, adam), "torch sparse": ("peers_torch", {"sparse": True}, adam)}
    return found | {"adam alone": ("floor", {"part": "adam"}, {"barrier": [False, True]})}


def measure(problem: Problem, given, say) -> dict[str, Any]:
    with arena.opened() as workers:
        for name, (module, options, knobs) in contenders(arena.environment()["cores"]).items():
            if given.contestants and name not in given.contestants:
                continue
            if given.quick:
                knobs = {knob: values[:1] for knob, values in knobs.items()}
            whole = problem if name == "ours deferred" else problem._replace(updates=min(PART, problem.updates))
            arena.best(workers, name, module, whole, options, knobs, say=say, tries=1, warm_ups=1)
        found = arena.race(workers, repeats=3 if given.quick else 30, seconds=5.0)
    losses = {name: it.pop("losses")[:1] for name, it in found.items()}
    if "ours dense" in losses:
        for line in arena.same_path({n: x for n, x in losses.items() if x}, "ours dense"):
            say(f"DIFFERENT NUMBERS: {line}")
    dense = found.get("ours dense", {}).get("ms")
    ratios = {name: dense / it["ms"] for name, it in found.items() if dense}
    return {"problem": problem._asdict(), "contestants": found, "times_faster_than_our_dense": ratios}


def main(argv: list[str] | None = None) -> None:
    given = arena.arguments(__doc__ or "").parse_args(argv)
    say = (lambda text: None) if given.json else (lambda text: print(text, flush=True))
    rows = []
    for cell in given.only or ["vanilla"]:
        problem = Problem(*(QUICK if given.quick else WIDE))._replace(cell=cell, device=given.device)
        say(f"{cell}, V = {problem.V:,}, E = {problem.E} ...")
        rows.append(measure(problem, given, say))
    for row in rows:
        times = row["times_faster_than_our_dense"]
        cells = [[name, f"{it['ms']:.3g}", f"{times[name]:.2f}" if name in times else "-"]
                 for name, it in row["contestants"].items()]  # fmt: skip
        title = f"{row['problem']['cell']}, V = {row['problem']['V']:,}, E = {row['problem']['E']}: median ms per step"
        say(arena.table(title, ["who", "ms", "our dense step / this"], cells))
    print(arena.record("embedding", given, rows=rows))


if __name__ == "__main__":
    main()
