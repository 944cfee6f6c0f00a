"""How long is one training step (forward, backward, Adam), and how far is it from the fastest library and the floor?

    python -m tests.benchmarks.steps [--quick] [--only toy sst ...] [--cells vanilla gru lstm] [--json]

floor = the FLOPs of the step at the rate of a large GEMM + Adam alone over all parameters, both timed in the same race.
"""

from typing import Any

from tests.benchmarks import arena, floor
from tests.benchmarks.problem import GATES, SHAPES, Problem

FLAGS = ["ours", "default"]
LIBRARIES = ("torch", "flax", "equinox", "keras", "haiku")
MANY: dict[str, list[Any]] = {"flags": FLAGS, "many": [True, False], "unroll": [1, 4]}
KERAS: dict[str, list[Any]] = {"flags": FLAGS, "many": [True, False], "step": ["jit", "own"]}
ADAM = ["fused", "foreach", "default"]


def contenders(cores: int) -> dict[str, arena.Contender]:
    """name -> module, fixed options, knobs of which the fastest values are found."""
    found: dict[str, arena.Contender] = {
        "gemm": ("floor", {"part": "gemm"}, {"flags": FLAGS}),
        "adam": ("floor", {"part": "adam"}, {"barrier": [False, True], "flags": FLAGS}),
        "ours": ("ours", {}, {}),
        "ours, XLA": ("ours", {"unroll": "bptt"}, {"count": [1, 2]}),
        "plain scan": ("peers_jax", {"library": "plain"}, MANY),
        "torch": ("peers_torch", {}, {"threads": sorted({cores, 1}, reverse=True), "adam": ADAM}),
    }
    found |= {name: ("peers_jax", {"library": name}, MANY) for name in ("flax", "equinox", "haiku")}
    return found | {"keras": ("peers_jax", {"library": "keras"}, KERAS)}


def measure(problem: Problem, given, say) -> dict[str, Any]:
    """One row of the table: all contestants on one problem."""
    listed = contenders(arena.environment()["cores"])
    with arena.opened() as workers:
        for name, (module, options, knobs) in listed.items():
            if given.contestants and name not in given.contestants:
                continue
            if given.quick or (name == "ours, XLA" and problem.B % 2):
                knobs = {knob: values[:1] for knob, values in knobs.items()}
            arena.best(workers, name, module, problem, options, knobs, say=say, tries=1 if given.quick else 5)
        found = arena.race(workers, repeats=3 if given.quick else 30, seconds=given.seconds)
    losses = {name: it.pop("losses") for name, it in found.items()}
    if "plain scan" in losses:
        wrong = arena.same_path({n: x for n, x in losses.items() if x}, "plain scan")
        for line in wrong:
            say(f"DIFFERENT NUMBERS: {line}")
        found = {n: it | {"same_path": not any(w.startswith(f"{n}:") for w in wrong)} for n, it in found.items()}
    return summary(problem, found)


def summary(problem: Problem, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The ratios that matter: fastest library to ours, ours to the floor."""
    row: dict[str, Any] = {"problem": problem._asdict(), "contestants": found}
    ours = found.get("ours", {}).get("ms")
    peers = {name: it["ms"] for name, it in found.items() if name in LIBRARIES and it.get("same_path", True)}
    if {"gemm", "adam"} <= found.keys():
        row["gemm_gflops"] = 2.0 * floor.SIZE**3 / found["gemm"]["ms"] / 1e6
        row["floor_ms"] = floor.flops(problem) / row["gemm_gflops"] / 1e6 + found["adam"]["ms"]
    if ours:
        row["ours_ms"] = ours
        row["fastest_library"] = min(peers, key=lambda name: peers[name]) if peers else None
        row["times_faster"] = min(peers.values()) / row["ours_ms"] if peers else None
        row["times_floor"] = row["ours_ms"] / row["floor_ms"] if "floor_ms" in row else None
    return row


def line(shape: str, row: dict[str, Any], names: list[str]) -> list[str]:
    """Cells of the printed table."""

    def ms(value):
        return "-" if value is None else f"{value:.3g}"

    cells = [row["contestants"].get(name, {}).get("ms") for name in names]
    ratios = [row.get("times_faster"), row.get("times_floor")]
    return [shape, row["problem"]["cell"], *map(ms, cells), ms(row.get("floor_ms")), *map(ms, ratios)]


def main(argv: list[str] | None = None) -> None:
    parser = arena.arguments(__doc__ or "")
    parser.add_argument("--cells", nargs="+", default=list(GATES), choices=list(GATES))
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring at most, per contestant")
    given = parser.parse_args(argv)
    say = (lambda text: None) if given.json else (lambda text: print(text, flush=True))
    shapes = given.only or (["tiny"] if given.quick else [s for s in SHAPES if s != "tiny"])
    cells = given.cells[:1] if given.quick else given.cells
    names = [n for n in contenders(1) if n not in ("gemm", "adam") and n in (given.contestants or contenders(1))]
    head = ["shape", "cell", *names, "floor", "fastest library / ours", "ours / floor"]
    rows, lines = [], []
    for shape in shapes:
        for cell in cells:
            say(f"{shape} {cell} ...")
            row = measure(Problem(cell, *SHAPES[shape], device=given.device), given, say)
            rows.append({"shape": shape} | row)
            lines.append(line(shape, row, names))
            say("  " + "  ".join(f"{name} {it['ms']:.3g} ms" for name, it in row["contestants"].items()))
    say(arena.table("training step, median ms", head, lines))
    print(arena.record("steps", given, rows=rows))


if __name__ == "__main__":
    main()
