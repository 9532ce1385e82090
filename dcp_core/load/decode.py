"""Frames that are read whole, of any writer, and what loading refuses to build from them."""

from __future__ import annotations

import io
import math
import pickle
import threading
from typing import Any

import torch
from torch.distributed.checkpoint.planner import ReadItem

from dcp_core.errors import CheckpointCorruptError, CloudCheckpointError, UntrustedDataError
from dcp_core.format.frames import find_payload
from dcp_core.format.stored import transforms_of
from dcp_core.load.source import Source
from dcp_core.runtime.tensor_memory import tensor_bytes
from dcp_core.runtime.torch_private import undo_transforms

__all__ = ["damaged", "decode_tensor", "load_restricted", "refuse_code", "transformed"]

#: Bytes that reach past every header seen.
_HEAD = 8192

#: Values of Python's own that torch's restricted loader leaves out, under both of their pickled names.
_HARMLESS: tuple[Any, ...] = (bytes, bytearray, set, frozenset, complex)
_HARMLESS_NAMES = {f"{module}.{one.__name__}" for module in ("builtins", "__builtin__") for one in _HARMLESS}
_admitting = threading.Lock()


def decode_tensor(read: ReadItem, source: Source, data: torch.Tensor, *, weights_only: bool) -> torch.Tensor:
    """The tensor in a whole frame, ``data``, 1-d uint8, which the result does not refer to.

    Raises:
        CheckpointCorruptError: the frame is damaged, or holds something else than the record says.
        UntrustedDataError: its pickle needs types that ``torch.load(weights_only=True)`` does not admit.
    """
    assert source.dtype is not None
    frame = data
    if transforms_of(source.info):
        frame = torch.frombuffer(bytearray(transformed(read, source, data).read()), dtype=torch.uint8)
    offset = find_payload(bytes(tensor_bytes(frame[:_HEAD])), source.dtype, source.shape)
    if offset is not None:
        size = math.prod(source.shape) * source.dtype.itemsize
        if offset + size > frame.numel():
            raise damaged(read, source, "it is cut short")
        # a clone is aligned for any dtype, which an offset into a frame need not be
        return frame[offset : offset + size].clone().view(source.dtype).view(source.shape)
    loaded = _unpickled(read, source, io.BytesIO(tensor_bytes(frame)), weights_only=weights_only)
    if not isinstance(loaded, torch.Tensor) or tuple(loaded.shape) != source.shape:
        raise damaged(read, source, f"it does not hold a tensor of shape {source.shape}")
    return loaded


def _unpickled(read: ReadItem, source: Source, frame: io.BytesIO, *, weights_only: bool) -> object:
    try:
        return torch.load(frame, map_location="cpu", weights_only=weights_only)
    # torch.load raises what it pleases on damaged input, and on types it does not admit
    except Exception as error:
        foreign = _foreign_types(frame) if weights_only else None
        if foreign:
            raise _untrusted(read, source, f"needs {', '.join(sorted(foreign))}") from error
        raise damaged(read, source, _reason(error)) from error


def _foreign_types(frame: io.BytesIO) -> set[str] | None:
    """What the frame's pickle names and torch does not admit; ``None`` if it cannot be read."""
    frame.seek(0)
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(frame))
    # as torch.load does
    except Exception:  # noqa: BLE001
        return None


def refuse_code(read: ReadItem, source: Source, frame: io.BytesIO) -> None:
    """Refuse a non-tensor item that torch's restricted loader does not load: stock's planner would then
    unpickle whatever it says. What the restricted loader takes does no harm there either.

    Raises:
        UntrustedDataError: it calls for more, or is no ``torch.save`` file.
    """
    try:
        load_restricted(frame)
    # as torch.load does
    except Exception as error:
        foreign = _foreign_types(frame)
        if foreign is None:
            raise _untrusted(read, source, f"is no torch.save file ({_reason(error)})") from error
        if foreign - _HARMLESS_NAMES:
            raise _untrusted(read, source, f"needs {', '.join(sorted(foreign - _HARMLESS_NAMES))}") from error
        raise _untrusted(read, source, f"does not load by itself ({_reason(error)})") from error
    frame.seek(0)


def load_restricted(frame: io.BytesIO) -> Any:
    """The value of a non-tensor item, from torch's restricted loader and with Python's own plain types.

    Raises whatever torch's loader does.
    """
    try:
        return torch.load(frame, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not (_foreign_types(frame) or set()) & _HARMLESS_NAMES:
            raise
        frame.seek(0)
        # the list of what is admitted is the process's
        with _admitting:
            missing = [kind for kind in _HARMLESS if kind not in torch.serialization.get_safe_globals()]
            with torch.serialization.safe_globals(missing):
                return torch.load(frame, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """What an error of ``torch.load`` says, without its advice."""
    _, _, specific = str(error).partition("WeightsUnpickler error:")
    return next(iter((specific or str(error)).strip().splitlines()), type(error).__name__)


def transformed(read: ReadItem, source: Source, data: torch.Tensor) -> io.BytesIO:
    """The frame after undoing the stream transforms that its writer recorded.

    Raises:
        UnsupportedError: a transform is not known.
        CheckpointCorruptError: one cannot be undone.
    """
    names = transforms_of(source.info)
    try:
        stream = undo_transforms(io.BytesIO(tensor_bytes(data)), names, source.registry)
        return io.BytesIO(stream.read(-1))
    except CloudCheckpointError:
        raise
    # an extension raises what it pleases on damaged input
    except Exception as error:
        why = f"{', '.join(names)} cannot be undone ({type(error).__name__}: {error})"
        raise damaged(read, source, why) from error


def damaged(read: ReadItem, source: Source, why: str) -> CheckpointCorruptError:
    """The error of a frame that is not what the commit record says."""
    info = source.info
    return CheckpointCorruptError(
        f"the frame of {read.storage_index.fqn!r} at bytes {info.offset}–{info.offset + info.length} "
        f"is damaged: {why}",
        key=info.relative_path,
    )


def _untrusted(read: ReadItem, source: Source, what: str) -> UntrustedDataError:
    return UntrustedDataError(
        f"{read.dest_index.fqn!r} {what}, which loading refuses. Admit types with "
        "torch.serialization.add_safe_globals, or everything with weights_only=False on the reader: "
        "whoever can write to the bucket may then run code here",
        key=source.info.relative_path,
    )
