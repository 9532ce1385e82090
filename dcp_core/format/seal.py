"""A checksum inside a pickle, which readers that do not know it pass over.

::

    PROTO 4 │ SHORT_BINBYTES 21 │ "DCPCLOUD" version length crc32c │ POP │ the rest of the pickle

The constant is pushed and dropped again, so that every unpickler makes of the stream what it would have
made without it, and a record that somebody loads and pickles anew comes without. The CRC32C is that of all
bytes but its own four; the length, that of all bytes, tells a record that was cut from one that was changed.
"""

from __future__ import annotations

import pickle
import struct

from dcp_core.format.checksum import crc32c

__all__ = ["BrokenSealError", "check_seal", "seal"]

_MAGIC = b"DCPCLOUD"
_VERSION = 1
_FACTS = struct.Struct("<8sBQI")
_PROTO = 2
_START = _PROTO + 2 + _FACTS.size + 1
_CRC = slice(_START - 5, _START - 1)


class BrokenSealError(Exception):
    """The bytes are not those that were sealed."""


def seal(pickled: bytes) -> bytes:
    """``pickled``, of protocol 2 or later, with its checksum."""
    if pickled[:1] != pickle.PROTO:
        raise ValueError("a pickle of protocol 0 or 1 cannot be sealed")
    facts = _FACTS.pack(_MAGIC, _VERSION, len(pickled) + _START - _PROTO, 0)
    blank = b"".join(
        (pickled[:_PROTO], pickle.SHORT_BINBYTES, bytes([_FACTS.size]), facts, pickle.POP, pickled[_PROTO:])
    )
    return b"".join((blank[: _CRC.start], _crc(blank).to_bytes(4, "little"), blank[_CRC.stop :]))


def check_seal(data: bytes) -> int:
    """Where the pickle goes on behind its checksum, if it has one; otherwise 0.

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
    return _START


def _crc(data: bytes) -> int:
    view = memoryview(data)
    return crc32c(view[_CRC.stop :], crc32c(view[: _CRC.start]))
