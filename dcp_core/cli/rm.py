"""``dcp-cloud rm``"""

from __future__ import annotations

from typing import Annotated

import typer

from dcp_core.cli.arguments import Concurrency, Json, Place
from dcp_core.cli.output import mib, print_json, print_line
from dcp_core.tools.removal import Removable, removal_at

__all__ = ["rm"]


def rm(
    url: Place,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only list.")] = False,
    concurrency: Concurrency = 8,
    json: Json = False,
) -> int:
    """Remove one checkpoint or step: its commit record, and then the data that the record refers to.

    What is no committed checkpoint is refused, and so are one of stock torch and a step that is being loaded.
    If another save replaces the checkpoint meanwhile, nothing of that is touched. Exit code 1 if the data had
    to stay, because a load began meanwhile; gc removes it later.
    """
    with removal_at(url, concurrency=concurrency) as removal:
        found = removal.find()
        whole = removal.remove(found) if yes else True
    if json:
        print_json(_as_json(url, found, yes, whole))
    else:
        for line in _lines(found):
            print_line(line)
        print_line(_summary(found, yes, whole))
    return 0 if whole else 1


def _as_json(url: str, found: Removable, removed: bool, whole: bool) -> dict[str, object]:
    return {
        "url": url,
        "removed": removed,
        "data_removed": removed and whole,
        "record": found.record.name,
        "objects": [{"name": name, "size": size} for name, size in found.sizes.items()],
        "size": found.size,
    }


def _lines(found: Removable) -> list[str]:
    objects = [f"object {name} {size} bytes" for name, size in found.sizes.items()]
    return [f"commit record {found.record.name}", *objects]


def _summary(found: Removable, removed: bool, whole: bool) -> str:
    what = f"1 commit record and {len(found.sizes)} objects ({mib(found.size)})"
    if not removed:
        return f"{what} found; --yes removes them"
    if whole:
        return f"{what} removed"
    return "the checkpoint is removed, but someone began to load it: its data stays until `dcp-cloud gc`"
