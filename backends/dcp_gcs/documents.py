"""The XML and JSON documents of Google's APIs, and the multipart body of a batch of deletes.

- XML multipart uploads: https://docs.cloud.google.com/storage/docs/multipart-uploads. The documents are
  those of S3, with S3's namespace, which is not looked at.
- Batches: https://docs.cloud.google.com/storage/docs/batch
"""

from __future__ import annotations

import email.message
import email.parser
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from xml.etree import ElementTree

from google.api_core.datetime_helpers import from_rfc3339

from dcp_core.seam.store import Part

__all__ = [
    "BOUNDARY",
    "BatchResponse",
    "batch_responses",
    "batch_body",
    "completion",
    "error_details",
    "texts_of",
    "time_of",
]

BOUNDARY = "dcp-cloud-batch"


@dataclass(frozen=True)
class BatchResponse:
    """The response to request ``number`` of a batch."""

    number: int
    status: int
    body: bytes


def texts_of(root: ElementTree.Element) -> dict[str, str]:
    """Texts of the children, by name."""
    return {child.tag.rpartition("}")[2]: child.text or "" for child in root}


def time_of(text: str | None) -> datetime | None:
    """A time of either API; ``None`` for what is none."""
    try:
        return None if text is None else from_rfc3339(text)
    except ValueError:
        return None


def completion(parts: Sequence[Part]) -> bytes:
    """The request that makes one object of ``parts``."""
    root = ElementTree.Element("CompleteMultipartUpload")
    for part in parts:
        entry = ElementTree.SubElement(root, "Part")
        ElementTree.SubElement(entry, "PartNumber").text = str(part.number)
        ElementTree.SubElement(entry, "ETag").text = part.tag
    return ElementTree.tostring(root)


def error_details(body: bytes) -> tuple[str, str]:
    """Code and message of an error's XML or JSON body; empty where it has none."""
    try:
        if body.lstrip()[:1] == b"{":
            error = json.loads(body)["error"]
            reasons = [entry.get("reason") for entry in error.get("errors") or ()]
            return str(next(filter(None, reasons), "")), str(error.get("message") or "")
        root = ElementTree.fromstring(body)
    except (ValueError, LookupError, TypeError, AttributeError, ElementTree.ParseError):
        return "", ""
    found = texts_of(root)
    said = (found.get("Message"), found.get("Details"))
    return found.get("Code", ""), " ".join(filter(None, said))


def batch_body(paths: Iterable[str]) -> bytes:
    """A batch that deletes what is at ``paths``; the requests count from 0."""
    lines: list[str] = []
    for number, path in enumerate(paths):
        lines += [
            f"--{BOUNDARY}",
            "Content-Type: application/http",
            f"Content-ID: <delete+{number}>",
            "",
            f"DELETE {path} HTTP/1.1",
            "",
            "",
        ]
    return "\r\n".join([*lines, f"--{BOUNDARY}--", ""]).encode()


def batch_responses(content_type: str, body: bytes) -> list[BatchResponse]:
    """The responses within the response to a batch; empty if it is no such response."""
    parsed = email.parser.BytesParser().parsebytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body
    )
    parts = [part for part in parsed.walk() if part.get_content_type() == "application/http"]
    return [found for found in map(_batch_response, parts) if found is not None]


def _batch_response(part: email.message.Message) -> BatchResponse | None:
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    head, _, content = payload.replace(b"\r\n", b"\n").lstrip().partition(b"\n\n")
    number = re.search(r"\+(\d+)>?$", str(part["Content-ID"]))
    status = re.match(rb"HTTP/\S+ (\d{3})", head)
    return BatchResponse(int(number[1]), int(status[1]), content) if number and status else None
