"""The metadata of a checkpoint, made from what was read of a record, and held against itself.

::

    chunks of a tensor     lie in it and do not overlap; each is stored at one place
    places in an object    do not overlap, and have room for the elements of their chunk
    names of objects       stay below the checkpoint
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

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

from dcp_core.format import kinds
from dcp_core.format.inert import Kind, MalformedPickleError, Node, Pairs
from dcp_core.format.kinds import fields_of
from dcp_core.format.plain import PlainData
from dcp_core.format.stored import FACTS, StorageInfo, payload_of
from dcp_core.format.tiling import GAP, chunk_fault

__all__ = ["DamagedRecordError", "metadata_of"]

_LONGEST_NAME = 1024


class DamagedRecordError(Exception):
    """The record contradicts itself."""


def metadata_of(read: Any, size: int) -> Metadata:
    """The metadata of a record of ``size`` bytes.

    Raises:
        MalformedPickleError: something is of another type than it may be.
        DamagedRecordError: what it says cannot be.
    """
    found = fields_of(_made(read, kinds.METADATA), "Metadata")
    places = _Places()
    storage_data = places.read(found.get("storage_data"))
    metadata = Metadata(
        _entries(found.get("state_dict_metadata"), places),
        _planner_data(found.get("planner_data"), size),
        storage_data,
        _storage_meta(found.get("storage_meta")),
    )
    version = _text(found.get("version"), "version")
    if version is not None:
        # since torch 2.9
        setattr(metadata, "version", version)  # noqa: B010
    facts = found.get(FACTS)
    if facts is not None:
        # a newer release says more than this one knows
        setattr(metadata, FACTS, PlainData(size).of(facts))
    return metadata


def _made(read: Any, kind: Kind) -> Any:
    """The value of an object that has to be of ``kind``, and finished."""
    if type(read) is Node and read.kind is kind and read.value is not None:
        return read.value
    if kind.made is not None and type(read) is kind.made:
        return read
    found = read.kind.name if type(read) is Node else type(read).__name__
    raise MalformedPickleError(f"it holds a {found} where a {kind.name} belongs")


def _pairs(value: Any, name: str) -> Pairs:
    if type(value) is not Pairs:
        raise MalformedPickleError(f"its {name} is no dict")
    return value


class _Places:
    """Where items are stored, by name and offset."""

    def __init__(self) -> None:
        self._by_name: dict[str, dict[torch.Size | None, StorageInfo]] = {}

    def read(self, value: Any) -> dict[MetadataIndex, StorageInfo]:
        """The record's storage data."""
        pairs, by_name = _pairs(value, "storage_data"), self._by_name
        found: dict[MetadataIndex, StorageInfo] = {}
        ranges = _Ranges()
        for index, info in zip(pairs[::2], pairs[1::2], strict=True):
            if type(index) is not MetadataIndex:
                index = _made(index, kinds.INDEX)  # noqa: PLW2901
            if type(info) is not StorageInfo:
                info = _made(info, kinds.INFO)  # noqa: PLW2901
            places = by_name.get(index.fqn)
            if places is None:
                places = by_name[index.fqn] = {}
            if index.offset in places:
                raise DamagedRecordError(f"it says twice where {_shown(index.fqn, index.offset)} is stored")
            places[index.offset] = info
            found[index] = info
            ranges.add(info)
        ranges.check()
        return found

    def of(self, name: str, offset: torch.Size | None) -> StorageInfo:
        """Where one item is."""
        info = self._by_name.get(name, {}).get(offset)
        if info is None:
            raise DamagedRecordError(f"it does not say where {_shown(name, offset)} is stored")
        return info


