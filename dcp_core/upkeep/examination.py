"""One folder of a bucket examined: what in it may be removed at this moment. See ``leftovers.py`` for why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from dcp_core.errors import CheckpointCorruptError, ObjectNotFoundError
from dcp_core.format.layout import data_names_in, is_data_name, is_metadata_name, metadata_name
from dcp_core.format.metadata import decode_metadata
from dcp_core.format.stored import is_newer
from dcp_core.seam.store import ObjectInfo, ObjectStore, UploadInfo
from dcp_core.transfer import Transfer
from dcp_core.upkeep.folders import is_old, split
from dcp_core.upkeep.listing import listed
from dcp_core.upkeep.records import OF_RANKS, beside

__all__ = ["VANISHED", "Examiner", "Finding", "Found", "LeaveAloneError", "LeftAlone"]

#: Whoever deletes a record is about to delete the data, or to put another record there.
VANISHED = "its commit record has just been deleted"


@dataclass(frozen=True)
class Found:
    """Leftovers in one folder: objects or uploads that may go.

    Attributes:
        folder: what their keys begin with.
        objects: data objects that no commit record names.
        uploads: unfinished uploads of data objects.
        records: names of the commit records that are there.
    """

    folder: str
    objects: tuple[ObjectInfo, ...] = ()
    uploads: tuple[UploadInfo, ...] = ()
    records: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of ``objects``."""
        return sum(info.size for info in self.objects)


@dataclass(frozen=True)
class LeftAlone:
    """A folder with what look like leftovers, where nothing may be removed.

    Attributes:
        folder: what its keys begin with.
        reason: why.
        key: the commit record that is the reason, if one is.
    """

    folder: str
    reason: str
    key: str | None = None


Finding = Found | LeftAlone


class LeaveAloneError(Exception):
    def __init__(self, reason: str, key: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.key = reason, key


class Examiner:
    """Examines folders of ``store`` for what last changed before ``before``."""

    def __init__(self, store: ObjectStore, transfer: Transfer, before: datetime) -> None:
        self._store = store
        self._transfer = transfer
        self._before = before

    def examine(self, folder: str) -> Found:
        """What may go in ``folder`` at this moment. The order of the three steps matters: see the module."""
        uploads = [info for info in self._uploads_in(folder) if is_data_name(split(info.upload.key)[1])]
        data: dict[str, ObjectInfo] = {}
        records = [metadata_name()]
        for name, info in beside(self._store, folder, self._transfer):
            if is_data_name(name):
                data[name] = info
            elif is_metadata_name(name):
                records.append(name)
        raw = self._read(folder, records)
        for name in self._referenced(folder, raw, data):
            data.pop(name, None)
        old = Found(
            folder,
            tuple(info for info in data.values() if is_old(info.modified, self._before)),
            tuple(info for info in uploads if is_old(info.started, self._before)),
            tuple(raw),
        )
        young = len(data) + len(uploads) - len(old.objects) - len(old.uploads)
        if young and (old.objects or old.uploads):
            raise LeaveAloneError(
                f"a save may be running: {young} objects or uploads are younger than the limit"
            )
        return old

    def _uploads_in(self, folder: str) -> Iterator[UploadInfo]:
        found = listed(
            self._transfer,
            lambda: self._store.list_uploads(folder + OF_RANKS),
            lambda info: info.upload.key,
        )
        return (info for info in found if split(info.upload.key)[0] == folder)

    def _read(self, folder: str, records: list[str]) -> dict[str, bytes]:
        """The bytes of the records; there need not be one for all ranks."""
        raw: dict[str, bytes] = {}
        for name in records:
            try:
                raw[name] = self.get(folder + name)
            except ObjectNotFoundError:
                if name != metadata_name():
                    raise LeaveAloneError(VANISHED, folder + name) from None
        return raw

    def _referenced(self, folder: str, raw: dict[str, bytes], data: Iterable[str]) -> set[str]:
        """Names that the records refer to. They are decoded only if some of ``data`` is not among them."""
        names = set().union(*(data_names_in(record) for record in raw.values()))
        if set(data) <= names:
            return names
        for name, record in raw.items():
            names |= self._decoded(folder + name, record)
        return names

    def _decoded(self, key: str, record: bytes) -> set[str]:
        try:
            metadata = decode_metadata(record, bucket=self._store.bucket, key=key)
        except CheckpointCorruptError as error:
            raise LeaveAloneError(error.message, key) from error
        if is_newer(metadata) or any(map(is_newer, metadata.storage_data.values())):
            raise LeaveAloneError("a newer release of dcp-cloud wrote its commit record", key)
        return {info.relative_path for info in metadata.storage_data.values()}

    def get(self, key: str) -> bytes:
        """The bytes of a record.

        Raises:
            ObjectNotFoundError: it does not exist.
        """
        return self._transfer.attempt(lambda: self._store.get(key))[0]
