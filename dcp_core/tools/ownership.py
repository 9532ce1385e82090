"""Checkpoints whose objects are of one save for ever.

Data objects of this library have names that no other save gives. Stock torch names those of every save alike,
and ranks that save without collectives commit one by one: there another save may change what a record refers
to between any two requests, and what is copied or removed may no longer be what was looked at.
"""

from __future__ import annotations

from collections.abc import Iterable

from dcp_core.errors import UnsupportedError
from dcp_core.format.layout import is_data_name, is_metadata_name, metadata_name
from dcp_core.format.stored import is_newer
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectStore, ReadableStore
from dcp_core.transfer import Transfer
from dcp_core.upkeep.records import CommittedRecord, beside

__all__ = ["names_of", "require_alone", "require_own"]


def names_of(record: CommittedRecord) -> set[str]:
    """Names of the objects that a record refers to."""
    return {info.relative_path for info in record.metadata.storage_data.values()}


def require_own(records: Iterable[CommittedRecord], url: str, instead: str) -> CommittedRecord:
    """The one record of a checkpoint whose objects this library named.

    Args:
        instead: what to do where it is another one.

    Raises:
        UnsupportedError: stock torch made it, its ranks saved apart, or a newer release of this library did.
    """
    first, *others = records
    if others or first.name != metadata_name():
        raise UnsupportedError(
            f"each rank has a commit record of its own at {url} ({first.name}): {instead}", key=first.name
        )
    if is_newer(first.metadata) or any(map(is_newer, first.metadata.storage_data.values())):
        raise UnsupportedError(f"a newer release of dcp-cloud wrote the checkpoint at {url}: use that")
    foreign = sorted(name for name in names_of(first) if not is_data_name(name))
    if foreign:
        raise UnsupportedError(
            f"the checkpoint at {url} has objects that this library did not name, as {foreign[0]!r}, which "
            f"another save may change meanwhile: {instead}",
            key=foreign[0],
        )
    return first


def require_alone(store: ReadableStore, location: Location, transfer: Transfer) -> None:
    """Make sure that no ranks have commit records of their own at a place.

    They are hidden by one for all ranks: with that gone, or replaced, half of another checkpoint may be seen.

    Raises:
        UnsupportedError: some have.
    """
    if not isinstance(store, ObjectStore):
        return
    for name, _ in beside(store, location.key(""), transfer):
        if is_metadata_name(name):
            raise UnsupportedError(
                f"there are commit records of single ranks at {location}, as {name!r}: delete them first",
                bucket=store.bucket,
                key=location.key(name),
            )
