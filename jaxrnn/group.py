"""What runs share that differ in numbers only: the rows as tokens, the network, the compiled programs.

Learning rate, decay, clips, dropout, schedule, initial scale and seed are arguments of the compiled programs, and how
long a run lasts is decided outside of them: runs that differ in nothing else are a group, and it is compiled once.
"""

import hashlib
import inspect
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn import artefact, devices, foreign, orders, text
from jaxrnn.errors import ConfigurationError
from jaxrnn.settings import Settings, plain

EVAL_ROWS = 128  # rows of a batch that is only measured
MEMBERS = 256  # runs that an accelerator may train at once
NUMBERS = {"learning_rate", "weight_decay", "warmup_steps", "final_fraction"}  # of optimizer and schedule
OUTSIDE = {"init_scale", "seed", "clip_global_norm", "clip_value", "dropout_rate", "word_dropout_rate"}
OUTSIDE |= {"epochs", "max_steps", "patience", "on_nonfinite", "nonfinite_limit", "log_every_steps", "logger"}
OUTSIDE |= {"checkpoint", "resume", "resume_step", "resume_allow", "experiment", "dry_run", "flow", "plots"}
ROWS = ("dataset", "tokenizer", "max_length")  # the keys that decide the tokens


def key(settings: Settings) -> str:
    """Equal for runs of one group."""
    tree = {name: value for name, value in plain(settings).items() if name not in OUTSIDE}
    for name in ("optimizer", "schedule"):
        tree[name] = {k: v for k, v in tree[name].items() if k not in NUMBERS}
    tree["flow"] = bool(settings.flow["every_steps"])  # measured or not; how often is decided outside
    return json.dumps(tree, sort_keys=True)


def rows(key: str) -> str:
    """Equal for groups that read the same rows in the same way."""
    tree = json.loads(key)
    return json.dumps([tree[name] for name in ROWS])


