"""A path or URL, the store behind it, and what is committed there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dcp_core.config import LoadOptions, SaveOptions, TransferOptions
from dcp_core.disk.backend import DiskBackend
from dcp_core.integrations.checkpoint_ids import refuse_folded
from dcp_core.seam.backend import Backend
from dcp_core.seam.location import Location, scheme_of
from dcp_core.seam.store import ObjectStore, ReadableStore
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.transfer import Transfer
from dcp_core.upkeep.records import CommittedRecord, committed_records

__all__ = [
    "Opened",
    "Target",
    "backend_of",
    "merged",
    "open_checkpoint",
    "open_target",
    "place_at",
    "rank_of",
]

_Options = TypeVar("_Options", bound=TransferOptions)

#: Names of data objects, of this library and of stock torch.
_OF_RANK = re.compile(r"(?:.*/)?__(\d+)_\d+\.")


def backend_of(path: str) -> Backend | None:
    """The backend of paths of this machine; ``None`` for other URLs, whose schemes say which.

    Raises:
        InvalidLocationError: it is a URL that went through ``pathlib``.
    """
    if scheme_of(path) in (None, "file"):
        refuse_folded(path)
        return DiskBackend()
    return None


def place_at(
    path: str, options_type: type[_Options], options: Mapping[str, Any]
) -> CheckpointStore[_Options]:
    """The place at a path or URL.

    Raises:
        ConfigurationError: the URL, its scheme or an option is wrong.
    """
    return CheckpointStore(os.fspath(path), options_type, options, backend_of(path))


@dataclass(frozen=True)
class Opened:
    """A committed checkpoint that is being looked at.

    Attributes:
        records: its commit records, more than one where ranks saved without collectives.
        metadata: what they say together.
    """

    url: str
    store: ReadableStore
    location: Location
    options: LoadOptions
    transfer: Transfer
    records: list[CommittedRecord]
    metadata: Metadata


@contextmanager
def open_checkpoint(path: str, **options: Any) -> Iterator[Opened]:
    """The checkpoint at a path or URL.

    Args:
        **options: of reading, and the backend's.

    Raises:
        CheckpointNotFoundError: nothing is committed there.
        CheckpointCorruptError: its commit record is damaged.
    """
    place = place_at(path, LoadOptions, options)
    try:
        transfer = Transfer(place.options, None)
        records = committed_records(place.store(), place.location, transfer)
        metadata = merged([record.metadata for record in records])
        yield Opened(path, place.store(), place.location, place.options, transfer, records, metadata)
    finally:
        place.close()


@dataclass(frozen=True)
class Target:
    """A place that is written to."""

    store: ObjectStore
    location: Location
    options: SaveOptions
    transfer: Transfer


@contextmanager
def open_target(path: str, **options: Any) -> Iterator[Target]:
    """A path or URL to write to.

    Args:
        **options: of writing, and the backend's.

    Raises:
        UnsupportedError: it can only be read.
    """
    place = place_at(path, SaveOptions, options)
    try:
        yield Target(place.writable_store(), place.location, place.options, Transfer(place.options, None))
    finally:
        place.close()


def merged(parts: list[Metadata]) -> Metadata:
    """What several records say together. Where ranks saved the same chunk, the first one's is taken."""
    if len(parts) == 1:
        return parts[0]
    entries: dict[str, Any] = {}
    storage_data: dict[Any, Any] = {}
    for part in parts:
        for name, entry in part.state_dict_metadata.items():
            known = entries.get(name)
            if isinstance(known, TensorStorageMetadata) and isinstance(entry, TensorStorageMetadata):
                there = {chunk.offsets for chunk in known.chunks}
                chunks = [chunk for chunk in entry.chunks if chunk.offsets not in there]
                entries[name] = TensorStorageMetadata(known.properties, known.size, known.chunks + chunks)
            else:
                entries.setdefault(name, entry)
        for index, info in (part.storage_data or {}).items():
            storage_data.setdefault(index, info)
    return Metadata(entries, parts[0].planner_data, storage_data)


def rank_of(name: str) -> int | None:
    """The rank that wrote the data object of this name; ``None`` where the name does not say."""
    found = _OF_RANK.match(name)
    return None if found is None else int(found[1])
