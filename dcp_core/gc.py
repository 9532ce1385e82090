"""Finding what failed saves left behind. Nothing here is part of a committed checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from dcp_core.errors import CheckpointCorruptError
from dcp_core.format.layout import is_data_name, is_metadata_name
from dcp_core.format.metadata import decode_metadata
from dcp_core.location import Location
from dcp_core.store import ObjectInfo, ObjectStore, UploadInfo

__all__ = ["Leftovers", "find_leftovers", "remove_leftovers"]


@dataclass
class Leftovers:
    """What can go.

    Attributes:
        objects: data objects that no commit record beside them names.
        uploads: unfinished uploads of data objects.
        unreadable: commit records that could not be read; nothing beside them is listed.
    """

    objects: list[ObjectInfo] = field(default_factory=list)
    uploads: list[UploadInfo] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of ``objects``."""
        return sum(info.size for info in self.objects)


def find_leftovers(store: ObjectStore, location: Location, older_than: timedelta) -> Leftovers:
    """Leftovers at ``location`` and anywhere below it, last changed more than ``older_than`` ago.

    A save that is still running has leftovers too until it commits: ``older_than`` must exceed the
    longest save.
    """
    before = datetime.now(timezone.utc) - older_than
    prefix = location.key("")
    found = Leftovers()
    for folder, infos in _by_folder(store.list(prefix)).items():
        referenced = _referenced(store, folder, infos, found)
        if referenced is not None:
            found.objects += [
                info
                for info in infos
                if is_data_name(name := info.key[len(folder) :])
                and name not in referenced
                and info.modified is not None
                and info.modified < before
            ]
    found.uploads = [
        info
        for info in store.list_uploads(prefix)
        if is_data_name(info.upload.key.rpartition("/")[2])
        and info.started is not None
        and info.started < before
    ]
    return found


def remove_leftovers(store: ObjectStore, found: Leftovers) -> None:
    """Delete the objects and abort the uploads."""
    if found.objects:
        store.delete([info.key for info in found.objects])
    for info in found.uploads:
        store.abort_upload(info.upload)


def _by_folder(infos: Iterable[ObjectInfo]) -> dict[str, list[ObjectInfo]]:
    folders: dict[str, list[ObjectInfo]] = {}
    for info in infos:
        head, slash, _ = info.key.rpartition("/")
        folders.setdefault(head + slash, []).append(info)
    return folders


def _referenced(
    store: ObjectStore, folder: str, infos: list[ObjectInfo], found: Leftovers
) -> set[str] | None:
    """Names that the commit records in ``folder`` refer to; ``None`` if one of them is unreadable."""
    names: set[str] = set()
    for info in infos:
        if not is_metadata_name(info.key[len(folder) :]):
            continue
        try:
            metadata = decode_metadata(store.get(info.key)[0], bucket=store.bucket, key=info.key)
        except CheckpointCorruptError:
            found.unreadable.append(info.key)
            return None
        names.update(stored.relative_path for stored in metadata.storage_data.values())
    return names
