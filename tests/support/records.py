"""Commit records for tests: metadata of any size, records written opcode by opcode, and what is read of them.

Opcodes are those of CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from dcp_core import CheckpointCorruptError
from dcp_core.format.checksum import BLOCK_SIZE, pack
from dcp_core.format.layout import data_name
from dcp_core.format.metadata import decode_metadata
from dcp_core.format.stored import Payload, StorageInfo, storage_info

MODULE = "torch.distributed.checkpoint.metadata"
#: Bytes of a frame around its payload.
AROUND = 1200
_TOKEN = "0123456789abcdef"


def read(data: bytes) -> Metadata:
    """What this library makes of a record."""
    return decode_metadata(data, bucket="bucket", key="run/.metadata")


def refused(data: bytes) -> str:
    """Why it refuses a record."""
    with pytest.raises(CheckpointCorruptError) as caught:
        read(data)
    assert (caught.value.bucket, caught.value.key) == ("bucket", "run/.metadata")
    return str(caught.value)


def metadata(tensors: int, chunks: int, *, facts: bool, rows: int = 3) -> Metadata:
    """Metadata of ``tensors`` tensors of ``chunks`` chunks each, and of an object; with ``facts``, as this
    library writes it."""
    entries: dict[str, Any] = {"step": BytesStorageMetadata()}
    stored = {MetadataIndex("step"): _info(0, 0, 700, facts=facts, plain=False)}
    at = [700] + [0] * chunks
    for number in range(tensors):
        name = f"model.layers.{number}.weight"
        entries[name] = _entry(number, chunks, rows)
        for rank, chunk in enumerate(entries[name].chunks):
            size = math.prod(chunk.sizes) * entries[name].properties.dtype.itemsize
            info = _info(rank, at[rank], size, facts=facts, plain=True)
            at[rank] += info.length
            stored[MetadataIndex(name, chunk.offsets, rank)] = info
    paths = {name: tuple(name.split(".")) for name in entries}
    return Metadata(entries, paths, stored, StorageMeta("s3://bucket/run", "save", None))


def _entry(number: int, chunks: int, rows: int) -> TensorStorageMetadata:
    dtype = (torch.float32, torch.bfloat16, torch.int64)[number % 3]
    made = [
        ChunkStorageMetadata(torch.Size((rows * rank, 0)), torch.Size((rows, 5 + number)))
        for rank in range(chunks)
    ]
    return TensorStorageMetadata(
        TensorProperties(dtype, requires_grad=bool(number % 2)), torch.Size((rows * chunks, 5 + number)), made
    )


@cache
def _object_name(rank: int) -> str:
    # one string for each, as a rank's results have it: a pickle then refers to it
    return data_name(rank, 0, _TOKEN)


def _info(rank: int, offset: int, size: int, *, facts: bool, plain: bool) -> StorageInfo:
    name = _object_name(rank)
    around = AROUND if plain else 0
    if not facts:
        return StorageInfo(name, offset, size + around)
    checksums = pack(rank * 7 + block for block in range(-(-size // BLOCK_SIZE)))
    return storage_info(name, offset, size + around, Payload(around // 2, size, plain, checksums))


def assert_same(one: Metadata, other: Metadata) -> None:
    """Equal, to the attributes that ``==`` does not know."""
    assert one == other
    assert vars(one).keys() - {"version"} == vars(other).keys() - {"version"}
    assert list(one.state_dict_metadata) == list(other.state_dict_metadata)
    assert list(one.storage_data) == list(other.storage_data)
    for index, info in one.storage_data.items():
        assert _set(info) == _set(other.storage_data[index])


def _set(info: StorageInfo) -> dict[str, Any]:
    """Its attributes; torch leaves out those that are None."""
    return {field: value for field, value in vars(info).items() if value is not None}


def name(module: str, attribute: str) -> bytes:
    """Push a global."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    """Push text."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def instance(made: bytes, **fields: bytes) -> bytes:
    """Push an object of the class that ``made`` pushes, each field by its opcodes."""
    pairs = b"".join(text(field) + opcodes for field, opcodes in fields.items())
    return made + b")\x81}(" + pairs + b"ub"


def record(planner_data: bytes = b"N", *, protocol: int = 4, **fields: bytes) -> bytes:
    """A record of nothing but planner data, each field by its opcodes."""
    given = {"state_dict_metadata": b"}", "planner_data": planner_data, "storage_data": b"}"} | fields
    return b"\x80" + bytes([protocol]) + instance(name(MODULE, "Metadata"), **given) + b"."
