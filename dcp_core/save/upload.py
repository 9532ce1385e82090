"""The data objects of one rank: each stored whole, or not at all."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from dcp_core.config import SaveOptions
from dcp_core.errors import (
    CheckpointIncompleteError,
    CloudCheckpointError,
    ObjectNotFoundError,
    TransientError,
)
from dcp_core.format.checksum import combine, crc32c
from dcp_core.save.frame import Frame, frame_item
from dcp_core.save.parts import ObjectCutter, PartDraft, block_checksums
from dcp_core.save.plan import part_size_for, planned_bytes, write_order
from dcp_core.store import Body, ObjectInfo, ObjectStore, Part, Upload
from dcp_core.transfer import Transfer

__all__ = ["RankWriter"]

logger = logging.getLogger("dcp_core")

#: ``(block, crc32c, length)`` of each piece of a part.
_Pieces = list[tuple[tuple[int, int], int, int]]


@dataclass(frozen=True)
class RankWriter:
    """Uploads what one rank was planned to write."""

    store: ObjectStore
    options: SaveOptions
    transfer: Transfer
    #: Name of the rank's n-th data object, and the key of a name.
    name_of: Callable[[int], str]
    key_of: Callable[[str], str]

    def write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        """Upload all items of ``plan``; results in the order of writing."""
        limits = self.store.limits
        part_size = part_size_for(planned_bytes(plan.items), self.options.part_size, limits)
        capacity = min(part_size * limits.max_parts, limits.max_object_size)
        frames: Iterator[Frame] = (frame_item(item, planner) for item in write_order(plan.items))
        results: list[WriteResult] = []
        for number in itertools.count():
            first = next(frames, None)
            if first is None:
                return results
            cutter = ObjectCutter(itertools.chain((first,), frames), part_size, capacity)
            results += self._write_object(self.name_of(number), cutter, part_size)
            if cutter.leftover is not None:
                frames = itertools.chain((cutter.leftover,), frames)
        raise AssertionError("unreachable")

    def _write_object(self, name: str, cutter: ObjectCutter, part_size: int) -> list[WriteResult]:
        key = self.key_of(name)
        parts = cutter.parts()
        # items may all be empty: their object is there all the same
        head = list(itertools.islice(parts, 2)) or [PartDraft(1)]
        if len(head) == 2 or head[0].size > self.store.limits.max_put_size:
            info, pieces = self._write_parts(key, itertools.chain(head, parts), part_size)
        else:
            info, pieces = self._write_whole(key, head[0])
        size = sum(entry.frame.size for entry in cutter.entries)
        if info.size != size:
            raise CheckpointIncompleteError(
                f"the store kept {info.size} of {size} bytes", bucket=self.store.bucket, key=key
            )
        infos = cutter.storage_infos(name, block_checksums(pieces))
        return [
            WriteResult(entry.frame.index, info.length, info)
            for entry, info in zip(cutter.entries, infos, strict=True)
        ]

    def _write_whole(self, key: str, draft: PartDraft) -> tuple[ObjectInfo, _Pieces]:
        body, pieces = _sealed(draft)
        return self.transfer.attempt(lambda: self.store.put(key, body.fresh())), pieces

    def _write_parts(
        self, key: str, drafts: Iterator[PartDraft], part_size: int
    ) -> tuple[ObjectInfo, _Pieces]:
        upload = self.transfer.attempt(lambda: self.store.start_upload(key))
        try:
            sent = self.transfer.run(
                drafts, lambda draft: self._send(upload, draft), self._workers(part_size)
            )
            info = self._finish(upload, [part for part, _ in sent])
        except BaseException as error:
            self._abort(upload, error)
            raise
        return info, [piece for _, pieces in sent for piece in pieces]

    def _workers(self, part_size: int) -> int:
        """As many as the memory setting has room for parts, should all of them be staged."""
        return max(1, min(self.options.concurrency, self.options.memory // part_size))

    def _send(self, upload: Upload, draft: PartDraft) -> tuple[Part, _Pieces]:
        body, pieces = _sealed(draft)
        part = self.transfer.attempt(lambda: self.store.put_part(upload, draft.number, body.fresh()))
        return part, pieces

    def _finish(self, upload: Upload, parts: list[Part]) -> ObjectInfo:
        """Finish the upload; when an answer was lost, see whether the object is there."""
        in_doubt = False

        def finish() -> ObjectInfo:
            nonlocal in_doubt
            try:
                return self.store.finish_upload(upload, parts)
            except TransientError:
                in_doubt = True
                raise
            except ObjectNotFoundError:
                # the key has this save's own token: what is there can only be this upload
                if in_doubt:
                    return self.store.head(upload.key)
                raise

        return self.transfer.attempt(finish)

    def _abort(self, upload: Upload, reason: BaseException) -> None:
        try:
            # a transfer of its own: the failed one no longer retries
            Transfer(SaveOptions(), self.transfer.rank).attempt(lambda: self.store.abort_upload(upload))
        except CloudCheckpointError as error:
            logger.warning("the upload of %s stays behind until `dcp-cloud gc`: %s", upload.key, error)
            if hasattr(reason, "add_note"):
                reason.add_note(f"the unfinished upload of {upload.key!r} could not be aborted: {error}")


def _sealed(draft: PartDraft) -> tuple[Body, _Pieces]:
    """The body of a part, with the one pass over its bytes that checksums them."""
    pieces = [(piece.block, crc32c(piece.view), piece.view.nbytes) for piece in draft.pieces]
    whole = combine((crc, length) for _, crc, length in pieces)
    return Body((piece.view for piece in draft.pieces), whole), pieces
