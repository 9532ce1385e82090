"""Multipart uploads in terms of Azure's blocks.

Azure has no uploads: blocks are staged under a blob's name, and whoever sends a block list makes them the
blob. An upload's id is therefore part of its blocks' ids, which makes it a token that any rank can go on
with, and lets the blocks of a name be told apart. All ids of a blob must have one length, so this does::

    dcp-<started, 8 hex digits><random, 16 hex digits>-<number, 5 digits>

Block 0 is one byte that no block list names: it shows that the upload was started. Another, with a number
that no part has, shows that it was aborted while others of its name were under way.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone

from dcp_core.errors import UnsupportedError

__all__ = [
    "ABORTED",
    "MAX_BLOCKS",
    "block_id",
    "block_list",
    "new_upload_id",
    "running_uploads",
    "started_at",
]

#: https://learn.microsoft.com/rest/api/storageservices/put-block-list
MAX_BLOCKS = 50_000
#: Number of the block of an aborted upload.
ABORTED = 99_999
_ID = re.compile(r"dcp-(?P<upload>[0-9a-f]{24})-(?P<number>\d{5})")


def new_upload_id() -> str:
    return f"{int(time.time()):08x}{secrets.token_hex(8)}"


def started_at(upload_id: str) -> datetime:
    """When the upload was started, by the clock of the machine that did."""
    return datetime.fromtimestamp(int(upload_id[:8], 16), timezone.utc)


def block_id(upload_id: str, number: int) -> str:
    """The id of a part's block, as the service takes it.

    Raises:
        UnsupportedError: Azure takes no such number of blocks.
    """
    if not 0 <= number <= MAX_BLOCKS and number != ABORTED:
        raise UnsupportedError(f"part number {number} is not in 1…{MAX_BLOCKS}")
    return base64.b64encode(f"dcp-{upload_id}-{number:05}".encode()).decode()


def block_list(block_ids: Iterable[str]) -> bytes:
    """The body of a Put Block List that makes a blob of staged blocks only."""
    root = ET.Element("BlockList")
    for name in block_ids:
        ET.SubElement(root, "Uncommitted").text = name
    return b'<?xml version="1.0" encoding="utf-8"?>' + ET.tostring(root)


def running_uploads(response: bytes) -> list[str]:
    """The uploads that the staged blocks of a Get Block List response belong to, each once.

    Blocks that another tool staged belong to the upload ``""``. Uploads that were aborted are left out.

    Raises:
        ValueError: the response is none.
    """
    try:
        root = ET.fromstring(response)
    except ET.ParseError as error:
        raise ValueError("no XML document") from error
    if root.tag != "BlockList":
        raise ValueError(f"a document {root.tag!r}")
    owners = list(_owners(root))
    aborted = {upload for upload, number in owners if number == ABORTED}
    return [upload for upload in dict.fromkeys(upload for upload, _ in owners) if upload not in aborted]


def _owners(root: ET.Element) -> Iterator[tuple[str, int]]:
    """Upload and number of each staged block."""
    for name in root.iterfind("UncommittedBlocks/Block/Name"):
        decoded = base64.b64decode(name.text or "").decode("latin-1")
        match = _ID.fullmatch(decoded)
        yield (match["upload"], int(match["number"])) if match else ("", 0)
