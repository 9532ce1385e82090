"""The commit record: written last, by one conditional request, or not at all.

::

    Commit.prepare      is a checkpoint there already? (one request)
      … ranks upload …
    Commit.publish      plan == results → conditional write (record.py) → drop what nothing refers to

Data is deleted only where no record that can be read, now or later, refers to it: the data of a record that
was replaced, once this save's own is known to have replaced it; and this save's own data, once another record
is there and this save's can no longer be written. All else is left to ``dcp-cloud gc``. See decision 11.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.storage import WriteResult

from dcp_core.config import SaveOptions
from dcp_core.errors import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointIncompleteError,
    CloudCheckpointError,
    ConflictError,
    ObjectNotFoundError,
    PermissionDeniedError,
)
from dcp_core.format.layout import is_data_name
from dcp_core.format.metadata import decode_metadata, encode_metadata, stamp
from dcp_core.format.stored import StorageInfo
from dcp_core.runtime.gc_pause import gc_paused
from dcp_core.save.plan import misfits, missing_items
from dcp_core.save.record import Found, RecordWrite
from dcp_core.save.results import RankResults
from dcp_core.seam.location import Location
from dcp_core.seam.store import Condition, CreateOnly, ObjectInfo, ObjectStore, ReplaceVersion
from dcp_core.transfer import Transfer

__all__ = ["Commit"]

logger = logging.getLogger("dcp_core")

#: Seconds for deleting what nothing refers to: a batch of a thousand takes one, and `gc` deletes the rest.
_DELETE_SECONDS = 60.0


@dataclass(frozen=True)
class Commit:
    """Writes one commit record, ``name`` below ``location``."""

    store: ObjectStore
    location: Location
    name: str
    options: SaveOptions
    transfer: Transfer
    facts: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        return self.location.key(self.name)

    def prepare(self) -> ObjectInfo | None:
        """The record that is there before anything is written, if there is one.

        Raises:
            CheckpointExistsError: one is there and ``overwrite=False``.
        """
        try:
            found = self.transfer.attempt(self._look)
        except ObjectNotFoundError:
            return None
        except PermissionDeniedError as error:
            if not (error.denied and self.options.conditional_commit):
                raise
            # a store hides from those who may not list that nothing is there: the commit's condition decides
            logger.info("the commit will show whether a checkpoint is at %s: %s", self.location, error)
            return None
        if not self.options.overwrite:
            raise CheckpointExistsError(
                f"a committed checkpoint already exists at {self.location} and overwrite=False: "
                "choose another URL, or overwrite=True",
                bucket=self.store.bucket,
                key=self.key,
            )
        return found

    def _look(self) -> ObjectInfo:
        """Facts about the record. The response to a HEAD has no body: its 404 may mean the object or the
        bucket, its 403 anything. One byte of the object gets an error that says which."""
        try:
            with self.store.read_range(self.key, 0, 1) as reader:
                return reader.info
        except CheckpointCorruptError:
            return self.store.head(self.key)  # it is empty

    def publish(
        self,
        metadata: Metadata,
        results: Sequence[Sequence[WriteResult]],
        storage_meta: StorageMeta,
        previous: ObjectInfo | None,
    ) -> None:
        """Check the results against the plan and write the record in place of ``previous``.

        ``metadata`` is completed once the record is written: ``dcp.save`` returns it. It may be shared with
        other saves that are under way, as planners that cache plans do, and is not relied on before.

        Raises:
            CheckpointIncompleteError: a planned item was not written; nothing is committed.
            ConflictError: another save committed here since :meth:`prepare`; nothing is committed, and
                this save's data objects are deleted.
            CommitUncertainError: the store did not say whether the record was written.
            UnsupportedError: the store cannot do conditional writes.
        """
        storage_data = _collect(metadata, results, self.location)
        names = {info.relative_path for info in storage_data.values()}
        committed = copy.copy(metadata)
        stamp(committed, storage_data, storage_meta)
        self.replace(encode_metadata(committed, self.facts), names, previous)
        stamp(metadata, storage_data, storage_meta)

    def replace(self, record: bytes, names: set[str], previous: ObjectInfo | None) -> None:
        """Write ``record``, which refers to the data objects ``names``, in place of ``previous``, and delete
        what only that one referred to; raises like :meth:`publish`."""
        superseded = self._superseded(previous) - names
        self._write(record, names, previous)
        self._delete(superseded)

    def _write(self, record: bytes, names: set[str], previous: ObjectInfo | None) -> None:
        condition = self._condition(previous)
        found = RecordWrite(self.store, self.key, record, condition, self.transfer).run()
        if found is None:
            return
        if found.final and found.data is not None:
            kept = self._names_in(found.data)
            if kept is not None:
                self._delete(names - kept)
        raise self._conflict(found)

    def _condition(self, previous: ObjectInfo | None) -> Condition | None:
        if not self.options.conditional_commit:
            return None
        return CreateOnly() if previous is None else ReplaceVersion(previous.version)

    def _superseded(self, previous: ObjectInfo | None) -> set[str]:
        """Data objects that only the record about to be replaced refers to."""
        if previous is None or not self.options.conditional_commit:
            # without conditions, a late repetition of the write of that record could bring it back
            return set()
        try:
            data, info = self.transfer.attempt(lambda: self.store.get(self.key))
        except ObjectNotFoundError:
            return set()
        if info.version != previous.version:
            return set()  # the write is about to find the conflict
        return self._names_in(data) or set()

    def _names_in(self, record: bytes) -> set[str] | None:
        """Data objects that a record refers to; ``None`` if it is damaged."""
        try:
            metadata = decode_metadata(record, bucket=self.store.bucket, key=self.key)
        except CheckpointCorruptError as error:
            logger.warning("data under %s stays behind: %s", self.location, error)
            return None
        return {info.relative_path for info in metadata.storage_data.values()}

    def _conflict(self, found: Found) -> ConflictError:
        return ConflictError(
            (
                f"another save committed a checkpoint at {self.location} while this one was uploading; "
                "this save was dropped, that checkpoint is whole"
                if found.data is not None
                else f"the checkpoint at {self.location} was removed while this save, which was to replace "
                "it, was uploading; this save was dropped: save again"
            ),
            bucket=self.store.bucket,
            key=self.key,
        )

    def _delete(self, names: set[str]) -> None:
        """Delete data that nothing refers to. What became of the commit stands whether or not this works."""
        # Only what a save of this library made: a record must not be able to name other objects, and names
        # that other writers give are not of one save alone.
        keys = sorted(self.location.key(name) for name in names if is_data_name(name))
        if len(keys) < len(names):
            logger.warning(
                "%d data objects of another writer's checkpoint that was replaced at %s stay behind: a save "
                "of that writer may use their names again",
                len(names) - len(keys),
                self.location,
            )
        if not keys:
            return
        try:
            self.transfer.cleanup(lambda: self.store.delete(keys), _DELETE_SECONDS)
        except CloudCheckpointError as error:
            logger.warning(
                "%d unreferenced objects under %s stay behind until `dcp-cloud gc`: %s",
                len(keys),
                self.location,
                error,
            )


def _collect(
    metadata: Metadata, results: Sequence[Sequence[WriteResult]], location: Location
) -> dict[MetadataIndex, StorageInfo]:
    """Storage data of all ranks, checked against the plan.

    Raises:
        CheckpointIncompleteError: a planned item was not written, the plan does not make up a tensor, or
            results are of another checkpoint.
    """
    for rank, written in enumerate(results):
        if isinstance(written, RankResults) and written.url != location.url:
            raise CheckpointIncompleteError(
                f"{location} is not committed: rank {rank} wrote to {written.url}. Where saves "
                "overlap, give each a process group of its own, or wait for one before starting the next"
            )
    with gc_paused():
        storage_data: dict[MetadataIndex, StorageInfo] = {
            result.index: result.storage_data for rank_results in results for result in rank_results
        }
        missing = missing_items(metadata, storage_data)
    if missing:
        shown = ", ".join(sorted(missing)[:3])
        raise CheckpointIncompleteError(
            f"{location} is not committed: {len(missing)} planned items were not written, such as {shown}"
        )
    with gc_paused():
        unfit = misfits(metadata, len(results))
    if unfit:
        raise CheckpointIncompleteError(f"{location} is not committed: the plan is wrong, {unfit[0]}")
    return storage_data
