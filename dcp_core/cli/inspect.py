"""``dcp-cloud inspect``"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from rich.table import Table
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dcp_core.cli.arguments import Json, Place
from dcp_core.cli.output import console, mib, print_json, print_line, printable
from dcp_core.config import LoadOptions
from dcp_core.tools.places import place_at
from dcp_core.transfer import Transfer
from dcp_core.upkeep.records import CommittedRecord, committed_records

__all__ = ["inspect"]


def inspect(url: Place, *, json: Json = False) -> None:
    """What a committed checkpoint holds."""
    checkpoint = place_at(url, LoadOptions, {})
    with contextlib.closing(checkpoint):
        transfer = Transfer(checkpoint.options, None)
        records = committed_records(checkpoint.store(), checkpoint.location, transfer)
    entries = [entry for record in records for entry in _entries(record)]
    size = sum(entry["bytes"] or 0 for entry in entries)
    objects = {info.relative_path for record in records for info in record.metadata.storage_data.values()}
    if json:
        print_json({"url": url, "items": entries, "tensor_bytes": size, "objects": len(objects)})
        return
    table = Table("name", "kind", "shape", "chunks")
    for entry in entries:
        shape = "" if entry["shape"] is None else str(entry["shape"])
        table.add_row(printable(entry["name"]), entry["kind"], shape, str(entry["chunks"]))
    console().print(table)
    print_line(f"{mib(size)} of tensors in {len(objects)} data objects")


def _entries(record: CommittedRecord) -> Iterator[dict[str, Any]]:
    for name, entry in sorted(record.metadata.state_dict_metadata.items()):
        if isinstance(entry, TensorStorageMetadata):
            dtype, shape = entry.properties.dtype, list(entry.size)
            size = math.prod(shape) * dtype.itemsize
            kind, chunks = str(dtype).removeprefix("torch."), len(entry.chunks)
            yield {"name": name, "kind": kind, "shape": shape, "chunks": chunks, "bytes": size}
        else:
            yield {"name": name, "kind": "object", "shape": None, "chunks": 1, "bytes": None}
