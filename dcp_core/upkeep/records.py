"""The commit records of a checkpoint and the objects beside them, as upkeep sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch.distributed.checkpoint.metadata import Metadata

from dcp_core.errors import CheckpointNotFoundError, ObjectNotFoundError, PermissionDeniedError
from dcp_core.format.layout import is_metadata_name, metadata_name
from dcp_core.format.metadata import decode_metadata
from dcp_core.load.metadata import read_record
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectInfo, ObjectStore, ReadableStore
from dcp_core.transfer import Transfer
from dcp_core.upkeep.listing import listed

__all__ = ["CommittedRecord", "committed_records", "object_sizes", "record_version"]

#: What the names of data objects and of the records of single ranks begin with.
OF_RANKS = "__"


class CommittedRecord(NamedTuple):
    """One commit record: its name below the checkpoint's URL, what it says, and its version."""

    name: str
    metadata: Metadata
    version: str


def committed_records(store: ReadableStore, location: Location, transfer: Transfer) -> list[CommittedRecord]:
    """What a load would read: ``.metadata``, or, of a save without collectives, the record of each rank.

    Raises:
        CheckpointNotFoundError: there is neither.
        CheckpointCorruptError: one of them is damaged.
    """
    try:
        return [CommittedRecord(metadata_name(), *read_record(store, location, transfer))]
    except CheckpointNotFoundError:
        if not isinstance(store, ObjectStore):
            raise
        names = [name for name, _ in beside(store, location.key(""), transfer) if is_metadata_name(name)]
        if not names:
            raise
    return [_read(store, location, transfer, name) for name in names]


def _read(store: ReadableStore, location: Location, transfer: Transfer, name: str) -> CommittedRecord:
    key = location.key(name)
    data, info = transfer.attempt(lambda: store.get(key))
    return CommittedRecord(name, decode_metadata(data, bucket=store.bucket, key=key), info.version)


def record_version(store: ReadableStore, location: Location, transfer: Transfer, name: str) -> str | None:
    """The version of a record that is there now."""
    try:
        return transfer.attempt(lambda: store.head(location.key(name))).version
    except ObjectNotFoundError:
        return None


def beside(store: ObjectStore, folder: str, transfer: Transfer) -> Iterator[tuple[str, ObjectInfo]]:
    """Names that begin as those of data objects and ranks' records do, directly in ``folder``."""
    for info in listed(transfer, lambda: store.list(folder + OF_RANKS), lambda info: info.key):
        name = info.key[len(folder) :]
        if "/" not in name:
            yield name, info


def object_sizes(
    store: ReadableStore, location: Location, transfer: Transfer, names: Sequence[str], concurrency: int
) -> dict[str, int]:
    """Bytes of those of ``names`` that exist: by listing where that is possible, else a request each."""
    sizes: dict[str, int] = {}
    if isinstance(store, ObjectStore):
        wanted = set(names)
        try:
            there = beside(store, location.key(""), transfer)
            sizes = {name: info.size for name, info in there if name in wanted}
        except PermissionDeniedError:
            # reading needs less than listing
            sizes = {}

    def size(name: str) -> int | None:
        try:
            return transfer.attempt(lambda: store.head(location.key(name))).size
        except ObjectNotFoundError:
            return None

    left = [name for name in names if name not in sizes]
    heads = transfer.run(left, size, max(1, min(concurrency, len(left))))
    sizes.update((name, found) for name, found in zip(left, heads, strict=True) if found is not None)
    return sizes
