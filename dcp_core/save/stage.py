"""Staging memory: where bytes go that cannot be sent from where they are.

Elements on a device, elements that are not contiguous, and whatever is too small to be worth a system call
of its own are copied into blocks of one ring. A block goes back into the ring when the last part with bytes
in it is uploaded, so the ring is the bound of the memory that a save takes, and its blocks are allocated,
and for devices pinned, only once.

Copies from a device are queued on a side stream and not waited for here: each part carries the events its
bytes depend on (:meth:`Staging.fences`), so a device copies while workers check and send earlier parts.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext

import torch

from dcp_core.runtime.tensor_memory import cpu_buffer, tensor_bytes
from dcp_core.runtime.torch_private import on_stream

__all__ = ["Block", "Ring", "Staging", "row_blocks"]

#: Staged elements start at multiples of this, enough for every dtype and for fast copies.
_ALIGNMENT = 64


class Block:
    """A piece of staging memory, and how many holders it has."""

    __slots__ = ("memory", "pinned", "uses", "view")

    def __init__(self, size: int, *, pinned: bool) -> None:
        self.memory = cpu_buffer(size, pinned=pinned)
        self.view = tensor_bytes(self.memory)
        self.pinned = pinned
        self.uses = 0


class Ring:
    """A bounded number of blocks; :meth:`take` waits for one to come back.

    Args:
        block_size: bytes of a block.
        count: most blocks at a time.
    """

    def __init__(self, block_size: int, count: int) -> None:
        self.block_size = block_size
        self._count = count
        self._made = 0
        self._pinned = False
        self._free: list[Block] = []
        self._changed = threading.Condition()

    @property
    def idle(self) -> bool:
        """Whether no block has a holder."""
        return self._made == len(self._free)

    def pin(self) -> None:
        """From now on blocks are pinned, as asynchronous copies from a device need."""
        with self._changed:
            if not self._pinned:
                self._pinned = True
                self._made -= len(self._free)
                self._free.clear()

    def take(self) -> Block:
        """A block with one holder."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._made < self._count)
            if self._free:
                block = self._free.pop()
            else:
                block = Block(self.block_size, pinned=self._pinned)
                self._made += 1
            block.uses = 1
            return block

    def hold(self, block: Block) -> None:
        """Add a holder."""
        with self._changed:
            block.uses += 1

    def release(self, block: Block) -> None:
        """Drop a holder; after the last one the block is free."""
        with self._changed:
            block.uses -= 1
            if block.uses:
                return
            if block.pinned == self._pinned:
                self._free.append(block)
            else:
                self._made -= 1
            self._changed.notify()


class Staging:
    """The block that is being filled. One thread at a time uses it."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.block: Block | None = None
        self.fill = 0
        self._streams: dict[torch.device, torch.Stream] = {}
        self._fences: dict[torch.device, torch.Event] = {}

    @property
    def room(self) -> int:
        """Bytes left in the block."""
        return 0 if self.block is None else self.ring.block_size - self.fill

    def renew(self) -> None:
        """Go on in another block."""
        self.close()
        self.block = self.ring.take()
        self.fill = 0

    def close(self) -> None:
        """Let go of the block; parts that hold it still do."""
        if self.block is not None:
            self.ring.release(self.block)
            self.block = None

    def align(self) -> None:
        """Leave bytes out, so that what is staged next is aligned."""
        self.fill = min(-(-self.fill // _ALIGNMENT) * _ALIGNMENT, self.ring.block_size)

    def copy(self, source: torch.Tensor) -> memoryview:
        """Stage the elements of ``source`` in C order; they must fit, and be aligned."""
        assert self.block is not None
        size = source.nbytes
        start, self.fill = self.fill, self.fill + size
        self._copy(source, self.block.memory[start : self.fill].view(source.dtype).view(source.shape))
        return self.block.view[start : self.fill]

    def copy_bytes(self, source: torch.Tensor) -> None:
        """Stage the elements of ``source`` right behind what was staged before; they must fit."""
        assert self.block is not None
        start, self.fill = self.fill, self.fill + source.nbytes
        target = self.block.memory[start : self.fill]
        stream = self._streams.get(source.device)
        with nullcontext() if stream is None else on_stream(stream):
            # bytes, because the place need not be aligned for the elements
            self._copy(source.contiguous().view(-1).view(torch.uint8), target)

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        stream = self._streams.get(source.device)
        if stream is None:
            target.copy_(source)
            return
        with on_stream(stream):
            # a strided source is made contiguous on the device, where it is cheap
            target.copy_(source, non_blocking=True)
            self._fences[source.device] = stream.record_event()

    def knows(self, device: torch.device) -> bool:
        """Whether :meth:`meet` was called for it, or need not be."""
        return device.type == "cpu" or device in self._streams

    def meet(self, device: torch.device) -> None:
        """Get ready for copies from ``device``; lets go of the block."""
        # what the training loop queued on its own streams must be done before another stream reads it
        torch.accelerator.synchronize(device)
        self._streams[device] = torch.Stream(device)
        self.ring.pin()
        self.close()

    def keep(self, tensor: torch.Tensor) -> None:
        """Have the device's allocator keep ``tensor``, which may be a copy of the planner's own, until the
        copies from it are done."""
        if tensor.device in self._streams:
            tensor.record_stream(self._streams[tensor.device])

    def fences(self) -> list[torch.Event]:
        """What to wait for before the bytes staged so far may be read."""
        return list(self._fences.values())


def row_blocks(tensor: torch.Tensor, block_size: int) -> Iterator[torch.Tensor]:
    """Cut ``tensor`` into views that follow one another in C order, of at most ``block_size`` bytes each
    unless a single element is larger."""
    if tensor.nbytes <= block_size or tensor.dim() == 0:
        yield tensor
        return
    row_bytes = tensor.nbytes // tensor.shape[0]
    if row_bytes > block_size:
        for row in tensor.unbind(0):
            yield from row_blocks(row, block_size)
        return
    yield from torch.split(tensor, block_size // row_bytes)
