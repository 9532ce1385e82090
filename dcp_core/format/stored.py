"""Where one item lies: torch's ``_StorageInfo`` and what this library adds to it.

torch pickles a ``_StorageInfo`` as its ``__dict__``, and stock readers ignore attributes they do not
know. Ours is one attribute with a tuple of plain values, so that the commit record stays loadable by
stock readers and by an unpickler that admits only plain data.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.distributed.checkpoint.filesystem import _StorageInfo

from dcp_core.format.checksum import BLOCK_SIZE, unpack

__all__ = ["Payload", "StorageInfo", "payload_of", "storage_info"]

StorageInfo = _StorageInfo
_ATTRIBUTE = "dcp_cloud"
_VERSION = 1


class Payload(NamedTuple):
    """The bytes of an item inside its frame.

    Attributes:
        offset: first byte, counted from the start of the frame.
        size: bytes. A tensor's elements in C order; for a non-tensor item, the whole frame.
        plain: whether these are a dense tensor's elements, of the dtype and shape in the metadata.
        checksums: packed CRC32C of each ``BLOCK_SIZE`` bytes of the payload; the last one may be shorter.
    """

    offset: int
    size: int
    plain: bool
    checksums: bytes

    def checksum(self, block: int) -> int:
        """The CRC32C of block number ``block``."""
        return unpack(self.checksums[4 * block : 4 * block + 4])[0]

    @property
    def complete(self) -> bool:
        """Whether there is a checksum for every block."""
        return len(self.checksums) == 4 * -(-self.size // BLOCK_SIZE)


def storage_info(name: str, offset: int, length: int, payload: Payload) -> StorageInfo:
    """The storage info of a frame of ``length`` bytes at ``offset`` of the object ``name``."""
    info = StorageInfo(relative_path=name, offset=offset, length=length)
    setattr(info, _ATTRIBUTE, (_VERSION, *payload))
    return info


def payload_of(info: StorageInfo) -> Payload | None:
    """What this library recorded about the payload; ``None`` in frames of other writers.

    Facts that do not fit the frame are treated as absent: the frame itself can still be parsed.
    """
    recorded: Any = getattr(info, _ATTRIBUTE, None)
    if not isinstance(recorded, tuple) or len(recorded) != 5 or recorded[0] != _VERSION:
        return None
    _, offset, size, plain, checksums = recorded
    if not (isinstance(offset, int) and isinstance(size, int) and isinstance(checksums, bytes)):
        return None
    if offset < 0 or size < 0 or offset + size > info.length:
        return None
    payload = Payload(offset, size, bool(plain), checksums)
    return payload if payload.complete else payload._replace(checksums=b"")
