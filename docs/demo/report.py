"""What the demo found: one :class:`Stage` a line, held to the uninterrupted run, and the table of all."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

#: Largest relative difference of a loss on another number of processes, where sums run in another order and
#: round differently. On the same number losses must be equal bit for bit, and loaded values always.
LOSS_TOLERANCE = 1e-5


@dataclass
class Stage:
    """One line of the table. ``values`` and ``losses`` are what it says, ``wrong`` is what fails the demo."""

    what: str
    processes: int
    report: dict[str, Any]
    requests: int
    moved: int
    values: str = ""
    losses: str = ""
    wrong: list[str] = field(default_factory=list)


def describe_reference(stage: Stage) -> None:
    """Say what the others are compared to; a run that diverged compares nothing."""
    losses = list(stage.report["losses"].values())
    stage.values = str(len(stage.report["digests"]))
    stage.losses = f"{losses[0]:.2f} → {losses[-1]:.2f}"
    if not all(map(math.isfinite, losses)):
        stage.wrong.append(f"losses {losses} are not finite")


def compare_values(stage: Stage, reference: Stage, loaded: dict[str, str]) -> None:
    """Hold every loaded value to the saved one."""
    saved = reference.report["digests"]
    different = sorted(name for name in saved.keys() | loaded.keys() if saved.get(name) != loaded.get(name))
    stage.values = f"[red]{len(different)} differ" if different else f"[green]{len(saved)} equal"
    if different:
        stage.wrong.append(f"{len(different)} of {len(saved)} loaded values differ, such as {different[0]}")


def compare_losses(stage: Stage, reference: Stage, after: int) -> None:
    """Hold the losses of the steps after the save to those of the uninterrupted run."""
    expected = {step: loss for step, loss in reference.report["losses"].items() if int(step) > after}
    actual = stage.report["losses"]
    if actual.keys() != expected.keys():
        stage.losses = "[red]other steps"
        stage.wrong.append(f"steps {', '.join(actual)} instead of {', '.join(expected)}")
        return
    differences = [abs(actual[step] - loss) / abs(loss) for step, loss in expected.items()]
    limit = 0.0 if stage.processes == reference.processes else LOSS_TOLERANCE
    # all() and not max(), which overlooks a NaN
    if all(difference <= limit for difference in differences):
        worst = max(differences)
        stage.losses = f"[green]{len(expected)} " + (f"within {worst:.0e}" if worst else "equal")
    else:
        stage.losses = f"[red]{len(expected)} differ"
        figures = ", ".join(f"{difference:.0e}" for difference in differences)
        stage.wrong.append(f"relative differences of losses {figures}, limit {limit:.0e}")


def table(stages: list[Stage], title: str) -> Table:
    """Narrow enough for a terminal of 80 columns."""
    result = Table(
        title=title,
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption="MiB sent or received, and requests, are counted in front of the store;\n"
        "seconds are those of the save or load alone. Values are equal bit for bit.\n"
        f"Losses may differ by {LOSS_TOLERANCE:.0e} where sums run in another order.",
        caption_justify="left",
    )
    for column in ("what", "processes", "MiB", "requests", "seconds", "values", "losses"):
        result.add_column(column, justify="left" if column in ("what", "losses") else "right", no_wrap=True)
    for stage in stages:
        result.add_row(
            stage.what,
            str(stage.processes),
            f"{stage.moved / 2**20:.1f}",
            str(stage.requests),
            f"{stage.report['seconds']:.2f}",
            stage.values,
            stage.losses,
        )
    return result
