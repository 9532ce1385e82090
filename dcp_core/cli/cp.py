"""``dcp-cloud cp``"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from dcp_core.cli.arguments import Concurrency, Json, OneOf, shard_of
from dcp_core.cli.output import Transferring, mib, print_json, print_line
from dcp_core.tools.copying import Copied
from dcp_core.tools.copying import copy as copy_checkpoint

__all__ = ["cp"]


def cp(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Path or URL.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TO", help="Path or URL.", show_default=False)],
    *,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another checkpoint that is committed at TO.")
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Take data of the right size that is at TO for equal, without a look."),
    ] = False,
    shard: OneOf = "",
    concurrency: Concurrency = 8,
    json: Json = False,
) -> None:
    """Copy a checkpoint between any two of this machine's paths and clouds, through this machine.

    Data is held against the checksums it was saved with. TO is a checkpoint once all of it is there: its
    commit record is written last, and only if no other save has committed there meanwhile. What is at TO
    already, and equal, is not sent again: a copy that was interrupted goes on. With --shard, data is copied
    and nothing committed: when all shards are done, the same command without it, and perhaps with --quick,
    commits.
    """
    options: dict[str, Any] = {"concurrency": concurrency}
    with Transferring("copying") as progress:
        report = copy_checkpoint(
            source,
            target,
            overwrite=overwrite,
            quick=quick,
            shard=shard_of(shard),
            progress=progress,
            source_options=options,
            target_options=options,
        )
    if json:
        print_json({"from": source, "to": target, **dataclasses.asdict(report)})
    else:
        print_line(_summary(target, shard, report))


def _summary(target: str, shard: str, report: Copied) -> str:
    sent = f"{report.objects - report.kept} objects ({mib(report.size - report.kept_size)}) copied"
    kept = f", {report.kept} ({mib(report.kept_size)}) were there" if report.kept else ""
    state = "" if report.committed else f"; shard {shard}, not committed"
    return f"{target}: {sent}{kept}{state}"
