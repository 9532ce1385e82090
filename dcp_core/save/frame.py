"""One plan item as a frame: the bytes before, the elements where they lie, the bytes after."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType

from dcp_core.errors import CheckpointIncompleteError, CloudCheckpointError, UnsupportedTensorError
from dcp_core.format.frames import frame_template, generic_frame
from dcp_core.runtime.tensor_memory import memory_span, tensor_bytes, unreachable
from dcp_core.runtime.torch_private import transforming, waited_for

__all__ = ["Frame", "frame_item"]


@dataclass(slots=True)
class Frame:
    """An item ready to send.

    ``payload`` is ``payload_size`` bytes: a view of them where they lie, or the tensor if it is on a device
    or not contiguous. ``plain`` says that they are the elements of a dense tensor with the dtype and shape
    that the plan promised.
    """

    index: MetadataIndex
    header: bytes
    payload: memoryview | torch.Tensor
    payload_size: int
    tail: bytes
    plain: bool
    #: The stream transforms that made it, as a record names them.
    transforms: Sequence[str] = ()

    @property
    def size(self) -> int:
        return len(self.header) + self.payload_size + len(self.tail)


def frame_item(item: WriteItem, planner: SavePlanner, extensions: Sequence[Any] = ()) -> Frame:
    """Ask the planner for the item's data and frame it as stock torch does.

    Args:
        extensions: stream transforms that the frame goes through; all of it is then in memory.

    Raises:
        CheckpointIncompleteError: the planner gave a tensor of another shape than it planned, which no
            load could place, or something that is neither a tensor nor bytes.
        UnsupportedTensorError: the tensor is of a kind that stock torch does not save either, such as a
            sparse one, or its storage was freed.
    """
    frame = _framed(item, planner)
    return _transformed(frame, extensions) if extensions else frame


def _framed(item: WriteItem, planner: SavePlanner) -> Frame:
    data = planner.resolve_data(item)
    if item.type is WriteItemType.BYTE_IO:
        if not isinstance(data, io.BytesIO):
            raise _unexpected(item, data)
        return _opaque(item, data.getbuffer())
    if not isinstance(data, torch.Tensor):
        raise _unexpected(item, data)
    return _frame_tensor(item, waited_for(data).detach())


def _frame_tensor(item: WriteItem, tensor: torch.Tensor) -> Frame:
    planned = item.tensor_data
    if planned is not None and tensor.shape != planned.chunk.sizes:
        raise CheckpointIncompleteError(
            f"{item.index.fqn!r} was planned with shape {tuple(planned.chunk.sizes)} "
            f"but resolved to {tuple(tensor.shape)}"
        )
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or memory_span(tensor) is None:
        return _frame_other(item, tensor)
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    template = frame_template(tensor.dtype, tuple(tensor.shape))
    return Frame(
        index=item.index,
        header=template.header,
        payload=_elements(tensor),
        payload_size=template.payload_size,
        tail=template.tail,
        plain=planned is not None and tensor.dtype is planned.properties.dtype,
    )


def _frame_other(item: WriteItem, tensor: torch.Tensor) -> Frame:
    """The frame of a tensor whose elements alone do not describe it, or do not lie in memory of its own."""
    reason = unreachable(tensor)
    if reason is not None:
        raise UnsupportedTensorError(f"{item.index.fqn!r} cannot be saved: it {reason}")
    try:
        if tensor.device.type != "cpu":
            # a lazy device may have given no memory to what the CPU has memory for
            return _frame_tensor(item, tensor.cpu())
        return _opaque(item, memoryview(generic_frame(tensor)))
    except CloudCheckpointError:
        raise
    # a subclass may raise anything
    except Exception as error:
        raise UnsupportedTensorError(
            f"{item.index.fqn!r} cannot be saved: torch.save of a {type(tensor).__name__} failed: {error}"
        ) from error


def _elements(tensor: torch.Tensor) -> memoryview | torch.Tensor:
    return tensor_bytes(tensor) if tensor.device.type == "cpu" and tensor.is_contiguous() else tensor


def _opaque(item: WriteItem, data: memoryview) -> Frame:
    """A frame of which only its whole is known."""
    return Frame(item.index, b"", data, data.nbytes, b"", plain=False)


class _Transformed(io.RawIOBase):
    """Where transformed bytes end up. Transforms close what they write to."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.data += view
        return view.nbytes

    def close(self) -> None:
        """Nothing: what is here is still needed."""


def _transformed(frame: Frame, extensions: Sequence[Any]) -> Frame:
    sink = _Transformed()
    stream, names = transforming(cast(IO[bytes], sink), extensions)
    payload = frame.payload
    if isinstance(payload, torch.Tensor):
        payload = tensor_bytes(payload.cpu().contiguous())
    for piece in (frame.header, payload, frame.tail):
        stream.write(piece)
    stream.close()
    data = memoryview(sink.data)
    return Frame(frame.index, b"", data, data.nbytes, b"", plain=False, transforms=names)


def _unexpected(item: WriteItem, data: object) -> CheckpointIncompleteError:
    return CheckpointIncompleteError(
        f"the planner resolved {item.index.fqn!r}, planned as {item.type.name}, to a {type(data).__name__}"
    )
