"""The state dict's side of a load: what bytes become.

A target is one read item. Bytes are received straight into it where it is dense CPU memory of the stored
dtype; otherwise they pass through a bounded scratch buffer.
"""

from __future__ import annotations

import abc
import io
import math
import threading
from collections.abc import Iterable, Iterator

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

from dcp_core.config import LoadOptions
from dcp_core.errors import CheckpointCorruptError, UntrustedDataError
from dcp_core.format.checksum import BLOCK_SIZE
from dcp_core.format.frames import find_payload
from dcp_core.load.plan import Box, Placement, cut_flat, cut_region, flat_range, strides_of
from dcp_core.load.source import Source
from dcp_core.transfer import tensor_bytes

#: Values of Python's own that torch's restricted loader leaves out, under both of their pickled names.
_HARMLESS = {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("bytes", "bytearray", "set", "frozenset", "complex")
}

__all__ = ["BytesTarget", "Target", "TensorTarget"]


class Target(abc.ABC):
    """One read item: which bytes it needs and where they go."""

    #: Where the item's memory is.
    device = torch.device("cpu")

    def __init__(self, number: int, item: ReadItem, source: Source) -> None:
        self.number = number
        self.item = item
        self.source = source

    def placements(self, size: int, gap: int) -> Iterable[Placement]:
        """The bytes this item needs, cut into pieces of about ``size``; here, its whole frame."""
        del size, gap
        info = self.source.info
        if info.length == 0:
            return ()
        return (Placement(info.relative_path, info.offset, info.offset + info.length, self.number, -1),)

    def direct(self, placement: Placement) -> memoryview | None:
        """Memory of the state dict that the bytes of ``placement`` may be received into."""
        del placement
        return None

    @abc.abstractmethod
    def place(self, placement: Placement, data: torch.Tensor) -> None:
        """Take over the bytes of ``placement`` from ``data``, 1-d uint8, which is not kept."""

    @abc.abstractmethod
    def commit(self, planner: LoadPlanner) -> None:
        """Tell the planner that the item is complete. One item at a time."""


