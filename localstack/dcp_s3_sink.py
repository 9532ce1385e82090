"""An S3 endpoint that keeps objects in memory and checks nothing, to measure clients with.

Real stores take 1 to 15 CPU seconds for each GiB they store, so on one machine with them a client never
sees the network it is made for. This takes 0.3, and therefore stands behind ``dcp_link.py`` in the
benchmarks of slow links. It does what a save and a load ask for: PutObject with conditions, multipart
uploads, ranges, HeadObject, DeleteObject(s). Signatures, checksums, listings, versions and limits are not
its business: correctness is tested on the servers of ``dcp_servers.py``.

::

    with Sink() as sink:
        ...                                     # sink.endpoint
"""

from __future__ import annotations

import mmap
import os
import re
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from email.utils import formatdate
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit


class Sink:
    """The server in a process of its own, as a context manager."""

    def __enter__(self) -> Sink:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *details: object) -> None:
        # it ends when its standard input does
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class _Object:
    """Buffers that follow one another."""

    def __init__(self, buffers: list[bytearray | mmap.mmap]) -> None:
        self.buffers = buffers
        self.size = sum(map(len, buffers))
        self.tag = f'"{uuid.uuid4().hex}"'

    def views(self, start: int, stop: int) -> Iterator[memoryview]:
        for buffer in self.buffers:
            if start < len(buffer) and stop > 0:
                yield memoryview(buffer)[max(0, start) : min(stop, len(buffer))]
            start, stop = start - len(buffer), stop - len(buffer)


_objects: dict[str, _Object] = {}
_uploads: dict[str, dict[int, bytearray | mmap.mmap]] = {}
_lock = threading.Lock()


class _Request:
    def __init__(self, connection: socket.socket, stream: BinaryIO) -> None:
        self._connection = connection
        line = stream.readline().split()
        self.ended = len(line) < 3
        if self.ended:
            return
        self.method, target = line[0].decode(), urlsplit(line[1].decode())
        self.key = unquote(target.path)
        self.query = {name: values[0] for name, values in parse_qs(target.query, True).items()}
        self.headers: dict[str, str] = {}
        while (header := stream.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode("latin-1").partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self.body = self._receive(stream)

    def _receive(self, stream: BinaryIO) -> bytearray | mmap.mmap:
        size = int(self.headers.get("content-length", 0))
        # fresh memory from the kernel, which a bytearray would write zeros to with the interpreter lock held
        body = mmap.mmap(-1, size) if size else bytearray()
        if "expect" in self.headers:
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        view = memoryview(body)
        while view.nbytes:
            count = stream.readinto1(view)  # type: ignore[attr-defined]
            if not count:
                raise ConnectionError
            view = view[count:]
        return body

    def respond(self, status: str, body: bytes = b"", **headers: object) -> None:
        names = {"Content-Length": len(body), "Last-Modified": formatdate(usegmt=True)}
        names.update({name.replace("_", "-"): value for name, value in headers.items()})  # type: ignore[misc]
        head = "".join(f"{name}: {value}\r\n" for name, value in names.items())
        self._connection.sendall(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)

    def error(self, status: str, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        self.respond(status, b"" if self.method == "HEAD" else body, Content_Type="application/xml")

    def handle(self) -> None:
        if self.method in ("GET", "HEAD"):
            self._get()
        elif self.method == "PUT" and "uploadId" in self.query:
            _uploads[self.query["uploadId"]][int(self.query["partNumber"])] = self.body
            self.respond("200 OK", ETag='"part"')
        elif self.method == "PUT":
            self._put(_Object([self.body]))
        elif self.method == "POST" and "uploads" in self.query:
            upload = uuid.uuid4().hex
            _uploads[upload] = {}
            name = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId>"
            self.respond("200 OK", f"{name}</InitiateMultipartUploadResult>".encode())
        elif self.method == "POST" and "uploadId" in self.query:
            parts = _uploads.pop(self.query["uploadId"])
            self._put(_Object([parts[number] for number in sorted(parts)]))
        elif self.method == "POST":
            for key in re.findall(rb"<Key>(.*?)</Key>", self.body[:]):
                _objects.pop(f"{self.key.rstrip('/')}/{key.decode()}", None)
            self.respond("200 OK", b"<DeleteResult></DeleteResult>")
        else:
            _objects.pop(self.key, None)
            self.respond("204 No Content")

    def _put(self, item: _Object) -> None:
        with _lock:
            old = _objects.get(self.key)
            wanted = self.headers.get("if-match")
            if (self.headers.get("if-none-match") == "*" and old) or (
                wanted and (not old or old.tag != wanted)
            ):
                self.error("412 Precondition Failed", "PreconditionFailed")
                return
            _objects[self.key] = item
        body = f"<CompleteMultipartUploadResult><ETag>{item.tag}</ETag></CompleteMultipartUploadResult>"
        self.respond("200 OK", body.encode() if self.method == "POST" else b"", ETag=item.tag)

    def _get(self) -> None:
        item = _objects.get(self.key)
        if item is None:
            self.error("404 Not Found", "NoSuchKey")
            return
        start, stop, status, headers = 0, item.size, "200 OK", {}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", "")):
            start, stop = int(asked[1]), min(int(asked[2]) + 1, item.size)
            status, headers = (
                "206 Partial Content",
                {"Content_Range": f"bytes {start}-{stop - 1}/{item.size}"},
            )
        if start >= item.size > 0:
            self.error("416 Range Not Satisfiable", "InvalidRange")
            return
        self.respond(status, ETag=item.tag, Content_Length=stop - start, **headers)
        if self.method == "GET":
            for view in item.views(start, stop):
                self._connection.sendall(view)


def _serve(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as stream:
        try:
            while not (request := _Request(connection, stream)).ended:
                request.handle()
        except ConnectionError:
            return


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    os.read(0, 1)


if __name__ == "__main__":
    main()
