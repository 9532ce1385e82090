"""A link with a rate for each connection and a delay, in front of any server: TCP passed on as it is.

::

    with Link("http://127.0.0.1:9000", rate=25e6, latency=0.020) as link:
        ...                                     # link.endpoint

Object stores give one connection some tens of megabytes a second after some tens of milliseconds, whatever
the client's network; this does the same on loopback, both ways. It runs in a process of its own, and moves
bytes with ``splice``, which copies none of them through Python, so that it takes little of the machine that
is measured: about 0.3 CPU seconds a GiB.

What it does not model: loss, congestion between connections, and TCP's slow start.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

#: Bytes on their way at most, in each direction of a connection: a rate of 50 MB/s at 20 ms.
_PIPE = 1 << 20
_F_SETPIPE_SZ = 1031
#: Seconds without bytes after which a direction counts as idle.
_PAUSE = 0.004


class Link:
    """The link, as a context manager.

    Args:
        upstream: endpoint to pass connections on to.
        rate: bytes a second of each connection, each way.
        latency: seconds of a round trip.
    """

    def __init__(self, upstream: str, *, rate: float, latency: float) -> None:
        target = urlsplit(upstream)
        self._scheme = target.scheme
        self._command = [
            *(sys.executable, __file__, "--to", target.netloc),
            *("--rate", str(rate), "--latency", str(latency)),
        ]
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> Link:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *details: object) -> None:
        # it ends when its standard input does
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _carry(source: socket.socket, target: socket.socket, rate: float, delay: float) -> None:
    """Pass bytes on in one direction, at ``rate``; after a pause of the sender, ``delay`` seconds later."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, _F_SETPIPE_SZ, _PIPE)
    free_at = time.monotonic()
    try:
        while count := os.splice(source.fileno(), write_end, _PIPE):  # type: ignore[attr-defined]
            now = time.monotonic()
            # what was there when the last bytes left has been on its way meanwhile
            paused = now - free_at > _PAUSE
            free_at = (now + delay if paused else free_at) + count / rate
            time.sleep(max(0.0, free_at - now))
            while count:
                count -= os.splice(read_end, target.fileno(), count)  # type: ignore[attr-defined]
    except OSError:
        pass  # one of the two sides is gone, and the other is told below
    finally:
        os.close(read_end)
        os.close(write_end)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _serve(connection: socket.socket, to: tuple[str, int], rate: float, delay: float) -> None:
    with connection, socket.create_connection(to) as upstream:
        for end in (connection, upstream):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=_carry, args=(upstream, connection, rate, delay), daemon=True)
        back.start()
        _carry(connection, upstream, rate, delay)
        back.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="A slow link in front of a server.")
    parser.add_argument("--to", required=True, help="host:port")
    parser.add_argument("--rate", type=float, required=True, help="bytes a second of each connection")
    parser.add_argument("--latency", type=float, required=True, help="seconds of a round trip")
    arguments = parser.parse_args()
    host, _, port = arguments.to.rpartition(":")
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            details = (connection, (host, int(port)), arguments.rate, arguments.latency / 2)
            threading.Thread(target=_serve, args=details, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    os.read(0, 1)


if __name__ == "__main__":
    main()
