"""An export as its coordinator sees it: begun before any rank writes, and visible at its end or never.

::

    Export.begin     layout → parts → uploads started
    Export.tasks     what each rank does, for its plan
      … ranks upload …
    Export.finish    all parts there? → old files away → uploads finished → the index, last

Until then every file is an unfinished upload, so that a failure of any rank leaves nothing to be seen. Names
of files are the same for every export, so an older one at the URL goes right before the new one comes, the
index first: no index ever names files of two exports.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.storage import WriteResult

from dcp_core.config import SaveOptions
from dcp_core.errors import (
    CheckpointIncompleteError,
    CloudCheckpointError,
    TransientError,
    UnsupportedError,
)
from dcp_core.format.checksum import crc32c
from dcp_core.format.metadata import stamp
from dcp_core.format.stored import StorageInfo
from dcp_core.huggingface.layout import ExportFile
from dcp_core.huggingface.names import INDEX, encode_index, is_written_name
from dcp_core.huggingface.steps import Step, cut_file, exchanging, for_rank
from dcp_core.huggingface.task import ExportResults, RankTask
from dcp_core.save.objects import Multipart, put_whole
from dcp_core.save.plan import missing_items, part_size_for
from dcp_core.seam.location import Location
from dcp_core.seam.store import Body, Limits, ObjectInfo, ObjectStore, Part
from dcp_core.transfer import Transfer

__all__ = ["Export", "abort_all"]

logger = logging.getLogger("dcp_core")

_R = TypeVar("_R")
_T = TypeVar("_T")

#: Parts begin at multiples of this, the size of the largest element.
_ALIGNMENT = 8


@dataclass(frozen=True)
class _File:
    """A file, and the upload that it will come from."""

    layout: ExportFile
    upload: Multipart


class Export:
    """One export.

    Args:
        files: what it consists of.
        ranks: how many the save has.
        indexed: whether an index says which file each tensor is in.
    """

    def __init__(
        self,
        store: ObjectStore,
        location: Location,
        options: SaveOptions,
        transfer: Transfer,
        *,
        files: Sequence[ExportFile],
        ranks: int,
        indexed: bool,
    ) -> None:
        self.name = uuid.uuid4().hex
        self._store = store
        self._location = location
        self._options = options
        self._transfer = transfer
        self._ranks = ranks
        self._indexed = indexed
        self._files = [_File(file, Multipart(store, transfer, location.key(file.name))) for file in files]
        self._part_sizes = [_part_size(file, options, store.limits, ranks) for file in files]
        load: Counter[int] = Counter()
        self._steps: list[Step] = [
            step
            for number, (file, size) in enumerate(zip(files, self._part_sizes, strict=True))
            for step in cut_file(number, file, size, load)
        ]

    @property
    def uploads(self) -> dict[int, Multipart]:
        """Of all files, by number."""
        return {number: file.upload for number, file in enumerate(self._files)}

    def begin(self) -> None:
        """Start the uploads."""
        try:
            self._on_all(self._files, lambda file: file.upload.start())
        except BaseException as error:
            self.abort(error)
            raise

    def tasks(self) -> list[RankTask]:
        """What each rank has to do."""
        members = exchanging(self._steps)
        largest = max((step.size for step in self._steps), default=1)
        found = []
        for rank in range(self._ranks):
            steps = list(for_rank(self._steps, rank))
            files = {step.file for step in steps}
            uploads = {
                number: upload
                for number, file in enumerate(self._files)
                # files of one rank alone are no other rank's business
                if (self._indexed or number in files) and (upload := file.upload.upload) is not None
            }
            found.append(RankTask(self.name, uploads, steps, members, largest))
        return found

    def finish(
        self,
        metadata: Metadata,
        results: Sequence[Sequence[WriteResult]],
        meta: StorageMeta,
        there: Collection[str] | None,
    ) -> None:
        """Make the files visible, in place of those named ``there``, which is ``None`` where nobody knows.

        Raises:
            CheckpointIncompleteError: something that was planned was not written; nothing is visible.
        """
        try:
            parts = self._checked(metadata, results)
            self._delete({file.layout.name for file in self._files} if there is None else there)
        except BaseException as error:
            self.abort(error)
            raise
        try:
            self._on_all(list(zip(self._files, parts, strict=True)), lambda pair: self._finish(*pair))
            if self._indexed:
                self._put_index()
        except BaseException as error:
            self._withdraw(error)
            raise
        stamp(metadata, self._storage_data(), meta)

    def _checked(self, metadata: Metadata, results: Sequence[Sequence[WriteResult]]) -> list[list[Part]]:
        """The parts of each file, all of them."""
        found: list[dict[int, Part]] = [{} for _ in self._files]
        for rank, written in enumerate(results):
            if not isinstance(written, ExportResults) or written.name != self.name:
                raise self._incomplete(f"rank {rank} took part in another one")
            for file, part in written.parts:
                found[file][part.number] = part
        for step in self._steps:
            kept = found[step.file].get(step.number)
            if kept is None or kept.size != step.size:
                name = self._files[step.file].layout.name
                raise self._incomplete(f"part {step.number} of {name} was not written by rank {step.owner}")
        missing = missing_items(metadata, (result.index for written in results for result in written))
        if missing:
            raise self._incomplete(f"{len(missing)} planned items were not written, such as {missing[0]}")
        return [[parts[number] for number in sorted(parts)] for parts in found]

    def _incomplete(self, why: str) -> CheckpointIncompleteError:
        return CheckpointIncompleteError(f"the export to {self._location} is not finished: {why}")

    def _delete(self, names: Collection[str]) -> None:
        """Delete an older export, its index first."""
        for group in ([INDEX], sorted(filter(is_written_name, names))):
            keys = [self._location.key(name) for name in group]
            if names and keys:
                self._transfer.attempt(lambda keys=keys: self._store.delete(keys))  # type: ignore[misc]

    def _finish(self, file: _File, parts: list[Part]) -> ObjectInfo:
        info = file.upload.finish(parts)
        if info.size != file.layout.size:
            raise CheckpointIncompleteError(
                f"the store kept {info.size} of {file.layout.size} bytes",
                bucket=self._store.bucket,
                key=file.upload.key,
            )
        file.upload.tidy()
        return info

    def _put_index(self) -> None:
        weight_map = {
            tensor.spec.name: file.layout.name for file in self._files for tensor in file.layout.tensors
        }
        data = encode_index(weight_map, sum(file.layout.payload for file in self._files))
        put_whole(self._store, self._transfer, self._location.key(INDEX), Body([data], crc32c(data)))

    def _withdraw(self, reason: BaseException) -> None:
        """Leave nothing visible of files of which only some are, or whose index is certain not to come."""
        self.abort(reason)
        if isinstance(reason, TransientError):
            logger.warning("files of the failed export to %s may be there: %s", self._location, reason)
            return
        keys = [file.upload.key for file in self._files]
        try:
            self._transfer.cleanup(lambda: self._store.delete(keys))
        except CloudCheckpointError as error:
            logger.warning("files of the failed export to %s stay behind: %s", self._location, error)

    def _storage_data(self) -> dict[MetadataIndex, StorageInfo]:
        """Where each tensor is. A chunk of one may lie scattered in it."""
        return {
            MetadataIndex(tensor.spec.name, chunk.offsets): StorageInfo(
                file.layout.name, tensor.start, tensor.spec.size
            )
            for file in self._files
            for tensor in file.layout.tensors
            for chunk in tensor.chunks
        }

    def abort(self, reason: BaseException) -> None:
        """Drop all uploads; ``reason`` is about to be raised."""
        abort_all(self.uploads.values(), reason)

    def _on_all(self, tasks: Sequence[_T], work: Callable[[_T], _R]) -> list[_R]:
        return self._transfer.run(tasks, work, max(1, min(self._options.concurrency, len(tasks))))


def abort_all(uploads: Iterable[Multipart], reason: BaseException) -> None:
    """Drop uploads; ``reason`` is about to be raised."""
    for upload in uploads:
        upload.abort(reason)


def _part_size(file: ExportFile, options: SaveOptions, limits: Limits, ranks: int) -> int:
    """Bytes of all parts of a file but the last."""
    wanted = min(options.part_size, max(options.memory_limit // 6, limits.min_part_size))
    size = part_size_for(file.size, wanted, limits, options.concurrency * ranks)
    size = -(-size // _ALIGNMENT) * _ALIGNMENT
    if file.size > min(size * limits.max_parts, limits.max_object_size):
        raise UnsupportedError(
            f"{file.name} would have {file.size} bytes, more than one object holds: spread the tensors over "
            "more files with fqn_to_index_mapping, or raise part_size"
        )
    return size
