"""What one rank does for an export: it uploads its parts, and sends the others what theirs lack.

::

    RankExport.write
    └── Transfer.run     uploads, while the steps go on
        └── _drafts      step by step: send, or make a part of what is here and what is received
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from dcp_core.config import SaveOptions
from dcp_core.errors import CheckpointIncompleteError, ObjectNotFoundError
from dcp_core.huggingface.exchange import Exchange
from dcp_core.huggingface.rows import RankTensors, place, scatter
from dcp_core.huggingface.steps import Region, Step
from dcp_core.save.objects import Multipart
from dcp_core.save.parts import GATHERED, PartDraft
from dcp_core.save.plan import planned_bytes
from dcp_core.save.results import RankResults
from dcp_core.save.stage import Block, Ring
from dcp_core.seam.store import Body, Part, Upload
from dcp_core.transfer import Transfer
from dcp_core.transfer.peers import Channel

__all__ = ["ExportResults", "RankExport", "RankTask"]

#: Seconds that a rank waits for rows of another, beyond the time for which that tries its own requests again.
_PATIENCE = 1800.0


@dataclass(frozen=True)
class RankTask(Channel):
    """What one rank has to do, in ``storage_data`` of its plan; its ``name`` is that of the export.

    Attributes:
        uploads: by the number of the file; those that this rank aborts if it fails.
        steps: in the order of files and parts.
        members: the ranks that hand each other rows.
        part_size: bytes of the largest part.
    """

    uploads: Mapping[int, Upload]
    steps: Sequence[Step]
    members: Sequence[int]
    part_size: int


class ExportResults(RankResults):
    """What one rank wrote of the export ``name``: items, and parts with the numbers of their files."""

    def __init__(
        self, url: str, results: Iterable[WriteResult], name: str, parts: Sequence[tuple[int, Part]]
    ) -> None:
        super().__init__(url, results)
        self.name = name
        self.parts = parts

    def __reduce__(self) -> tuple[type[ExportResults], tuple[object, ...]]:  # type: ignore[override]
        return ExportResults, (self.url, list(self), self.name, self.parts)


class RankExport:
    """One rank's part of an export.

    Args:
        uploads: by the number of the file.
    """

    def __init__(
        self,
        options: SaveOptions,
        transfer: Transfer,
        task: RankTask,
        rank: int,
        uploads: Mapping[int, Multipart],
    ) -> None:
        self._options = options
        self._transfer = transfer
        self._task = task
        self._rank = rank
        self._uploads = uploads
        # what is received and what is sent has a buffer of its own beside the ring
        blocks = options.memory_limit // max(1, task.part_size) - 2
        self._ring = Ring(task.part_size, max(2, blocks))

    def write(self, url: str, plan: SavePlan, planner: SavePlanner) -> ExportResults:
        """Upload the parts that are this rank's.

        Raises:
            PeerFailedError: another rank did not send or take rows.
            CheckpointIncompleteError: an upload was aborted meanwhile.
        """
        task = self._task
        tensors = RankTensors(plan.items, planner, task.steps, self._rank)
        seconds = self._options.retry_timeout + _PATIENCE
        with Exchange(task.members, self._rank, task.name, seconds) as exchange:
            sent = self._transfer.run(self._drafts(tensors, exchange), self._send, self._options.concurrency)
        results = [WriteResult(item.index, planned_bytes([item]), None) for item in plan.items]
        return ExportResults(url, results, task.name, sent)

    def _drafts(self, tensors: RankTensors, exchange: Exchange) -> Iterator[tuple[int, PartDraft]]:
        for step in self._task.steps:
            if step.owner != self._rank:
                exchange.send(tensors.packed(step), step.owner)
                tensors.done(step)
                continue
            draft = self._draft(step, tensors, exchange)
            tensors.done(step)
            yield step.file, draft

    def _draft(self, step: Step, tensors: RankTensors, exchange: Exchange) -> PartDraft:
        part = _PartMemory(PartDraft(step.number, self._ring), self._ring)
        try:
            part.draft.add(memoryview(step.head), [], None)
            for region in step.regions:
                view = tensors.in_place(region)
                if view is not None and view.nbytes > GATHERED:
                    part.add_in_place(view)
                    continue
                block = part.room(region)
                for source in region.sources:
                    if source.rank == self._rank:
                        place(block.memory, region, source, tensors.piece(source))
            for sender in step.senders():
                message = exchange.receive(step.bytes_of(sender), sender)
                scatter(part.memory.memory, step, sender, message)
            part.close_segment()
        finally:
            part.release()
        return part.draft

    def _send(self, task: tuple[int, PartDraft]) -> tuple[int, Part]:
        file, draft = task
        try:
            whole, _ = draft.seal()
            body = Body((segment.view for segment in draft.segments), whole)
            return file, self._uploads[file].send(draft.number, body)
        except ObjectNotFoundError as error:
            raise CheckpointIncompleteError(
                "the multipart upload is gone: was it aborted, by another rank that failed, by a lifecycle "
                "rule of the bucket or by `dcp-cloud gc`?",
                bucket=error.bucket,
                key=error.key,
            ) from error
        finally:
            draft.release()


class _PartMemory:
    """A part being made: segments where elements lie, and stretches of one staging block between them. What
    is in the block lies there as far from its start as in the part."""

    def __init__(self, draft: PartDraft, ring: Ring) -> None:
        self.draft = draft
        self._ring = ring
        self._block: Block | None = None
        self._start = self._stop = 0

    @property
    def memory(self) -> Block:
        """The block, taken when it is first needed."""
        if self._block is None:
            self._block = self._ring.take()
        return self._block

    def room(self, region: Region) -> Block:
        """The block, with a place for ``region`` in the part."""
        if self._start == self._stop:
            self._start = region.start
        self._stop = region.start + region.size
        return self.memory

    def close_segment(self) -> None:
        """End the stretch of the block that is open."""
        if self._stop > self._start:
            self.draft.add(self.memory.view[self._start : self._stop], [], self.memory)
        self._start = self._stop = 0

    def add_in_place(self, view: memoryview) -> None:
        self.close_segment()
        self.draft.add(view, [], None)

    def release(self) -> None:
        """Let go of the block; the part holds it for as long as it needs it."""
        if self._block is not None:
            self._ring.release(self._block)
