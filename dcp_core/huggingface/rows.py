"""A rank's tensors, and the pieces of them that steps ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

from dcp_core.errors import UnsupportedTensorError
from dcp_core.huggingface.steps import Region, Source, Step
from dcp_core.runtime.tensor_memory import cpu_buffer, narrow, tensor_bytes
from dcp_core.save.frame import frame_item

__all__ = ["RankTensors", "scatter"]

#: Elements are moved as numbers of their size: torch copies them whatever the dtype.
_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RankTensors:
    """The planned tensors of one rank: asked for when a step needs one, and let go after the last that does.

    Args:
        items: of the plan.
        planner: which resolves them.
        steps: all that may ask.
    """

    def __init__(
        self, items: Sequence[WriteItem], planner: SavePlanner, steps: Iterable[Step], rank: int
    ) -> None:
        self._items = items
        self._planner = planner
        self._rank = rank
        self._tensors: dict[int, torch.Tensor] = {}
        #: steps by the last of each item's
        self._last: dict[int, tuple[int, int]] = {}
        for step in steps:
            for (_, source), _ in step.pieces_of(rank):
                self._last[source.item] = (step.file, step.number)

    def piece(self, source: Source) -> torch.Tensor:
        """The elements of a source, which is this rank's, as numbers: a view of the planner's tensor."""
        tensor = self._tensors.get(source.item)
        if tensor is None:
            tensor = self._tensors[source.item] = self._resolve(self._items[source.item])
        return narrow(tensor, source.inside, source.lengths)

    def in_place(self, region: Region) -> memoryview | None:
        """The bytes of a region where they lie, if they are all this rank's, in CPU memory and in order."""
        if len(region.sources) != 1 or region.sources[0].rank != self._rank:
            return None
        (source,) = region.sources
        if source.lengths != region.lengths:
            return None
        piece = self.piece(source)
        return tensor_bytes(piece) if piece.device.type == "cpu" and piece.is_contiguous() else None

    def packed(self, step: Step) -> torch.Tensor:
        """What this rank has of a step, piece after piece."""
        buffer = cpu_buffer(step.bytes_of(self._rank))
        position = 0
        for (region, source), size in step.pieces_of(self._rank):
            target = buffer[position : position + size].view(_NUMBERS[region.itemsize])
            target.view(source.lengths).copy_(self.piece(source))
            position += size
        return buffer

    def done(self, step: Step) -> None:
        """Let go of what no later step asks for."""
        for (_, source), _ in step.pieces_of(self._rank):
            if self._last[source.item] == (step.file, step.number):
                self._tensors.pop(source.item, None)

    def _resolve(self, item: WriteItem) -> torch.Tensor:
        frame = frame_item(item, self._planner)
        data = item.tensor_data
        assert data is not None
        if not frame.plain:
            raise UnsupportedTensorError(
                f"{item.index.fqn!r} cannot be saved: safetensors holds plain tensors of the planned dtype, "
                f"{data.properties.dtype}, only"
            )
        payload, shape = frame.payload, tuple(data.chunk.sizes)
        numbers = _NUMBERS[data.properties.dtype.itemsize]
        if isinstance(payload, memoryview):
            if not payload.nbytes:
                return torch.empty(shape, dtype=numbers, device="cpu")
            return torch.frombuffer(payload, dtype=torch.uint8).view(numbers).view(shape)
        return payload.view(numbers)


def scatter(part: torch.Tensor, step: Step, rank: int, message: torch.Tensor) -> None:
    """Put what ``rank`` packed for a step to its places in ``part``, the part's bytes."""
    position = 0
    for (region, source), size in step.pieces_of(rank):
        numbers = message[position : position + size].view(_NUMBERS[region.itemsize])
        _place(part, region, source).copy_(numbers.view(source.lengths))
        position += size


def place(part: torch.Tensor, region: Region, source: Source, piece: torch.Tensor) -> None:
    """Put a piece to its place in ``part``."""
    _place(part, region, source).copy_(piece)


def _place(part: torch.Tensor, region: Region, source: Source) -> torch.Tensor:
    numbers = part[region.start : region.start + region.size].view(_NUMBERS[region.itemsize])
    return narrow(numbers.view(region.lengths), source.at, source.lengths)
