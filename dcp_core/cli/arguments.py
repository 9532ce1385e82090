"""What several commands take."""

from __future__ import annotations

import math
from typing import Annotated

import typer

__all__ = ["Concurrency", "Json", "Place", "Url", "finite"]

Url = Annotated[str, typer.Argument(help="scheme://bucket/prefix", show_default=False)]
#: Paths too.
Place = Annotated[str, typer.Argument(metavar="URL", help="Path or URL.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Concurrency = Annotated[int, typer.Option(help="Requests in flight.", min=1, max=1024)]


def finite(value: float) -> float:
    """Refuse what is no number of anything."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value