@dataclass(frozen=True)
class Group:
    """What is known of a group before anything is compiled; what takes time is made when it is first asked for."""

    encoded: text.Encoded
    network: dict[str, Any]
    unroll: str  # that trains: network["unroll"], or kernel; ", vmapped" where several runs are one program
    model: Any
    optimizer: Any
    factor: Any
    devices: list[Any]
    batch_size: int
    cache: Path | None  # of compiled programs
    measured: bool  # the gradient's flow, during training
    members: int = 1  # runs that may be trained at once in one vmapped program

    @cached_property
    def steps(self) -> int:
        """Updates of an epoch."""
        return math.ceil(len(self.encoded.corpus.train) / self.batch_size)

    @cached_property
    def loops(self) -> str:
        """Who computes: what decides the bits of its numbers, beside versions and devices."""
        if self.unroll == "kernel":
            return f"kernel {foreign.mark()} for {devices.cores()} cores"
        return self.unroll + devices.products(self.devices[0])

    @cached_property
    def orders(self) -> dict[str, Any]:
        """The rows of validation and test, in batches."""
        corpus = self.encoded.corpus
        rows = min(EVAL_ROWS, max(len(corpus.valid), len(corpus.test)))
        return {s: orders.plain(getattr(corpus, s), corpus.length, rows) for s in ("valid", "test")}

    @cached_property
    def programs(self) -> Any:
        """Compiled on the first call, which puts the corpus on the devices too."""
        return self._alone if self.population is None else self.population.programs

    @cached_property
    def population(self) -> Any:
        """Where the calls of many runs become one; None where each run has its own."""
        from jaxrnn import population

        say = partial(print, file=sys.stderr, flush=True)
        return population.Population(self._alone, self.members, say) if self.members > 1 else None

    @cached_property
    def _alone(self) -> Any:
        from jaxrnn import fit, monitor

        return fit.build(
            self.model,
            self.optimizer,
            self.factor,
            self.encoded.corpus,
            order=(self.steps, self.batch_size),
            eval_order=(
                max(map(len, self.orders.values())),
                -(-self.orders["test"].shape[1] // len(self.devices)) * len(self.devices),
            ),
            max_length=int(self.encoded.corpus.length.max()),
            devices=self.devices,
            texts=monitor.texts(self.encoded.corpus) if self.measured else None,
            in_c=self.unroll == "kernel",
            before=foreign.load if self.unroll == "kernel" else None,
            alone=self.members == 1,
        )

    def known(self) -> None:
        """Find out what every run asks for: many threads that ask at once would each find it out."""
        _ = self.orders, self.digest, self.baselines, self.environment, self.vocabulary

    @cached_property
    def needed(self) -> int:
        """Bytes of a run on its devices: state, orders, what the programs write and what they need meanwhile."""
        training, measuring = (
            getattr(self.programs, name).ready().memory_analysis() for name in ("segment", "answers")
        )
        meanwhile = max(training.temp_size_in_bytes, measuring.temp_size_in_bytes + measuring.output_size_in_bytes)
        return int(training.argument_size_in_bytes + training.output_size_in_bytes + meanwhile)

    @cached_property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint's arrays: parameters, the optimizer's memory of them, the best parameters so far."""
        import jax

        params = jax.eval_shape(lambda: self.model.init(jax.random.key(0)))
        leaves = jax.tree.leaves((params, jax.eval_shape(self.optimizer.init, params), params))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    @cached_property
    def baselines(self) -> dict[str, Any]:
        """What the network must beat, on the test split."""
        from jaxrnn import baselines

        corpus, vocabulary = self.encoded.corpus, self.encoded.vocabulary
        return {"majority": baselines.majority(corpus), "bag_of_words": baselines.bag_of_words(corpus, len(vocabulary))}

    @cached_property
    def environment(self) -> dict[str, Any]:
        """environment.json"""
        return devices.environment(self.devices, self.cache)

    @cached_property
    def vocabulary(self) -> str:
        """vocabulary.json"""
        return self.encoded.vocabulary.to_json()

    @cached_property
    def digest(self) -> str:
        return digest(self.encoded)


def read(settings: Settings) -> text.Encoded:
    """The rows, numbered."""
    rows = artefact.splits(settings.dataset.name, settings.dataset.settings)
    tokenizer = artefact.tokenizer(settings.tokenizer.name, settings.tokenizer.settings)
    return text.encode(rows, tokenizer, max_length=settings.max_length)


def digest(encoded: text.Encoded) -> str:
    """sha256 of the rows as tokens, their labels and the vocabulary."""
    found = hashlib.sha256()
    for part in encoded.corpus:
        found.update(np.ascontiguousarray(part).data)
    found.update(json.dumps([encoded.labels, encoded.vocabulary.tokens]).encode())
    return found.hexdigest()


def prepare(
    settings: Settings,
    say: Callable[[str], None],
    encoded: text.Encoded | None = None,
    members: int | None = 1,
) -> Group:
    """Read and number the rows, choose the device, put the network together. `encoded`: the rows, if they are there.

    `members`: runs to train at once in one vmapped program; None: 1 on a CPU, up to MEMBERS on one accelerator.
    """
    devices.set_flags()
    devices.keep_memory()
    together = f"it trains one run, not {members} at once" if members and members > 1 else None
    if not together:
        begin(settings)
    if encoded is None:
        encoded = read(settings)
    made = assembled(settings, encoded, together or without_kernel(settings), say, members)
    try:
        if made.unroll == "kernel":
            if foreign.expect() or settings.dry_run:
                foreign.load()
            else:
                _ = made.programs  # are traced while the C code is compiled
    except foreign.NotCompiled as error:
        foreign.give_up()
        return assembled(settings, encoded, str(error), say, members)
    return made


def assembled(
    settings: Settings,
    encoded: text.Encoded,
    why_not: str | None,
    say: Callable[[str], None],
    members: int | None = 1,
) -> Group:
    """The group of these rows; `why_not`: the reason to leave the kernel out."""
    network = artefact.network(settings, len(encoded.vocabulary), len(encoded.labels))
    work = artefact.work(network) * settings.batch_size * float(encoded.corpus.length[encoded.corpus.train].mean())
    work *= why_not is not None and members in (None, 1)  # the kernel divides the rows itself
    chosen = devices.choose(settings.device.name, settings.device.count, work=work, rows=settings.batch_size)
    if settings.batch_size % len(chosen):
        raise ConfigurationError(
            f"batch_size={settings.batch_size}: expected a multiple of the {len(chosen)} devices (device.count)"
        )
    if members is None:
        members = 1 if chosen[0].platform == "cpu" or len(chosen) > 1 else MEMBERS
    if members > 1 and len(chosen) > 1:
        raise ConfigurationError(f"hydra.launcher.members={members}: expected device.count=1, or members=1")
    if why_not is None and chosen[0].platform != "cpu":
        why_not = "it is for the CPU"
    if why_not and settings.unroll.name == "kernel":
        raise ConfigurationError(f"unroll=kernel: {why_not}; use unroll=bptt")
    if why_not and settings.unroll.settings.get("kernel") == "auto" and chosen[0].platform == "cpu":
        say(f"unroll=bptt without its kernel in C: {why_not}")
    unroll = network["unroll"] if why_not else "kernel"
    cache = devices.open_cache(say)
    import jaxrnn
    from jaxrnn import optimizers
    from jaxrnn.unroll.bptt import check

    fixed = {k: v for k, v in settings.optimizer.settings.items() if k not in ("learning_rate", "weight_decay")}
    optimizer = optimizers.transformation(settings.optimizer.name, **fixed)
    factor = optimizers.schedule(settings.schedule.name)
    model = jaxrnn.rnn(**network | {"unroll": unroll})
    if unroll == "bptt":
        check(model.parts.cells[0][0])
    measured = bool(settings.flow["every_steps"])
    told = unroll if members == 1 else f"{unroll}, vmapped"
    return Group(
        encoded, network, told, model, optimizer, factor, chosen, settings.batch_size, cache, measured, members
    )


def begin(settings: Settings) -> None:
    """Compile the C code in the background, if the run will ask for it and it is not there."""
    if not_asked_for(settings) is None:
        foreign.begin()


def not_asked_for(settings: Settings) -> str | None:
    """Why these settings leave the kernel out, None where they do not."""
    if settings.unroll.name != "kernel" and settings.unroll.settings.get("kernel") != "auto":
        return "not asked for"
    return None if settings.device.name in ("auto", "cpu") else "it is for the CPU"


def without_kernel(settings: Settings) -> str | None:
    """Why the kernel is not used, as far as can be told before it is compiled."""
    from jaxrnn import activations, model
    from jaxrnn.unroll.kernel import unfit

    if why := not_asked_for(settings):
        return why
    make = model.member("cells", settings.cell.name)
    takes = inspect.signature(make).parameters
    given = {"activation": activations.named(settings.activation.name)} if "activation" in takes else {}
    if why := unfit(make(1, 1, **given)):
        return f"it {why}"
    try:
        foreign.expect()
    except foreign.NotCompiled as error:
        return str(error)
    return None
