"""A checksum inside a pickle, which readers that do not know it pass over.

::

    PROTO 4 │ SHORT_BINBYTES 21 │ "DCPCLOUD" version length crc32c │ POP │ the rest of the pickle
            or … │ POP │ BINBYTES length │ "DCPNOTE " note │ POP │ the rest of the pickle

Constants are pushed and dropped again, so that every unpickler makes of the stream what it would have
made without them, and a record that somebody loads and pickles anew comes without. A note lies in the first
bytes, where it can be read without the rest. The CRC32C is that of all
bytes but its own four; the length, that of all bytes, tells a record that was cut from one that was changed.
"""

from __future__ import annotations

import pickle
import struct

from dcp_core.format.checksum import crc32c

__all__ = ["NOTE_LIMIT", "BrokenSealError", "check_seal", "note_in", "seal"]

_MAGIC = b"DCPCLOUD"
_VERSION = 1
_FACTS = struct.Struct("<8sBQI")
_PROTO = 2
_START = _PROTO + 2 + _FACTS.size + 1
_CRC = slice(_START - 5, _START - 1)
_NOTE = b"DCPNOTE "
_LENGTH = struct.Struct("<I")
#: Bytes of the longest note, so that one request of 64 KiB has it whole.
NOTE_LIMIT = 60 << 10


class BrokenSealError(Exception):
    """The bytes are not those that were sealed."""


def seal(pickled: bytes, note: bytes = b"") -> bytes:
    """``pickled``, of protocol 3 or later, with its checksum and, if there is one, a note."""
    if pickled[:1] != pickle.PROTO:
        raise ValueError("a pickle of protocol 0 or 1 cannot be sealed")
    if len(note) > NOTE_LIMIT:
        raise ValueError(f"a note has {NOTE_LIMIT} bytes at most, not {len(note)}")
    if note:
        text = _NOTE + note
        constant = b"".join((pickle.BINBYTES, _LENGTH.pack(len(text)), text, pickle.POP))
        pickled = pickled[:_PROTO] + constant + pickled[_PROTO:]
    facts = _FACTS.pack(_MAGIC, _VERSION, len(pickled) + _START - _PROTO, 0)
    blank = b"".join(
        (pickled[:_PROTO], pickle.SHORT_BINBYTES, bytes([_FACTS.size]), facts, pickle.POP, pickled[_PROTO:])
    )
    return b"".join((blank[: _CRC.start], _crc(blank).to_bytes(4, "little"), blank[_CRC.stop :]))


def check_seal(data: bytes) -> int:
    """Where the pickle goes on behind its checksum and note, if it has them; otherwise 0.

    Raises:
        BrokenSealError: it has one, and is not what was written.
    """
    found = data[_PROTO + 2 : _PROTO + 2 + len(_MAGIC)]
    half = len(_MAGIC) // 2
    if found[:half] != _MAGIC[:half] and found[half:] != _MAGIC[half:]:
        return 0
    if len(data) < _START:
        raise BrokenSealError("it is cut short")
    magic, version, length, crc = _FACTS.unpack_from(data, _PROTO + 2)
    if magic == _MAGIC and version == _VERSION and length != len(data):
        raise BrokenSealError(f"it has {len(data)} bytes, {length} were written")
    if _crc(data) != crc:
        raise BrokenSealError("it does not have the checksum it was written with")
    if version != _VERSION:
        raise BrokenSealError("a newer release of this library wrote it: update dcp-cloud to read it")
    return _note_span(data)[1] + 1 if note_in(data) is not None else _START


def note_in(data: bytes) -> bytes | None:
    """The note of a sealed pickle, of which ``data`` are all bytes or the first; ``None`` if it has none."""
    start, stop = _note_span(data)
    known = data[_START : _START + 1] == pickle.BINBYTES and data[start : start + len(_NOTE)] == _NOTE
    whole = data[stop : stop + 1] == pickle.POP
    return data[start + len(_NOTE) : stop] if known and whole else None


def _note_span(data: bytes) -> tuple[int, int]:
    """Where the constant of a note would lie."""
    start = _START + 1 + _LENGTH.size
    if len(data) < start:
        return start, start
    (length,) = _LENGTH.unpack_from(data, _START + 1)
    return start, start + int(length)


def _crc(data: bytes) -> int:
    view = memoryview(data)
    return crc32c(view[_CRC.stop :], crc32c(view[: _CRC.start]))
