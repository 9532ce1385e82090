"""``dcp-cloud head``"""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from dcp_core.cli.arguments import Concurrency, Json, Place
from dcp_core.cli.output import Transferring, print_json, print_line
from dcp_core.tools.places import open_checkpoint
from dcp_core.tools.statistics import Head, Statistics
from dcp_core.tools.statistics import head as look

__all__ = ["head"]

#: Characters of an object that are shown.
_SHOWN = 2000


def head(
    url: Place,
    tensor: Annotated[
        str, typer.Argument(metavar="TENSOR", help="Name in the state dict.", show_default=False)
    ],
    *,
    count: Annotated[int, typer.Option("--count", "-n", help="Values to show.", min=0, max=10_000)] = 8,
    statistics: Annotated[
        bool, typer.Option(help="Read the whole tensor and say what its values are like.")
    ] = True,
    concurrency: Concurrency = 8,
    json: Json = False,
) -> None:
    """Show the first values of a tensor and statistics of all of them; or an object.

    The tensor is read a piece at a time: it may be larger than memory. Minimum, maximum, mean and standard
    deviation are of the finite values; those of complex numbers are of their absolute values.
    """
    with (
        Transferring("reading") as progress,
        open_checkpoint(url, concurrency=concurrency) as opened,
    ):
        found = look(opened, tensor, count, statistics=statistics, progress=progress)
    if json:
        print_json(_as_json(url, found))
        return
    for line in _lines(found):
        print_line(line)


def _lines(found: Head) -> list[str]:
    if found.shape is None:
        return [f"{found.name}: object", _short(_repr(found.values))]
    lines = [f"{found.name}: {found.dtype} {list(found.shape)}"]
    if found.values:
        more = " …" if len(found.values) < math.prod(found.shape) else ""
        lines.append("values " + ", ".join(map(_shown, found.values)) + more)
    if found.statistics is not None:
        lines += [f"{name} {_shown(value)}" for name, value in _facts(found.statistics).items()]
    return lines


def _facts(found: Statistics) -> dict[str, Any]:
    return {
        "elements": found.elements,
        "nan": found.nan,
        "infinite": found.infinite,
        "zero": found.zero,
        "min": found.least,
        "max": found.most,
        "mean": found.mean,
        "std": found.deviation,
    }


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply to be shown"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _as_json(url: str, found: Head) -> dict[str, Any]:
    """JSON knows neither complex numbers nor those that are not finite: they are texts."""
    is_object = found.shape is None
    return {
        "url": url,
        "name": found.name,
        "dtype": found.dtype,
        "shape": None if found.shape is None else list(found.shape),
        "values": _repr(found.values) if is_object else list(map(_plain, found.values)),
        "statistics": None if found.statistics is None else _facts(found.statistics),
    }


def _plain(value: Any) -> Any:
    exact = isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if exact else str(value)
