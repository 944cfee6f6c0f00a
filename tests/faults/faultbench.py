"""What the cases share: the fixtures of the tables, running a command, digests read from the files alone."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = float(os.environ.get("FAULTS_LIMIT", 120))  # seconds after which a process hangs; more on a busy machine
COUNTS = {"A": 5, "B": 8, "C": 6, "D": 6, "E": 6, "F": 4, "G": 6, "S": 5}
CASES = [f"{row}{number}" for row, count in COUNTS.items() for number in range(1, count + 1)]
WORDS = "good bad film plot fine dull warm cold the a of and very not quite story actor scene".split()


def rows(path, count, seed, most=200):
    """A TSV of texts of 1 to `most` words and two labels."""
    draw = random.Random(seed)
    lines = ["text\tlabel"]
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(1, most))
        lines.append(" ".join(words) + "\t" + ("pos" if words.count("good") >= words.count("bad") else "neg"))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def basis(where, count=400, most=20):
    """The settings B of the tables over small files: 10 updates an epoch, 4 epochs."""
    for seed, (name, size) in enumerate((("tiny", count), ("valid", 60), ("test", 60))):
        rows(where / f"{name}.tsv", size, seed, most)
    line = f"dataset=files dataset.path={where}/tiny.tsv dataset.valid_path={where}/valid.tsv "
    line += f"dataset.test_path={where}/test.tsv hidden_size=16 batch_size=40 epochs=4 seed=0 log_every_steps=1 "
    return (line + "checkpoint.every_steps=4 device=cpu patience=null").split()


def environment(cache):
    """One thread, one device, a compile cache of the tests' own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    kept |= {"JAX_PLATFORMS": "cpu", "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    return kept | {"JAX_COMPILATION_CACHE_DIR": str(cache), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}


ONE_CORE = "import os, sys; os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})\n"
ONE_CORE += "os.execvp(sys.argv[1], sys.argv[1:])"


def start(arguments, cache, before=(), cwd=None):
    """A train process on one core, its outputs in pipes."""
    pinned = [sys.executable, "-c", ONE_CORE, *before, sys.executable, "-m", "jaxrnn.train", *arguments]
    return subprocess.Popen(pinned, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(cache),
                            cwd=cwd or tempfile.gettempdir())  # fmt: skip


def traced(call, inject, trace, *more):
    """strace before a command, which injects a fault into its calls; and why that cannot be, if it cannot."""
    words = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", f"inject={call}:{inject}", "-o", str(trace), *more]
    return words, allowed(*words, "true")


def allowed(*command):
    """Can this be done here; the reason why not otherwise."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]


def train(arguments, cache, **settings):
    """-> exit code, lines of standard output, lines of standard error. Never a hang, never a traceback."""
    return ended(start(arguments, cache, **settings))


def ended(process, limit=LIMIT):
    out, err = process.communicate(timeout=limit)
    assert "Traceback" not in err, err
    return process.returncode, out.splitlines(), err.splitlines()


def until(ready, process, limit=60):
    """Wait for `ready()` while the process lives; was it reached?"""
    end = time.monotonic() + limit
    while time.monotonic() < end and process.poll() is None:
        if ready():
            return True
        time.sleep(0.002)
    return bool(ready())


def steps(run):
    found = (re.fullmatch(r"step_(\d+)", path.name) for path in run.glob("checkpoints/step_*"))
    return sorted(int(match[1]) for match in found if match)


def logged(run):
    """How many steps metrics.jsonl holds."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b'"grad_norm"') if path.exists() else 0


def tensors(path):
    """(name, dtype, shape, bytes) of a safetensors file, read by the description of the format."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, entry["dtype"], str(entry["shape"]), content[8 + size + begin : 8 + size + end]


def digest(run):
    """D of the tables."""
    folder = run / "checkpoints" / f"step_{steps(run)[-1]}"
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        for name, kind, shape, content in sorted(tensors(path)):
            total.update(f"{name} {kind} {shape} ".encode() + content)
    manifest = json.loads((folder / "manifest.json").read_text())
    return total.hexdigest(), manifest["step"], manifest["epoch"], manifest["batch"]


def losses(run):
    """L of the tables: each step's number and float.hex of its loss, in the order of the file."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"].hex()) for record in records if "grad_norm" in record]


def verifies(run):
    """The steps whose every file has the size and sha256 of the manifest."""
    good = []
    for step in steps(run):
        folder = run / "checkpoints" / f"step_{step}"
        try:
            files = json.loads((folder / "manifest.json").read_text())["files"]
            found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
        except (OSError, ValueError, KeyError):
            continue
        if found == {name: entry["sha256"] for name, entry in files.items()}:
            good.append(step)
    return good


def summary(run):
    path = run / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None


PEAK = """
import json, re, sys
{}
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(json.dumps([found, int(peak[1]) << 10]))
"""


def bounded(code, *arguments, limit):
    """`found`, which the code sets in a process of its own that takes less than `limit` bytes of memory."""
    command = [sys.executable, "-c", PEAK.format(code), *map(str, arguments)]
    kept = environment(tempfile.gettempdir())
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=kept)
    assert done.returncode == 0, done.stderr
    found, peak = json.loads(done.stdout.splitlines()[-1])
    assert peak < limit, f"{peak:,} bytes"
    return found
