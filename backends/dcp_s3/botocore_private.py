"""Private names of botocore, in no other file. Where one is missing, the public interface serves."""

from __future__ import annotations

from typing import Any

import botocore.handlers
from botocore.exceptions import IncompleteReadError
from botocore.parsers import ResponseParserError

from dcp_core.transport.pools import tuned_pool_classes

__all__ = ["limit_stalled_sends", "raw_response", "refuse_other_documents"]


def raw_response(body: Any) -> Any:
    """The urllib3 response in a ``StreamingBody``, which copies; named so since botocore 1.10."""
    return getattr(body, "_raw_stream", body)


def limit_stalled_sends(client: Any, stall_timeout: float) -> None:
    """Let no send of ``client`` stand still longer than ``stall_timeout`` seconds.

    botocore has no option for it; these names are those since 1.11. Where one is missing, sends keep the
    time limit for connecting.
    """
    http: Any = getattr(getattr(client, "_endpoint", None), "http_session", None)
    pools = getattr(http, "_pool_classes_by_scheme", None)
    manager = getattr(http, "_manager", None)
    if pools is not None and manager is not None:
        # a manager for a proxy is made on first use, from the same classes
        http._pool_classes_by_scheme = manager.pool_classes_by_scheme = tuned_pool_classes(
            pools, stall_timeout
        )


def refuse_other_documents(client: Any) -> None:
    """Have ``client`` refuse a success that is no XML at all, such as a web page, or not all there.

    botocore takes the one for a document that was cut short, an error of the server that may pass, and what
    was cut before its first byte for an empty one: an empty listing. That handler has had its name since
    1.34; where it is missing, it goes first.
    """
    theirs = getattr(botocore.handlers, "_handle_200_error", None)
    event = "before-parse.s3.*"
    if theirs is not None:
        client.meta.events.unregister(event, theirs)
    client.meta.events.register(event, _refuse_other_documents)
    if theirs is not None:
        client.meta.events.register(event, theirs)


def _refuse_other_documents(response_dict: dict[str, Any], operation_model: Any, **event: Any) -> None:
    del event
    body = response_dict["body"]
    if response_dict["status_code"] >= 300 or not isinstance(body, bytes):
        return
    if not body:
        if operation_model.http.get("method") != "HEAD":
            _require_empty(response_dict["headers"])
        return
    start = body.lstrip()[:14].lower()
    if not start.startswith(b"<") or start.startswith((b"<!doctype html", b"<html")):
        raise ResponseParserError("a document that is not S3's")


def _require_empty(headers: Any) -> None:
    """Raise if more than nothing was to come: botocore leaves the length of documents unchecked."""
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length):
        raise IncompleteReadError(actual_bytes=0, expected_bytes=int(length))
