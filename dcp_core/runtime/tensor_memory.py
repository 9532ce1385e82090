"""A tensor's elements as memory: whether they are its own, where they lie, and the bytes themselves.

torch has tensors of many kinds whose elements are not what their storage holds: sparse and nested ones, fake
ones without data, subclasses that wrap other tensors, and any tensor whose storage was freed behind its back.
:func:`memory_span` is the one place that tells them apart. What it admits is read and written as memory;
of the rest, torch's own operations may still reach the elements unless :func:`unreachable` says why not.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import torch

from dcp_core.runtime.torch_private import changes_operations, is_fake, subclasses_off, without_modes

__all__ = ["cpu_buffer", "memory_span", "narrow", "overlaps_itself", "tensor_bytes", "unreachable"]

#: Buffers of at least this size are mappings. glibc keeps what is freed below 32 MiB, and with threads that
#: take and free such buffers that grew to many times what was in use.
_MAPPED_SIZE = 1 << 20
_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a C-contiguous CPU tensor as a writable byte view, without a copy.

    The view, and every slice of it, keeps the tensor alive. Works for dtypes that no other exporter of
    Python's buffer protocol knows, such as bfloat16 and float8, and without NumPy.

    Raises:
        ValueError: the elements do not lie in CPU memory of the tensor's own, in C order.
    """
    span = memory_span(tensor)
    if span is None:
        raise ValueError(f"needs a tensor with memory of its own, got a {type(tensor).__name__}")
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"needs a contiguous CPU tensor, got {tensor.device} strides {tensor.stride()}")
    start, stop = span
    if start == stop:
        return memoryview(b"")
    memory = (ctypes.c_ubyte * (stop - start)).from_address(start)
    memory.owner = tensor  # type: ignore[attr-defined]  # what keeps the tensor alive
    return memoryview(memory).cast("B")


def memory_span(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Addresses ``[start, stop)`` from the first to the last element; ``None`` unless the elements are what
    that memory holds, at the tensor's strides, and all of it is there.

    The addresses are those of the tensor's device. Lazily conjugated and negated tensors have memory too,
    though not of the values they show. ``(0, 0)`` for a tensor without elements.
    """
    kind = type(tensor)
    if (
        (kind not in _PLAIN_TYPES and changes_operations(kind))
        or tensor.layout is not torch.strided
        or tensor.is_meta
        or tensor.is_quantized
        or tensor.is_nested
    ):
        return None
    if tensor.numel() == 0:
        return 0, 0
    try:
        start, size, room = tensor.data_ptr(), _extent(tensor), _room(tensor)
    # functional tensors and those of torch.func transforms show no storage
    except RuntimeError:
        return None
    return (start, start + size) if start and size <= room else None


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the first to the last element."""
    if tensor.is_contiguous():
        return tensor.nbytes
    dims = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in dims)) * tensor.element_size()


def _room(tensor: torch.Tensor) -> int:
    """Bytes that the storage has from the first element on."""
    return tensor.untyped_storage().nbytes() - int(tensor.storage_offset()) * tensor.element_size()


def unreachable(tensor: torch.Tensor) -> str | None:
    """Why neither memory nor torch's operations lead to the elements of ``tensor``, for people.

    ``None`` says that there is memory, or that its type or its device may know how to copy it.
    """
    if is_fake(tensor) or tensor.is_meta:
        return f"is a {'fake' if is_fake(tensor) else 'meta'} tensor, which holds no data"
    if tensor.is_nested:
        return "is a nested tensor"
    own_type = type(tensor) not in _PLAIN_TYPES and changes_operations(type(tensor))
    if tensor.layout is not torch.strided and not own_type:
        return f"has the layout {tensor.layout}"
    with subclasses_off():
        return _storage_fault(tensor, own_type=own_type)


def _storage_fault(tensor: torch.Tensor, *, own_type: bool) -> str | None:
    if tensor.numel() == 0:
        return None
    try:
        room, needed = _room(tensor), _extent(tensor)
        # raises for a wrapper, which only claims to have a storage
        address = tensor.untyped_storage().data_ptr()
        if room < needed:
            return f"takes {needed} bytes of a storage that has {max(room, 0)}: was it freed?"
    except RuntimeError:
        address = 0
    # types and devices with a way of their own to keep elements show no memory, and copy all the same
    if address or own_type or tensor.device.type != "cpu":
        return None
    return "has no memory of its own, as inside torch.func transforms and functionalization"


def overlaps_itself(tensor: torch.Tensor) -> bool:
    """Whether elements of a strided tensor share memory, as in an expanded one."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return False
    dims = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    reach, nested = 0, True
    for stride, size in dims:
        nested = nested and (stride > reach or size == 1)
        reach += (size - 1) * stride
    if nested:
        return False
    if tensor.numel() > reach + 1 or any(stride == 0 and size > 1 for stride, size in dims):
        return True
    # strides that do not nest: only counting tells
    with without_modes():
        marks = torch.zeros(reach + 1, dtype=torch.uint8, device="cpu")
        marks.as_strided(tensor.shape, tensor.stride()).fill_(1)
        return int(marks.sum()) < tensor.numel()


def cpu_buffer(size: int, *, pinned: bool = False) -> torch.Tensor:
    """``size`` bytes of CPU memory, whatever modes and default device the calling thread has.

    Large ones go back to the system when the last tensor that uses them is gone.
    """
    with without_modes():
        if pinned or size < _MAPPED_SIZE:
            return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(memory, dtype=torch.uint8)


def narrow(tensor: torch.Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    """The view of ``tensor`` from ``offsets`` on, of shape ``lengths``."""
    for dimension, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        if length != tensor.shape[dimension]:
            tensor = tensor.narrow(dimension, offset, length)
    return tensor
