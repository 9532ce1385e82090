"""Names of the files of a HuggingFace checkpoint, and the index that says which tensor is in which. Pure.

::

    model.safetensors                          a model in one file, without an index
    model-<i>-of-<n>.safetensors               a file of several, counted from 1
    model.safetensors.index.json               tensor → file, for all of them
    shard-<r>-model-<i>-of-<n>.safetensors     what rank r - 1 has of file i
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from dcp_core.errors import CheckpointCorruptError, CheckpointIncompleteError

__all__ = [
    "CONFIG",
    "INDEX",
    "SINGLE",
    "encode_index",
    "file_name",
    "is_file_name",
    "is_written_name",
    "require_all_files",
    "weight_map_in",
]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"
_SUFFIX = ".safetensors"
_LONGEST_NAME = 1024
_WRITTEN = re.compile(
    r"(shard-(?P<shard>\d{5,})-)?model-(?P<number>\d{5,})-of-(?P<count>\d{5,})\.safetensors"
)


def file_name(number: int, count: int, shard: int | None = None) -> str:
    """Name of file ``number`` of ``count``, or of what rank ``shard - 1`` has of it; all count from 1."""
    whole = f"model-{number:05}-of-{count:05}{_SUFFIX}"
    return whole if shard is None else f"shard-{shard:05}-{whole}"


def is_file_name(name: str) -> bool:
    """Whether an object of this name, below a checkpoint, is one of its safetensors files."""
    return "/" not in name and name.endswith(_SUFFIX)


def is_written_name(name: str) -> bool:
    """Whether an export gives a file such a name."""
    return name == SINGLE or _WRITTEN.fullmatch(name) is not None


def require_all_files(names: Collection[str]) -> None:
    """Make sure that files found without an index are all there, as far as their names tell.

    Raises:
        CheckpointIncompleteError: some are not: an export was interrupted, or is under way.
    """
    for name in names:
        found = _WRITTEN.fullmatch(name)
        if found is None or found["shard"] is not None:
            continue
        count = int(found["count"])
        missing = next((n for n in range(1, count + 1) if file_name(n, count) not in names), None)
        if missing is not None:
            raise CheckpointIncompleteError(
                f"there is no {INDEX}, and no {file_name(missing, count)} either: was the export finished?"
            )


def encode_index(weight_map: Mapping[str, str], total_size: int) -> bytes:
    """The index of a checkpoint whose tensors have ``total_size`` bytes."""
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(weight_map)}
    return json.dumps(index, indent=2, ensure_ascii=False).encode()


def weight_map_in(index: bytes) -> dict[str, str]:
    """Which file each tensor is in, as an index says.

    Raises:
        CheckpointCorruptError: it is no index, or names a file outside of the checkpoint.
    """
    try:
        found: Any = json.loads(index.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointCorruptError(f"the index is no JSON: {str(error)[:200]}") from error
    weight_map = found.get("weight_map") if type(found) is dict else None
    if type(weight_map) is not dict or not all(type(name) is str for name in weight_map.values()):
        raise CheckpointCorruptError("the index has no weight_map from tensors to files")
    for name in set(weight_map.values()):
        if not _stays_below(name):
            raise CheckpointCorruptError(f"the index names {name[:80]!r}, no file below the checkpoint")
    return weight_map


def _stays_below(name: str) -> bool:
    parts = name.split("/")
    return len(name) <= _LONGEST_NAME and name.isprintable() and not {"", ".", ".."}.intersection(parts)
