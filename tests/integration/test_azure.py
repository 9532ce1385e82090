"""What the Azure backend sends and how it uses accounts and connections, seen at the server."""

from __future__ import annotations

import base64
import contextlib
import datetime
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import certifi
import pytest
import torch
import torch.distributed.checkpoint as dcp
from azure.storage.blob import generate_container_sas
from azure.storage.extensions.checksums import crc64
from conftest import proxied
from dcp_azure_servers import Azurite
from dcp_fault_proxy import FaultProxy
from support import scenarios
from support.azure_bucket import AzureBucket, SecureAzurite, Token
from support.sockets import CountingBody, Listener, responding
from urllib3.exceptions import InsecureRequestWarning

from dcp_azure import AzureOptions, AzureStorageReader, AzureStorageWriter
from dcp_azure.azure_private import PublicResponse
from dcp_azure.checksum import checksum_headers
from dcp_azure.store import AzureStore
from dcp_core import (
    CloudStorageReader,
    CloudStorageWriter,
    ConfigurationError,
    PermissionDeniedError,
    TransientError,
    UnsupportedError,
)
from dcp_core.format.checksum import crc32c
from dcp_core.seam.store import Upload
from dcp_core.testing import body_of, in_threads, pattern, read_all

MIB = 1 << 20


def save(url: str, **options: Any) -> dict[str, torch.Tensor]:
    state = {"large": scenarios.noise(1, (3, 512, 512)), "small": scenarios.noise(2, (3,))}
    dcp.save(state, storage_writer=AzureStorageWriter(url, part_size=2 * MIB, **options))
    return state


def load(url: str, state: dict[str, torch.Tensor], **options: Any) -> None:
    target = scenarios.blanked(state)
    dcp.load(target, storage_reader=AzureStorageReader(url, **options))
    scenarios.assert_same(target, state)


