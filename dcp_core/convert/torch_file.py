"""``torch.save`` files, read and written a tensor at a time.

A file is a zip archive: a pickle, and a record for the elements of each storage. torch reads a record into
new memory by one call of the file's ``readinto``, so a file that leaves the memory of large records as it is
gives a state dict in which these are still to come, and tells where each belongs. ::

    read    directory ─> pickle, small records, heads of others ─> torch.load ─> blanks, filled when asked for
    write   torch.save's own writer, handed each storage's elements when its record's turn comes
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dcp_core.config import KIB, MIB
from dcp_core.convert.blanks import Progress, Source, Values, address, blanks_in
from dcp_core.convert.file_types import Path, RangeFile, Sink
from dcp_core.convert.files import file_sink, open_file
from dcp_core.errors import (
    CheckpointCorruptError,
    CloudCheckpointError,
    ConfigurationError,
    UntrustedDataError,
)
from dcp_core.runtime.tensor_memory import cpu_buffer, tensor_bytes
from dcp_core.runtime.torch_private import differs, write_archive

__all__ = ["TorchFileSource", "load_torch_file", "save_torch_file"]

#: Records of at least this size are left for later.
_LARGE = 64 * KIB
#: Unneeded bytes that are read rather than asking once more.
_GAP = 64 * KIB
#: Bytes of the end of a file that are read at first: most directories.
_TAIL = 256 * KIB
_LOCAL_HEADER = 30


class _Cached(io.RawIOBase):
    """A file of which parts are here; others are read ahead a little."""

    def __init__(self, file: RangeFile) -> None:
        self._file = file
        self._position = 0
        self._starts: list[int] = []
        self._parts: dict[int, memoryview] = {}

    def bring(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Read these ranges, all at a time."""
        joined: list[list[int]] = []
        for start, stop in sorted(ranges):
            if joined and start - joined[-1][1] <= _GAP:
                joined[-1][1] = max(joined[-1][1], stop)
            else:
                joined.append([start, stop])
        views = [(start, memoryview(bytearray(stop - start))) for start, stop in joined]
        self._file.read_into(views)
        self._parts.update(views)
        self._starts = sorted(self._parts)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view = view[: max(0, self._file.size - self._position)]
        done = 0
        while done < view.nbytes:
            part = self._part_at(self._position)
            piece = part[: view.nbytes - done]
            view[done : done + piece.nbytes] = piece
            done += piece.nbytes
            self._position += piece.nbytes
        return done

    def _part_at(self, position: int) -> memoryview:
        at = bisect_right(self._starts, position) - 1
        if at >= 0:
            start = self._starts[at]
            rest = self._parts[start][position - start :]
            if rest:
                return rest
        self.bring([(position, min(position + _GAP, self._file.size))])
        return self._part_at(position)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class _Sparse(_Cached):
    """The same, without the large records: their memory is noted and left as it is.

    Attributes:
        places: where the bytes of each address belong.
    """

    def __init__(self, file: RangeFile, large: Mapping[int, tuple[int, int]]) -> None:
        super().__init__(file)
        self._large = large
        self._heads = sorted(large)
        self.places: dict[int, tuple[int, int]] = {}

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        at = bisect_right(self._heads, self._position) - 1
        if at >= 0:
            size, stop = self._large[self._heads[at]]
            inside = self._position > self._heads[at] and self._position + size <= stop
            if inside and view.nbytes == size:
                start = torch.frombuffer(view, dtype=torch.uint8).data_ptr()
                self.places[start] = (self._position, size)
                self._position += size
                return size
        return super().readinto(buffer)