class TensorTarget(Target):
    """A tensor, or a slice of one."""

    def __init__(self, number: int, item: ReadItem, source: Source, tensor: torch.Tensor) -> None:
        super().__init__(number, item, source)
        self._tensor = tensor
        self._data = data = tensor.detach()
        lengths = tuple(item.lengths)
        if data.shape != lengths:
            raise CheckpointCorruptError(
                f"{item.dest_index.fqn!r}: the planner gave a tensor of shape {tuple(data.shape)} "
                f"for a read of {lengths}"
            )
        self.device = data.device
        self._box = Box(tuple(item.storage_offsets), lengths)
        self._dense = data.layout is torch.strided and data.is_contiguous()
        #: the tensor's own memory, if bytes of the object can be received there as they are
        self._memory: memoryview | None = None
        if (
            self._dense
            and data.device.type == "cpu"
            and data.dtype is source.dtype
            and not (data.is_conj() or data.is_neg())
        ):
            self._memory = tensor_bytes(data)

    @property
    def _itemsize(self) -> int:
        assert self.source.dtype is not None
        return self.source.dtype.itemsize

    def placements(self, size: int, gap: int) -> Iterable[Placement]:
        source = self.source
        if self._data.numel() == 0:
            return ()
        if not source.elements_known:
            return super().placements(size, gap)
        flat = flat_range(source.shape, self._box) if self._dense else None
        if flat is None:
            return self._boxes(size, gap)
        name, base, itemsize = source.info.relative_path, source.start, self._itemsize
        start, stop = flat[0] * itemsize, flat[1] * itemsize
        if stop - start <= BLOCK_SIZE:
            return (Placement(name, base + start, base + stop, self.number),)
        return [
            Placement(name, base + begin, base + end, self.number, (begin - start) // itemsize)
            for begin, end in cut_flat(start, stop, size, BLOCK_SIZE)
        ]

    def _boxes(self, size: int, gap: int) -> Iterator[Placement]:
        name, base, itemsize = self.source.info.relative_path, self.source.start, self._itemsize
        for box, first, stop in cut_region(self.source.shape, self._box, itemsize, size, gap):
            yield Placement(name, base + first * itemsize, base + stop * itemsize, self.number, 0, box)

    def direct(self, placement: Placement) -> memoryview | None:
        if self._memory is None or placement.first < 0 or placement.box is not None:
            return None
        start = placement.first * self._itemsize
        return self._memory[start : start + placement.stop - placement.start]

    def place(self, placement: Placement, data: torch.Tensor) -> None:
        if placement.first < 0:
            self._data.copy_(narrow_tensor_by_index(self._frame(data), self._box.offsets, self._box.lengths))
            return
        assert self.source.dtype is not None
        if data.storage_offset() % self._itemsize:
            data = data.clone()  # aligned
        elements = data.view(self.source.dtype)
        if placement.box is None:
            flat = self._data.view(-1)
            flat[placement.first : placement.first + elements.numel()].copy_(elements, non_blocking=True)
            return
        box = placement.box
        stored = elements.as_strided(box.lengths, strides_of(self.source.shape))
        inside = [offset - origin for offset, origin in zip(box.offsets, self._box.offsets, strict=True)]
        narrow_tensor_by_index(self._data, inside, box.lengths).copy_(stored, non_blocking=True)

    def _frame(self, data: torch.Tensor) -> torch.Tensor:
        """The chunk in a whole frame of any writer."""
        source = self.source
        assert source.dtype is not None
        frame = data
        if source.info.transform_descriptors:
            frame = torch.frombuffer(bytearray(_transformed(source, data).read()), dtype=torch.uint8)
        head = bytes(tensor_bytes(frame[:8192]))
        offset = find_payload(head, source.dtype, source.shape)
        if offset is not None:
            size = math.prod(source.shape) * source.dtype.itemsize
            if offset + size > frame.numel():
                raise _damaged(self, "it is cut short")
            # a clone is aligned for any dtype, which an offset into a frame need not be
            return frame[offset : offset + size].clone().view(source.dtype).view(source.shape)
        try:
            loaded = torch.load(io.BytesIO(tensor_bytes(frame)), map_location="cpu", weights_only=True)
        # torch.load raises what it pleases on damaged input
        except Exception as error:
            raise _damaged(self, str(error)) from error
        if not isinstance(loaded, torch.Tensor) or tuple(loaded.shape) != source.shape:
            raise _damaged(self, f"it does not hold a tensor of shape {source.shape}")
        return loaded

    def commit(self, planner: LoadPlanner) -> None:
        planner.commit_tensor(self.item, self._tensor)


class BytesTarget(Target):
    """A non-tensor item."""

    def __init__(self, number: int, item: ReadItem, source: Source, options: LoadOptions) -> None:
        super().__init__(number, item, source)
        self._options = options
        self._value = io.BytesIO()

    def place(self, placement: Placement, data: torch.Tensor) -> None:
        del placement
        if self.source.info.transform_descriptors:
            self._value = io.BytesIO(_transformed(self.source, data).read())
        else:
            self._value = io.BytesIO(tensor_bytes(data))

    def commit(self, planner: LoadPlanner) -> None:
        # other planners decide by themselves what the bytes are
        if self._options.weights_only and isinstance(planner, DefaultLoadPlanner):
            self._refuse_code()
        planner.load_bytes(self.item, self._value)
        self._value = io.BytesIO()

    def _refuse_code(self) -> None:
        """Refuse data whose pickle calls for more than torch's restricted loader admits."""
        try:
            foreign = set(torch.serialization.get_unsafe_globals_in_checkpoint(self._value)) - _HARMLESS
        # torch raises what it pleases on what is no torch.save file; stock's planner would unpickle it
        except Exception as error:
            raise self._untrusted(f"is not a plain torch.save file ({error})") from error
        if foreign:
            raise self._untrusted(f"needs {', '.join(sorted(foreign))}")
        self._value.seek(0)

    def _untrusted(self, what: str) -> UntrustedDataError:
        return UntrustedDataError(
            f"{self.item.dest_index.fqn!r} {what}, which loading refuses. Admit types with "
            "torch.serialization.add_safe_globals, or everything with weights_only=False on the reader: "
            "whoever can write to the bucket may then run code here",
            key=self.source.info.relative_path,
        )


def _transformed(source: Source, data: torch.Tensor) -> io.BytesIO:
    """The frame after undoing the stream transforms that its writer recorded."""
    stream: io.IOBase = io.BytesIO(tensor_bytes(data))
    for extension in ExtensionRegistry().from_descriptor_list(source.info.transform_descriptors or ()):
        if isinstance(extension, StreamTransformExtension):
            stream = extension.transform_from(stream)  # type: ignore[arg-type,assignment]
    return io.BytesIO(stream.read(-1))


def _damaged(target: Target, why: str) -> CheckpointCorruptError:
    info = target.source.info
    return CheckpointCorruptError(
        f"the frame of {target.item.storage_index.fqn!r} at bytes {info.offset}–{info.offset + info.length} "
        f"is damaged: {why}",
        key=info.relative_path,
    )


class Completion:
    """Counts the placements of each target and commits it when the last one is done."""

    def __init__(self, planner: LoadPlanner) -> None:
        self._planner = planner
        self._waiting: dict[int, int] = {}
        self._lock = threading.Lock()

    def expect(self, target: Target, placements: int) -> None:
        """Note how many placements ``target`` has; one without any is complete at once."""
        if placements > 1:
            self._waiting[target.number] = placements
        elif placements == 0:
            target.commit(self._planner)

    def done(self, target: Target) -> None:
        """Note one placement; planners need not be thread-safe, so commits take turns."""
        with self._lock:
            left = self._waiting.get(target.number, 1) - 1
            if left:
                self._waiting[target.number] = left
            else:
                target.commit(self._planner)