class _Ranges:
    """The ranges of each object, which are in order as writers leave them."""

    def __init__(self) -> None:
        self._ends: dict[str, int] = {}
        self._unordered: set[str] = set()
        self._all: list[StorageInfo] = []

    def add(self, info: StorageInfo) -> None:
        name, offset = info.relative_path, info.offset
        if offset < self._ends.get(name, 0):
            self._unordered.add(name)
        self._ends[name] = offset + info.length
        self._all.append(info)

    def check(self) -> None:
        """Make sure that ranges do not overlap, and of the objects' names."""
        for name in self._ends:
            if not _stays_below(name):
                raise DamagedRecordError(f"{name[:80]!r} is no name of an object below the checkpoint")
        if not self._unordered:
            return
        ranges = sorted(
            (info.relative_path, info.offset, info.offset + info.length)
            for info in self._all
            if info.relative_path in self._unordered
        )
        last: tuple[str, int, int] = ("", 0, 0)
        for each in ranges:
            if each[0] == last[0] and each[1] < last[2] and each != last:
                raise DamagedRecordError(f"items overlap in {each[0]!r}, at byte {each[1]}")
            last = each


def _stays_below(name: str) -> bool:
    parts = name.split("/")
    return len(name) <= _LONGEST_NAME and name.isprintable() and not {"", ".", ".."}.intersection(parts)


def _entries(value: Any, places: _Places) -> dict[str, Any]:
    pairs = _pairs(value, "state_dict_metadata")
    found: dict[str, Any] = {}
    for name, node in zip(pairs[::2], pairs[1::2], strict=True):
        if type(name) is not str or name in found:
            raise MalformedPickleError("an item has no name of its own")
        if type(node) is Node and node.kind is kinds.BYTES:
            found[name] = BytesStorageMetadata()
            places.of(name, None)
        else:
            entry = _tensor(_made(node, kinds.TENSOR))
            _check_tensor(name, entry, places)
            found[name] = entry
    return found


def _tensor(state: Any) -> TensorStorageMetadata:
    found = fields_of(state, "TensorStorageMetadata")
    size, chunks = found.get("size"), found.get("chunks")
    properties: TensorProperties = _made(found.get("properties"), kinds.PROPERTIES)
    if type(size) is not torch.Size or type(chunks) is not list:
        raise MalformedPickleError("a tensor has no size or no chunks")
    return TensorStorageMetadata(
        properties,
        size,
        [each if type(each) is ChunkStorageMetadata else _made(each, kinds.CHUNK) for each in chunks],
    )


def _check_tensor(name: str, entry: TensorStorageMetadata, places: _Places) -> None:
    fault = chunk_fault(entry.size, entry.chunks)
    # what one rank saves alone is a part of a tensor: what a load asks for is then held against what is there
    if fault is not None and fault is not GAP:
        raise DamagedRecordError(f"the chunks of {name!r}, of shape {tuple(entry.size)}, {fault}")
    itemsize = entry.properties.dtype.itemsize
    for chunk in entry.chunks:
        payload = payload_of(places.of(name, chunk.offsets))
        if payload is not None and payload.plain and payload.size != math.prod(chunk.sizes) * itemsize:
            raise DamagedRecordError(
                f"it gives {payload.size} bytes to {_shown(name, chunk.offsets)}, a chunk of shape "
                f"{tuple(chunk.sizes)} and {entry.properties.dtype}"
            )


def _shown(name: str, offset: torch.Size | None) -> str:
    return f"{name!r} at {list(offset)}" if offset else repr(name)


def _planner_data(value: Any, size: int) -> dict[Any, Any] | None:
    if value is None:
        return None
    return PlainData(size).mapping(_pairs(value, "planner_data"))


def _storage_meta(node: Any) -> StorageMeta | None:
    if node is None:
        return None
    found = fields_of(_made(node, kinds.META), "StorageMeta")
    where, modules = found.get("checkpoint_id"), found.get("modules", [])
    if not isinstance(where, pathlib.PurePosixPath):
        where = _text(where, "checkpoint_id")
    if type(modules) is not list or any(type(module) is not str for module in modules):
        raise MalformedPickleError("its modules are no list of names")
    save_id, load_id = (_text(found.get(name), name) for name in ("save_id", "load_id"))
    meta = StorageMeta(where, save_id, load_id)
    if modules:
        # since torch 2.7
        setattr(meta, "modules", list(modules))  # noqa: B010
    return meta


def _text(value: Any, name: str) -> str | None:
    if value is not None and type(value) is not str:
        raise MalformedPickleError(f"its {name} is no text")
    return value
