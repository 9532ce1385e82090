"""A reverse proxy that changes responses, as consoles, login pages and header-stripping proxies do.

Requests pass unchanged, ``Host`` included, so that signatures hold upstream. What comes back goes through
``alter``, which returns what the client gets; ``refuse`` may respond to a request without asking upstream::

    with AlteringProxy(server.endpoint) as proxy:
        proxy.alter = without("ETag")
        ...                                     # work against proxy.endpoint
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

__all__ = [
    "Alter",
    "AlteringProxy",
    "Asked",
    "Refuse",
    "Response",
    "emptied",
    "page",
    "s3_error",
    "unchanged",
    "without",
]

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "upgrade"}
#: What a console's port or a login page serves for every path.
PAGE = b"<!doctype html><html><head><title>Console</title></head><body>Log in</body></html>"


@dataclass(frozen=True)
class Asked:
    """A request, with its body; ``headers`` are found whatever their case."""

    method: str
    path: str
    headers: Message
    body: bytes


@dataclass(frozen=True)
class Response:
    """A response; the proxy sets its ``Content-Length``, that of a HEAD excepted."""

    status: int
    headers: dict[str, str]
    body: bytes


Alter = Callable[[Asked, Response], Response]
Refuse = Callable[[Asked], Response | None]


def unchanged(_: Asked, response: Response) -> Response:
    """Let the response pass."""
    return response


def without(*names: str) -> Alter:
    """Drop headers."""
    dropped = {name.lower() for name in names}

    def alter(_: Asked, response: Response) -> Response:
        kept = {name: value for name, value in response.headers.items() if name.lower() not in dropped}
        return replace(response, headers=kept)

    return alter


def page(_: Asked, response: Response) -> Response:
    """A web page in place of everything."""
    del response
    return Response(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(PAGE))}, PAGE)


def emptied(asked: Asked, response: Response) -> Response:
    """No body where there was one."""
    return replace(response, body=b"") if asked.method == "GET" else response


def s3_error(status: int, code: str) -> Response:
    """An error as S3 has it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said the test</Message></Error>"
    return Response(status, {"Content-Type": "application/xml"}, body.encode())


class AlteringProxy:
    """The proxy, on a thread of its own.

    Args:
        upstream: endpoint to pass requests on to.

    Attributes:
        alter: what becomes of responses, at first nothing.
        refuse: responses to requests that upstream is not to see; ``None`` for those that it is.
        seen: the requests, in order.
    """

    def __init__(self, upstream: str) -> None:
        self.alter: Alter = unchanged
        self.refuse: Refuse = lambda _: None
        self.seen: list[Asked] = []
        self._upstream = urlsplit(upstream)
        owner = self

        class Handler(_Handler):
            proxy = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="altering-proxy", daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def respond(self, asked: Asked) -> Response:
        """What the client gets."""
        self.seen.append(asked)
        return self.refuse(asked) or self.alter(asked, self._ask(asked))

    def _ask(self, asked: Asked) -> Response:
        connection = http.client.HTTPConnection(self._upstream.netloc, timeout=60)
        try:
            connection.putrequest(asked.method, asked.path, skip_host=True, skip_accept_encoding=True)
            for name, value in asked.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(asked.body)
            found = connection.getresponse()
            headers = {name: value for name, value in found.getheaders() if name.lower() not in _HOP_BY_HOP}
            return Response(found.status, headers, found.read())
        finally:
            connection.close()

    def __enter__(self) -> AlteringProxy:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # a kept connection that nobody uses ends with the test
    timeout = 10
    proxy: AlteringProxy

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        response = self.proxy.respond(Asked(self.command, self.path, self.headers, body))
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            if self.command == "HEAD" or name.lower() != "content-length":
                self.send_header(name, value)
        if self.command != "HEAD" and response.status != 204:
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve
