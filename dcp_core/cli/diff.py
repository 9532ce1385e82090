"""``dcp-cloud diff``"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from dcp_core.cli.arguments import Concurrency, Json
from dcp_core.cli.output import Transferring, mib, print_json, print_line
from dcp_core.tools.difference import Difference, Differences, compare

__all__ = ["diff"]


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Path or URL.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Path or URL.", show_default=False)],
    *,
    values: Annotated[
        bool, typer.Option("--values", help="Compare values too, not only names, shapes and dtypes.")
    ] = False,
    concurrency: Concurrency = 8,
    json: Json = False,
) -> int:
    """Compare two checkpoints. Exit code 1 if they differ.

    Values are compared by the checksums of the commit records, without reading data, where both checkpoints
    have them and are cut into the same chunks. All others are read, a piece at a time.
    """
    with Transferring("comparing") as progress:
        report = compare(a, b, values=values, progress=progress, concurrency=concurrency)
    if json:
        print_json(
            {"equal": not report.found, "a": a, "b": b, "values": values, **dataclasses.asdict(report)}
        )
    else:
        for found in report.found:
            print_line(_line(found))
        print_line(_summary(report, values))
    return 1 if report.found else 0


def _line(found: Difference) -> str:
    if found.a is not None and found.b is not None:
        return f"{found.kind}: {found.name}: {found.a} and {found.b}"
    only = found.a or found.b
    return f"{found.kind}: {found.name}" + (f": {only}" if only else "")


def _summary(report: Differences, values: bool) -> str:
    compared = f"{report.items} items in both"
    if values:
        compared += (
            f", values of {report.by_checksums} compared by checksums and of {report.by_elements} by "
            f"reading {mib(report.read)} of each"
        )
    return f"{len(report.found)} differences; {compared}" if report.found else f"no difference; {compared}"
