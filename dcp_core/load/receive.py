"""One range request carried out: bytes received where they belong, checked, and asked for again if need be.

::

    Receiver.run
    └── Transfer.attempt      after a broken connection it resumes where it stopped
        └── step              receive into the target, or into scratch and place
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dcp_core.errors import CheckpointCorruptError, TransientError
from dcp_core.format.checksum import BLOCK_SIZE, crc32c
from dcp_core.load.item import Item
from dcp_core.load.objects import PinnedObjects
from dcp_core.load.open_targets import OpenTargets
from dcp_core.load.plan import Placement, Request, Step
from dcp_core.load.target import Target
from dcp_core.runtime.tensor_memory import cpu_buffer, tensor_bytes
from dcp_core.seam.store import RangeReader
from dcp_core.transfer import Transfer

__all__ = ["Receiver", "receive"]


class _ChecksumMismatch(TransientError):
    """Bytes differ from their checksum: damaged on the way, until a second reading says otherwise."""


class Receiver:
    """One request, with the position reached so far.

    Args:
        objects: what the request is about.
        transfer: under whose limits it runs.
        verify: check whole blocks against their recorded checksums.
    """

    def __init__(
        self,
        request: Request,
        items: Sequence[Item],
        targets: OpenTargets,
        *,
        objects: PinnedObjects,
        transfer: Transfer,
        verify: bool,
    ) -> None:
        self._objects = objects
        self._transfer = transfer
        self._verifies = verify
        self._request = request
        self._items = items
        self._targets = targets
        self._steps = iter(request.steps)
        self._mismatches = 0
        self._step: _StepState | None = None
        self._advance()

    def run(self) -> None:
        while self._step is not None:
            self._transfer.attempt(self._receive, self._position)

    def _position(self) -> int | None:
        """How far into the object it has come; ``None`` at the end."""
        return None if self._step is None else self._step.position

    def _advance(self) -> _StepState | None:
        """Go on with the next step."""
        step = next(self._steps, None)
        scratch = None if self._step is None else self._step.scratch
        self._step = None if step is None else _StepState(step, self._items, self._targets, scratch)
        return self._step

    def _receive(self) -> None:
        step = self._step
        if step is None:
            return
        position = step.position
        with self._objects.open(self._request, position) as reader:
            while step is not None:
                _skip(reader, step.position - position, self._request.name)
                self._receive_step(step, reader)
                position = step.step.stop
                step = self._advance()

    def _receive_step(self, step: _StepState, reader: RangeReader) -> None:
        for start, stop in step.stretches():
            self._transfer.check()
            receive(reader, step.view(start, stop), self._request.name)
            if self._verifies:
                self._verify(step, start, stop)
            step.position = stop
        step.place()

    def _verify(self, step: _StepState, start: int, stop: int) -> None:
        found = step.mismatch(start, stop)
        if found is None:
            return
        placement, problem = found
        self._mismatches += 1
        kind = CheckpointCorruptError if self._mismatches > 1 else _ChecksumMismatch
        raise kind(problem, bucket=self._objects.bucket, key=self._objects.key(placement.name))


class _StepState:
    """One step: the memory it is received into, and how far it has come.

    A step of one placement is received into its target's own memory where that is possible. The targets of
    several are asked for one after the other, once their bytes are there.

    ``scratch`` is the buffer of the request's earlier steps, used again where nothing else refers to it.
    """

    def __init__(
        self, step: Step, items: Sequence[Item], targets: OpenTargets, scratch: torch.Tensor | None
    ) -> None:
        self.step = step
        self.position = step.start
        self.scratch = scratch
        self._items = [items[placement.item] for placement in step.placements]
        self._targets = targets
        self._target: Target | None = None
        self._direct: memoryview | None = None
        if len(self._items) == 1:
            self._target = targets.open(self._items[0])
            self._direct = self._target.direct(step.placements[0])
        self._memory = self._direct

    def view(self, start: int, stop: int) -> memoryview:
        """The memory for bytes ``[start, stop)`` of the object."""
        if self._memory is None:
            self._memory = self._allocate()
        return self._memory[start - self.step.start : stop - self.step.start]

    def _allocate(self) -> memoryview:
        size = self.step.stop - self.step.start
        if self._targets.devices:
            # copies to a device are not waited for: the allocator holds the buffer until they are done
            self.scratch = cpu_buffer(size, pinned=torch.accelerator.is_available())
        elif self.scratch is None or self.scratch.numel() < size or self.scratch.is_pinned():
            self.scratch = cpu_buffer(size)
        return tensor_bytes(self.scratch)

    def stretches(self) -> Iterator[tuple[int, int]]:
        """Bytes to receive before the next check: up to the end of the next whole checksum block.

        A step of several placements is received at once: their blocks need not line up.
        """
        position, end = self.position, self.step.stop
        source = self._items[0].source
        if len(self._items) > 1 or source.payload is None:
            yield position, end
            return
        base = source.start
        while position < end:
            border = base + ((position - base) // BLOCK_SIZE + 1) * BLOCK_SIZE
            yield position, min(border, end)
            position = min(border, end)

    def mismatch(self, start: int, stop: int) -> tuple[Placement, str] | None:
        """The first placement with a block that lies wholly in ``[start, stop)`` and is not as saved."""
        for item, placement in zip(self._items, self.step.placements, strict=True):
            payload, base = item.source.payload, item.source.start
            if payload is None or not payload.checksums:
                continue
            low, high = max(start, placement.start) - base, min(stop, placement.stop) - base
            block = -(-low // BLOCK_SIZE)
            while (first := block * BLOCK_SIZE) < high:
                last = min(first + BLOCK_SIZE, payload.size)
                if last > high:
                    break
                if crc32c(self.view(base + first, base + last)) != payload.checksum(block):
                    return placement, (
                        f"bytes {base + first}–{base + last} of {item.read.storage_index.fqn!r} "
                        "do not have the checksum they were saved with"
                    )
                block += 1
        return None

    def place(self) -> None:
        """Hand the bytes over, unless they are there."""
        if self._direct is not None:
            # what a target hands to its planner must not be held here
            self._memory = self._direct = None
            self._targets.done(self._items[0])
            return
        for item, placement in zip(self._items, self.step.placements, strict=True):
            self._hand_over(item, placement)
            self._targets.done(item)

    def _hand_over(self, item: Item, placement: Placement) -> None:
        target = self._target or self._targets.open(item)
        memory = target.direct(placement)
        if memory is not None:
            memory[:] = self.view(placement.start, placement.stop)
            return
        assert self.scratch is not None
        target.place(
            placement, self.scratch[placement.start - self.step.start : placement.stop - self.step.start]
        )


def receive(reader: RangeReader, view: memoryview, name: str) -> None:
    """Fill ``view``.

    Raises:
        TransientError: the response ended early.
    """
    while view.nbytes:
        count = reader.readinto(view)
        if count <= 0:
            raise TransientError(f"the response ended {view.nbytes} bytes early", key=name)
        view = view[count:]


def _skip(reader: RangeReader, count: int, name: str) -> None:
    """Read ``count`` unneeded bytes, which are at most a gap."""
    if count:
        receive(reader, memoryview(bytearray(count)), name)
