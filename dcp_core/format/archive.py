"""The zip structure of a frame, checked in one pass and without holding its content.

``torch.load`` looks at few of a zip file's fields, and ``zipfile`` wants the whole file. Here every field
that a reader could use is held against its second copy::

    local header, name, padding │ data │ descriptor │ … │ directory │ end records
              └─────────── equal to the directory's entry ───────┘

The layout is PKWARE's APPNOTE 6.3 (4.3.7 local header, 4.3.9 data descriptor, 4.3.12 directory, 4.3.14 to
4.3.16 end records), of which ``torch.save`` uses the part without compression, encryption and comments.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple, Protocol

__all__ = [
    "Archive",
    "ArchiveDamageError",
    "Entry",
    "FrameSource",
    "check_archive",
    "content_of",
    "directory_start",
    "read_directory",
]

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR_64 = struct.Struct("<4sIQI")
_DESCRIPTOR = {16: struct.Struct("<4sIII"), 24: struct.Struct("<4sIQQ")}
#: A field with this value has its real one in an extra field or an end record of 64 bits.
_MAX_32 = 0xFFFFFFFF
_MAX_16 = 0xFFFF
_ZIP64_EXTRA = 1
#: torch pads the names so that the data is aligned: an extra field "FB" full of "Z".
_PADDING_EXTRA = int.from_bytes(b"FB", "little")
_CHUNK = 1 << 20
#: Far above what any item has: a record takes about 80 bytes.
_LARGEST_DIRECTORY = 64 << 20


class ArchiveDamageError(Exception):
    """The bytes are no zip file as torch writes it."""


class Entry(NamedTuple):
    """One record of the directory: ``offset`` is that of its local header, ``size`` that of its data."""

    name: bytes
    flags: int
    stamp: tuple[int, int, int]
    crc32: int
    size: int
    offset: int


class Archive(NamedTuple):
    """The directory of a frame: its records in the order of their offsets, and where it starts."""

    entries: tuple[Entry, ...]
    start: int

    @property
    def has_checksums(self) -> bool:
        """Whether the records carry CRC32s: this library's frames, and some of torch's, leave them out."""
        return any(entry.crc32 for entry in self.entries)


class FrameSource(Protocol):
    """The bytes of a frame, in order."""

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes, valid until the next call."""

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes."""


def directory_start(tail: memoryview, size: int) -> int:
    """Where the directory of a frame of ``size`` bytes begins, from the last bytes of the frame (98 suffice).

    Raises:
        ArchiveDamageError: the frame does not end as a zip file does.
    """
    _, length, start, end = _end_records(tail, size)
    if start + length != end or length > _LARGEST_DIRECTORY:
        raise ArchiveDamageError("the directory is not where the end of the frame says it is")
    return start


def read_directory(tail: memoryview, size: int) -> Archive:
    """Parse the directory of a frame of ``size`` bytes from its last ones, from :func:`directory_start` on.

    Raises:
        ArchiveDamageError: there is no directory, or it contradicts itself.
    """
    start = directory_start(tail, size)
    count, length, _, _ = _end_records(tail, size)
    at = start - (size - len(tail))
    stop = at + length
    entries: list[Entry] = []
    while at < stop:
        entry, at = _directory_entry(tail, at, stop)
        entries.append(entry)
    if len(entries) != count:
        raise ArchiveDamageError(f"the directory has {len(entries)} entries, its end says {count}")
    return Archive(tuple(sorted(entries, key=lambda entry: entry.offset)), start)


def _end_records(tail: memoryview, size: int) -> tuple[int, int, int, int]:
    """Entries, length and start of the directory, and where the end records begin."""
    if len(tail) < _END.size:
        raise ArchiveDamageError(f"{size} bytes are too few for a frame")
    at = len(tail) - _END.size
    magic, disk, first, here, count, length, start, comment = _END.unpack_from(tail, at)
    if magic != b"PK\x05\x06" or disk or first or here != count or comment:
        raise ArchiveDamageError("it does not end as a zip file does")
    end = size - _END.size
    if at < _LOCATOR_64.size or bytes(tail[at - _LOCATOR_64.size :][:4]) != b"PK\x06\x07":
        return count, length, start, end
    at -= _LOCATOR_64.size
    _, disk, where, disks = _LOCATOR_64.unpack_from(tail, at)
    end -= _LOCATOR_64.size + _END_64.size
    at -= _END_64.size
    if at < 0 or where != end or disk or disks != 1:
        raise ArchiveDamageError("its end record of 64 bits is not where the frame says it is")
    magic, rest, _, _, disk, first, here, count_64, length_64, start_64 = _END_64.unpack_from(tail, at)
    agree = count in (count_64, _MAX_16) and length in (length_64, _MAX_32) and start in (start_64, _MAX_32)
    if magic != b"PK\x06\x06" or rest != _END_64.size - 12 or disk or first or here != count_64 or not agree:
        raise ArchiveDamageError("its two end records differ")
    return count_64, length_64, start_64, end


def _directory_entry(tail: memoryview, at: int, stop: int) -> tuple[Entry, int]:
    if at + _CENTRAL.size > stop:
        raise ArchiveDamageError("an entry of the directory is cut short")
    fields = _CENTRAL.unpack_from(tail, at)
    magic, _, version, flags, method, time, date, crc32, packed, size = fields[:10]
    name_length, extra_length, comment, disk, internal, external, offset = fields[10:]
    at += _CENTRAL.size
    after = at + name_length + extra_length
    # among the attributes is one that makes a record a folder, which is read as zeros
    if magic != b"PK\x01\x02" or method or comment or disk or internal or external or after > stop:
        raise ArchiveDamageError("an entry of the directory is damaged")
    name = bytes(tail[at : at + name_length])
    wide = _extras(tail[at + name_length : after]).get(_ZIP64_EXTRA, b"")
    values = [packed, size, offset]
    # in this order, each only if its own field has no room (APPNOTE 4.5.3)
    for index in (1, 0, 2):
        if values[index] == _MAX_32 and len(wide) >= 8:
            values[index] = int.from_bytes(wide[:8], "little")
            wide = wide[8:]
    if values[0] != values[1]:
        raise ArchiveDamageError(f"the record {_shown(name)} has two sizes")
    return Entry(name, flags, (version, time, date), crc32, values[1], values[2]), after


def _extras(data: memoryview) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        kind, length = struct.unpack_from("<HH", data, at)
        found[kind] = bytes(data[at + 4 : at + 4 + length])
        if len(found[kind]) != length:
            raise ArchiveDamageError("the padding of a record is damaged")
        at += 4 + length
    if at != len(data):
        raise ArchiveDamageError("the padding of a record is damaged")
    return found


def content_of(archive: Archive, name: bytes, head: memoryview) -> bytes | None:
    """The data of the record whose name ends in ``name``, if it lies in the first bytes of the frame."""
    for entry in archive.entries:
        if entry.name.endswith(name) and entry.offset + _LOCAL.size <= len(head):
            name_length, extra_length = _LOCAL.unpack_from(head, entry.offset)[-2:]
            start = entry.offset + _LOCAL.size + name_length + extra_length
            return bytes(head[start : start + entry.size])
    return None


def check_archive(source: FrameSource, archive: Archive, *, unread: frozenset[bytes] = frozenset()) -> int:
    """Hold everything before the directory against it; returns the bytes that a CRC32 proved right.

    Args:
        source: the frame from its first byte on.
        archive: its directory.
        unread: records whose data is passed over.

    Raises:
        ArchiveDamageError: something is not as the directory says, or fails its CRC32.
    """
    position = proved = 0
    ends = [*(entry.offset for entry in archive.entries[1:]), archive.start]
    for entry, end in zip(archive.entries, ends, strict=True):
        if entry.offset != position:
            raise ArchiveDamageError(f"the record {_shown(entry.name)} is not where the directory says it is")
        position += _check_local(source, entry) + entry.size
        if entry.name in unread:
            source.skip(entry.size)
        else:
            proved += _check_data(source, entry, archive.has_checksums)
        _check_descriptor(source, entry, end - position)
        position = end
    if position != archive.start:
        raise ArchiveDamageError("there are bytes between the records and the directory")
    return proved


def _check_local(source: FrameSource, entry: Entry) -> int:
    """Check the header in front of the data; returns its length."""
    fields = _LOCAL.unpack(source.take(_LOCAL.size))
    magic, version, flags, method, time, date, crc32, packed, size, name_length, extra_length = fields
    same = flags == entry.flags and (version, time, date) == entry.stamp
    if magic != b"PK\x03\x04" or method or not same:
        raise ArchiveDamageError(f"the header of the record {_shown(entry.name)} is damaged")
    # with a descriptor behind the data, these are zero
    streamed = bool(flags & 8)
    for here, there in ((crc32, entry.crc32), (packed, entry.size), (size, entry.size)):
        if here not in ((0, there) if streamed else (there, _MAX_32)):
            raise ArchiveDamageError(f"the header of the record {_shown(entry.name)} is damaged")
    if name_length != len(entry.name) or bytes(source.take(name_length)) != entry.name:
        raise ArchiveDamageError(f"the name of the record {_shown(entry.name)} is damaged")
    padding = _extras(source.take(extra_length)).get(_PADDING_EXTRA, b"")
    if padding.strip(b"Z"):
        raise ArchiveDamageError(f"the padding of the record {_shown(entry.name)} is damaged")
    return int(_LOCAL.size + name_length + extra_length)


def _check_data(source: FrameSource, entry: Entry, has_checksums: bool) -> int:
    left, crc32 = entry.size, 0
    while left:
        count = min(left, _CHUNK)
        data = source.take(count)
        if has_checksums:
            crc32 = zlib.crc32(data, crc32)
        left -= count
    if not has_checksums:
        return 0
    if crc32 != entry.crc32:
        raise ArchiveDamageError(f"the record {_shown(entry.name)} does not have the CRC32 it was saved with")
    return entry.size


def _check_descriptor(source: FrameSource, entry: Entry, length: int) -> None:
    if not entry.flags & 8:
        if length:
            raise ArchiveDamageError(f"there are bytes behind the record {_shown(entry.name)}")
        return
    shape = _DESCRIPTOR.get(length)
    if shape is None:
        raise ArchiveDamageError(f"the record {_shown(entry.name)} does not end where the next one begins")
    expected = (b"PK\x07\x08", entry.crc32, entry.size, entry.size)
    if shape.unpack(source.take(length)) != expected:
        raise ArchiveDamageError(f"the descriptor of the record {_shown(entry.name)} is damaged")


def _shown(name: bytes) -> str:
    return repr(name.decode("utf-8", "replace"))
