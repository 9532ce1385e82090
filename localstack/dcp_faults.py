"""What the fault proxy can break, and the requests that it breaks.

::

    Fault("error", operation="UploadPart", path="__2_0", skip=1, times=2)   # the second and third such part
    Fault("error", status=403, code="AccessDenied", skip=7, spreads=True)   # everything from the eighth on
    Fault("refuse", operation="PutObject", seconds=8)                       # nobody listens for 8 s
"""

from __future__ import annotations

import base64
import json
import re
import time
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl

__all__ = ["Fault", "Kind", "Seen", "error_body", "flipped"]

Kind = Literal[
    # in the store's place, after `seconds`; with `done`, the store has done the request all the same
    "error",  # respond with `status` and error `code`, as each cloud has it
    "page",  # respond with `status` and `body` of `content_type`, as a proxy on the way does
    # connections
    "refuse",  # break all of them, and close the port for `seconds`; 0 is until `clear()`
    "reset_request",  # reset after `after` bytes of the request's body; it does not arrive
    "lose_response",  # let the store do it, then reset without a response
    "reset_response",  # reset after `after` bytes of the response's body
    "truncate_response",  # close in good order after `after` bytes of the response's body
    # bodies
    "shorten_response",  # send `after` bytes of the response's body, and say that this is all
    "strip_response",  # take the headers `without` from the response
    "flip_response",  # damage the byte at `after` of the response's body
    "flip_request",  # damage the byte at `after` of the request's body
    # time
    "delay",  # read nothing of the body for `seconds`, then pass on
    "late",  # let the store do it, then wait `seconds` with the response
    "stall",  # send nothing for `seconds` after `after` bytes of the response's body
    "stall_request",  # pass nothing on for `seconds` after `after` bytes of the request's body
    # deliveries
    "twice",  # have it done twice, one after the other; the client gets the second response
    "twice_together",  # have it done twice at once; the client gets the later response
    "again",  # pass on, and keep a copy for `deliver()`
    "postpone",  # reset without passing on, and keep it for `deliver()`
    "overtake",  # reset, and pass on when the next request for the key has been done, before its response
    "hold",  # wait for `release()`
]

_PAGE = """\
<html>
<head><title>502 Bad Gateway</title></head>
<body><h1>502 Bad Gateway</h1></body>
</html>
"""


@dataclass
class Fault:
    """What to break: the first ``times`` matching requests after ``skip`` others.

    Where a body is broken, it is at its last byte at the latest; what has no body is broken before it
    arrives, or before its response.

    Attributes:
        path, query: regular expressions, searched for.
        spreads: everything is broken after the first request that is, whatever it is.
        lasts: seconds for which requests are broken after the first that is, instead of ``times``.
        hits: matching requests so far.
    """

    kind: Kind
    method: str | None = None
    path: str = ""
    query: str = ""
    operation: str | None = None
    skip: int = 0
    times: int = 1
    after: int = 0
    seconds: float = 0.0
    status: int = 503
    code: str = "SlowDown"
    spreads: bool = False
    lasts: float = 0.0
    body: str = _PAGE
    content_type: str = "text/html"
    done: bool = False
    without: tuple[str, ...] = ()
    hits: int = 0
    began: float | None = field(default=None, repr=False, compare=False)

    def matches(self, request: Seen) -> bool:
        if self.spreads and self.began is not None:
            return True
        return (
            self.method in (None, request.method)
            and self.operation in (None, request.operation)
            and re.search(self.path, request.path) is not None
            and re.search(self.query, request.query) is not None
        )

    def breaks(self, request: Seen) -> bool:
        """Whether to break it; counts it if it matches."""
        if not self.matches(request):
            return False
        self.hits += 1
        if self.hits <= self.skip:
            return False
        if self.began is None:
            self.began = time.monotonic()
        if self.lasts:
            return time.monotonic() - self.began < self.lasts
        return self.spreads or self.hits <= self.skip + self.times

    def reset(self) -> None:
        """Count from 0 again."""
        self.hits, self.began = 0, None

    def place(self, length: int | None) -> int:
        """Where in a body of ``length`` bytes it happens; a body of unknown length may end before."""
        return self.after if length is None else max(0, min(self.after, length - 1))


