"""What a commit record may name, and the values that are made of it.

Every value here is immutable in a record, and checked once, when it is made. What contains others, and could
still be changed by the stream, is checked at its end (:mod:`dcp_core.format.record`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties

from dcp_core.format.inert import Kind, MalformedPickleError, Pairs
from dcp_core.format.stored import FACTS, StorageInfo, recorded_facts

__all__ = [
    "BYTES",
    "CHUNK",
    "INDEX",
    "INFO",
    "META",
    "METADATA",
    "PROPERTIES",
    "TABLE",
    "TENSOR",
    "fields_of",
]

#: torch's own kernels stop at 64 dimensions.
_MOST_DIMS = 64
_LARGEST = (1 << 63) - 1
_MOST_DESCRIPTORS = 64

_new = object.__new__
_set = object.__setattr__


def fields_of(state: Any, owner: str) -> dict[str, Any]:
    """The attributes in the state of an object."""
    if type(state) is not Pairs:
        raise MalformedPickleError(f"the state of a {owner} is a {type(state).__name__}")
    names = state[::2]
    for name in names:
        if type(name) is not str:
            raise MalformedPickleError(f"a {owner} has an attribute that is named by a {type(name).__name__}")
    return dict(zip(names, state[1::2], strict=True))


def _size(arguments: tuple[Any, ...]) -> torch.Size:
    if len(arguments) != 1 or type(arguments[0]) not in (tuple, list, torch.Size):
        raise MalformedPickleError("a torch.Size is made of something else than integers")
    return _as_size(arguments[0])


def _as_size(values: Any) -> torch.Size:
    if type(values) is torch.Size:
        return values
    if type(values) not in (tuple, list) or len(values) > _MOST_DIMS:
        raise MalformedPickleError(f"a size or an offset is a {type(values).__name__}")
    for value in values:
        if type(value) is not int or not 0 <= value <= _LARGEST:
            raise MalformedPickleError("a size or an offset has a part that is no natural number")
    return torch.Size(values)


def index(name: Any, offset: torch.Size | None, hint: Any) -> MetadataIndex:
    """A ``MetadataIndex`` without the detours of its own making."""
    if type(name) is not str:
        raise MalformedPickleError("a MetadataIndex has no name")
    if hint is not None and (type(hint) is not int or hint < 0):
        raise MalformedPickleError(f"the MetadataIndex of {name!r} has an impossible hint")
    made = _new(MetadataIndex)
    _set(made, "fqn", name)
    _set(made, "index", hint)
    if offset is not None:
        _set(made, "offset", offset)
    return made


def _index(state: Any) -> MetadataIndex:
    found = fields_of(state, "MetadataIndex")
    offset = found.get("offset")
    return index(found.get("fqn"), None if offset is None else _as_size(offset), found.get("index"))


chunk = ChunkStorageMetadata


def _chunk(state: Any) -> ChunkStorageMetadata:
    found = fields_of(state, "ChunkStorageMetadata")
    return chunk(_as_size(found.get("offsets")), _as_size(found.get("sizes")))


def info(name: Any, offset: Any, length: Any, facts: Any) -> StorageInfo:
    """A ``_StorageInfo``, with what this library adds to it unless that is ``None``."""
    if type(name) is not str:
        raise MalformedPickleError("a _StorageInfo names no object")
    if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
        raise MalformedPickleError("a _StorageInfo has an impossible range")
    if offset + length > _LARGEST:
        raise MalformedPickleError("a _StorageInfo has an impossible range")
    made = StorageInfo(name, offset, length)
    if facts is not None:
        setattr(made, FACTS, recorded_facts(facts, length))
    return made


def _info(state: Any) -> StorageInfo:
    found = fields_of(state, "_StorageInfo")
    made = info(found.get("relative_path"), found.get("offset"), found.get("length"), found.get(FACTS))
    descriptors = found.get("transform_descriptors")
    if descriptors is not None:
        made.transform_descriptors = _descriptors(descriptors)
    return made


def _descriptors(values: Any) -> list[str]:
    if type(values) not in (list, tuple) or len(values) > _MOST_DESCRIPTORS:
        raise MalformedPickleError("the transforms of an item are not a short list")
    if any(type(value) is not str for value in values):
        raise MalformedPickleError("the transforms of an item are not named by text")
    return list(values)


#: Releases since 2.15 have the strides as well.
_PROPERTIES = {field.name for field in dataclasses.fields(TensorProperties)}


def properties(state: Any) -> TensorProperties:
    if type(state) is not tuple or not 5 <= len(state) <= 6:
        raise MalformedPickleError("TensorProperties have another number of fields")
    dtype, layout, requires_grad, memory_format, pin_memory = state[:5]
    kinds = (torch.dtype, torch.layout, bool, torch.memory_format, bool)
    if any(type(value) is not kind for value, kind in zip(state, kinds, strict=False)):
        raise MalformedPickleError("TensorProperties have a field of another type")
    made = TensorProperties(dtype, layout, requires_grad, memory_format, pin_memory)
    if len(state) == 6 and "strides" in _PROPERTIES:
        strides = state[5]
        setattr(made, "strides", None if strides is None else tuple(_as_size(strides)))  # noqa: B010
    return made


def _lookup(values: dict[Any, Any], what: str) -> Callable[[tuple[Any, ...]], Any]:
    def call(arguments: tuple[Any, ...]) -> Any:
        if len(arguments) != 1 or type(arguments[0]) not in (str, int) or arguments[0] not in values:
            raise MalformedPickleError(f"it has an unknown {what}")
        return values[arguments[0]]

    return call


def _member(arguments: tuple[Any, ...]) -> Any:
    if len(arguments) != 2 or arguments[0] is not _ENCODING or type(arguments[1]) is not str:
        raise MalformedPickleError("it asks for an attribute")
    if arguments[1] not in _FORMAT_NAMES:
        raise MalformedPickleError("it has an unknown memory format")
    return _FORMATS[_FORMAT_NAMES[arguments[1]]]


def _path(arguments: tuple[Any, ...]) -> pathlib.PurePosixPath:
    if len(arguments) > 4096 or any(type(part) is not str for part in arguments):
        raise MalformedPickleError("it has an impossible path")
    return pathlib.PurePosixPath(*arguments)


def _kept(state: Any) -> Any:
    return state


_FORMATS = {0: torch.contiguous_format, 1: torch.channels_last, 2: torch.preserve_format}
#: In an enumeration's members, of which torch's is private.
_FORMAT_NAMES = {"TORCH_CONTIGUOUS_FORMAT": 0, "TORCH_CHANNELS_LAST": 1, "TORCH_PRESERVE_FORMAT": 2}
_LAYOUTS = {str(value): value for value in vars(torch).values() if isinstance(value, torch.layout)}

CHUNK = Kind("ChunkStorageMetadata", build=_chunk, made=ChunkStorageMetadata)
INDEX = Kind("MetadataIndex", build=_index, made=MetadataIndex)
INFO = Kind("_StorageInfo", build=_info, made=StorageInfo)
PROPERTIES = Kind("TensorProperties", build=properties, made=TensorProperties)
METADATA = Kind("Metadata", build=_kept)
META = Kind("StorageMeta", build=_kept)
TENSOR = Kind("TensorStorageMetadata", build=_kept)
BYTES = Kind("BytesStorageMetadata", build=_kept)
_ENCODING = Kind("_MEM_FORMAT_ENCODING", call=_lookup(_FORMATS, "memory format"))
SIZE = Kind("Size", call=_size)
_PATH = Kind("PosixPath", call=_path)

_METADATA = "torch.distributed.checkpoint.metadata"
#: torch had these elsewhere until 2.2.
_SHARDED_TENSOR = "torch.distributed._shard.sharded_tensor.metadata"

#: Everything a commit record may name.
TABLE: dict[tuple[str, str], Any] = {
    **{(_METADATA, kind.name): kind for kind in (CHUNK, INDEX, PROPERTIES, METADATA, META, TENSOR, BYTES)},
    (_METADATA, _ENCODING.name): _ENCODING,
    (_SHARDED_TENSOR, "TensorProperties"): PROPERTIES,
    (_SHARDED_TENSOR, "MEM_FORMAT_ENCODING"): _ENCODING,
    ("torch.distributed.checkpoint.filesystem", INFO.name): INFO,
    ("torch", "Size"): SIZE,
    ("torch.serialization", "_get_layout"): Kind("layout", call=_lookup(_LAYOUTS, "layout")),
    # early releases of Python 3.11 name the members of an enumeration by it
    ("builtins", "getattr"): Kind("getattr", call=_member),
    ("collections", "OrderedDict"): Kind("OrderedDict", call=lambda _: Pairs()),
    # stock writers record the path they wrote to
    **{
        (module, name): _PATH
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath")
    },
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}
