"""``dcp-cloud du``"""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.table import Table

from dcp_core.cli.arguments import Concurrency, Json, Place
from dcp_core.cli.output import Counting, console, mib, print_json, print_line, printable
from dcp_core.tools.usage import Usage, usage

__all__ = ["du"]


def du(url: Place, *, concurrency: Concurrency = 8, json: Json = False) -> int:
    """Add up the bytes of each checkpoint at a URL and below it, with leftovers of failed saves apart.

    Leftovers are data objects that no commit record refers to: those of saves that are running are among
    them. gc removes what is old. Exit code 1 if nothing is there.
    """
    with Counting("objects listed") as progress:
        rows = list(usage(url, progress=progress, concurrency=concurrency))
    if json:
        print_json({"url": url, "folders": [_row(one) for one in rows], "totals": _totals(rows)})
    elif rows:
        _print(rows)
    else:
        print_line(f"nothing is at {url}")
    return 0 if rows else 1


def _row(one: Usage) -> dict[str, Any]:
    modified = None if one.modified is None else one.modified.isoformat()
    return {**dataclasses.asdict(one), "modified": modified}


def _totals(rows: list[Usage]) -> dict[str, int]:
    return {
        "checkpoints": sum(one.state == "committed" for one in rows),
        "size": sum(one.size for one in rows),
        "leftover_size": sum(one.leftover_size for one in rows),
        "other_size": sum(one.other_size for one in rows),
        "uploads": sum(one.uploads for one in rows),
    }


def _print(rows: list[Usage]) -> None:
    table = Table(box=None)
    for name in ("folder", "state", "saved", "objects", "size", "leftovers", "uploads"):
        table.add_column(name, justify="left" if name in ("folder", "state", "saved") else "right")
    for one in rows:
        if one.state == "other":
            continue
        table.add_row(
            *(printable(one.path or "."), one.state),
            "" if one.modified is None else f"{one.modified:%Y-%m-%d %H:%M:%S}",
            *(str(one.objects), mib(one.size)),
            mib(one.leftover_size) if one.leftovers else "",
            str(one.uploads or ""),
        )
    if table.row_count:
        console().print(table)
    totals = _totals(rows)
    print_line(
        f"{totals['checkpoints']} checkpoints {mib(totals['size'])}, leftovers "
        f"{mib(totals['leftover_size'])} and {totals['uploads']} uploads, others {mib(totals['other_size'])}"
    )
