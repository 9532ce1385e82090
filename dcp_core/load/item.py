"""Read items as a load plans them: which bytes each needs, from the plan and the commit record alone.

The planner is asked for the tensor only once the first of them is about to arrive
(:mod:`dcp_core.load.open_targets`).
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator

from torch.distributed.checkpoint.planner import LoadItemType, LoadPlanner, ReadItem

from dcp_core.config import LoadOptions
from dcp_core.errors import CheckpointCorruptError
from dcp_core.format.checksum import BLOCK_SIZE
from dcp_core.load.decode import damaged
from dcp_core.load.plan import Box, Placement, cut_flat, cut_region, flat_range
from dcp_core.load.source import Source
from dcp_core.load.target import BytesTarget, Target, TensorTarget
from dcp_core.runtime.memory_map import ReadOnlyMemory

__all__ = ["BytesItem", "Item", "TensorItem", "item_of"]


class Item(abc.ABC):
    """One read item and its stored side; ``number`` is its place in the plan."""

    __slots__ = ("_weights_only", "number", "read", "source")

    def __init__(self, number: int, read: ReadItem, source: Source, *, weights_only: bool) -> None:
        self.number = number
        self.read = read
        self.source = source
        self._weights_only = weights_only

    @abc.abstractmethod
    def placements(self, size: int, gap: int) -> Iterable[Placement]:
        """The bytes this item needs, cut into pieces of about ``size``; none if it has no elements."""

    @abc.abstractmethod
    def open(self, planner: LoadPlanner, read_only: ReadOnlyMemory) -> Target:
        """Ask the planner where it goes."""

    def _whole(self) -> Iterable[Placement]:
        info = self.source.info
        if info.length == 0:
            return ()
        return (Placement(info.relative_path, info.offset, info.offset + info.length, self.number, -1),)


class TensorItem(Item):
    """A tensor, or a slice of one."""

    __slots__ = ()

    def __init__(self, number: int, read: ReadItem, source: Source, *, weights_only: bool) -> None:
        super().__init__(number, read, source, weights_only=weights_only)
        # before the planner is asked for a tensor of that shape
        self._require_inside(self._box)

    @property
    def _box(self) -> Box:
        return Box(tuple(self.read.storage_offsets), tuple(self.read.lengths))

    def placements(self, size: int, gap: int) -> Iterable[Placement]:
        source, box = self.source, self._box
        if 0 in box.lengths:
            return ()
        if not source.elements_known:
            if source.info.length == 0:
                raise damaged(self.read, source, "it is empty")
            return self._whole()
        flat = flat_range(source.shape, box)
        return self._boxes(box, size, gap) if flat is None else self._pieces(flat, size)

    def _require_inside(self, box: Box) -> None:
        """Bytes beyond the chunk are another item's."""
        shape = self.source.shape
        if (
            len(shape) != len(box.offsets)
            or len(shape) != len(box.lengths)
            or any(
                offset < 0 or length < 0 or offset + length > size
                for offset, length, size in zip(*box, shape, strict=True)
            )
        ):
            raise CheckpointCorruptError(
                f"{self.read.dest_index.fqn!r} is planned to be read from {box.offsets} on, {box.lengths} "
                f"elements, of a stored chunk of shape {shape}"
            )

    def _pieces(self, flat: tuple[int, int], size: int) -> Iterable[Placement]:
        name, base, itemsize = self.source.info.relative_path, self.source.start, self._itemsize
        start, stop = flat[0] * itemsize, flat[1] * itemsize
        if stop - start <= BLOCK_SIZE:
            return (Placement(name, base + start, base + stop, self.number),)
        return [
            Placement(name, base + begin, base + end, self.number, (begin - start) // itemsize)
            for begin, end in cut_flat(start, stop, size, BLOCK_SIZE)
        ]

    def _boxes(self, box: Box, size: int, gap: int) -> Iterator[Placement]:
        name, base, itemsize = self.source.info.relative_path, self.source.start, self._itemsize
        for part, first, stop in cut_region(self.source.shape, box, itemsize, size, gap):
            yield Placement(name, base + first * itemsize, base + stop * itemsize, self.number, 0, part)

    @property
    def _itemsize(self) -> int:
        assert self.source.dtype is not None
        return self.source.dtype.itemsize

    def open(self, planner: LoadPlanner, read_only: ReadOnlyMemory) -> TensorTarget:
        tensor = planner.resolve_tensor(self.read)
        return TensorTarget(
            self.read, self.source, tensor, weights_only=self._weights_only, read_only=read_only
        )


class BytesItem(Item):
    """Something else than a tensor."""

    __slots__ = ()

    def placements(self, size: int, gap: int) -> Iterable[Placement]:
        del size, gap
        return self._whole()

    def open(self, planner: LoadPlanner, read_only: ReadOnlyMemory) -> BytesTarget:
        del planner, read_only
        return BytesTarget(self.read, self.source, weights_only=self._weights_only)


def item_of(number: int, read: ReadItem, source: Source, options: LoadOptions) -> Item:
    """The item of a planned read."""
    kind = BytesItem if read.type is LoadItemType.BYTE_IO else TensorItem
    return kind(number, read, source, weights_only=options.weights_only)
