"""The header of a safetensors file. Pure; what others wrote is read without trust.

::

    8 bytes    n, little-endian
    n bytes    JSON: name → dtype, shape, data_offsets (from the end of the header), and "__metadata__"
    the rest   the elements of each tensor in C order, without holes

A file that DCP wrote for one rank says in its metadata where each tensor lies in the whole one. The format:
https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from dcp_core.errors import CheckpointCorruptError, UnsupportedTensorError

__all__ = [
    "Header",
    "StoredTensor",
    "TensorSpec",
    "build_header",
    "dtype_name",
    "file_metadata",
    "header_size",
    "parse_header",
    "saved_offsets",
    "written_order",
]

_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
#: Bytes of the longest header that the format allows.
_LONGEST = 100_000_000
#: The header's end, and so the first tensor, is aligned to this many bytes: the size of the largest element.
_ALIGNMENT = 8
_MOST_DIMENSIONS = 64
_LARGEST = (1 << 63) - 1

#: What torch notes beside a tensor of a part, under these names.
_SHARDING_INFO = "DCP_SHARDING_INFO"
_SAVED_OFFSETS = "saved_offsets"
_VERSION = ("DCP_VERSION", "1.0")
_FORMAT = ("format", "pt")

_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "C64": "complex64",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
}
#: Elements that are no whole bytes, which torch has no tensors of.
_PACKED = frozenset({"F4", "F6_E2M3", "F6_E3M2"})
_DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, ours) for name, ours in _NAMES.items() if hasattr(torch, ours)
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TensorSpec(NamedTuple):
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


class StoredTensor(NamedTuple):
    """A tensor in a file: its elements are bytes ``[start, stop)`` of it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """What a file says of itself."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def dtype_name(dtype: torch.dtype) -> str | None:
    """What the format calls a dtype; ``None`` where it has no name for it."""
    return _DTYPE_NAMES.get(dtype)


def written_order(tensors: Iterable[TensorSpec]) -> list[TensorSpec]:
    """``tensors`` with the largest elements first, so that each lies aligned behind the others; by name
    among equals, as the ``safetensors`` package writes them."""
    return sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))


def file_metadata(offsets: Mapping[str, Sequence[int]] | None = None) -> dict[str, str]:
    """Metadata of a file: ``offsets`` say where each tensor begins in the whole one."""
    if offsets is None:
        return dict((_FORMAT,))
    sharding = {name: {_SAVED_OFFSETS: list(found)} for name, found in offsets.items()}
    return dict(((_SHARDING_INFO, json.dumps(sharding)), _VERSION, _FORMAT))


def build_header(tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """The header of a file that holds ``tensors`` in this order.

    Raises:
        UnsupportedTensorError: the format has no such dtype.
    """
    entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    position = 0
    for tensor in tensors:
        dtype = dtype_name(tensor.dtype)
        if dtype is None or tensor.name == _METADATA:
            raise UnsupportedTensorError(
                f"{tensor.name!r} cannot be saved: safetensors has no {tensor.dtype}"
                if dtype is None
                else f"safetensors uses the name {_METADATA!r} for something else: rename the tensor"
            )
        end = position + tensor.size
        entries[tensor.name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": (position, end)}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % _ALIGNMENT)
    return _LENGTH.pack(len(text)) + text


def header_size(head: bytes, file_size: int) -> int:
    """Bytes of the header of a file of ``file_size`` bytes, its length included, from its first bytes.

    Raises:
        CheckpointCorruptError: it is none, or longer than the format allows.
    """
    if len(head) < _LENGTH.size:
        raise _damaged(f"it has {file_size} bytes")
    (length,) = _LENGTH.unpack_from(head)
    if length > _LONGEST:
        raise _damaged(f"its header would have {length} bytes, and {_LONGEST} at most are read")
    if _LENGTH.size + length > file_size:
        raise _damaged(f"its header would have {length} bytes, and it has {file_size}: it is cut short")
    return int(_LENGTH.size + length)


def parse_header(data: bytes, file_size: int) -> Header:
    """The header that ``data`` is, of a file of ``file_size`` bytes.

    Raises:
        CheckpointCorruptError: it is damaged, contradicts itself, or does not fit the file.
        UnsupportedTensorError: it has tensors that this torch does not.
    """
    size = header_size(data, file_size)
    entries = _decoded(data[_LENGTH.size : size])
    metadata = entries.pop(_METADATA, {})
    if type(metadata) is not dict or any(type(value) is not str for value in metadata.values()):
        raise _damaged("its metadata are no texts")
    tensors = {name: _tensor(name, entry, size) for name, entry in entries.items()}
    _require_filled(tensors, size, file_size)
    return Header(tensors, metadata)


def _decoded(text: bytes) -> dict[str, Any]:
    if text[:1] != b"{":
        raise _damaged("its header does not begin with a brace")
    try:
        found = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"its header is no JSON: {str(error)[:200]}") from error
    if type(found) is not dict:
        raise _damaged("its header is no object of JSON")
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _tensor(name: str, entry: Any, data_start: int) -> StoredTensor:
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(f"{_shown(name)} is not described by dtype, shape and data_offsets")
    dtype = _dtype(name, entry["dtype"])
    shape, offsets = _numbers(entry["shape"]), _numbers(entry["data_offsets"])
    if shape is None or len(shape) > _MOST_DIMENSIONS or offsets is None or len(offsets) != 2:
        raise _damaged(f"the shape or the data_offsets of {_shown(name)} are no such numbers")
    start, stop = offsets
    size = math.prod(shape) * dtype.itemsize
    if stop - start != size:
        raise _damaged(f"it gives {stop - start} bytes to {_shown(name)}, a tensor of {size}")
    return StoredTensor(dtype, shape, data_start + start, data_start + stop)


def _dtype(name: str, found: Any) -> torch.dtype:
    dtype = _DTYPES.get(found) if type(found) is str else None
    if dtype is None:
        if type(found) is str and (found in _PACKED or found in _NAMES):
            raise UnsupportedTensorError(f"{_shown(name)} has the dtype {found}, which this torch has not")
        raise _damaged(f"{_shown(name)} has an unknown dtype")
    return dtype


def _numbers(value: Any) -> tuple[int, ...] | None:
    """Numbers of a list of JSON's, none negative or too large for an offset."""
    if type(value) is not list or any(type(each) is not int or not 0 <= each <= _LARGEST for each in value):
        return None
    return tuple(value)


