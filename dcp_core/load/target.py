"""The state dict's side of a load: what bytes become.

::

    tensor with memory of its own ── CPU, contiguous, stored dtype ──> received there
                                  ── otherwise                     ──> scratch, then copied piece by piece
    any other tensor              ────────────────────────────────> assembled, then one copy_ by its own type
    non-tensor item               ────────────────────────────────> a BytesIO for the planner
"""

from __future__ import annotations

import abc
import io
import math

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

from dcp_core.errors import CheckpointCorruptError, UnsupportedTensorError
from dcp_core.format.stored import transforms_of
from dcp_core.load.decode import decode_tensor, refuse_code, transformed
from dcp_core.load.plan import Box, Placement, boxes_of, strides_of
from dcp_core.load.source import Source
from dcp_core.runtime.memory_map import ReadOnlyMemory
from dcp_core.runtime.tensor_memory import (
    cpu_buffer,
    memory_span,
    narrow,
    overlaps_itself,
    tensor_bytes,
    unreachable,
)
from dcp_core.runtime.torch_private import has_foreign_modes

__all__ = ["BytesTarget", "Target", "TensorTarget"]

_CPU = torch.device("cpu")


class Target(abc.ABC):
    """Where one read item goes. Bytes of several placements may arrive at once, in any order."""

    #: Where the item's memory is.
    device = _CPU

    def __init__(self, read: ReadItem, source: Source, *, weights_only: bool) -> None:
        self._read = read
        self._source = source
        self._weights_only = weights_only

    @abc.abstractmethod
    def begin(self) -> None:
        """Get the memory that is needed until :meth:`commit`. Called once, before bytes arrive."""

    def direct(self, placement: Placement) -> memoryview | None:
        """Memory that the bytes of ``placement`` may be received into, if they may."""
        del placement
        return None

    @abc.abstractmethod
    def place(self, placement: Placement, data: torch.Tensor) -> None:
        """Take over the bytes of ``placement`` from ``data``, 1-d uint8, which is not kept."""

    @abc.abstractmethod
    def commit(self, planner: LoadPlanner) -> None:
        """Complete the item and tell the planner. One item at a time."""


