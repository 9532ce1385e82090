"""The data objects of one rank: each stored whole, or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from dcp_core.config import MIB, SaveOptions
from dcp_core.errors import CheckpointIncompleteError
from dcp_core.runtime.gc_pause import gc_paused
from dcp_core.save.frame import Frame, frame_item
from dcp_core.save.objects import Multipart, put_whole
from dcp_core.save.parts import ObjectCutter, PartDraft, Sum, block_checksums
from dcp_core.save.plan import part_size_for, planned_bytes, write_order
from dcp_core.save.stage import Ring
from dcp_core.seam.store import Body, ObjectInfo, ObjectStore, Part
from dcp_core.transfer import Transfer

__all__ = ["RankWriter"]

#: Bytes of a block of staging memory: large enough for the full copy rate of a device, small beside a part.
_STAGE_BLOCK = 8 * MIB


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
        options = self.options
        # two parts, which may come out half as large again, and what staging leaves unused fit into memory
        wanted = min(options.part_size, max(options.memory_limit // 6, limits.min_part_size))
        part_size = part_size_for(planned_bytes(plan.items), wanted, limits, options.concurrency)
        capacity = min(part_size * limits.max_parts, limits.max_object_size)
        ring = _ring(options.memory_limit, part_size)
        frames: Iterator[Frame] = (
            frame_item(item, planner, options.extensions) for item in write_order(plan.items)
        )
        results: list[WriteResult] = []
        for number in itertools.count():
            first = next(frames, None)
            if first is None:
                return results
            cutter = ObjectCutter(itertools.chain((first,), frames), part_size, capacity, ring)
            results += self._write_object(self.name_of(number), cutter)
            if cutter.leftover is not None:
                frames = itertools.chain((cutter.leftover,), frames)
        raise AssertionError("unreachable")

    def _write_object(self, name: str, cutter: ObjectCutter) -> list[WriteResult]:
        key = self.key_of(name)
        parts = cutter.parts()
        # items may all be empty: their object is there all the same
        head = list(itertools.islice(parts, 2))
        if len(head) == 2 or (head and head[0].size > self.store.limits.max_put_size):
            info, sums = self._write_parts(key, itertools.chain(head, parts))
        else:
            info, sums = self._write_whole(key, head)
        size = sum(entry.size for entry in cutter.entries)
        if info.size != size:
            raise CheckpointIncompleteError(
                f"the store kept {info.size} of {size} bytes", bucket=self.store.bucket, key=key
            )
        with gc_paused():
            infos = cutter.storage_infos(name, block_checksums(sums))
            return [
                WriteResult(entry.index, info.length, info)
                for entry, info in zip(cutter.entries, infos, strict=True)
            ]

    def _write_whole(self, key: str, drafts: list[PartDraft]) -> tuple[ObjectInfo, list[Sum]]:
        if not drafts:
            return put_whole(self.store, self.transfer, key, Body((), 0)), []
        (draft,) = drafts
        try:
            body, sums = _sealed(draft)
            return put_whole(self.store, self.transfer, key, body), sums
        finally:
            draft.release()

    def _write_parts(self, key: str, drafts: Iterator[PartDraft]) -> tuple[ObjectInfo, list[Sum]]:
        upload = Multipart(self.store, self.transfer, key)
        try:
            upload.start()
            sent = self.transfer.run(drafts, lambda draft: _send(upload, draft), self.options.concurrency)
            info = upload.finish([part for part, _ in sent])
        except BaseException as error:
            upload.abort(error)
            raise
        upload.tidy()
        return info, [found for _, sums in sent for found in sums]


def _send(upload: Multipart, draft: PartDraft) -> tuple[Part, list[Sum]]:
    try:
        body, sums = _sealed(draft)
        part = upload.send(draft.number, body)
    finally:
        draft.release()
    return part, sums


def _sealed(draft: PartDraft) -> tuple[Body, list[Sum]]:
    whole, sums = draft.seal()
    return Body((segment.view for segment in draft.segments), whole), sums


def _ring(memory: int, part_size: int) -> Ring:
    """Staging memory of ``memory`` bytes, or of two parts if that is more: fewer could never be filled."""
    block = min(_STAGE_BLOCK, max(MIB, part_size // 4))
    # a third on top for what alignment leaves unused, and the block at each end that a neighbour shares
    least = 2 * -(-4 * part_size // (3 * block)) + 2
    return Ring(block, max(memory // block, least))