def _require_filled(tensors: Mapping[str, StoredTensor], start: int, file_size: int) -> None:
    """Make sure that the tensors follow one another from the end of the header to that of the file."""
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != position:
            raise _damaged(
                f"{_shown(name)} {'overlaps another tensor' if tensor.start < position else 'follows a gap'}"
            )
        position = tensor.stop
    if position != file_size:
        raise _damaged(f"its tensors end at byte {position}, and it has {file_size}: is it cut short?")


def saved_offsets(header: Header) -> dict[str, tuple[int, ...]]:
    """Where each tensor of a file begins in the whole one: at its start, unless the file says otherwise.

    Raises:
        CheckpointCorruptError: what it says fits no tensor.
    """
    sharding: Any = {}
    noted = header.metadata.get(_SHARDING_INFO)
    if noted:
        sharding = _decoded(noted.encode())
    return {name: _offsets(name, tensor.shape, sharding) for name, tensor in header.tensors.items()}


def _offsets(name: str, shape: tuple[int, ...], sharding: dict[str, Any]) -> tuple[int, ...]:
    if not sharding:
        return (0,) * len(shape)
    entry = sharding.get(name)
    offsets = _numbers(entry.get(_SAVED_OFFSETS)) if type(entry) is dict else None
    if offsets is None or len(offsets) != len(shape):
        raise _damaged(f"it does not say where {_shown(name)} lies in the whole tensor")
    if any(offset + length > _LARGEST for offset, length in zip(offsets, shape, strict=True)):
        raise _damaged(f"it says that {_shown(name)} lies beyond any tensor")
    return offsets


def _shown(name: str) -> str:
    return repr(name[:80])


def _damaged(why: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(f"the safetensors file is damaged: {why}")
