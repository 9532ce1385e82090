"""What the contract works with: raw access to the bucket, keys, bytes and threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from dcp_core.format.checksum import crc32c
from dcp_core.seam.store import Body, ObjectStore, RangeReader

__all__ = ["ODD_KEYS", "OpenStore", "RawBucket", "body_of", "in_threads", "pattern", "read_all"]

ODD_KEYS = (
    "with space",
    "ümläut/日本語/emoji-🚀",
    "100%",
    "already%20encoded",
    "a+b=c&d",
    "quotes'\"",
    "<xml>&amp;",
    "semi;colon,comma",
    "tilde~dot.",
    "brackets[0]{1}(2)",
    "q?x=1",
    "hash#tag",
    "back\\slash",
)

#: Opens a store of the kind under test on the bucket of this name.
OpenStore = Callable[[str], ObjectStore]


class RawBucket(Protocol):
    """Access to the bucket that does not go through the store under test."""

    def read(self, key: str) -> bytes: ...

    def write(self, key: str, data: bytes) -> None: ...

    def keys(self) -> list[str]: ...


def body_of(*buffers: bytes) -> Body:
    """A body with the right checksum."""
    return Body(buffers, crc32c(b"".join(buffers)))


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes of which no two neighbourhoods look alike."""
    unit = bytes((index * 31 + index // 251 + seed * 7) % 256 for index in range(65521))
    return (unit * (size // len(unit) + 1))[:size]


def read_all(reader: RangeReader, most: int) -> bytes:
    """Up to ``most`` bytes of what is left."""
    buffer = memoryview(bytearray(most))
    count = 0
    while count < most and (received := reader.readinto(buffer[count:])):
        count += received
    return bytes(buffer[:count])


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Run ``work(0) … work(count - 1)`` at once; the first error is raised here."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        # raised below, in the test's own thread
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
