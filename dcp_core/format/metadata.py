"""The commit record: torch's ``Metadata``, pickled as stock torch does, and read without trust.

Whoever can write to the bucket decides what the record says, and every rank reads it. Reading it changes
nothing in the process, and takes time and memory in proportion to the record's size. See decision 13.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta

from dcp_core.errors import CheckpointCorruptError, ConfigurationError
from dcp_core.format.inert import MalformedPickleError
from dcp_core.format.kinds import TABLE
from dcp_core.format.record import DamagedRecordError, metadata_of
from dcp_core.format.seal import NOTE_LIMIT, BrokenSealError, check_seal, note_in, seal
from dcp_core.format.stored import StorageInfo
from dcp_core.format.unpickle import unpickle
from dcp_core.runtime.gc_pause import gc_paused
from dcp_core.runtime.torch_private import RECORD_VERSION

__all__ = ["HEAD_SIZE", "decode_metadata", "encode_metadata", "facts_in", "stamp"]

#: Bytes of the largest record that is read: ten million items and more.
_LARGEST = 4 << 30

#: Bytes of a record in which its facts are, if it has any.
HEAD_SIZE = 64 << 10


def stamp(metadata: Metadata, storage_data: dict[MetadataIndex, StorageInfo], meta: StorageMeta) -> None:
    """Complete ``metadata`` in place, as stock writers do: ``dcp.save`` returns this object."""
    if RECORD_VERSION is not None:
        metadata.version = RECORD_VERSION
    metadata.storage_data = storage_data
    metadata.storage_meta = meta


def encode_metadata(metadata: Metadata, facts: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of the commit record; ``facts``, of JSON's types, are noted in it where stock readers pass
    over them.

    Raises:
        ConfigurationError: the facts are too long, or not of JSON's types.
    """
    try:
        note = json.dumps(facts).encode() if facts else b""
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"facts must be of JSON's types: {error}") from error
    if len(note) > NOTE_LIMIT:
        raise ConfigurationError(f"facts have {NOTE_LIMIT} bytes at most, not {len(note)}")
    with gc_paused():
        return seal(pickle.dumps(metadata), note)


def facts_in(head: bytes) -> dict[str, Any]:
    """The facts noted in a commit record, from its first ``HEAD_SIZE`` bytes; empty if there are none."""
    note = note_in(head)
    try:
        found = json.loads(note) if note else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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
