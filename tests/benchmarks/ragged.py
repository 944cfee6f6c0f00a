"""What does an epoch of real texts cost, and how long is it to a fixed accuracy?

    python -m tests.benchmarks.ragged [--quick] [--only sst imdb accuracy] [--json]

sst: all whole batches of the SST-2 training sentences (108). imdb: 100 batches of an epoch of IMDB, spread evenly
over it, words, 20,000 of them, cut at 400. The order of the rows is the same for all. PyTorch gets its packed
sequences, or batches padded to their own longest row, made ready before the clock starts; jaxrnn gathers its batches
inside the time.

accuracy: from the start of the process to 78 % on the SST-2 development sentences, the same network (E = H = 128,
vanilla, mean of the states, dropout 0.5, Adam 1e-3, batches of 64 sorted by length in pools), cold (no compile cache)
and warm, the median over seeds; a run that does not get there in 10 epochs counts as its whole time and is said to.
Ours also measures the gradient and saves checkpoints, as its default is; "no flow" leaves the first of these out.
"""

import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import arena, corpora
from tests.benchmarks.problem import CLASSES

GOAL, EPOCHS, SEEDS = 0.78, 10, (0, 1, 2)
SAID = re.compile(r"valid .*?accuracy ([0-9.]+)")


def contenders(cores: int) -> dict[str, arena.Contender]:
    knobs: dict[str, list[Any]] = {"threads": sorted({cores, 1}, reverse=True), "adam": ["fused", "foreach", "default"]}
    return {
        "ours": ("ours", {}, {}),
        "ours, XLA": ("ours", {"unroll": "bptt"}, {}),
        "torch packed": ("peers_torch", {"way": "packed"}, knobs),
        "torch padded": ("peers_torch", {"way": "padded"}, knobs),
    }


def epoch(name: str, given, say) -> dict[str, Any]:
    """One row of the table: ms per epoch (or per part of it) of every contestant."""
    with tempfile.TemporaryDirectory() as folder, arena.opened() as workers:
        part = 4 if given.quick else corpora.PART if name == "imdb" else None
        problem, counts = corpora.prepare(name, Path(given.data), folder, epochs=1 if given.quick else 3, part=part)
        problem = problem._replace(device=given.device)
        for who, (module, options, knobs) in contenders(arena.environment()["cores"]).items():
            if given.contestants and who not in given.contestants:
                continue
            if given.quick:
                knobs = {knob: values[:1] for knob, values in knobs.items()}
            arena.best(workers, who, module, problem, options, knobs, say=say, tries=1, warm_ups=1)
        found = arena.race(workers, repeats=2 if given.quick else 10, seconds=30.0)
    losses = {who: it.pop("losses") for who, it in found.items()}
    for line in arena.same_path(losses, "ours") if "ours" in losses else []:
        say(f"DIFFERENT NUMBERS: {line}")
    for it in found.values():  # a turn is an epoch
        it["epoch_ms"] = it["ms"] * problem.updates
    times = {who: it["epoch_ms"] for who, it in found.items()}
    ours = times.get("ours")
    ratios = {who: ms / ours for who, ms in times.items() if ours and who.startswith("torch")}
    row = {"corpus": name, "problem": problem._replace(corpus=None)._asdict(), "contestants": found} | counts
    return row | {"times_faster_than": ratios}


def runs(root: Path, cores: int) -> dict[str, tuple[str, list[str]]]:
    """name -> the library it needs, the command without its seed."""
    ours = ["jaxrnn.train", "dataset=sst2", f"dataset.root={root}", "dataset.train=sentences", "batch_size=64",
            "hidden_size=128", "input.size=128", "head=mean", "bidirectional=false", "dropout_rate=0.5",
            "word_dropout_rate=0", "optimizer.learning_rate=1e-3", "optimizer.weight_decay=0", "clip_global_norm=null",
            "patience=null", f"epochs={EPOCHS}"]  # fmt: skip
    plain = [f"data={root}", f"epochs={EPOCHS}"]
    return {
        "ours": ("jax", ours),
        "ours, no flow": ("jax", [*ours, "flow.every_steps=0"]),
        "ours, XLA": ("jax", [*ours, "unroll.kernel=never"]),
        "torch": ("torch", ["tests.benchmarks.accuracy_torch", *plain, f"threads={cores}"]),
        "torch, 1 thread": ("torch", ["tests.benchmarks.accuracy_torch", *plain, "threads=1"]),
        "keras": ("keras", ["tests.benchmarks.accuracy_keras", *plain]),
    }


