"""Item frames: what ``torch.save`` writes for one tensor, without touching the tensor's bytes.

A frame is a zip file: a header (the pickle that describes the tensor and some small records), the
elements, and a tail (a version record and the central directory). For a dense tensor header and tail
depend only on dtype and shape, so torch's own serializer writes them once, around memory that is never
read, and every tensor of that kind is then ``header + its own memory + tail``.

torch's zip writer is told to leave out the zip CRCs, as ``torch.serialization.set_crc32_options(False)``
would: they cost 0.24 CPU seconds a GiB, no reader of torch checks them, and CRC32C covers the bytes.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
import sys
from functools import lru_cache
from typing import NamedTuple

import torch

from dcp_core.runtime.torch_private import differs, without_modes, write_zip

__all__ = ["NO_RESERVE", "FrameTemplate", "find_payload", "frame_template", "generic_frame"]

_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_LOCAL_MAGIC = b"PK\x03\x04"
_CENTRAL_MAGIC = b"PK\x01\x02"
_PAYLOAD_NAME = b"/data/0"
#: From Linux's <asm-generic/mman.h>; not every release of Python's mmap names it.
NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
_PICKLE_NAME = b"/data.pkl"


class FrameTemplate(NamedTuple):
    """The bytes around the elements of every dense tensor of one dtype and shape."""

    header: bytes
    payload_size: int
    tail: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole frame."""
        return len(self.header) + self.payload_size + len(self.tail)


@lru_cache(maxsize=8192)
def frame_template(dtype: torch.dtype, shape: tuple[int, ...], alignment: int | None = None) -> FrameTemplate:
    """The frame of C-contiguous CPU tensors of this dtype and shape.

    Args:
        alignment: of the elements in the frame, in bytes; that of torch's configuration by default.
    """
    # kept for the whole process: the modes of whoever comes first have no part in it
    with without_modes():
        blank = _untouched(dtype, shape)
        pieces = _torch_save_pieces(blank, alignment)
    if blank.nbytes == 0:
        return FrameTemplate(b"".join(pieces), 0, b"")
    index = _payload_index(pieces)
    if pieces[index].nbytes != blank.nbytes:
        raise differs("torch.save", f"wrote {pieces[index].nbytes} bytes for {blank.nbytes} of {dtype}")
    return FrameTemplate(b"".join(pieces[:index]), blank.nbytes, b"".join(pieces[index + 1 :]))


def _untouched(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of address space: nothing reads or writes it, so the kernel backs it with no memory."""
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype, device="cpu")
    # without a reservation it may exceed the machine's memory, as a device's tensor can
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    memory = mmap.mmap(-1, size, flags=flags)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)


class _Pieces:
    """A sink that keeps what the zip writer hands it, as it was handed over."""

    def __init__(self) -> None:
        self.views: list[memoryview] = []

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data)
        # small pieces lie in the writer's own buffers, which it reuses
        self.views.append(memoryview(bytes(view)) if view.nbytes < 4096 else view)
        return view.nbytes

    def flush(self) -> None:
        """Nothing is buffered here."""


def _torch_save_pieces(tensor: torch.Tensor, alignment: int | None) -> list[memoryview]:
    sink = _Pieces()
    if not write_zip(tensor, sink, alignment) and tensor.nbytes:
        _clear_crc(sink.views)
    return sink.views


def _clear_crc(pieces: list[memoryview]) -> None:
    """Take the CRC of the blank elements out of what follows them: other elements will stand there."""
    start = _payload_index(pieces) + 1
    after = bytearray(b"".join(pieces[start:]))
    directory = after.index(_CENTRAL_MAGIC)
    entry = after.rindex(_CENTRAL_MAGIC, directory, after.index(_PAYLOAD_NAME, directory))
    # in the descriptor behind the elements, and in the directory
    for crc_at in (4, entry + 16):
        after[crc_at : crc_at + 4] = bytes(4)
    pieces[start:] = [memoryview(bytes(after))]


def _payload_index(pieces: list[memoryview]) -> int:
    """Index of the elements: they follow the name and the padding of their local header."""
    for named, piece in enumerate(pieces):
        if piece.nbytes < 64 and bytes(piece).endswith(_PAYLOAD_NAME):
            padding = _LOCAL_HEADER.unpack(pieces[named - 1])[-1]
            after = named + 1
            while padding > 0:
                padding -= pieces[after].nbytes
                after += 1
            return after
    raise differs("torch.save", "wrote no storage record")


def generic_frame(value: torch.Tensor) -> bytes:
    """The frame of a tensor that its elements alone do not describe: quantized, or a subclass. A copy."""
    if value.untyped_storage().nbytes() != value.nbytes:
        # torch.save would write the whole storage
        value = value.clone()
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def find_payload(head: bytes | memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> int | None:
    """Offset of the elements in a frame of any writer, from its first bytes.

    ``None`` unless the frame's own pickle is, byte for byte, that of a C-contiguous CPU tensor of this
    dtype and shape which owns its storage: then ``torch.load`` has to say what the frame is.

    Args:
        head: the first bytes of the frame; 8 KiB reach past every header seen.
    """
    data = bytes(head)
    expected = _pickle_record(frame_template(dtype, shape).header)
    if expected is None or _pickle_record(data) != expected:
        return None
    name_at = data.find(_PAYLOAD_NAME, len(expected))
    header_at = data.rfind(_LOCAL_MAGIC, 0, name_at) if name_at >= 0 else -1
    if header_at < 0 or header_at + _LOCAL_HEADER.size > len(data):
        return None
    fields = _LOCAL_HEADER.unpack_from(data, header_at)
    method, name_length, extra_length = fields[3], fields[9], fields[10]
    name_start = header_at + _LOCAL_HEADER.size
    stored = method == 0 and data[name_start : name_start + name_length].endswith(_PAYLOAD_NAME)
    offset = name_start + int(name_length) + int(extra_length)
    return offset if stored and offset <= len(data) else None


def _pickle_record(data: bytes) -> bytes | None:
    """The pickle of a frame: its first record, up to the record's end mark."""
    if len(data) < _LOCAL_HEADER.size or data[:4] != _LOCAL_MAGIC:
        return None
    fields = _LOCAL_HEADER.unpack_from(data)
    method, size, name_length, extra_length = fields[3], fields[7], fields[9], fields[10]
    start = _LOCAL_HEADER.size + int(name_length) + int(extra_length)
    name = data[_LOCAL_HEADER.size : _LOCAL_HEADER.size + int(name_length)]
    if method != 0 or not name.endswith(_PICKLE_NAME):
        return None
    # streamed records carry their size behind the data, so that the header says 0
    stop = start + int(size) if size else data.find(b"PK\x07\x08", start)
    return data[start:stop] if stop > start else None
