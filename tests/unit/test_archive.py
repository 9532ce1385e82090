"""The zip structure of frames: what torch writes is whole, and what is damaged is found."""

from __future__ import annotations

import io
import itertools
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.scenarios import bits, noise

from dcp_core.format.archive import (
    Archive,
    ArchiveDamageError,
    check_archive,
    content_of,
    directory_start,
    read_directory,
)
from dcp_core.format.frames import frame_template
from dcp_core.runtime.tensor_memory import tensor_bytes

TENSOR = noise(1, (50, 30))
#: Bytes behind which the directory's place stands.
TAIL = 98


class Frame:
    """The bytes of a frame, in order."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.position = 0

    def take(self, count: int) -> memoryview:
        self.skip(count)
        return self.data[self.position - count : self.position]

    def skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self.data):
            raise ArchiveDamageError("it is cut short")


def saved(value: Any, *, crc: bool = True) -> bytes:
    buffer = io.BytesIO()
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(crc)
    try:
        torch.save(value, buffer)
    finally:
        torch.serialization.set_crc32_options(before)
    return buffer.getvalue()


def checked(data: bytes) -> tuple[Archive, int]:
    """The directory, and how many bytes a CRC32 proved right."""
    start = directory_start(memoryview(data)[-TAIL:], len(data))
    archive = read_directory(memoryview(data)[start:], len(data))
    source = Frame(data)
    proved = check_archive(source, archive)
    assert source.position == archive.start == start
    return archive, proved


@pytest.mark.parametrize(
    "value",
    [TENSOR, torch.empty(0, 3), torch.eye(4).to_sparse(), {"step": 3, "text": "x" * 5000}],
    ids=["tensor", "empty", "sparse", "object"],
)
def test_what_torch_writes_is_whole(value: Any) -> None:
    data = saved(value)
    archive, proved = checked(data)
    with zipfile.ZipFile(io.BytesIO(data)) as reference:
        infos = reference.infolist()
    assert [entry.name.decode() for entry in archive.entries] == [info.filename for info in infos]
    for entry, info in zip(archive.entries, infos, strict=True):
        expected = (info.header_offset, info.file_size, info.CRC)
        assert (entry.offset, entry.size, entry.crc32) == expected
    assert archive.has_checksums
    assert proved == sum(info.file_size for info in infos)


def test_the_end_alone_says_where_the_directory_is() -> None:
    data = saved(TENSOR)
    start = directory_start(memoryview(data)[-TAIL:], len(data))
    assert data[start:].startswith(b"PK\x01\x02")
    for size in range(len(data) - start, TAIL, -7):
        assert directory_start(memoryview(data)[-size:], len(data)) == start
    for size in (0, 10, 21):
        with pytest.raises(ArchiveDamageError):
            directory_start(memoryview(data)[:size], size)


def test_frames_of_this_library_carry_no_crc32() -> None:
    template = frame_template(TENSOR.dtype, tuple(TENSOR.shape))
    frame = template.header + bytes(tensor_bytes(TENSOR)) + template.tail
    archive, proved = checked(frame)
    assert not archive.has_checksums
    assert proved == 0
    assert frame == saved(TENSOR, crc=False)


def _outcome(data: bytes) -> Any:
    """What torch makes of a frame: its elements, or nothing."""
    try:
        return torch.load(io.BytesIO(data), weights_only=True)
    # torch.load raises what it pleases on damaged input
    except Exception:  # noqa: BLE001
        return None


def test_a_flipped_bit_is_found_or_changes_nothing() -> None:
    """Of a frame with checksums: each bit but those that no reader looks at."""
    small = noise(2, (3, 2))
    data = saved(small)
    overlooked = 0
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            checked(bytes(changed))
        except ArchiveDamageError:
            continue
        overlooked += 1
        loaded = _outcome(bytes(changed))
        assert loaded is not None, bit
        assert bits(loaded) == bits(small), bit
    assert overlooked < 8 * len(data) / 40


def test_other_bytes_are_no_frame() -> None:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("archive/data.pkl", b"x" * 1000)
        deflated = file.getvalue()
    data = saved(TENSOR)
    for other in (b"", b"<html>" * 50, bytes(500), deflated, data[:-1], data[1:], data + b"\0", data + data):
        with pytest.raises(ArchiveDamageError):
            checked(other)
    # cut anywhere
    for size in range(0, len(data), 97):
        with pytest.raises(ArchiveDamageError):
            checked(data[:size])


def _wide(data: bytes, fields: tuple[str, ...]) -> bytes:
    """The same archive whose directory has sizes or offsets of 64 bits for ``fields``."""
    start = directory_start(memoryview(data)[-TAIL:], len(data))
    directory, at, count = b"", start, 0
    while data[at : at + 4] == b"PK\x01\x02":
        packed, size, name_length, extra_length = struct.unpack_from("<IIHH", data, at + 20)
        offset = struct.unpack_from("<I", data, at + 42)[0]
        end = at + 46 + name_length + extra_length
        values = {"size": size, "packed": packed, "offset": offset}
        wide = b"".join(values[field].to_bytes(8, "little") for field in values if field in fields)
        extra = struct.pack("<HH", 1, len(wide)) + wide
        entry = bytearray(data[at : at + 46 + name_length])
        for field, place in (("packed", 20), ("size", 24), ("offset", 42)):
            if field in fields:
                entry[place : place + 4] = b"\xff" * 4
        entry[30:32] = len(extra).to_bytes(2, "little")
        directory += bytes(entry) + extra
        at, count = end, count + 1
    head = data[:start] + directory
    end_64 = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(head), 1)
    return (
        head
        + end_64
        + locator
        + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, *[0xFFFFFFFF] * 2, 0)
    )


def test_large_sizes_stand_in_extra_fields() -> None:
    """As in a frame of more than 4 GiB: APPNOTE 4.5.3."""
    data = saved(TENSOR)
    expected = checked(data)
    for length in range(1, 4):
        for fields in itertools.combinations(("size", "packed", "offset"), length):
            if ("size" in fields) != ("packed" in fields):
                continue
            wide = _wide(data, fields)
            assert zipfile.ZipFile(io.BytesIO(wide)).testzip() is None
            assert checked(wide) == expected


@pytest.mark.parametrize("alignment", [1, 4096])
def test_another_alignment_is_no_damage(alignment: int) -> None:
    template = frame_template(TENSOR.dtype, tuple(TENSOR.shape), alignment)
    data = template.header + bytes(tensor_bytes(TENSOR)) + template.tail
    checked(data)
    assert len(template.header) % alignment == 0
    assert bits(torch.load(io.BytesIO(data), weights_only=True)) == bits(TENSOR)


def test_another_release_of_torch_is_no_damage() -> None:
    """Other records, other names, another order."""
    file = io.BytesIO()
    writer: Callable[..., Any] = torch._C.PyTorchFileWriter
    made = writer(file)
    for name, data in (("data/0", b"elements"), ("data.pkl", b"pickle"), (".of/another/release", b"")):
        made.write_record(name, data, len(data))
    made.write_end_of_file()
    archive, _ = checked(file.getvalue())
    names = [entry.name.rpartition(b"archive/")[2] for entry in archive.entries]
    assert names[:3] == [b"data/0", b"data.pkl", b".of/another/release"]


def test_the_content_of_a_record() -> None:
    data = saved(TENSOR)
    archive, _ = checked(data)
    with zipfile.ZipFile(io.BytesIO(data)) as reference:
        pickled = reference.read(next(name for name in reference.namelist() if name.endswith("/data.pkl")))
    assert content_of(archive, b"/data.pkl", memoryview(data)[:8192]) == pickled
    assert content_of(archive, b"/nothing", memoryview(data)) is None
    # only as far as the first bytes of the frame reach
    assert content_of(archive, b"/data.pkl", memoryview(data)[:10]) is None
