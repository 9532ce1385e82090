"""The commit record: written last, by one conditional request, or not at all.

::

    Commit.prepare      is a checkpoint there already? (one request)
      … ranks upload …
    Commit.publish      plan == results → conditional write → settle a lost answer → drop superseded data

A commit is in doubt when the answer to the write was lost. What is then at the key is read back and
compared, byte for byte, with what was written: the record carries this save's own id. A real conflict is
never turned into a success, nor a success into a conflict.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.storage import WriteResult

from dcp_core.collector import collector_paused
from dcp_core.config import SaveOptions
from dcp_core.errors import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointIncompleteError,
    CloudCheckpointError,
    ConflictError,
    ObjectNotFoundError,
    TransientError,
)
from dcp_core.format.checksum import crc32c
from dcp_core.format.layout import is_data_name
from dcp_core.format.metadata import decode_metadata, encode_metadata, stamp
from dcp_core.format.stored import StorageInfo
from dcp_core.location import Location
from dcp_core.save.plan import missing_items
from dcp_core.store import Body, Condition, CreateOnly, ObjectInfo, ObjectStore, ReplaceVersion
from dcp_core.transfer import Transfer

__all__ = ["Commit"]

logger = logging.getLogger("dcp_core")


@dataclass
class Commit:
    """Writes one commit record, ``name`` below ``location``."""

    store: ObjectStore
    location: Location
    name: str
    options: SaveOptions
    transfer: Transfer
    previous: ObjectInfo | None = None

    @property
    def key(self) -> str:
        return self.location.key(self.name)

    def prepare(self) -> None:
        """Note the record that is there before anything is written.

        Raises:
            CheckpointExistsError: one is there and ``overwrite=False``.
        """
        try:
            self.previous = self.transfer.attempt(self._look)
        except ObjectNotFoundError:
            self.previous = None
        if self.previous is not None and not self.options.overwrite:
            raise CheckpointExistsError(
                f"a committed checkpoint is at {self.location} and overwrite=False: "
                "choose another URL, or overwrite=True",
                bucket=self.store.bucket,
                key=self.key,
            )

    def _look(self) -> ObjectInfo:
        """Facts about the record. A HEAD's answer has no body: its 404 may mean the object or the bucket,
        its 403 anything. One byte of the object gets an error that says which."""
        try:
            with self.store.read_range(self.key, 0, 1) as reader:
                return reader.info
        except CheckpointCorruptError:
            return self.store.head(self.key)  # it is empty

    def publish(
        self, metadata: Metadata, results: Sequence[Sequence[WriteResult]], storage_meta: StorageMeta
    ) -> None:
        """Check the results against the plan and write the record.

        Raises:
            CheckpointIncompleteError: a planned item was not written; nothing is committed.
            ConflictError: another save committed here since :meth:`prepare`; nothing is committed, and
                this save's data objects are deleted.
            UnsupportedError: the store cannot do conditional writes.
        """
        storage_data = _collect(metadata, results, self.location)
        superseded = self._superseded(storage_data)
        stamp(metadata, storage_data, storage_meta)
        record = encode_metadata(metadata)
        try:
            self._write(record)
        except ConflictError:
            self._delete({info.relative_path for info in storage_data.values()})
            raise
        self._delete(superseded)

    def _superseded(self, storage_data: dict[MetadataIndex, StorageInfo]) -> set[str]:
        """Data objects that only the record about to be replaced refers to."""
        if self.previous is None:
            return set()
        try:
            data, info = self.transfer.attempt(lambda: self.store.get(self.key))
            if info.version != self.previous.version:
                return set()  # the write is about to find the conflict
            old = decode_metadata(data, bucket=self.store.bucket, key=self.key).storage_data
        except (ObjectNotFoundError, CheckpointCorruptError) as error:
            logger.warning("data of the replaced checkpoint at %s stays behind: %s", self.location, error)
            return set()
        return {info.relative_path for info in old.values()} - {
            info.relative_path for info in storage_data.values()
        }

    def _condition(self) -> Condition | None:
        if not self.options.conditional_commit:
            return None
        return CreateOnly() if self.previous is None else ReplaceVersion(self.previous.version)

    def _write(self, record: bytes) -> None:
        body = Body([record], crc32c(record))
        in_doubt = False

        def write() -> None:
            nonlocal in_doubt
            if in_doubt and self._holds(record):
                return
            try:
                self.store.put(self.key, body.fresh(), self._condition())
            except TransientError:
                in_doubt = True
                raise
            except ConflictError as error:
                if not (in_doubt and self._holds(record)):
                    raise self._conflict() from error

        try:
            self.transfer.attempt(write)
        except TransientError:
            # out of attempts: the last word is what the bucket holds
            if not self._holds(record):
                raise

    def _holds(self, record: bytes) -> bool:
        """Whether the bucket holds ``record``."""
        try:
            return self.store.get(self.key)[0] == record
        except ObjectNotFoundError:
            return False

    def _conflict(self) -> ConflictError:
        return ConflictError(
            f"another save committed a checkpoint at {self.location} while this one was uploading; "
            "this save was dropped, that checkpoint is whole",
            bucket=self.store.bucket,
            key=self.key,
        )

    def _delete(self, names: set[str]) -> None:
        """Delete data that nothing refers to. The commit stands whether or not this works."""
        # only what a save of this library can have made: a record must not be able to name other objects
        keys = sorted(self.location.key(name) for name in names if is_data_name(name) or _is_stock_name(name))
        if not keys:
            return
        try:
            self.transfer.attempt(lambda: self.store.delete(keys))
        except CloudCheckpointError as error:
            logger.warning(
                "%d unreferenced objects under %s stay behind until `dcp-cloud gc`: %s",
                len(keys),
                self.location,
                error,
            )


def _is_stock_name(name: str) -> bool:
    """Data of stock writers, ``__0_0.distcp``, which an overwrite may supersede too."""
    return name.startswith("__") and name.endswith(".distcp") and "/" not in name


def _collect(
    metadata: Metadata, results: Sequence[Sequence[WriteResult]], location: Location
) -> dict[MetadataIndex, StorageInfo]:
    """Storage data of all ranks, checked against the plan.

    Raises:
        CheckpointIncompleteError: a planned item was not written.
    """
    with collector_paused():
        storage_data: dict[MetadataIndex, StorageInfo] = {
            result.index: result.storage_data for rank_results in results for result in rank_results
        }
        missing = missing_items(metadata, storage_data)
    if missing:
        shown = ", ".join(sorted(missing)[:3])
        raise CheckpointIncompleteError(
            f"{location} is not committed: {len(missing)} planned items were not written, such as {shown}"
        )
    return storage_data
