"""A run in a few lines for people: what it reads, what it is, how far it goes, what came out."""

from typing import Any

from jaxrnn import devices, runs
from jaxrnn.errors import many
from jaxrnn.group import Group
from jaxrnn.settings import Settings


def extent(settings: Settings, group: Group) -> tuple[int, int]:
    """-> updates of an epoch, and of the run at most."""
    whole = group.steps * settings.epochs
    return group.steps, min(whole, settings.max_steps or whole)


def data(settings: Settings, encoded: Any) -> str:
    """data: phrases, 4,000 train · 400 valid · 1,000 test rows, 95 tokens, 2 classes"""
    counts = " · ".join(f"{len(getattr(encoded.corpus, split)):,} {split}" for split in ("train", "valid", "test"))
    tokens, classes = len(encoded.vocabulary), len(encoded.labels)
    return f"data: {settings.dataset.name}, {counts} rows, {tokens:,} tokens, {classes} classes"


def rows(settings: Settings, encoded: Any) -> str:
    """The line of `data`, and what to know of them before the result is believed."""
    return "\n".join([data(settings, encoded), *warnings(encoded)])


def warnings(encoded: Any) -> list[str]:
    """What to know of the data before the result is believed."""
    return [f"warning: {line}" for line in encoded.report["warnings"]]


def network(settings: Settings) -> str:
    """vanilla tanh 64, last, softmax"""
    cell = f"{settings.cell.name} {settings.activation.name}"
    size = f"{settings.layers} x {settings.hidden_size}" if settings.layers > 1 else f"{settings.hidden_size}"
    ways = ", bidirectional" if settings.bidirectional else ""
    return f"{cell} {size}{ways}, {settings.head.name}, {settings.output.name}"


def title(settings: Settings) -> str:
    """phrases: vanilla tanh 64, last, softmax"""
    return f"{settings.dataset.name}: {network(settings)}"


def plan(settings: Settings, group: Group) -> str:
    """What a dry run prints: everything that is known before a folder is made and anything is compiled."""
    steps, updates = extent(settings, group)
    size = group.checkpoint_bytes
    where = settings.directory or f"a new folder {runs.ROOT / settings.experiment}/"
    lines = [
        rows(settings, group.encoded),
        f"device: {devices.described(group.devices)}",
        f"network: {network(settings)}",
        f"updates: {steps:,} an epoch, {updates:,} at most; a checkpoint is {size:,} bytes",
        f"dry run: nothing was made or trained; it would go to {where}",
    ]
    return "\n".join(lines)


def ended(settings: Settings, by: str, at: Any) -> str:
    """Why a run ended before its last epoch did; `at`: its position."""
    why = f": {at.waited} epochs brought nothing better" if by == "patience" else ""
    return f"stopped after epoch {at.epoch}{why} ({by}={getattr(settings, by)})"


def results(summary: dict[str, Any]) -> str:
    """The table at the end: the network on the test split, beside what it must beat."""
    test = summary["test"]
    low, high = test["accuracy_ci95"]
    speed = f"   {summary['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in summary else ""
    lines = [
        "",
        f"test, {many(test['rows'], 'row')}     accuracy   95 % interval",
        f"  {'network':<18}  {test['accuracy']:.4f}    {low:.4f} - {high:.4f}",
        f"  {'bag of words':<18}  {summary['baselines']['bag_of_words']['accuracy']:.4f}",
        f"  {'majority':<18}  {summary['baselines']['majority']['accuracy']:.4f}",
        f"  loss {test['loss']:.4f}   F1 {test['f1_macro']:.4f}   calibration error {test['ece']:.4f}   "
        f"best epoch {summary['best_epoch']}{speed}",
        "",
    ]
    return "\n".join(lines)
