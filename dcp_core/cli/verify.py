"""``dcp-cloud verify``"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated

import typer

from dcp_core.cli.arguments import Concurrency, Json, OneOf, Place, shard_of
from dcp_core.cli.output import Transferring, mib, print_json, print_line
from dcp_core.tools.places import backend_of
from dcp_core.upkeep.inventory import Defect
from dcp_core.upkeep.verify import Report, verify_checkpoint

__all__ = ["verify"]

#: Defects of one object that are printed; JSON has them all.
_SHOWN = 20


def verify(
    url: Place,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Look at the sizes of objects only.")] = False,
    shard: OneOf = "",
    concurrency: Concurrency = 8,
    json: Json = False,
) -> int:
    """Check every byte of a committed checkpoint, without a model. Exit code 1 if something is wrong.

    With --shard, a share of the data is read; the first one also checks the record and the sizes. All is
    right if every share says so.
    """
    with Transferring("verifying") as progress:
        report = verify_checkpoint(
            url,
            quick=quick,
            shard=shard_of(shard),
            progress=progress,
            backend=backend_of(url),
            concurrency=concurrency,
        )
    if json:
        print_json({"ok": report.ok, **dataclasses.asdict(report), "shard": str(report.shard)})
    else:
        _print(report)
    return 0 if report.ok else 1


def _print(report: Report) -> None:
    for _, group in itertools.groupby(report.defects, key=lambda defect: defect.object):
        defects = list(group)
        for defect in defects[:_SHOWN]:
            print_line(_line(defect))
        if len(defects) > _SHOWN:
            print_line(f"… and {len(defects) - _SHOWN} more in {defects[0].object}; --json has them all")
    if report.unaccounted:
        spare = sum(one.stop - one.start for one in report.unaccounted)
        print_line(f"{spare} bytes of objects belong to no item; no one reads them")
    if report.read_twice:
        print_line(f"{report.read_twice} places looked damaged, but not when they were read again")
    if report.parsed_items:
        why = "carry no checksums: their frames are whole, but their bytes could not be verified"
        print_line(f"{report.parsed_items} items ({mib(report.parsed)}) {why}")
    if report.opaque_items:
        why = "were transformed by their writer: only their sizes could be verified"
        print_line(f"{report.opaque_items} items ({mib(report.opaque)}) {why}")
    print_line(_summary(report))


def _line(defect: Defect) -> str:
    where = f" bytes {defect.start}–{defect.stop}" if defect.stop else ""
    item = "" if defect.item is None else f" {defect.item}"
    return f"{defect.kind}: {defect.object}{where}{item}: {defect.problem}"


def _summary(report: Report) -> str:
    checked = "sizes only" if report.quick else f"{mib(report.checked)} verified"
    checked += f", shard {report.shard}" if report.shard.count > 1 else ""
    found = f"{len(report.defects)} defects" if report.defects else "nothing wrong"
    return (
        f"{report.url}: {found} in {report.items} items of {report.objects} objects, "
        f"{mib(report.size)}, {checked}"
    )