def until(command: list[str], cache: str, goal: float) -> tuple[float, float]:
    """Start it, read what it says after each epoch, end it at `goal`. -> seconds since its start, best accuracy."""
    began, best = time.perf_counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        process = arena.command(command, cache=cache, folder=folder)
        try:
            assert process.stdout
            for line in process.stdout:
                if found := SAID.search(line):
                    best = max(best, float(found[1]))
                    if best >= goal:
                        break
            return time.perf_counter() - began, best
        finally:
            process.kill()
            process.wait()


def accuracy(given, say) -> list[dict[str, Any]]:
    """Cold and warm seconds to the goal, every contestant in turn, seed after seed."""
    goal = 0.4 if given.quick else GOAL
    listed = runs(Path(given.data).resolve(), arena.environment()["cores"])
    asked = ("ours", "torch", "keras") if given.quick else given.contestants or listed
    for name, (library, _) in listed.items():
        if not arena.installed(library):
            say(f"{name}: not installed")
    commands = {name: line for name, (library, line) in listed.items() if name in asked and arena.installed(library)}
    found: dict[str, dict[str, list]] = {name: {"cold": [], "warm": [], "best": []} for name in commands}
    for seed in SEEDS[:1] if given.quick else SEEDS:
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as cache:
                for kind in ("cold", "warm"):
                    seconds, best = until([*command, f"seed={seed}"], cache, goal)
                    found[name][kind].append(seconds)
                    found[name]["best"].append(best)
            say(f"  seed {seed} {name}: cold {found[name]['cold'][-1]:.1f} s, warm {found[name]['warm'][-1]:.1f} s")
    return [{"who": name, "goal": goal, "reached": min(it["best"]) >= goal,
             "cold_s": statistics.median(it["cold"]), "warm_s": statistics.median(it["warm"]), "runs": it}
            for name, it in found.items()]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    given = arena.arguments(__doc__ or "").parse_args(argv)
    say = (lambda text: None) if given.json else (lambda text: print(text, flush=True))
    asked = given.only or (["sst"] if given.quick else ["sst", "imdb", "accuracy"])
    rows, reached = [], []
    for name in asked:
        if name == "accuracy":
            reached = accuracy(given, say)
        elif not (Path(given.data) / corpora.FILES[name]).is_file():
            say(f"{name}: no {corpora.FILES[name]} in {given.data}")
        else:
            say(f"{name} ...")
            rows.append(epoch(name, given, say))
    names = list(contenders(1))
    cells = []
    for row in rows:
        times = (row["contestants"].get(name, {}).get("epoch_ms") for name in names)
        shown = ("-" if ms is None else f"{ms:,.0f}" for ms in times)
        cells.append([row["corpus"], f"{row['batches']} batches", f"{row['words']:,}", *shown])
    say(arena.table(f"epoch, ms (vanilla, {CLASSES} classes)", ["corpus", "part", "words", *names], cells))
    for row in rows:
        say("  ".join(f"{row['corpus']}: {n} / ours = {x:.2f}" for n, x in row["times_faster_than"].items()))
    waits = [[r["who"], f"{r['cold_s']:.1f}", f"{r['warm_s']:.1f}", "yes" if r["reached"] else "NO"] for r in reached]
    goal = reached[0]["goal"] if reached else GOAL
    say(arena.table(f"seconds to {goal:.0%} on SST-2 dev", ["who", "cold", "warm", "reached by all"], waits))
    print(arena.record("ragged", given, rows=rows, accuracy=reached))


if __name__ == "__main__":
    main()
