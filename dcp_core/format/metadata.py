"""The commit record: torch's ``Metadata``, pickled as stock torch does, and read without trust.

Whoever can write to the bucket decides what the record says, and every rank reads it. Reading it changes
nothing in the process, and takes time and memory in proportion to the record's size. See decision 13.
"""

from __future__ import annotations

import pickle

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta

from dcp_core.errors import CheckpointCorruptError
from dcp_core.format.inert import MalformedPickleError
from dcp_core.format.kinds import TABLE
from dcp_core.format.record import DamagedRecordError, metadata_of
from dcp_core.format.seal import BrokenSealError, check_seal, seal
from dcp_core.format.stored import StorageInfo
from dcp_core.format.unpickle import unpickle
from dcp_core.runtime.gc_pause import gc_paused
from dcp_core.runtime.torch_private import RECORD_VERSION

__all__ = ["decode_metadata", "encode_metadata", "stamp"]

#: Bytes of the largest record that is read: ten million items and more.
_LARGEST = 4 << 30


def stamp(metadata: Metadata, storage_data: dict[MetadataIndex, StorageInfo], meta: StorageMeta) -> None:
    """Complete ``metadata`` in place, as stock writers do: ``dcp.save`` returns this object."""
    if RECORD_VERSION is not None:
        metadata.version = RECORD_VERSION
    metadata.storage_data = storage_data
    metadata.storage_meta = meta


def encode_metadata(metadata: Metadata) -> bytes:
    """The bytes of the commit record."""
    with gc_paused():
        return seal(pickle.dumps(metadata))


def decode_metadata(data: bytes, *, bucket: str, key: str) -> Metadata:
    """Parse a commit record of this library, of stock torch or of another DCP writer.

    Raises:
        CheckpointCorruptError: it is cut short, was changed, is something else, names a foreign type,
            contradicts itself, or is larger than any.
    """
    try:
        if len(data) > _LARGEST:
            raise MalformedPickleError(f"it has {len(data)} bytes, and {_LARGEST} at most are read")
        start = check_seal(data)
        with gc_paused():
            return metadata_of(unpickle(data, start, TABLE), len(data))
    except (MalformedPickleError, BrokenSealError, DamagedRecordError) as error:
        kind = "damaged" if isinstance(error, DamagedRecordError) else "not readable"
        raise CheckpointCorruptError(
            f"the commit record is {kind}: {error}", bucket=bucket, key=key
        ) from error
