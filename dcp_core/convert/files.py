"""Single files at a path or a URL: read by ranges, written as a stream."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from dcp_core.config import MIB, LoadOptions, SaveOptions
from dcp_core.convert.file_types import Path, RangeFile, Sink
from dcp_core.convert.local_files import LocalFile, LocalSink
from dcp_core.errors import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CheckpointReplacedError,
    ConfigurationError,
    ConflictError,
    ObjectNotFoundError,
    PermissionDeniedError,
    UnsupportedError,
)
from dcp_core.format.checksum import crc32c
from dcp_core.integrations.checkpoint_ids import refuse_folded
from dcp_core.load.receive import receive
from dcp_core.runtime.tensor_memory import cpu_buffer, tensor_bytes
from dcp_core.save.objects import Multipart, put_whole
from dcp_core.save.plan import part_size_for
from dcp_core.seam.body import Body
from dcp_core.seam.location import Location, scheme_of
from dcp_core.seam.store import ObjectInfo, ObjectStore, Part
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.transfer import Transfer

__all__ = ["RangeFile", "Sink", "file_sink", "open_file"]

#: Bytes of one request.
_PIECE = 8 * MIB


def open_file(path: Path, options: Mapping[str, Any]) -> RangeFile:
    """The file at a path or URL.

    Raises:
        CheckpointNotFoundError: there is none.
    """
    if scheme_of(path) is None:
        refuse_folded(path)
        return LocalFile(path)
    place = CheckpointStore(path, LoadOptions, options)
    try:
        return _Object(place)
    except BaseException:
        place.close()
        raise


class _Object(RangeFile):
    def __init__(self, place: CheckpointStore[LoadOptions]) -> None:
        self._place = place
        self._key = key_of_file(place.location)
        self.name = place.location.url
        self._transfer = Transfer(place.options, None)
        store = place.store()
        try:
            info = self._transfer.attempt(lambda: store.head(self._key))
        except ObjectNotFoundError as error:
            raise CheckpointNotFoundError(
                f"there is no file at {self.name}", bucket=store.bucket, key=self._key
            ) from error
        self._version, self.size = info.version, info.size

    def read_into(self, ranges: Sequence[tuple[int, memoryview]]) -> None:
        pieces = [
            (start + done, view[done : done + _PIECE])
            for start, view in ranges
            for done in range(0, view.nbytes, _PIECE)
        ]
        if pieces:
            workers = min(self._place.options.concurrency, len(pieces))
            self._transfer.run(pieces, self._read_piece, workers)

    def _read_piece(self, piece: tuple[int, memoryview]) -> None:
        start, view = piece

        def read() -> None:
            stop = start + view.nbytes
            with self._place.use() as store:
                reading = store.read_range(self._key, start, stop, version=self._version or None)
                with reading as reader:
                    receive(reader, view, self._key)

        try:
            self._transfer.attempt(read)
        except (ConflictError, ObjectNotFoundError) as error:
            raise CheckpointReplacedError(
                f"{self.name} changed while it was read", bucket=error.bucket, key=self._key
            ) from error

    def close(self) -> None:
        self._place.close()


def key_of_file(location: Location) -> str:
    """The key of the file at a URL.

    Raises:
        ConfigurationError: it names a bucket.
    """
    if not location.prefix:
        raise ConfigurationError(f"{location} is a bucket: give the URL of a file in it")
    return location.prefix


@contextmanager
def file_sink(path: Path, options: Mapping[str, Any], size: int) -> Iterator[Sink]:
    """Write a file of about ``size`` bytes at a path or URL; it is there if the context ends well.

    Raises:
        CheckpointExistsError: there is one, and ``overwrite=False`` among ``options``.
    """
    sink: Sink
    if scheme_of(path) is None:
        refuse_folded(path)
        sink = LocalSink(os.fspath(path), overwrite=bool(options.get("overwrite", True)))
    else:
        place = CheckpointStore(path, SaveOptions, options)
        try:
            sink = _Upload(place, size)
        except BaseException:
            place.close()
            raise
    try:
        yield sink
        sink.finish()
    except BaseException as error:
        sink.abort(error)
        raise


class _Upload(Sink):
    """A file in a bucket: parts go while the next one fills."""

    def __init__(self, place: CheckpointStore[SaveOptions], size: int) -> None:
        self._place = place
        self._store: ObjectStore = place.writable_store()
        options, limits = place.options, self._store.limits
        self._key = key_of_file(place.location)
        self._transfer = Transfer(options, None)
        if size > limits.max_object_size:
            raise UnsupportedError(
                f"a file of {size} bytes does not fit an object of {limits.max_object_size}: "
                "use a DCP checkpoint"
            )
        self._before = self._look()
        if self._before is not None and not options.overwrite:
            raise CheckpointExistsError(
                f"{place.location} is there already and overwrite=False",
                bucket=self._store.bucket,
                key=self._key,
            )
        # those that are sent, and the one that fills
        wanted = min(options.part_size, options.memory_limit // (options.concurrency + 2))
        self._part_size = min(part_size_for(size, max(wanted, MIB), limits), limits.max_put_size)
        self._part = memoryview(b"")
        self._filled = 0
        self._upload: Multipart | None = None
        self._sent: list[Future[Part]] = []
        self._pool = ThreadPoolExecutor(options.concurrency, "dcp-cloud-convert")
        self._room = threading.Semaphore(options.concurrency)

    def _look(self) -> ObjectInfo | None:
        """What is there before."""
        try:
            return self._transfer.attempt(lambda: self._store.head(self._key))
        except ObjectNotFoundError:
            return None
        except PermissionDeniedError:
            if not self._place.options.overwrite:
                raise
            return None

    def write(self, data: bytes | memoryview, /) -> int:
        view = memoryview(data).cast("B")
        position = 0
        while position < view.nbytes:
            if self._filled == self._part_size:
                self._send()
            if self._filled == 0:
                self._part = tensor_bytes(cpu_buffer(self._part_size))
            piece = view[position : position + self._part_size - self._filled]
            self._part[self._filled : self._filled + piece.nbytes] = piece
            self._filled += piece.nbytes
            position += piece.nbytes
        return view.nbytes

    def _send(self) -> None:
        if self._upload is None:
            self._upload = Multipart(self._store, self._transfer, self._key)
            self._upload.start()
        for future in self._sent:
            if future.done():
                # raises what a part failed with
                future.result()
        self._room.acquire()
        number, part = len(self._sent) + 1, self._part[: self._filled]
        self._part, self._filled = memoryview(b""), 0
        self._sent.append(self._pool.submit(self._send_part, self._upload, number, part))

    def _send_part(self, upload: Multipart, number: int, part: memoryview) -> Part:
        try:
            return upload.send(number, _body(part))
        finally:
            self._room.release()

    def finish(self) -> None:
        if self._upload is None:
            part = self._part[: self._filled]
            info = put_whole(self._store, self._transfer, self._key, _body(part))
            self._end(info, part.nbytes)
            return
        if self._filled:
            self._send()
        parts = [future.result() for future in self._sent]
        info = self._upload.finish(parts)
        self._end(info, sum(part.size for part in parts))
        self._upload.tidy()

    def _end(self, info: ObjectInfo, size: int) -> None:
        self._pool.shutdown()
        # requests that failed to say what became of them may have left the file of before
        before = self._before
        untouched = before is not None and bool(info.version) and before == info
        if info.size != size or untouched:
            raise CheckpointCorruptError(
                f"the store kept {info.size} of {size} bytes", bucket=self._store.bucket, key=self._key
            )
        self._place.close()

    def abort(self, reason: BaseException) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._upload is not None:
            self._upload.abort(reason)
        self._place.close()


def _body(view: memoryview) -> Body:
    return Body([view], crc32c(view))