@pytest.fixture
def proxy(azure_bucket: AzureBucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with proxied(azure_bucket, monkeypatch) as running:
        yield running


# --- options


def test_options_of_objects_reach_the_server(azure_bucket: AzureBucket) -> None:
    """Access tier and tags, on objects of blocks and on the commit record."""
    tags = {"team": "a b", "run": "7+8=15"}
    save(f"{azure_bucket.url}/run", access_tier="Cool", tags=tags)
    assert len(azure_bucket.keys()) == 2
    for key in azure_bucket.keys():
        blob = azure_bucket.client.get_blob_client(key)
        properties = blob.get_blob_properties()
        assert properties.blob_tier == "Cool"
        assert properties.content_settings.content_type == "application/octet-stream"
        assert blob.get_blob_tags() == tags


KEY = base64.b64encode(bytes(range(32))).decode()


class LooseAzurite(Azurite):
    """Ignores what it does not support."""

    flags = ("--loose",)


def test_customer_provided_keys_are_sent() -> None:
    """With every request for data; the emulator ignores them, Azure needs all three."""
    with LooseAzurite() as server, FaultProxy(server.endpoint) as proxy:
        server.make_bucket("sealed")
        options = {"encryption_key": KEY, "connection_string": server.connection_string(proxy.endpoint)}
        load("az://sealed/run", save("az://sealed/run", **options), **options)
        sent = proxy.requests
    assert {(seen.method, seen.query[:10]) for seen in sent} == {
        ("GET", ""), ("PUT", ""), ("PUT", "comp=block"),
    }  # fmt: skip
    for seen in sent:
        headers = {name.lower(): value for name, value in seen.headers.items()}
        assert headers["x-ms-encryption-key"] == KEY
        assert headers["x-ms-encryption-key-sha256"] == "Yw3NKWbEM2aRElRIu7JbT/QSpJxzLbLIq8G4WBvXEN0="
        assert headers["x-ms-encryption-algorithm"] == "AES256"


def test_unsupported_option(azure_bucket: AzureBucket) -> None:
    with pytest.raises(BaseException, match="x-ms-encryption-key") as caught:
        save(f"{azure_bucket.url}/run", encryption_key=KEY)
    assert isinstance(caught.value.failures[0][0], UnsupportedError)  # type: ignore[attr-defined]


def test_encryption_scope_is_sent(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    save(f"{azure_bucket.url}/run", encryption_scope="secret-scope")
    writes = [seen for seen in proxy.requests if seen.method == "PUT"]
    assert {seen.headers["x-ms-encryption-scope"] for seen in writes} == {"secret-scope"}


def test_keys_are_not_sent_in_clear_text() -> None:
    with pytest.raises(ConfigurationError, match="clear text"):
        AzureStore(
            "bucket",
            AzureOptions(encryption_key=KEY, account_url="http://127.0.0.1.example.com/x", account_key=KEY),
        )


# --- checksums


def test_crc64_is_azures() -> None:
    """Microsoft's implementation says the same, over several buffers too."""
    for data in (b"", b"123456789", pattern(3 * MIB + 7)):
        (value,) = checksum_headers(body_of(data[:5], data[5:]), "crc64").values()
        assert base64.b64decode(value) == crc64.compute(data, 0).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("kind", "header"), [("crc64", "x-ms-content-crc64"), ("md5", "Content-MD5"), (None, None)]
)
def test_every_body_carries_its_checksum(
    azure_bucket: AzureBucket, proxy: FaultProxy, kind: str | None, header: str | None
) -> None:
    save(f"{azure_bucket.url}/run", upload_checksum=kind)
    writes = [seen for seen in proxy.requests if seen.method == "PUT" and "blocklist" not in seen.query]
    assert len(writes) == 4  # the start, two parts, the record
    for seen in writes:
        sent = {"x-ms-content-crc64", "Content-MD5"} & seen.headers.keys()
        assert sent == ({header} if header else set())


def test_bodies_are_read_once(azure_bucket: AzureBucket) -> None:
    """The SDK sends the views as they come; it neither hashes nor buffers them."""
    data = pattern(5 * MIB)
    with contextlib.closing(AzureStore(azure_bucket.name, AzureOptions())) as store:
        body = CountingBody([data[:100], data[100:]], crc32c(data))
        store.put("key", body)
        assert body.sent == len(data)
        assert body.reads <= 8
        upload = store.start_upload("parts")
        body = CountingBody([data], crc32c(data))
        part = store.put_part(upload, 1, body)
        assert body.sent == len(data)
        store.finish_upload(upload, [part])
    assert azure_bucket.read("key") == azure_bucket.read("parts") == data


def test_ranges_come_from_the_socket(azure_bucket: AzureBucket) -> None:
    """The way down to ``http.client`` is there in this SDK; without it, reads would copy."""
    azure_bucket.write("key", b"0123456789")
    with contextlib.closing(AzureStore(azure_bucket.name, AzureOptions())) as store:
        with store.read_range("key", 2, 5) as reader:
            assert type(reader._source).__module__ == "http.client"  # type: ignore[attr-defined]
        with store.read_range("key", 2, 5) as reader:
            assert read_all(reader, 3) == b"234"


def test_ranges_without_the_way_down(azure_bucket: AzureBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a release of the SDK without the private attribute would do: it copies, and is right."""
    monkeypatch.setattr("dcp_azure.store.raw_response", PublicResponse)
    azure_bucket.write("key", pattern(MIB))
    with contextlib.closing(AzureStore(azure_bucket.name, AzureOptions())) as store:
        for start, stop in ((2, 5), (0, MIB), (70_000, 200_001)):
            with store.read_range("key", start, stop) as reader:
                assert read_all(reader, stop - start) == pattern(MIB)[start:stop]
                assert reader.readinto(memoryview(bytearray(1))) == 0


# --- connections


def test_connections_are_used_again(azure_bucket: AzureBucket) -> None:
    azure_bucket.write("key", pattern(MIB))
    listener = Listener(azure_bucket.server.port)
    options = AzureOptions(account_url=f"http://127.0.0.1:{listener.port}/{azure_bucket.server.account}",
                           account_key=azure_bucket.server.key)  # fmt: skip
    with contextlib.closing(listener), contextlib.closing(AzureStore(azure_bucket.name, options)) as store:
        for start in range(20):
            with store.read_range("key", start, start + 70_000) as reader:
                assert read_all(reader, 70_000) == pattern(MIB)[start : start + 70_000]
            store.put("small", body_of(b"x"))
        assert listener.accepted == 1


def test_as_many_connections_as_requests_at_a_time(azure_bucket: AzureBucket) -> None:
    """More than the ten that the SDK's own session keeps."""
    azure_bucket.write("key", pattern(MIB))
    listener = Listener(azure_bucket.server.port)
    options = AzureOptions(account_url=f"http://127.0.0.1:{listener.port}/{azure_bucket.server.account}",
                           account_key=azure_bucket.server.key)  # fmt: skip
    store = AzureStore(azure_bucket.name, options, concurrency=16)

    def read(number: int) -> None:
        for start in range(number, number + 5):
            with store.read_range("key", start, start + 9_000) as reader:
                assert read_all(reader, 9_000) == pattern(MIB)[start : start + 9_000]

    with contextlib.closing(listener), contextlib.closing(store):
        in_threads(read, 16)
        opened = listener.accepted
        in_threads(read, 16)
        assert 0 < opened <= 16
        assert listener.accepted <= 16


HEADERS = b'ETag: "e"\r\nLast-Modified: Tue, 24 Nov 2026 00:00:00 GMT\r\nConnection: close\r\n'


@pytest.mark.parametrize(
    ("response", "start", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n" + HEADERS + b"\r\n0123456789", 5, UnsupportedError),
        (
            b"HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\nContent-Range: bytes 5-14/99\r\n"
            + HEADERS + b"\r\n0123",
            5,
            TransientError,
        ),
    ],
    ids=["range ignored", "cut short"],
)  # fmt: skip
def test_odd_responses(response: bytes, start: int, expected: type[Exception]) -> None:
    port, server = responding(response)
    options = AzureOptions(account_url=f"http://127.0.0.1:{port}/account", anonymous=True)

    def read() -> None:
        with store.read_range("key", start, start + 10) as reader:
            read_all(reader, 10)

    with contextlib.closing(server), contextlib.closing(AzureStore("bucket", options)) as store:
        with pytest.raises(expected):
            read()
        server.shutdown(2)


# --- accounts and credentials


def sas(bucket: AzureBucket, permission: str, hours: float = 1.0) -> str:
    token: str = generate_container_sas(
        bucket.server.account,
        bucket.name,
        account_key=bucket.server.key,
        permission=permission,
        expiry=datetime.datetime.now(datetime.timezone.utc) + timedelta(hours=hours),
    )
    return token


@pytest.mark.parametrize("way", ["connection string", "account key", "sas", "sas with ?", "sas in a string"])
def test_explicit_credentials(azure_bucket: AzureBucket, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    server = azure_bucket.server
    url = f"{server.endpoint}/{server.account}"
    token = sas(azure_bucket, "racwdl")
    options: dict[str, Any] = {
        "connection string": {"connection_string": server.connection_string(server.endpoint)},
        "account key": {"account_url": url, "account_key": server.key},
        "sas": {"account_url": url, "sas_token": token},
        "sas with ?": {"account_url": f"{url}/", "sas_token": f"?{token}"},
        "sas in a string": {"connection_string": f"BlobEndpoint={url};SharedAccessSignature={token}"},
    }[way]
    state = save(f"{azure_bucket.url}/run", **options)
    load(f"{azure_bucket.url}/run", state, **options)
    # an overwrite lists nothing, but deletes
    load(f"{azure_bucket.url}/run", save(f"{azure_bucket.url}/run", **options), **options)
    assert len(azure_bucket.keys()) == 2


def test_data_lake_urls(azure_bucket: AzureBucket) -> None:
    """The account's connection string, which the environment has, says where it really is."""
    for scheme in ("abfs", "abfss"):
        url = f"{scheme}://{azure_bucket.name}@{azure_bucket.server.account}.dfs.core.windows.net/{scheme}"
        state = save(url)
        target = scenarios.blanked(state)
        dcp.load(target, storage_reader=CloudStorageReader(url))
        scenarios.assert_same(target, state)
        assert CloudStorageWriter(url).checkpoint_id == url
    assert len(azure_bucket.keys("abfs/")) == len(azure_bucket.keys("abfss/")) == 2


def test_read_only_sas(azure_bucket: AzureBucket) -> None:
    state = save(f"{azure_bucket.url}/run")
    token = sas(azure_bucket, "rl")
    load(f"{azure_bucket.url}/run", state, sas_token=token)
    with pytest.raises(BaseException, match=r"may not do this.*__0_0\.") as caught:
        save(f"{azure_bucket.url}/run", sas_token=token)
    assert isinstance(caught.value.failures[0][0], PermissionDeniedError)  # type: ignore[attr-defined]
    load(f"{azure_bucket.url}/run", state)


def test_anonymous(azure_bucket: AzureBucket) -> None:
    state = save(f"{azure_bucket.url}/run")
    azure_bucket.client.set_container_access_policy({}, public_access="container")
    load(f"{azure_bucket.url}/run", state, anonymous=True)
    with pytest.raises(BaseException, match=r".") as caught:
        save(f"{azure_bucket.url}/run", anonymous=True)
    assert isinstance(caught.value.failures[0][0], PermissionDeniedError)  # type: ignore[attr-defined]


def test_tokens_and_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    # requests prefers this to a session's own setting
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    with SecureAzurite(tmp_path) as server:
        server.make_bucket("tokens")
        url = {"account_url": f"{server.endpoint}/{server.account}"}
        trusted = {**url, "ca_bundle": str(server.certificate)}
        state = save("az://tokens/run", credential=Token(), **trusted)
        load("az://tokens/run", state, credential=Token(), **trusted)
        with pytest.raises(BaseException, match=r".") as caught:
            load("az://tokens/run", state, credential=Token("https://elsewhere"), **trusted)
        assert isinstance(caught.value.failures[0][0], PermissionDeniedError)  # type: ignore[attr-defined]
        with pytest.raises(BaseException, match="ca_bundle") as caught:
            load("az://tokens/run", state, credential=Token(), **url)
        assert isinstance(caught.value.failures[0][0], ConfigurationError)  # type: ignore[attr-defined]
        with pytest.warns(InsecureRequestWarning):
            load("az://tokens/run", state, credential=Token(), **url, verify_tls=False)


# --- what lies in containers


def test_snapshots_and_directories_are_no_objects(azure_bucket: AzureBucket) -> None:
    azure_bucket.write("run/key", b"old")
    azure_bucket.client.get_blob_client("run/key").create_snapshot()
    azure_bucket.write("run/key", b"newer")
    # what an account with a hierarchical namespace shows for a directory
    azure_bucket.client.upload_blob("run/folder", b"", metadata={"hdi_isfolder": "true"})
    with contextlib.closing(AzureStore(azure_bucket.name, AzureOptions())) as store:
        assert [(info.key, info.size) for info in store.list("run/")] == [("run/key", 5)]
        assert store.get("run/key")[0] == b"newer"
        with pytest.raises(BaseException, match="snapshots"):
            store.delete(["run/key"])
    assert azure_bucket.read("run/key") == b"newer"


def test_unfinished_blocks_of_other_tools(azure_bucket: AzureBucket) -> None:
    """They are found, and go without touching an object."""
    azure_bucket.start_upload("run/theirs")
    azure_bucket.write("run/empty", b"")
    with contextlib.closing(AzureStore(azure_bucket.name, AzureOptions())) as store:
        (found,) = store.list_uploads("run/")
        assert found.upload == Upload("run/theirs", "")
        assert found.started is not None
        # ours is told apart from theirs
        store.abort_upload(Upload("run/theirs", "0" * 24))
        assert azure_bucket.uploads() == ["run/theirs"]
        store.abort_upload(found.upload)
        store.abort_upload(Upload("run/empty", ""))
    assert azure_bucket.uploads() == []
    assert azure_bucket.keys() == ["run/empty"]


def test_listings_ask_for_nothing_that_is_gone(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    """The emulator has no soft delete and no versions; Azure lists them only when they are asked for."""
    with contextlib.closing(AzureStore(azure_bucket.name, AzureOptions())) as store:
        list(store.list("run/"))
        list(store.list_uploads("run/"))
    asked = [dict(parse_qsl(seen.query))["include"] for seen in proxy.requests]
    assert asked == ["metadata", "metadata,uncommittedblobs"]


@pytest.mark.parametrize("towards", ["azure", "seaweedfs"])
def test_a_copy_from_another_cloud_loads(request: pytest.FixtureRequest, towards: str) -> None:
    buckets = {name: request.getfixturevalue(f"{name}_bucket") for name in ("azure", "seaweedfs")}
    target, (source,) = buckets.pop(towards), buckets.values()
    state = {"large": scenarios.noise(1, (3, 512, 512)), "small": scenarios.noise(2, (3,))}
    dcp.save(state, storage_writer=CloudStorageWriter(f"{source.url}/run", part_size=5 * MIB))
    for key in source.keys():
        target.write(key.replace("run/", "copied/"), source.read(key))
    loaded = scenarios.blanked(state)
    dcp.load(loaded, storage_reader=CloudStorageReader(f"{target.url}/copied"))
    scenarios.assert_same(loaded, state)


def test_a_partial_load_fetches_only_its_part(azure_bucket: AzureBucket, proxy: FaultProxy) -> None:
    url = f"{azure_bucket.url}/run"
    state = save(url)
    proxy.clear()
    load(url, {"small": state["small"]})
    data = [seen for seen in proxy.requests if seen.path.endswith(".distcp")]
    assert {seen.method for seen in data} == {"GET"}
    assert 12 <= sum(seen.bytes_out for seen in data) < 70_000
    assert all("x-ms-range" in seen.headers for seen in data)
    proxy.clear()
    load(url, state)
    fetched = sum(seen.bytes_out for seen in proxy.requests if seen.path.endswith(".distcp"))
    assert 3 * MIB <= fetched < 3 * MIB + 70_000
