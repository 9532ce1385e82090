"""From a URL to its commit record, or to a precise account of what is there instead."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

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

__all__ = ["Record", "UnreadableMetadata", "describe_absence", "read_record"]

_LISTED = 1000
#: One of which a model folder of HuggingFace has.
_HUGGINGFACE = ("model.safetensors.index.json", "model.safetensors")
_ADVICE = "a HuggingFace checkpoint is: load it with dcp_core.huggingface.HuggingFaceStorageReader"


class Record(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
        metadata: where everything is.
        version: of the commit record; ``None`` where there is none.
        versions: of objects that were seen already, by name; a load reads these and no others.
    """

    metadata: Metadata
    version: str | None
    versions: Mapping[str, str] = MappingProxyType({})


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
        if any(_is_there(store, location.key(name)) for name in _HUGGINGFACE):
            return _ADVICE
        return "no commit record is there, and a store of this kind cannot list what else is"
    try:
        names = [info.key[len(prefix) :] for info in islice(store.list(prefix), _LISTED)]
        uploads = list(islice(store.list_uploads(prefix), _LISTED))
    except CloudCheckpointError:
        return "no commit record is there, and what else is could not be listed"
    return _described(names, len(uploads))


def _described(names: list[str], uploads: int) -> str:
    here = [name for name in names if "/" not in name]
    records = sum(name.endswith(".metadata") for name in here)
    data = sum(name.endswith(".distcp") for name in here)
    if records:
        return f"{records} ranks saved theirs without collectives, but not this one"
    if any(name.endswith((".safetensors", _HUGGINGFACE[0])) for name in here):
        return _ADVICE
    if data or uploads:
        return (
            f"an unfinished save is, with {data} data objects and {uploads} unfinished uploads; "
            "it is still running, or failed"
        )
    below = sorted({name.split("/", 1)[0] for name in names if "/" in name})
    return f"only other things below it, such as {below[0]!r}" if below else "nothing is there"


def _is_there(store: ReadableStore, key: str) -> bool:
    try:
        store.head(key)
    except CloudCheckpointError:
        return False
    return True
