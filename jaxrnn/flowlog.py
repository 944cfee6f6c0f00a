"""The flow of the gradient in a run: how often it is measured, where the records go, what is said, the picture."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn import outline
from jaxrnn.group import Group
from jaxrnn.settings import Settings


def period(settings: Settings, group: Group) -> int | None:
    """Updates between two measurements; None for never."""
    from jaxrnn import monitor

    steps, updates = outline.extent(settings, group)
    early = settings.patience is not None
    return monitor.period(settings.flow["every_steps"], updates=updates, epoch=steps, early=early)


def watched(reports: Iterable[Any], settings: Settings, group: Group, tell: Callable[[dict], None], fresh: bool) -> Any:
    """The reports of `fit.fit`; `tell` is given the records on the way. `fresh`: update 0 is still to be told."""
    from jaxrnn import monitor

    programs, every = group.programs, period(settings, group)
    if every is None or programs.readings is None:
        return reports

    def first():
        return programs.init(np.uint32(settings.seed), np.float32(settings.init_scale))

    return monitor.watched(reports, programs.readings, every, tell, first if fresh else None)


def told(records: list[dict[str, Any]], settings: Settings, group: Group) -> str:
    """What to change if the gradient vanishes or explodes at the end, or nothing."""
    from jaxrnn import monitor

    if not records:
        return ""
    numbers = {"init_scale": settings.init_scale, "clip_global_norm": settings.clip_global_norm}
    numbers["learning_rate"] = settings.optimizer.learning_rate
    return monitor.told(records[-1], group.network | numbers)


def draw(records: list[dict[str, Any]], path: Path, *, steps: float, title: str) -> None:
    """The picture, with `steps` updates to an epoch."""
    from jaxrnn import flow, plots

    healthy = flow.healthy(len(records[0]["flow"][0]["log_norms"]))
    plots.gradient_flow(records, path, steps=steps, healthy=healthy, title=title)
