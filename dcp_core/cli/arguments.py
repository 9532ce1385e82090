"""What several commands take."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from dcp_core.upkeep.shards import WHOLE, Shard

__all__ = ["Concurrency", "Json", "OneOf", "Place", "Url", "finite", "shard_of"]

Url = Annotated[str, typer.Argument(help="scheme://bucket/prefix", show_default=False)]
#: Paths too.
Place = Annotated[str, typer.Argument(metavar="URL", help="Path or URL.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Concurrency = Annotated[int, typer.Option(help="Requests in flight.", min=1, max=1024)]


OneOf = Annotated[
    str,
    typer.Option("--shard", metavar="I/N", help="Do share I of N, so that N machines do all."),
]


def shard_of(text: str) -> Shard:
    """The share that ``--shard`` says; all, if it was not given."""
    return Shard.parse(text) if text else WHOLE


def finite(value: float) -> float:
    """Refuse what is no number of anything."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value
