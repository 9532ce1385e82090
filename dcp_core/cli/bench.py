"""``dcp-cloud bench``"""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated

import typer
from rich.table import Table

from dcp_core.cli.arguments import Concurrency, Json, Url, finite
from dcp_core.cli.output import console, print_json, print_line
from dcp_core.config import GIB, MIB
from dcp_core.upkeep.bench import Round, measure_bucket, summary

__all__ = ["bench"]

_LARGEST = 1 << 20


def bench(
    url: Url,
    *,
    gib: Annotated[
        float, typer.Option(help="GiB of each rank's state.", min=0, max=_LARGEST, callback=finite)
    ] = 1.0,
    tensor_mib: Annotated[
        float, typer.Option(help="MiB of each tensor.", min=0, max=_LARGEST, callback=finite)
    ] = 16.0,
    rounds: Annotated[int, typer.Option(help="How often to save and load.", min=1)] = 3,
    concurrency: Concurrency = 8,
    json: Json = False,
) -> None:
    """Measure saving to and loading from a URL; what it writes there is deleted afterwards.

    With several ranks: torchrun --nproc-per-node 8 --no-python dcp-cloud bench URL
    """
    speaks = os.environ.get("RANK", "0") == "0"
    kept: dict[str, list[Round]] = {}
    measured = measure_bucket(
        url,
        size=int(gib * GIB),
        tensor_size=max(8, int(tensor_mib * MIB) // 8 * 8),
        rounds=rounds,
        options={"concurrency": concurrency},
    )
    for one in measured:
        kept.setdefault(one.operation, []).append(one)
        if speaks and not json:
            print_line(f"{one.operation} {one.size / one.wall / 1e9:.2f} GB/s in {one.wall:.2f} s")
    if speaks and json:
        medians = {operation: dataclasses.asdict(summary(found)) for operation, found in kept.items()}
        every = [dataclasses.asdict(one) for found in kept.values() for one in found]
        print_json({"url": url, "medians": medians, "rounds": every})
    elif speaks:
        _print_medians(kept)


def _print_medians(kept: dict[str, list[Round]]) -> None:
    table = Table("", "GB/s", "seconds", "CPU s/GiB")
    for operation, found in kept.items():
        medians = summary(found)
        table.add_row(
            *(f"{operation}, median of {len(found)}", f"{medians.rate / 1e9:.2f}"),
            *(f"{medians.wall:.2f}", f"{medians.cpu_per_gib:.2f}"),
        )
    console().print(table)
