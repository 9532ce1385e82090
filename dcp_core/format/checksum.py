"""CRC32C over pieces of a stream, in one pass.

A byte belongs to a block of its item and to a part of its object, and the borders of the two fall where
they like. Pieces are cut at both; each is read once, and the checksums of blocks and parts are combined
from those of their pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache
from typing import Any

__all__ = ["BLOCK_SIZE", "combine", "crc32c", "pack", "unpack"]

#: Bytes of an item's payload under one recorded checksum. It is the smallest slice of a tensor that a
#: load can verify; 1 MiB costs 4 bytes of metadata a MiB and stays in the second-level cache.
BLOCK_SIZE = 1 << 20


@cache
def _library() -> Any:
    """awscrt's C functions. Importing them takes 36 ms, so that waits until there is something to check."""
    import awscrt.checksums

    return awscrt.checksums


def crc32c(data: bytes | memoryview, start: int = 0) -> int:
    """CRC32C of ``data``, going on from ``start``. Releases the interpreter lock."""
    return int(_library().crc32c(data, start))


def combine(pieces: Iterable[tuple[int, int]]) -> int:
    """CRC32C of adjacent pieces given as ``(crc32c, length in bytes)``."""
    join, total = _library().combine_crc32c, 0
    for crc, length in pieces:
        total = int(join(total, crc, length)) if length else total
    return total


def pack(checksums: Iterable[int]) -> bytes:
    """Checksums as little-endian 32-bit words."""
    words = tuple(checksums)
    return struct.pack(f"<{len(words)}I", *words)


def unpack(packed: bytes) -> tuple[int, ...]:
    """The inverse of :func:`pack`."""
    return struct.unpack(f"<{len(packed) // 4}I", packed)
