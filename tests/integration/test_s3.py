"""What the S3 backend sends and how it uses connections, seen at the server."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import trustme
import urllib3
from conftest import Bucket
from dcp_fault_proxy import FaultProxy
from dcp_server import free_ports
from support import scenarios
from support.sockets import CountingBody, Listener, responding

from dcp_core import CloudStorageReader, ConfigurationError, TransientError, UnsupportedError
from dcp_core.format.checksum import crc32c
from dcp_core.testing import body_of, pattern, read_all
from dcp_s3 import S3Options, S3StorageReader, S3StorageWriter
from dcp_s3.store import S3Store

MIB = 1 << 20


def save(url: str, **options: Any) -> dict[str, torch.Tensor]:
    state = {"large": scenarios.noise(1, (3, 1024, 1024)), "small": scenarios.noise(2, (3,))}
    dcp.save(state, storage_writer=S3StorageWriter(url, part_size=5 * MIB, **options))
    return state


def test_options_of_objects_reach_the_server(localstack_bucket: Bucket) -> None:
    """Encryption, storage class and tags, on multipart objects and on the commit record."""
    save(
        f"{localstack_bucket.url}/run",
        sse="AES256",
        storage_class="STANDARD_IA",
        tags={"team": "a b", "run": "7+8=15"},
        expected_bucket_owner="000000000000",
    )
    for key in localstack_bucket.keys():
        head = localstack_bucket.client.head_object(Bucket=localstack_bucket.name, Key=key)
        assert head["ServerSideEncryption"] == "AES256"
        assert head["StorageClass"] == "STANDARD_IA"
        tags = localstack_bucket.client.get_object_tagging(Bucket=localstack_bucket.name, Key=key)["TagSet"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {"team": "a b", "run": "7+8=15"}


def test_kms_options_are_sent(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    with pytest.raises(BaseException, match=r"."):  # the server has no KMS
        save(
            f"{seaweedfs_bucket.url}/run",
            sse="aws:kms",
            kms_key_id="my-key",
            bucket_key=True,
            retry_timeout=1,
        )
    sent = next(seen.headers for seen in proxy.requests if seen.operation == "CreateMultipartUpload")
    assert sent["x-amz-server-side-encryption"] == "aws:kms"
    assert sent["x-amz-server-side-encryption-aws-kms-key-id"] == "my-key"
    assert sent["x-amz-server-side-encryption-bucket-key-enabled"] == "true"


def test_every_part_carries_its_checksum_and_is_not_hashed_again(
    seaweedfs_bucket: Bucket, proxy: FaultProxy
) -> None:
    save(f"{seaweedfs_bucket.url}/run", requester_pays=True)
    writes = [seen for seen in proxy.requests if seen.operation in ("UploadPart", "PutObject")]
    assert len(writes) == 4
    for seen in writes:
        headers = {name.lower(): value for name, value in seen.headers.items()}
        assert headers["x-amz-checksum-crc32c"]
        assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert headers["x-amz-request-payer"] == "requester"
        assert not {"content-md5", "x-amz-trailer"} & headers.keys()


def test_explicit_credentials_and_endpoint(seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    server = seaweedfs_bucket.server
    for variable in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable)
    options: dict[str, Any] = {
        "endpoint_url": server.endpoint,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "addressing_style": "path",
    }
    state = save(f"{seaweedfs_bucket.url}/run", **options)
    target = scenarios.blanked(state)
    dcp.load(target, storage_reader=S3StorageReader(f"{seaweedfs_bucket.url}/run", **options))
    scenarios.assert_same(target, state)
    dcp.load(target, storage_reader=CloudStorageReader(f"{seaweedfs_bucket.url}/run", **options))


def test_tls(seaweedfs_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, certificate = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(certificate)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with contextlib.closing(Listener(seaweedfs_bucket.server.port, tls)) as listener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{listener.port}")
        url = f"{seaweedfs_bucket.url}/run"
        state = save(url, ca_bundle=str(certificate))
        target = scenarios.blanked(state)
        dcp.load(target, storage_reader=S3StorageReader(url, ca_bundle=str(certificate)))
        scenarios.assert_same(target, state)
        accepted = listener.accepted
        with contextlib.closing(S3Store(seaweedfs_bucket.name, S3Options())) as store:
            with pytest.raises(ConfigurationError, match="ca_bundle"):
                store.head("key")
            assert listener.accepted == accepted + 1  # nothing is gained by trying again
            try:
                store.head("key")
            except ConfigurationError:
                # a broken connection is one, whatever is being handled meanwhile
                nowhere = S3Options(endpoint_url="https://127.0.0.1:1", ca_bundle=str(certificate))
                with (
                    contextlib.closing(S3Store(seaweedfs_bucket.name, nowhere)) as other,
                    pytest.raises(TransientError),
                ):
                    other.head("key")
        named = S3Options(endpoint_url=f"https://localhost:{listener.port}", ca_bundle=str(certificate))
        with (
            contextlib.closing(S3Store(seaweedfs_bucket.name, named)) as store,
            pytest.raises(ConfigurationError, match="localhost"),
        ):
            store.head("key")
        insecure = S3Options(verify_tls=False)
        with (
            contextlib.closing(S3Store(seaweedfs_bucket.name, insecure)) as store,
            pytest.warns(urllib3.exceptions.InsecureRequestWarning),
        ):
            assert list(store.list("run/"))


def test_bodies_are_read_once(seaweedfs_bucket: Bucket) -> None:
    """The SDK sends the views as they come; it neither hashes nor buffers them."""
    data = pattern(5 * MIB)
    with contextlib.closing(S3Store(seaweedfs_bucket.name, S3Options())) as store:
        body = CountingBody([data[:100], data[100:]], crc32c(data))
        store.put("key", body)
        assert body.sent == len(data)
        assert body.reads <= 8
        upload = store.start_upload("parts")
        body = CountingBody([data], crc32c(data))
        part = store.put_part(upload, 1, body)
        assert body.sent == len(data)
        store.finish_upload(upload, [part])
    assert seaweedfs_bucket.read("key") == seaweedfs_bucket.read("parts") == data


def test_connections_are_used_again(seaweedfs_bucket: Bucket) -> None:
    seaweedfs_bucket.write("key", pattern(MIB))
    listener = Listener(seaweedfs_bucket.server.port)
    options = S3Options(endpoint_url=f"http://127.0.0.1:{listener.port}")
    with contextlib.closing(listener), contextlib.closing(S3Store(seaweedfs_bucket.name, options)) as store:
        for start in range(50):
            with store.read_range("key", start, start + 70_000) as reader:
                assert read_all(reader, 70_000) == pattern(MIB)[start : start + 70_000]
            store.put("small", body_of(b"x"))
        assert listener.accepted == 1


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
@pytest.mark.usefixtures("seaweedfs_bucket")
def test_odd_responses(response: bytes, start: int, expected: type[Exception]) -> None:
    port, server = responding(response)
    options = S3Options(endpoint_url=f"http://127.0.0.1:{port}", addressing_style="path")

    def read() -> None:
        with store.read_range("key", start, start + 10) as reader:
            read_all(reader, 10)

    with contextlib.closing(server), contextlib.closing(S3Store("bucket", options)) as store:
        with pytest.raises(expected):
            read()
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.usefixtures("seaweedfs_bucket")
def test_a_proxy_that_cannot_be_reached_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
    options = S3Options(endpoint_url="http://store.example.com")
    with (
        contextlib.closing(S3Store("bucket", options)) as store,
        pytest.raises(TransientError, match="could not be reached"),
    ):
        store.head("key")
