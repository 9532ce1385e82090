"""Responses of the gateway to Google's emulator, in the words of the XML and the JSON API."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape

from aiohttp import web

__all__ = [
    "attributes_of",
    "document",
    "json_error",
    "json_response",
    "object_headers",
    "respond",
    "xml_error",
]

#: Request header → attribute of the object it makes.
_ATTRIBUTES = {
    "Content-Type": "contentType",
    "Content-Encoding": "contentEncoding",
    "Cache-Control": "cacheControl",
    "x-goog-storage-class": "storageClass",
}
#: JSON's reasons by status, where the request says no more.
_REASONS = {401: "authError", 403: "forbidden", 404: "notFound", 412: "conditionNotMet"}


def attributes_of(request: web.Request) -> dict[str, str]:
    """What the headers say about the object to be made."""
    found = {_ATTRIBUTES[name]: request.headers[name] for name in _ATTRIBUTES if name in request.headers}
    return {"contentType": "application/octet-stream", **found}


def object_headers(made: dict[str, Any]) -> dict[str, str]:
    return {
        "x-goog-generation": str(made["generation"]),
        "x-goog-hash": f"crc32c={made['crc32c']}",
        "ETag": f'"{made["etag"]}"',
    }


def respond(status: int, body: bytes = b"", **headers: str) -> web.Response:
    return web.Response(
        status=status, body=body, headers={**headers, "x-guploader-uploadid": secrets.token_hex(8)}
    )


def document(body: bytes, **headers: str) -> web.Response:
    return respond(200, body, **{"Content-Type": "application/xml; charset=UTF-8"}, **headers)


def xml_error(code: str, message: str) -> str:
    head = "<?xml version='1.0' encoding='UTF-8'?>"
    return f"{head}<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"


def json_error(status: int, message: str) -> str:
    one = {"domain": "global", "reason": _REASONS.get(status, "invalid"), "message": message}
    return json.dumps({"error": {"code": status, "message": message, "errors": [one]}})


def json_response(outcome: tuple[int, str]) -> Iterator[str]:
    """The lines of a response within a batch."""
    status, message = outcome
    body = json_error(status, message) if status >= 300 else ""
    yield f"HTTP/1.1 {status} {message}"
    yield "Content-Type: application/json; charset=UTF-8"
    yield f"Content-Length: {len(body.encode())}"
    yield ""
    yield body
