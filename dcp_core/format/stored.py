"""Where one item lies: torch's ``_StorageInfo`` and what this library adds to it.

torch pickles a ``_StorageInfo`` as its ``__dict__``, and stock readers ignore attributes they do not
know. Ours is one attribute with a tuple of plain values, so that the commit record stays loadable by
stock readers and by an unpickler that admits only plain data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dcp_core.format.checksum import BLOCK_SIZE, unpack
from dcp_core.format.inert import MalformedPickleError
from dcp_core.runtime.torch_private import StorageInfo

__all__ = ["FACTS", "Payload", "StorageInfo", "payload_of", "recorded_facts", "storage_info"]

#: The name of the attribute.
FACTS = "dcp_cloud"
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


def storage_info(
    name: str, offset: int, length: int, payload: Payload, transforms: Sequence[str] = ()
) -> StorageInfo:
    """The storage info of a frame of ``length`` bytes at ``offset`` of the object ``name``.

    Args:
        transforms: the stream transforms that the frame went through, in the order of undoing them.
    """
    info = StorageInfo(relative_path=name, offset=offset, length=length)
    if transforms:
        info.transform_descriptors = list(transforms)
    setattr(info, FACTS, (_VERSION, *payload))
    return info


def is_newer(holder: object) -> bool:
    """Whether a newer release of this library wrote ``holder``, a storage info or the metadata itself.

    It says so with the same attribute, which may then mean what this release cannot know: that other
    checkpoints refer to the same objects, for one.
    """
    recorded: Any = getattr(holder, FACTS, None)
    return recorded is not None and not (isinstance(recorded, tuple) and recorded[:1] == (_VERSION,))


def transforms_of(info: StorageInfo) -> Sequence[str]:
    """The stream transforms, such as a compression, that the writer put the frame through."""
    # absent in records of releases without transforms, and in that class of theirs
    return getattr(info, "transform_descriptors", None) or ()


def recorded_facts(value: Any, length: int) -> tuple[Any, ...]:
    """The attribute of a frame of ``length`` bytes as it was read from a commit record, checked.

    What a newer release wrote is cut down to its version: this one knows no more of it.

    Raises:
        MalformedPickleError: it is not what :func:`storage_info` sets.
    """
    if type(value) is not tuple or not value or type(value[0]) is not int or value[0] < _VERSION:
        raise MalformedPickleError("the facts about a payload are damaged")
    if value[0] > _VERSION:
        return value[:1]
    if tuple(map(type, value)) != (int, int, int, bool, bytes):
        raise MalformedPickleError("the facts about a payload are damaged")
    _, offset, size, _, checksums = value
    if offset < 0 or size < 0 or offset + size > length:
        raise MalformedPickleError("a payload does not fit into its frame")
    if len(checksums) not in (0, 4 * -(-size // BLOCK_SIZE)):
        raise MalformedPickleError("a payload has too few or too many checksums")
    return value


def payload_of(info: StorageInfo) -> Payload | None:
    """What this library recorded about the payload; ``None`` in frames of other writers."""
    recorded: Any = getattr(info, FACTS, None)
    if not isinstance(recorded, tuple) or recorded[0] != _VERSION:
        return None
    return Payload(*recorded[1:])
