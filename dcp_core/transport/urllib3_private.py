"""Private names of urllib3 and http.client: where one is missing, their public interface serves.

Nothing here imports urllib3: the backends' SDKs bring it, and hand over its objects.
"""

from __future__ import annotations

import http.client
import socket
from typing import Any

__all__ = ["socket_of", "socket_response"]


def socket_response(raw: Any) -> http.client.HTTPResponse | None:
    """The response of ``http.client`` below a ``urllib3.HTTPResponse``, if its bytes come as they are.

    The attribute has had this name since urllib3 1.21.
    """
    response = getattr(raw, "_fp", None)
    if not isinstance(response, http.client.HTTPResponse) or response.chunked:
        return None
    return None if response.headers.get("Content-Encoding") in ("gzip", "deflate", "br", "zstd") else response


def socket_of(response: http.client.HTTPResponse) -> socket.socket | None:
    """The socket that a response comes from: ``SocketIO`` has kept it under this name since Python 3.0."""
    found = getattr(getattr(response.fp, "raw", None), "_sock", None)
    return found if isinstance(found, socket.socket) else None
