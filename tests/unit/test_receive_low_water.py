"""The low-water mark: raised in the middle of large responses only, and never above what is to come."""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from dcp_core.transport.receive_low_water import ReceiveLowWater

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="poll heeds the mark on Linux only")

MIB = 1 << 20


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, http.client.HTTPResponse]]:
    """A server's socket, and a client's response of 8 MiB whose head has been read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        client.settimeout(60)
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (8 * MIB))
        response = http.client.HTTPResponse(client, method="GET")
        response.begin()
        with response:
            yield server, response


def mark(response: http.client.HTTPResponse) -> int:
    return response.fp.raw._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)  # type: ignore[attr-defined]


def test_raised_only_in_the_middle(pair: tuple[socket.socket, http.client.HTTPResponse]) -> None:
    _, response = pair
    water = ReceiveLowWater(response.fp.raw._sock, 8 * MIB)
    seen = []
    for left in range(8 * MIB, 0, -MIB):
        water.before(MIB, left)
        seen.append(mark(response) > 1)
    assert seen == [False, True, True, True, True, True, True, False]
    water.before(MIB, 4 * MIB)
    water.lower()
    assert mark(response) == 1


@pytest.mark.parametrize("size", [1, 4096, MIB - 1])
def test_small_responses_are_left_alone(
    pair: tuple[socket.socket, http.client.HTTPResponse], size: int
) -> None:
    _, response = pair
    ReceiveLowWater(response.fp.raw._sock, size).before(size, size)
    assert mark(response) == 1


def test_an_answer_that_trickles_arrives_whole(
    pair: tuple[socket.socket, http.client.HTTPResponse],
) -> None:
    """No call waits for more than there will be: each would take the minute of the time limit."""
    server, response = pair

    def trickle() -> None:
        for _ in range(64):
            server.sendall(b"x" * (MIB // 8))
            time.sleep(0.005)

    sender = threading.Thread(target=trickle)
    sender.start()
    water, buffer, left = ReceiveLowWater(response.fp.raw._sock, 8 * MIB), memoryview(bytearray(MIB)), 8 * MIB
    started = time.monotonic()
    while left:
        wanted = min(left, 250_000)  # the last one is smaller than the mark
        water.before(wanted, left)
        left -= response.readinto(buffer[:wanted])
    sender.join()
    assert time.monotonic() - started < 50
