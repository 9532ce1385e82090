"""From a URL to its commit record, or to a precise account of what is there instead."""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata

from dcp_core.errors import (
    CheckpointNotFoundError,
    CloudCheckpointError,
    ObjectNotFoundError,
)
from dcp_core.format.layout import metadata_name
from dcp_core.format.metadata import decode_metadata
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectStore, ReadableStore
from dcp_core.transfer import Transfer

__all__ = ["UnreadableMetadata", "describe_absence", "read_record"]

_LISTED = 1000


class UnreadableMetadata(Metadata):
    """Stands for a commit record that could not be read, and raises why when it is used.

    ``dcp.load`` swallows whatever ``read_metadata`` raises and ends in an ``AssertionError`` of its own.
    Handing it this instead lets the real error out at the next step, on every rank.
    """

    def __init__(self, reason: CloudCheckpointError) -> None:
        super().__init__({})
        self.reason = reason

    def __getattribute__(self, name: str) -> Any:
        if name in ("state_dict_metadata", "planner_data", "storage_data"):
            reason = super().__getattribute__("__dict__").get("reason")
            if reason is not None:
                raise reason
        return super().__getattribute__(name)


def read_record(
    store: ReadableStore, location: Location, transfer: Transfer, rank: int | None = None
) -> tuple[Metadata, str]:
    """The commit record and its version; with ``rank``, the record of a save without collectives.

    Raises:
        CheckpointNotFoundError: nothing is committed here; says whether an unfinished save is.
        CheckpointCorruptError: the record is damaged.
    """
    key = location.key(metadata_name(rank))
    try:
        data, info = transfer.attempt(lambda: store.get(key))
    except ObjectNotFoundError as error:
        raise CheckpointNotFoundError(
            f"no committed checkpoint is at {location}: {describe_absence(store, location)}",
            bucket=store.bucket,
            key=key,
            rank=transfer.rank,
        ) from error
    return decode_metadata(data, bucket=store.bucket, key=key), info.version


def describe_absence(store: ReadableStore, location: Location) -> str:
    """What lies at a URL without a commit record, for people."""
    prefix = location.key("")
    if not isinstance(store, ObjectStore):
        return "no commit record is there, and a store of this kind cannot list what else is"
    try:
        names = [info.key[len(prefix) :] for info in islice(store.list(prefix), _LISTED)]
        uploads = list(islice(store.list_uploads(prefix), _LISTED))
    except CloudCheckpointError:
        return "no commit record is there, and what else is could not be listed"
    records = sum(1 for name in names if "/" not in name and name.endswith(".metadata"))
    data = sum(1 for name in names if "/" not in name and name.endswith(".distcp"))
    if records:
        return f"{records} ranks saved theirs without collectives, but not this one"
    if data or uploads:
        return (
            f"an unfinished save is, with {data} data objects and {len(uploads)} unfinished uploads; "
            "it is still running, or failed"
        )
    below = sorted({name.split("/", 1)[0] for name in names if "/" in name})
    if below:
        return f"only other things below it, such as {below[0]!r}"
    return "nothing is there"