class TensorTarget(Target):
    """A tensor, or a slice of one.

    Raises:
        UnsupportedTensorError: no bytes can be brought into a tensor of this kind.
        CheckpointCorruptError: it has another shape than what is read.
    """

    def __init__(
        self,
        read: ReadItem,
        source: Source,
        tensor: torch.Tensor,
        *,
        weights_only: bool,
        read_only: ReadOnlyMemory,
    ) -> None:
        super().__init__(read, source, weights_only=weights_only)
        if not isinstance(tensor, torch.Tensor):
            raise self._unsupported(f"the planner gave a {type(tensor).__name__} for it")
        try:
            self._tensor = data = tensor.detach()
        # a subclass may raise anything
        except Exception as error:
            raise self._unsupported(f"detach() of a {type(tensor).__name__} failed: {error}") from error
        lengths = tuple(read.lengths)
        if data.shape != lengths:
            raise CheckpointCorruptError(
                f"{read.dest_index.fqn!r}: the planner gave a tensor of shape {tuple(data.shape)} "
                f"for a read of {lengths}"
            )
        self._box = Box(tuple(read.storage_offsets), lengths)
        self.device = data.device
        #: Which tensor of the planner's it is, for as long as that holds it.
        self.identity = id(tensor)
        #: addresses of the tensor's elements, ``None`` where its type alone knows how to reach them
        self.span = memory_span(data)
        self._refuse(data, read_only)
        if self.span is None:
            # such a type may copy its elements in detach(): a MaskedTensor does
            self._tensor = data = tensor
        #: what pieces are placed in: the tensor, or what its type copies from in the end
        self._pieces = data
        self._memory: memoryview | None = None

    def _refuse(self, data: torch.Tensor, read_only: ReadOnlyMemory) -> None:
        if self.span is None:
            reason = unreachable(data)
        elif overlaps_itself(data):
            reason = "has elements that share memory: clone() it"
        elif data.device.type == "cpu" and read_only.holds(*self.span):
            reason = "lies in memory that is mapped for reading only"
        else:
            return
        if reason is not None:
            raise self._unsupported(f"the tensor to load into {reason}")

    def _unsupported(self, why: str) -> UnsupportedTensorError:
        return UnsupportedTensorError(f"{self._read.dest_index.fqn!r} cannot be loaded: {why}")

    @property
    def data(self) -> torch.Tensor:
        """The tensor, outside of any autograd graph."""
        return self._tensor

    def begin(self) -> None:
        dtype = self._source.dtype
        assert dtype is not None
        if self.span is None and self._source.elements_known:
            buffer = cpu_buffer(math.prod(self._box.lengths) * dtype.itemsize)
            self._pieces = buffer.view(dtype).view(self._box.lengths)
        pieces = self._pieces
        if (
            (self.span is not None or pieces is not self._tensor)
            and pieces.device.type == "cpu"
            and pieces.dtype is dtype
            and pieces.is_contiguous()
            and not (pieces.is_conj() or pieces.is_neg())
            # a mode of the caller's is to see what changes its tensors
            and not has_foreign_modes()
        ):
            self._memory = tensor_bytes(pieces)

    @property
    def _itemsize(self) -> int:
        assert self._source.dtype is not None
        return self._source.dtype.itemsize

    def direct(self, placement: Placement) -> memoryview | None:
        if self._memory is None or placement.first < 0 or placement.box is not None:
            return None
        start = placement.first * self._itemsize
        return self._memory[start : start + placement.stop - placement.start]

    def place(self, placement: Placement, data: torch.Tensor) -> None:
        if placement.first < 0:
            value = decode_tensor(self._read, self._source, data, weights_only=self._weights_only)
            self._copy(self._pieces, narrow(value, self._box.offsets, self._box.lengths))
            return
        assert self._source.dtype is not None
        if data.storage_offset() % self._itemsize:
            data = data.clone()  # aligned
        elements = data.view(self._source.dtype)
        if placement.box is None:
            self._place_range(placement.first, elements)
            return
        box = placement.box
        stored = elements.as_strided(box.lengths, strides_of(self._source.shape))
        inside = [offset - origin for offset, origin in zip(box.offsets, self._box.offsets, strict=True)]
        self._copy(narrow(self._pieces, inside, box.lengths), stored)

    def _place_range(self, first: int, elements: torch.Tensor) -> None:
        """Place elements that are adjacent in C order, the item's element number ``first`` and on."""
        count = elements.numel()
        if self._pieces.is_contiguous():
            self._copy(self._pieces.view(-1)[first : first + count], elements)
            return
        position = 0
        for box in boxes_of(self._box.lengths, first, first + count):
            size = math.prod(box.lengths)
            piece = elements[position : position + size].view(box.lengths)
            self._copy(narrow(self._pieces, box.offsets, box.lengths), piece)
            position += size

    def _copy(self, target: torch.Tensor, value: torch.Tensor) -> None:
        try:
            with torch.no_grad():
                # a pinned buffer stays as it is until the device has it
                target.copy_(value, non_blocking=target.device.type != "cpu" and value.is_pinned())
        # a subclass may raise anything
        except Exception as error:
            raise self._unsupported(
                f"copying {value.dtype} into a {type(target).__name__} of {target.dtype} failed: {error}"
            ) from error

    def commit(self, planner: LoadPlanner) -> None:
        if self._pieces is not self._tensor:
            self._copy(self._tensor, self._pieces)
        elif self._memory is not None:
            # autograd must see that the tensor has changed, as it does of copy_
            torch.autograd.graph.increment_version(self._tensor)
        planner.commit_tensor(self._read, self._tensor)


class BytesTarget(Target):
    """A non-tensor item."""

    def begin(self) -> None:
        self._value = io.BytesIO()
        if not transforms_of(self._source.info) and self._source.info.length:
            self._value.seek(self._source.info.length - 1)
            self._value.write(b"\0")
            self._value.seek(0)

    def direct(self, placement: Placement) -> memoryview | None:
        del placement
        return None if transforms_of(self._source.info) else self._value.getbuffer()

    def place(self, placement: Placement, data: torch.Tensor) -> None:
        del placement
        self._value = transformed(self._read, self._source, data)

    def commit(self, planner: LoadPlanner) -> None:
        # other planners decide by themselves what the bytes are
        if self._weights_only and isinstance(planner, DefaultLoadPlanner):
            refuse_code(self._read, self._source, self._value)
        planner.load_bytes(self._read, self._value)
