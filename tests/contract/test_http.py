"""The contract's reading clauses over HTTP, and refusals for all others."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dcp_http_servers import WebServer
from support.web import Folder

from dcp_core import CloudStorageWriter, ConfigurationError, SaveOptions, TransientError, UnsupportedError
from dcp_core.seam.store import ObjectStore, ReadableStore
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.testing import RawBucket, ReadContract, StoreContract, deviates, deviations, pattern
from dcp_http import backend
from dcp_http.options import HTTPOptions
from dcp_http.store import HTTPStore


class TestHTTP(ReadContract):
    """A server with everything: ranges, ETags, HEAD."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[WebServer]:
        with WebServer(tmp_path) as server:
            yield server

    @pytest.fixture
    def raw(self, server: WebServer) -> RawBucket:
        return Folder(server.folder)

    @pytest.fixture
    def store(self, server: WebServer) -> Iterator[ObjectStore]:
        with contextlib.closing(HTTPStore("http", server.host, HTTPOptions())) as store:
            yield store


class TestHTTPWithoutRanges(TestHTTP):
    """Objects up to ``whole_object_limit`` are received whole."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[WebServer]:
        with WebServer(tmp_path) as server:
            server.ranges = False
            yield server


class TestHTTPByGetAlone(TestHTTP):
    """As presigned URLs are, without HEAD; and without ETags: time and size tell versions apart."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[WebServer]:
        with WebServer(tmp_path) as server:
            server.heads = server.etags = False
            yield server

    @deviates("Last-Modified counts seconds: only a change of size shows within one")
    def test_version_changes(self, store: ObjectStore, raw: RawBucket) -> None:
        raw.write("key", b"first")
        first = store.head("key").version
        assert store.head("key").version == first
        raw.write("key", b"longer than before")
        assert store.head("key").version != first


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HTTPStore]:
    with (
        WebServer(tmp_path) as server,
        contextlib.closing(HTTPStore("http", server.host, HTTPOptions())) as it,
    ):
        yield it


def test_what_is_left_out_of_the_contract() -> None:
    """Every clause of the whole contract is a reading clause or one that a read-only store cannot have."""
    clauses = {name for name in dir(StoreContract) if name.startswith("test_")}
    assert {name for name in dir(TestHTTP) if name.startswith("test_")} < clauses
    assert deviations(TestHTTP) == deviations(TestHTTPWithoutRanges) == {}
    assert list(deviations(TestHTTPByGetAlone)) == ["test_version_changes"]


def test_the_type_says_that_it_can_only_be_read(store: HTTPStore) -> None:
    assert isinstance(store, ReadableStore)
    assert not isinstance(store, ObjectStore)
    assert backend.read_only
    writing = ObjectStore.__abstractmethods__ - ReadableStore.__abstractmethods__
    assert {"put", "start_upload", "put_part", "finish_upload", "abort_upload", "list", "delete"} < writing
    assert not [verb for verb in (*writing, "limits") if hasattr(store, verb)]


def test_no_writing_and_no_listing(store: HTTPStore, tmp_path: Path) -> None:
    """Where a store that can be written is needed, its absence is said before any request."""
    checkpoint = CheckpointStore(f"http://{store.bucket}/run", SaveOptions, {})
    assert checkpoint.read_only
    with contextlib.closing(checkpoint):
        with pytest.raises(UnsupportedError, match="read-only"):
            checkpoint.writable_store()
        with pytest.raises(UnsupportedError, match="read-only"), checkpoint.use_writable():
            pass
        with checkpoint.use() as readable:
            assert isinstance(readable, HTTPStore)
    with pytest.raises(UnsupportedError, match="read-only"):
        CloudStorageWriter(f"http://{store.bucket}/run")
    assert list(tmp_path.iterdir()) == []


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A reader that takes nothing holds the server back: aiohttp buffers no more than its bound."""
    size = 64 << 20
    (tmp_path / "key").write_bytes(pattern(size))
    with WebServer(tmp_path) as server:
        store = HTTPStore("http", server.host, HTTPOptions())
        with contextlib.closing(store), store.read_range("key", 0, size) as reader:
            reader.readinto(memoryview(bytearray(1)))
            stops_at = _settled(server)
            # sockets of both sides hold some MiB more
            assert stops_at < 24 << 20


def _settled(server: WebServer) -> int:
    """Bytes that the server has sent once it sends no more."""
    before = -1
    while server.seen[-1].sent != before:
        before = server.seen[-1].sent
        time.sleep(0.3)
    return before


def test_connections_are_kept(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(pattern(100_000))
    with WebServer(tmp_path) as server:
        store = HTTPStore("http", server.host, HTTPOptions())
        with contextlib.closing(store):
            for start in range(10):
                with store.read_range("key", start, start + 5000) as reader:
                    reader.readinto(memoryview(bytearray(5000)))
            assert len(server.connections) == 1


def test_closed_under_other_threads(tmp_path: Path) -> None:
    """Every call under way ends, with an error of ours; none waits for a loop that is gone."""
    (tmp_path / "key").write_bytes(pattern(1 << 20))
    with WebServer(tmp_path) as server:
        for _ in range(5):
            store = HTTPStore("http", server.host, HTTPOptions())
            threads = [threading.Thread(target=_read_until_closed, args=(store,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(0.1)
            store.close()
            for thread in threads:
                thread.join(10)
            assert not [thread for thread in threads if thread.is_alive()]


def _read_until_closed(store: HTTPStore) -> None:
    with contextlib.suppress(TransientError, ConfigurationError):
        while True:
            store.get("key")


def test_closed_while_a_range_is_open(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(pattern(8 << 20))
    with WebServer(tmp_path) as server:
        store = HTTPStore("http", server.host, HTTPOptions())
        with store.read_range("key", 0, 8 << 20) as reader:
            reader.readinto(memoryview(bytearray(10)))
            store.close()
            with pytest.raises(ConfigurationError, match="closed"):
                reader.readinto(memoryview(bytearray(10)))
        with pytest.raises(ConfigurationError, match="closed"):
            store.head("key")
