"""``dcp-cloud ls``"""

from __future__ import annotations

import contextlib
from datetime import datetime, timezone
from typing import Annotated, Any

import typer
from rich.table import Table

from dcp_core.cli.arguments import Concurrency, Json, Url
from dcp_core.cli.output import console, mib, print_json, print_line, printable
from dcp_core.run.layout import step_name
from dcp_core.run.run import CheckpointRun
from dcp_core.run.steps import StepInfo

__all__ = ["ls"]


def ls(
    url: Url,
    *,
    size: Annotated[
        bool, typer.Option("--size", help="Add up the objects of each step; lists all of them.")
    ] = False,
    concurrency: Concurrency = 8,
    json: Json = False,
) -> int:
    """List the steps of a run: committed or not, when and where they were saved, and their metrics.

    A step is <URL>/step-<number>. Exit code 1 if there is none.
    """
    with contextlib.closing(CheckpointRun(url, concurrency=concurrency)) as run:
        rows = [_row(run, info, size) for info in run.steps()]
    if json:
        print_json(rows)
    elif rows:
        console().print(_table(rows, size))
    else:
        print_line(f"no steps at {url}")
    return 0 if rows else 1


def _row(run: CheckpointRun, info: StepInfo, size: bool) -> dict[str, Any]:
    facts = run.facts(info) if info.committed else {}
    row = {
        "step": info.step,
        "url": info.url,
        "committed": info.committed,
        "saved": None if info.saved is None else info.saved.isoformat(),
        "metrics": facts.get("metrics", {}),
        "facts": {name: value for name, value in facts.items() if name not in ("step", "metrics")},
    }
    return {**row, "size": run.size_of(info.step)} if size else row


def _table(rows: list[dict[str, Any]], size: bool) -> Table:
    table = Table(box=None)
    for name in ("step", "state", "saved", "age", *(("size",) if size else ()), "ranks", "host", "metrics"):
        table.add_column(name, justify="right" if name in ("step", "age", "size", "ranks") else "left")
    now = datetime.now(timezone.utc)
    for row in rows:
        saved = None if row["saved"] is None else datetime.fromisoformat(row["saved"])
        facts, metrics = row["facts"], row["metrics"]
        table.add_row(
            step_name(row["step"]),
            "committed" if row["committed"] else "unfinished",
            "" if saved is None else f"{saved:%Y-%m-%d %H:%M:%S}",
            "" if saved is None else _age((now - saved).total_seconds()),
            *((mib(row["size"]),) if size else ()),
            printable(str(facts.get("world_size", ""))),
            printable(str(facts.get("host", ""))),
            printable(", ".join(f"{name}={value:g}" for name, value in _numbers(metrics))),
        )
    return table


def _numbers(metrics: Any) -> list[tuple[str, float]]:
    """What a record says are metrics, as far as they are: anyone may have written it."""
    found = metrics.items() if isinstance(metrics, dict) else ()
    return sorted((str(name), value) for name, value in found if isinstance(value, (int, float)))


def _age(seconds: float) -> str:
    """Seconds for reading, in the largest unit that there is more than one of."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
