"""Bytes of frames held against what is known of them. No I/O.

::

    spans             frame of this library → pieces with what each must be
    check_span        one of them
    check_around      header and tail of such a frame, as another release of torch writes them
    check_foreign     frame of another writer, from its directory and its bytes in order
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple

import torch

from dcp_core.format.archive import (
    Archive,
    ArchiveDamageError,
    FrameSource,
    check_archive,
    content_of,
    read_directory,
)
from dcp_core.format.checksum import BLOCK_SIZE, crc32c
from dcp_core.format.frames import FrameTemplate, find_payload, frame_template
from dcp_core.format.stored import Payload
from dcp_core.upkeep.inventory import Kind, StoredFrame

__all__ = ["DamageError", "Span", "check_around", "check_foreign", "check_span", "spans", "template_of"]

#: The first bytes of a tensor's frame, in which its pickle lies.
HEAD = 8 * 1024


class DamageError(Exception):
    """Bytes ``[start, stop)`` of an object are not as they were saved."""

    def __init__(self, kind: Kind, start: int, stop: int, problem: str) -> None:
        super().__init__(problem)
        self.kind, self.start, self.stop, self.problem = kind, start, stop, problem


class Span(NamedTuple):
    """Bytes ``[start, stop)`` of an object and what they must be: these bytes, or bytes with this CRC32C."""

    start: int
    stop: int
    expected: bytes | int


def template_of(frame: StoredFrame, payload: Payload) -> FrameTemplate:
    """What this release of torch writes around the payload; nothing where the payload is all there is."""
    if payload.plain and frame.dtype is not None:
        return frame_template(frame.dtype, frame.shape)
    return FrameTemplate(b"", payload.size, b"")


def spans(frame: StoredFrame, payload: Payload, around: FrameTemplate) -> Iterator[Span]:
    """A frame of this library from its first byte to its last."""
    first = frame.start + payload.offset
    end = first + payload.size
    if payload.plain and first > frame.start:
        yield Span(frame.start, first, around.header)
    for block, start in enumerate(range(first, end, BLOCK_SIZE)):
        if payload.checksums:
            yield Span(start, min(start + BLOCK_SIZE, end), payload.checksum(block))
    if payload.plain and frame.stop > end:
        yield Span(end, frame.stop, around.tail)


def check_span(data: memoryview, span: Span) -> None:
    """Hold ``data`` against what ``span`` expects.

    Raises:
        DamageError: it is something else.
    """
    if isinstance(span.expected, int):
        if crc32c(data) != span.expected:
            problem = "these bytes do not have the CRC32C they were saved with"
            raise DamageError("checksum", span.start, span.stop, problem)
    elif data != span.expected:
        pairs = enumerate(zip(data, span.expected, strict=False))
        same = next((n for n, (here, there) in pairs if here != there), min(len(data), len(span.expected)))
        problem = f"it is not as torch.save writes it, from byte {span.start + same} on"
        raise DamageError("frame", span.start, span.stop, problem)


class _Around:
    """A frame of which only the bytes before and after the payload are at hand."""

    def __init__(self, head: memoryview, skipped: int, tail: memoryview) -> None:
        self._head, self._tail = head, tail
        self._after = len(head) + skipped
        self._position = 0

    def take(self, count: int) -> memoryview:
        start, stop = self._position, self._position + count
        self._position = stop
        before = start < len(self._head)
        view = self._head[start:stop] if before else self._tail[start - self._after : stop - self._after]
        if len(view) != count:
            raise ArchiveDamageError("it is cut short")
        return view

    def skip(self, count: int) -> None:
        self._position += count


def check_around(frame: StoredFrame, payload: Payload, head: memoryview, tail: memoryview) -> None:
    """Check header and tail of a frame of this library that torch would not write here and now.

    Raises:
        ArchiveDamageError: they are damaged, rather than written with another alignment or by another
            release of torch: that has other records, for with the same ones all bytes would be the same.
    """
    archive = read_directory(tail or head, frame.stop - frame.start)
    if payload.plain and frame.dtype is not None:
        here = template_of(frame, payload)
        same = read_directory(memoryview(here.tail or here.header), here.size)
        if [entry.name for entry in archive.entries] == [entry.name for entry in same.entries]:
            _check_aligned(frame, frame.dtype, archive, head, tail)
            return
        if find_payload(head, frame.dtype, frame.shape) != payload.offset:
            raise ArchiveDamageError("it does not describe the tensor that the commit record does")
    elements = frozenset(entry.name for entry in archive.entries if entry.size == payload.size)
    check_archive(_Around(head, payload.size, tail), archive, unread=elements)


def _check_aligned(
    frame: StoredFrame, dtype: torch.dtype, archive: Archive, head: memoryview, tail: memoryview
) -> None:
    """Hold header and tail against what torch writes with the alignment that the frame says it has."""
    digits = content_of(archive, b"/.storage_alignment", head) or b""
    alignment = int(digits) if digits.isdigit() else 0
    # a header is never shorter: the elements come after it
    if 0 < alignment <= len(head):
        there = frame_template(dtype, frame.shape, alignment)
        if head == there.header and tail == there.tail:
            return
    raise ArchiveDamageError("it is not as torch.save writes it")


def check_foreign(frame: StoredFrame, archive: Archive, source: FrameSource, whole: memoryview | None) -> int:
    """Check a frame of another writer; returns the bytes that its own CRC32s proved right.

    Args:
        frame: where it is, and of which dtype and shape the commit record says it is.
        archive: its directory.
        source: its bytes in order.
        whole: all of it, where it is small.

    Raises:
        ArchiveDamageError: it is damaged, or holds something else.
    """
    keeping = _Keeping(source)
    proved = check_archive(keeping, archive)
    if frame.dtype is not None and find_payload(keeping.head, frame.dtype, frame.shape) is None and whole:
        _check_odd_tensor(frame, frame.dtype, whole)
    return proved


class _Keeping:
    """A source that keeps the first bytes."""

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self.head = b""

    def take(self, count: int) -> memoryview:
        view = self._source.take(count)
        if len(self.head) < HEAD:
            self.head += bytes(view[: HEAD - len(self.head)])
        return view

    def skip(self, count: int) -> None:
        self._source.skip(count)


def _check_odd_tensor(frame: StoredFrame, dtype: torch.dtype, whole: memoryview) -> None:
    """Let torch say what a frame is that is not a dense tensor's with a storage of its own."""
    file = io.BytesIO(whole)
    try:
        # a type that loading would have to be told to trust: only the frame's CRC32s speak for it
        if torch.serialization.get_unsafe_globals_in_checkpoint(file):
            return
        file.seek(0)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    # torch raises what it pleases on damaged input
    except Exception as error:
        raise ArchiveDamageError(f"torch cannot read it: {error}") from error
    found = (loaded.dtype, tuple(loaded.shape)) if isinstance(loaded, torch.Tensor) else None
    if found != (dtype, frame.shape):
        raise ArchiveDamageError(f"it does not hold a {dtype} tensor of shape {list(frame.shape)}")
