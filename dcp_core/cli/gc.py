"""``dcp-cloud gc``"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import typer

from dcp_core.cli.arguments import Concurrency, Json, Place, finite
from dcp_core.cli.output import Counting, mib, print_json, print_line
from dcp_core.config import LoadOptions
from dcp_core.tools.places import place_at
from dcp_core.upkeep.leftovers import Cleanup, Finding, Found, LeftAlone

__all__ = ["gc"]

#: A thousand years: farther back than any object.
_LONGEST_AGO = 24 * 365 * 1000.0


@dataclass
class _Counts:
    objects: int = 0
    size: int = 0
    uploads: int = 0
    left_alone: int = 0

    def add(self, finding: Finding) -> None:
        if isinstance(finding, LeftAlone):
            self.left_alone += 1
            return
        self.objects += len(finding.objects)
        self.size += finding.size
        self.uploads += len(finding.uploads)


def gc(
    url: Place,
    *,
    older_than_hours: Annotated[
        float,
        typer.Option(
            help="Leave alone what changed within this many hours; must exceed the longest save.",
            min=0,
            max=_LONGEST_AGO,
            callback=finite,
        ),
    ] = 24.0,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it, only list.")] = False,
    concurrency: Concurrency = 8,
    json: Json = False,
) -> int:
    """Find, and with --delete remove, what failed saves left at a URL and below it.

    Saves may run meanwhile, and other gc's. With --json, one line of JSON for each finding.
    """
    counts = _Counts()
    older_than = timedelta(hours=older_than_hours)
    checkpoint = place_at(url, LoadOptions, {"concurrency": concurrency})
    with Counting("objects looked at") as progress, contextlib.closing(checkpoint):
        store, location = checkpoint.writable_store(), checkpoint.location
        cleanup = Cleanup(store, location, older_than, checkpoint.options, progress=progress)
        for finding in _findings(cleanup, delete):
            counts.add(finding)
            for line in _as_json(finding, delete) if json else ():
                print_json(line, indent=None)
            for text in () if json else _as_text(finding):
                print_line(text)
    if json:
        print_json({"kind": "summary", "deleted": delete, **vars(counts)}, indent=None)
    else:
        _print_summary(counts, delete)
    return 1 if counts.left_alone else 0


def _findings(cleanup: Cleanup, delete: bool) -> Iterator[Finding]:
    """What was found, or, when deleting, what became of it, as it happens."""
    for finding in cleanup.find():
        if delete and isinstance(finding, Found):
            yield from cleanup.remove(finding)
        else:
            yield finding


def _as_json(finding: Finding, deleted: bool) -> Iterator[dict[str, Any]]:
    if isinstance(finding, LeftAlone):
        yield {"kind": "left_alone", **vars(finding)}
        return
    for info in finding.objects:
        yield {"kind": "object", "key": info.key, "size": info.size, "deleted": deleted}
    for upload in finding.uploads:
        found = upload.upload
        yield {"kind": "upload", "key": found.key, "upload_id": found.upload_id, "deleted": deleted}


def _as_text(finding: Finding) -> Iterator[str]:
    if isinstance(finding, LeftAlone):
        yield f"left alone: {finding.key or finding.folder}: {finding.reason}"
        return
    yield from (f"object {info.key} {info.size} bytes" for info in finding.objects)
    yield from (f"upload {info.upload.key}" for info in finding.uploads)


def _print_summary(counts: _Counts, deleted: bool) -> None:
    if counts.left_alone:
        print_line(f"{counts.left_alone} folders left alone")
    print_line(
        f"{counts.objects} objects ({mib(counts.size)}) and {counts.uploads} uploads "
        + ("deleted" if deleted else "found; --delete removes them")
    )
