"""Names of the objects of a checkpoint.

::

    <prefix>/.metadata                        the commit record, written last
    <prefix>/__<rank>.metadata                the same, one a rank, for use_collectives=False
    <prefix>/__<rank>_<n>.<token>.distcp      data; the token is new for every save and rank

A new token for every save means that a save never writes to an object which a committed checkpoint
refers to, so a failed overwrite leaves the old checkpoint whole. Names fit into what locations keep free for
them (``dcp_core.seam.location.NAME_ROOM``) for every rank and number below 10^14.
"""

from __future__ import annotations

import re
import secrets

__all__ = [
    "DATA_PREFIX",
    "data_name",
    "data_names_in",
    "is_data_name",
    "is_metadata_name",
    "metadata_name",
    "new_token",
]

#: What names of data objects begin with.
DATA_PREFIX = "__"

_DATA = re.compile(r"__\d+_\d+\.[0-9a-f]{16}\.distcp")
_DATA_IN_BYTES = re.compile(_DATA.pattern.encode())
_METADATA = re.compile(r"(__\d+)?\.metadata")


def new_token() -> str:
    """A token that no other save or rank has."""
    return secrets.token_hex(8)


def data_name(rank: int, number: int, token: str) -> str:
    """Name of the ``number``-th data object (from 0) that ``rank`` writes in one save."""
    return f"__{rank}_{number}.{token}.distcp"


def is_data_name(name: str) -> bool:
    """Whether a save of this library made an object of this name."""
    return _DATA.fullmatch(name) is not None


def data_names_in(record: bytes) -> set[str]:
    """Names of data objects of this library that occur in a commit record, without decoding it.

    A pickle holds ASCII strings as they are, so these are the names that the record refers to, and perhaps
    more. A record that is packed in another way has none, and has to be decoded.
    """
    return {found.decode() for found in _DATA_IN_BYTES.findall(record)}


def metadata_name(rank: int | None = None) -> str:
    """Name of the commit record: one a checkpoint, or one a rank where ranks do not coordinate."""
    return ".metadata" if rank is None else f"__{rank}.metadata"


def is_metadata_name(name: str) -> bool:
    """Whether an object of this name is a commit record."""
    return _METADATA.fullmatch(name) is not None
