"""What the demo found: one :class:`Stage` a line, held to the uninterrupted run, and the table of all."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

#: Largest relative difference of a loss on another number of processes, where sums run in another order and
#: round differently. On the same number losses must be equal bit for bit, and loaded values always.
LOSS_TOLERANCE = 1e-5


@dataclass
class Stage:
    """One line of the table."""

    what: str
    processes: int
    report: dict[str, Any]
    requests: int
    sent: int
    received: int
    compared: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self, equal: bool, what: str) -> None:
        (self.compared if equal else self.wrong).append(what)


def describe_reference(stage: Stage) -> None:
    """Say what the others are compared to; a run that diverged compares nothing."""
    losses = list(stage.report["losses"].values())
    if not all(map(math.isfinite, losses)):
        stage.wrong.append(f"losses {losses} are not finite")
    millions = stage.report["parameters"] / 1e6
    stage.compared.append(
        f"the reference: {millions:.1f} M parameters, loss {losses[0]:.2f} → {losses[-1]:.2f}"
    )


def compare_values(stage: Stage, reference: Stage, loaded: dict[str, str]) -> None:
    """Hold every loaded value to the saved one."""
    saved = reference.report["digests"]
    different = sorted(name for name in saved.keys() | loaded.keys() if saved.get(name) != loaded.get(name))
    if different:
        stage.check(False, f"{len(different)} of {len(saved)} loaded values differ, such as {different[0]}")
    else:
        stage.check(True, f"{len(saved)} values bit for bit")


def compare_losses(stage: Stage, reference: Stage, after: int) -> None:
    """Hold the losses of the steps after the save to those of the uninterrupted run."""
    expected = {step: loss for step, loss in reference.report["losses"].items() if int(step) > after}
    actual = stage.report["losses"]
    if actual.keys() != expected.keys():
        stage.check(False, f"steps {', '.join(actual)} instead of {', '.join(expected)}")
        return
    differences = [abs(actual[step] - loss) / abs(loss) for step, loss in expected.items()]
    limit = 0.0 if stage.processes == reference.processes else LOSS_TOLERANCE
    # not max(): it overlooks a NaN
    equal = all(difference <= limit for difference in differences)
    figures = f"relative difference {max(differences):.0e}, limit {limit:.0e}"
    if equal:
        figures = "bit for bit" if not any(differences) else figures
        stage.check(True, f"{len(expected)} losses, {figures}")
    else:
        stage.check(False, f"{len(expected)} losses differ, {figures}")


def table(stages: list[Stage], title: str) -> Table:
    result = Table(
        title=title,
        caption="Bytes and requests as counted in front of the store; seconds of the save or load alone.",
    )
    for column in (
        "what",
        "processes",
        "MiB sent",
        "MiB received",
        "requests",
        "seconds",
        "equal",
        "compared",
    ):
        result.add_column(column, justify="left" if column in ("what", "equal", "compared") else "right")
    for number, stage in enumerate(stages):
        equal = "[red]NO" if stage.wrong else "[green]yes" if number else "–"
        result.add_row(
            stage.what,
            str(stage.processes),
            f"{stage.sent / 2**20:.1f}",
            f"{stage.received / 2**20:.1f}",
            str(stage.requests),
            f"{stage.report['seconds']:.2f}",
            equal,
            "\n".join([*(f"[red]{what}" for what in stage.wrong), *stage.compared]),
        )
    return result