class TorchFileSource(Source):
    """A ``torch.save`` file of a state dict.

    Args:
        path: path or URL.
        options: of reading, and of the backend.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointCorruptError: it is no file of ``torch.save``.
        UntrustedDataError: it needs more than ``torch.load(weights_only=True)``.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self._file = open_file(path, options)
        self._weights_only = bool(options.get("weights_only", True))
        self._places: dict[int, tuple[int, int]] = {}
        self._storages: list[torch.UntypedStorage] = []
        try:
            self.state = self._load()
            self.size = sum(blank.nbytes for blank in blanks_in(self.state, self))
        except BaseException:
            self._file.close()
            raise

    def _load(self) -> dict[str, Any]:
        reading = _Cached(self._file)
        large = self._large_records(reading)
        if large:
            reading = _Sparse(self._file, large)
            value = self._loaded(reading, self._heads(large))
            if self._is_simple(value, reading):
                self._places = reading.places
                return self._checked(value)
            # something that only torch.load can make of the elements
            reading = _Cached(self._file)
        return self._checked(self._loaded(reading, []))

    def _large_records(self, reading: _Cached) -> dict[int, tuple[int, int]]:
        """Offset of the head of each record that may be left for later → size, end; none where none may."""
        size = self._file.size
        reading.bring([(max(0, size - _TAIL), size)] if size else [])
        try:
            with zipfile.ZipFile(io.BufferedReader(reading)) as archive:
                self._records = sorted(archive.infolist(), key=lambda record: record.header_offset)
                if self._is_foreign(archive):
                    return {}
        # the format of before torch 1.6, or no file of torch's at all: torch.load says which
        except zipfile.BadZipFile:
            self._records = []
            return {}
        ends = [record.header_offset for record in self._records[1:]] + [size]
        return {
            record.header_offset: (record.file_size, end)
            for record, end in zip(self._records, ends, strict=True)
            if record.file_size >= _LARGE and "/data/" in record.filename
        }

    def _is_foreign(self, archive: zipfile.ZipFile) -> bool:
        """Whether elements are not stored as they are in memory."""
        orders = [record for record in self._records if record.filename.endswith("/byteorder")]
        return any(record.compress_type != zipfile.ZIP_STORED for record in self._records) or any(
            archive.read(record).decode() != sys.byteorder for record in orders
        )

    def _heads(self, large: Mapping[int, tuple[int, int]]) -> list[tuple[int, int]]:
        """Ranges that torch.load reads besides the large records."""
        size = self._file.size
        starts = [record.header_offset for record in self._records]
        needed = [(max(0, size - _TAIL), size)]
        for start, stop in zip(starts, [*starts[1:], size], strict=True):
            needed.append((start, start + _LOCAL_HEADER if start in large else stop))
        return needed

    def _loaded(self, reading: _Cached, needed: Sequence[tuple[int, int]]) -> Any:
        reading.bring(needed)
        reading.seek(0)
        try:
            return torch.load(reading, map_location="cpu", weights_only=self._weights_only)  # type: ignore[arg-type]
        except CloudCheckpointError:
            raise
        # torch.load raises what it pleases
        except Exception as error:
            text = " ".join(str(error).split())
            if self._weights_only and "weights_only" in text:
                reason = text.rpartition("WeightsUnpickler error: ")[2].split(". ")[0]
                raise UntrustedDataError(
                    f"{self._file.name} needs more than torch.load(weights_only=True) takes: {reason}. Admit "
                    "types with torch.serialization.add_safe_globals, or all with weights_only=False if you "
                    "trust whoever wrote it"
                ) from error
            raise CheckpointCorruptError(
                f"{self._file.name} is no file of torch.save, or damaged: {text}"
            ) from error

    def _checked(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{self._file.name} holds a {type(value).__name__}, no state dict")
        return dict(value)

    def _is_simple(self, value: Any, reading: _Sparse) -> bool:
        """Whether all tensors in ``value`` are where :func:`blanks_in` finds them, and of the plain kind."""
        if isinstance(value, torch.Tensor):
            plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided
            if not plain or value.is_quantized or value.is_conj() or value.is_neg():
                return False
            storage = value.untyped_storage()
            if storage.nbytes() >= _LARGE and storage.data_ptr() not in reading.places:
                raise differs("torch.load", "reads storages in another way")
            return True
        if isinstance(value, Mapping):
            return all(self._is_simple(item, reading) for item in value.values())
        if isinstance(value, (list, tuple)):
            return all(self._is_simple(item, reading) for item in value)
        kinds = (int, float, complex, str, bytes, torch.dtype, torch.Size, torch.device)
        return value is None or isinstance(value, kinds)

    def is_blank(self, tensor: torch.Tensor) -> bool:
        # where there are places, all tensors are of the plain kind
        return bool(self._places) and address(tensor) in self._places

    def fetch(self, blanks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        ranges, values = [], []
        for blank in blanks:
            offset, size = self._places[address(blank)]
            start, stop = _span(blank)
            if stop > size:
                raise CheckpointCorruptError(
                    f"{self._file.name} has a tensor that ends outside of its storage"
                )
            memory = cpu_buffer(max(stop - start, blank.element_size()))
            ranges.append((offset + start, tensor_bytes(memory)[: stop - start]))
            values.append(memory.view(blank.dtype).as_strided(blank.size(), blank.stride(), 0))
        self._file.read_into(ranges)
        return values

    def fill(self) -> dict[str, Any]:
        """The state with all of its values, read into the memory that torch made for them."""
        missing = {address(blank): blank.untyped_storage() for blank in blanks_in(self.state, self)}
        ranges = []
        for start, storage in missing.items():
            offset, size = self._places[start]
            memory = torch.empty(0, dtype=torch.uint8).set_(storage)
            ranges.append((offset, tensor_bytes(memory)[:size]))
        self._file.read_into(ranges)
        self._places.clear()
        return self.state

    def close(self) -> None:
        self._file.close()


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Bytes of its storage that a tensor's elements are among."""
    start = int(tensor.storage_offset())
    if 0 in tensor.shape:
        return start * tensor.element_size(), start * tensor.element_size()
    last = sum(int((size - 1) * step) for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start * tensor.element_size(), (start + last + 1) * tensor.element_size()


def load_torch_file(path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """What ``torch.load`` makes of the file at a path or URL, onto the CPU; large tensors by many requests.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CheckpointCorruptError: it is no file of ``torch.save``.
        UntrustedDataError: it needs more than ``torch.load(weights_only=True)``.
    """
    source = TorchFileSource(path, options)
    try:
        return source.fill()
    finally:
        source.close()


def save_torch_file(source: Source, path: Path, options: Mapping[str, Any], progress: Progress) -> None:
    """Write the state of ``source`` as ``torch.save`` does; the file is there once it is whole.

    Raises:
        CheckpointExistsError: there is one, and ``overwrite=False`` among ``options``.
    """
    blanks = list(blanks_in(source.state, source))
    by_address = {address(blank): blank for blank in blanks}
    values = Values(source, progress)
    # in which torch writes storages
    values.expect(by_address.values())

    def contents(storage: torch.UntypedStorage) -> torch.UntypedStorage:
        blank = by_address.get(storage.data_ptr())
        if blank is None:
            return storage
        value = values.take(blank)
        if not value.is_contiguous() or value.nbytes != math.prod(blank.shape) * blank.element_size():
            value = value.contiguous()
        return value.untyped_storage()

    with file_sink(path, options, source.size + MIB) as sink:
        _write(source.state, sink, contents)


def _write(state: dict[str, Any], sink: Sink, contents: Any) -> None:
    write_archive(state, sink, contents)
