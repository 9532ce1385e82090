"""Data objects read from one store, verified, and stored in another under the same names.

::

    Sender.send
    └── Transfer.run     pieces of all objects, in order: only what is worked on is in memory
        └── _copy        read → hold against the recorded checksums → part of an upload, or the whole object
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from dcp_core.errors import (
    CheckpointCorruptError,
    CheckpointIncompleteError,
    CheckpointReplacedError,
    ConflictError,
    ObjectNotFoundError,
)
from dcp_core.format.checksum import crc32c
from dcp_core.runtime.tensor_memory import cpu_buffer, tensor_bytes
from dcp_core.save.objects import Multipart, put_whole
from dcp_core.save.plan import part_size_for
from dcp_core.seam.store import Body, ObjectInfo, Part
from dcp_core.tools.copy_plan import Piece, cut, known_spans
from dcp_core.tools.places import Opened, Target
from dcp_core.upkeep.frame_checks import DamageError, Span, check_span
from dcp_core.upkeep.inventory import StoredFrame
from dcp_core.upkeep.stream import ObjectStream

__all__ = ["Sender", "read_pinned"]


@dataclass
class _Object:
    """One object that is being copied."""

    name: str
    size: int
    pieces: int
    upload: Multipart
    version: str | None = None
    parts: list[Part] = field(default_factory=list)
    done: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sender:
    """Copies objects of the checkpoint ``source`` to ``target``.

    Args:
        target: ``concurrency`` pieces are under way, within ``memory_limit`` of its options.
        progress: told each number of bytes that were stored, from several threads.
    """

    def __init__(self, source: Opened, target: Target, progress: Callable[[int], None]) -> None:
        self._source = source
        self._store = target.store
        self._location = target.location
        self._options = target.options
        self._transfer = target.transfer
        self._progress = progress
        self._open: list[_Object] = []

    def send(self, objects: Iterable[tuple[str, int, list[StoredFrame]]]) -> None:
        """Copy objects, given by name, size and what is in them.

        Raises:
            CheckpointCorruptError: bytes of the source are not those that were saved.
            CheckpointReplacedError: another save replaced the source meanwhile.
            CloudCheckpointError: a request failed; uploads that were under way are dropped.
        """
        try:
            self._transfer.run(self._pieces(objects), self._copy, self._options.concurrency)
        except BaseException as error:
            for one in self._open:
                if one.upload.upload is not None and not one.done:
                    one.upload.abort(error)
            raise

    def _pieces(
        self, objects: Iterable[tuple[str, int, list[StoredFrame]]]
    ) -> Iterator[tuple[_Object, Piece]]:
        limits, options = self._store.limits, self._options
        wanted = min(options.part_size, options.memory_limit // (options.concurrency + 1))
        for name, size, frames in objects:
            part_size = part_size_for(size, max(wanted, limits.min_part_size), limits, options.concurrency)
            pieces = list(cut(size, min(part_size, limits.max_put_size), known_spans(frames)))
            upload = Multipart(self._store, self._transfer, self._location.key(name))
            one = _Object(name, size, len(pieces), upload)
            self._open = [other for other in self._open if not other.done]
            self._open.append(one)
            yield from ((one, piece) for piece in pieces)

    def _copy(self, task: tuple[_Object, Piece]) -> None:
        one, piece = task
        view = self._verified(one, piece)[piece.start - piece.first : piece.stop - piece.first]
        body = Body([view], crc32c(view))
        if one.pieces == 1:
            key = self._location.key(one.name)
            self._end(one, put_whole(self._store, self._transfer, key, body))
        else:
            self._send_part(one, piece.number, body)
        self._progress(body.size)

    def _send_part(self, one: _Object, number: int, body: Body) -> None:
        with one.lock:
            if one.upload.upload is None:
                one.upload.start()
        part = one.upload.send(number, body)
        with one.lock:
            one.parts.append(part)
            is_last = len(one.parts) == one.pieces
        if is_last:
            self._end(one, one.upload.finish(sorted(one.parts, key=lambda part: part.number)))
            one.upload.tidy()

    def _end(self, one: _Object, info: ObjectInfo) -> None:
        one.done = True
        if info.size != one.size:
            raise CheckpointIncompleteError(
                f"the store kept {info.size} of {one.size} bytes", bucket=self._store.bucket, key=info.key
            )

    def _verified(self, one: _Object, piece: Piece) -> memoryview:
        """What is to be read for a piece; read again if it looks damaged, for that may be from the way."""
        view = self._read(one, piece)
        if self._damage(one, piece, view) is not None:
            view = self._read(one, piece)
            damage = self._damage(one, piece, view)
            if damage is not None:
                raise CheckpointCorruptError(
                    f"bytes {damage.start}–{damage.stop}: {damage.problem}; nothing is committed",
                    bucket=self._source.store.bucket,
                    key=self._source.location.key(one.name),
                ) from damage
        return view

    def _damage(self, one: _Object, piece: Piece, view: memoryview) -> DamageError | None:
        for span in piece.spans:
            data = view[span.start - piece.first : span.stop - piece.first]
            try:
                check_span(data, span)
            except DamageError as damage:
                # another release of torch writes something else around a tensor
                if isinstance(span.expected, int) or not self._is_stored_so(one, span, data):
                    return damage
        return None

    def _is_stored_so(self, one: _Object, span: Span, data: memoryview) -> bool:
        """Whether the same few bytes come a second time."""
        again = memoryview(bytearray(len(data)))
        read_pinned(self._source, one.name, span.start, again, one.version)
        return again == data

    def _read(self, one: _Object, piece: Piece) -> memoryview:
        view = tensor_bytes(cpu_buffer(piece.last - piece.first))
        version = read_pinned(self._source, one.name, piece.first, view, one.version)
        with one.lock:
            one.version = one.version or version
        if version != one.version:
            raise _replaced(self._source, one.name)
        return view


def read_pinned(source: Opened, name: str, start: int, view: memoryview, version: str | None) -> str | None:
    """Read bytes of an object of a checkpoint; returns the version that they are of.

    Raises:
        CheckpointReplacedError: it is not ``version``, or gone.
    """
    if not view:
        return version
    key, stop = source.location.key(name), start + len(view)
    try:
        with ObjectStream(source.store, key, stop, source.transfer, version) as stream:
            stream.read(start, view)
            return stream.version
    except (ConflictError, ObjectNotFoundError) as error:
        raise _replaced(source, name) from error


def _replaced(source: Opened, name: str) -> CheckpointReplacedError:
    return CheckpointReplacedError(
        f"the checkpoint at {source.url} changed while it was copied: copy it again",
        bucket=source.store.bucket,
        key=source.location.key(name),
    )
