"""The flow of the gradient in a run: how often it is measured, where the records go, the picture and what is said."""

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
    """The reports of `fit.fit`; `tell` is given the records on the way. `fresh`: this run starts at update 0."""
    from jaxrnn import monitor

    programs, every = group.programs, period(settings, group)
    if every is None or programs.readings is None:
        return reports

    def first():
        return programs.init(np.uint32(settings.seed), np.float32(settings.init_scale))

    return monitor.watched(reports, programs.readings, every, tell, first if fresh else None)


def shown(records: list[dict[str, Any]], settings: Settings, group: Group, folder: Path, title: str) -> str:
    """Draw plots/gradient_flow.png; -> what to change if the gradient vanishes or explodes at the end, or nothing."""
    from jaxrnn import flow, monitor, plots

    if not records:
        return ""
    healthy = flow.healthy(len(records[0]["flow"][0]["log_norms"]))
    place = folder / "plots" / "gradient_flow.png"
    plots.gradient_flow(records, place, steps=group.steps, healthy=healthy, title=title)
    numbers = {"init_scale": settings.init_scale, "clip_global_norm": settings.clip_global_norm}
    numbers["learning_rate"] = settings.optimizer.learning_rate
    return monitor.told(records[-1], group.network | numbers)