@dataclass
class Seen:
    """One request that came by.

    Attributes:
        status: of the response that the client got, or would have got; 0 as long as there is none.
        bytes_in, bytes_out: of the bodies of request and response, as far as they were passed on.
        fault: kind of the fault that broke it.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    fault: str | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def to_azure(self) -> bool:
        return any(name.lower() == "x-ms-version" for name in self.headers)

    @property
    def to_json_api(self) -> bool:
        """Whether it is one of Google's JSON API."""
        return self.path.startswith(("/batch/storage/", "/storage/"))

    @property
    def operation(self) -> str:
        """The S3 operation, by method and query; Google's XML API has the same ones.

        Of Google's JSON API there are lists and batches of deletes. Azure's operations have the names of
        those that stand for them in S3.
        """
        if self.to_azure:
            return _azure_operation(self)
        if self.to_json_api:
            return "DeleteObjects" if self.path.startswith("/batch/") else "ListObjectsV2"
        query = dict(parse_qsl(self.query, keep_blank_values=True))
        upload, key = "uploadId" in query or "uploads" in query, self.path.strip("/").count("/") > 0
        names = {
            ("PUT", False): "PutObject",
            ("PUT", True): "UploadPart",
            ("POST", False): "DeleteObjects",
            ("POST", True): "CompleteMultipartUpload" if "uploadId" in query else "CreateMultipartUpload",
            ("GET", False): "GetObject" if key else "ListObjectsV2",
            ("GET", True): "ListMultipartUploads",
            ("HEAD", False): "HeadObject",
            ("DELETE", False): "DeleteObject",
            ("DELETE", True): "AbortMultipartUpload",
        }
        return names.get((self.method, upload), self.method)


def _azure_operation(seen: Seen) -> str:
    """S3's name for what dcp_azure does by a request to Azure."""
    query = dict(parse_qsl(seen.query))
    names = {
        ("PUT", None): "PutObject",
        ("PUT", "block"): "UploadPart",
        ("PUT", "blocklist"): "CompleteMultipartUpload",
        ("POST", "batch"): "DeleteObjects",
        ("GET", None): "GetObject",
        ("GET", "list"): "ListObjectsV2",
        ("GET", "blocklist"): "ListMultipartUploads",
        ("HEAD", None): "HeadObject",
        ("DELETE", None): "DeleteObject",
    }
    name = names.get((seen.method, query.get("comp")), seen.method)
    if name == "UploadPart":
        return _of_block(base64.b64decode(query["blockid"]))
    # an abort makes an empty blob with this metadata of the upload, and deletes it
    if name == "CompleteMultipartUpload" and "x-ms-meta-dcpabandoned" in map(str.lower, seen.headers):
        return "AbortMultipartUpload"
    return name


def _of_block(block_id: bytes) -> str:
    """Some blocks are no parts: block 0 shows that an upload was started, and 99999 that it was aborted."""
    marks = {b"-00000": "CreateMultipartUpload", b"-99999": "AbortMultipartUpload"}
    return marks.get(block_id[-6:], "UploadPart")


#: Azure's codes for S3's, where they differ.
_AZURE_CODES = {"SlowDown": "ServerBusy", "AccessDenied": "AuthorizationFailure"}
#: Reasons of Google's JSON API by status.
_REASONS = {403: "forbidden", 404: "notFound", 412: "conditionNotMet", 429: "rateLimitExceeded"}
_MESSAGE = "made by the fault proxy"


def error_body(seen: Seen, fault: Fault) -> tuple[str, dict[str, str]]:
    """Body and headers of an error of the store that the request was sent to."""
    if seen.to_json_api:
        reason = _REASONS.get(fault.status, "backendError")
        error = {"code": fault.status, "message": _MESSAGE, "errors": [{"reason": reason}]}
        return json.dumps({"error": error}), {"Content-Type": "application/json; charset=UTF-8"}
    code = _AZURE_CODES.get(fault.code, fault.code) if seen.to_azure else fault.code
    headers = {"x-ms-error-code": code} if seen.to_azure else {}
    body = f"<Error><Code>{code}</Code><Message>{_MESSAGE}</Message></Error>"
    return body, {**headers, "Content-Type": "application/xml"}


def flipped(chunk: bytes, at: int) -> bytes:
    """``chunk`` with every bit of one byte changed; as it is if it has no such byte."""
    if not 0 <= at < len(chunk):
        return chunk
    return chunk[:at] + bytes([chunk[at] ^ 0xFF]) + chunk[at + 1 :]
