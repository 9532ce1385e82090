"""What the Google backend sends, who it says it is, and how it uses connections, seen at the server."""

from __future__ import annotations

import contextlib
import gzip
import json
import pickle
import socket
import ssl
import tracemalloc
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import certifi
import google.auth.transport.requests
import pytest
import requests
import torch
import torch.distributed.checkpoint as dcp
import trustme
import urllib3
from conftest import Bucket, proxied
from dcp_fault_proxy import Fault, FaultProxy
from dcp_gcs_servers import GCSServer
from google.oauth2 import service_account
from support import scenarios
from support.gcs_bucket import GCSBucket
from support.sockets import CountingBody, Listener, responding
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import (
    CloudStorageReader,
    CloudStorageWriter,
    ConfigurationError,
    ConflictError,
    CredentialsError,
    InvalidLocationError,
    PermissionDeniedError,
    TransientError,
    UnsupportedError,
)
from dcp_core.format.checksum import crc32c
from dcp_core.seam.store import Part, ReplaceVersion, Upload
from dcp_core.testing import body_of, pattern, read_all
from dcp_gcs import GCSOptions, GCSStorageReader, GCSStorageWriter
from dcp_gcs.store import GCSStore

MIB = 1 << 20
KMS_KEY = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/k"


def save(url: str, **options: Any) -> dict[str, torch.Tensor]:
    state = {"large": scenarios.noise(1, (3, 1024, 1024)), "small": scenarios.noise(2, (3,))}
    dcp.save(state, storage_writer=GCSStorageWriter(url, part_size=5 * MIB, **options))
    return state


def load(url: str, expected: dict[str, torch.Tensor], **options: Any) -> None:
    target = scenarios.blanked(expected)
    dcp.load(target, storage_reader=GCSStorageReader(url, **options))
    scenarios.assert_same(target, expected)


def opened(bucket: GCSBucket, **options: Any) -> contextlib.closing[GCSStore]:
    return contextlib.closing(GCSStore(bucket.name, GCSOptions(**options)))


def error_of(work: Any) -> BaseException:
    with pytest.raises(CheckpointException) as caught:
        work()
    error: BaseException = caught.value.failures[0][0]
    return error


@pytest.fixture
def proxy(gcs_bucket: GCSBucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with proxied(gcs_bucket, monkeypatch) as running:
        yield running


# what is sent


def test_attributes_of_objects_reach_the_server(gcs_bucket: GCSBucket) -> None:
    """On multipart objects and on the commit record."""
    save(f"{gcs_bucket.url}/run", storage_class="NEARLINE")
    assert len(gcs_bucket.keys()) == 2
    for blob in gcs_bucket.client.list_blobs(gcs_bucket.name):
        assert blob.storage_class == "NEARLINE"
        assert blob.content_type == "application/octet-stream"
        assert blob.cache_control == "no-store"


def test_key_and_project_are_sent(gcs_bucket: GCSBucket, proxy: FaultProxy) -> None:
    options = {"kms_key_name": KMS_KEY, "user_project": "billed"}
    save(f"{gcs_bucket.url}/run", **options)
    load(f"{gcs_bucket.url}/run", save(f"{gcs_bucket.url}/run", **options), user_project="billed")
    assert "DeleteObjects" in proxy.operations()
    makers = 0
    for seen in proxy.requests:
        headers = {name.lower(): value for name, value in seen.headers.items()}
        assert headers["x-goog-user-project"] == "billed", seen
        if seen.operation in ("PutObject", "CreateMultipartUpload"):
            makers += 1
            assert headers["x-goog-encryption-kms-key-name"] == KMS_KEY
    assert makers == 4


def test_every_part_carries_its_checksum(gcs_bucket: GCSBucket, proxy: FaultProxy) -> None:
    load(f"{gcs_bucket.url}/run", save(f"{gcs_bucket.url}/run"))
    writes = [seen for seen in proxy.requests if seen.operation in ("UploadPart", "PutObject")]
    assert len(writes) == 4
    for seen in writes:
        headers = {name.lower(): value for name, value in seen.headers.items()}
        assert headers["x-goog-hash"].startswith("crc32c=")
        assert int(headers["content-length"]) == seen.bytes_in > 0
        assert not {"content-md5", "transfer-encoding"} & headers.keys()
    for seen in proxy.requests:
        assert seen.headers["Accept-Encoding"] == "identity"


def test_bodies_are_read_once(gcs_bucket: GCSBucket) -> None:
    """The SDK's session sends the views as they come; it neither hashes nor buffers them."""
    data = pattern(5 * MIB)
    with opened(gcs_bucket) as store:
        body = CountingBody([data[:100], data[100:]], crc32c(data))
        store.put("key", body)
        assert body.sent == len(data)
        assert body.reads <= 8
        upload = store.start_upload("parts")
        body = CountingBody([data], crc32c(data))
        part = store.put_part(upload, 1, body)
        assert body.sent == len(data)
        store.finish_upload(upload, [part])
    assert gcs_bucket.read("key") == gcs_bucket.read("parts") == data


def test_no_copy_between_memory_and_socket(gcs_bucket: GCSBucket) -> None:
    """Sending and receiving 24 MiB allocates less than one of the views that are handed over."""
    data = pattern(24 * MIB)
    target = memoryview(bytearray(len(data)))
    with opened(gcs_bucket) as store:
        store.put("key", body_of(b"the connection is open from here on"))
        body = body_of(data)
        tracemalloc.start()
        try:
            store.put("key", body)
            _, sending = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            with store.read_range("key", 0, len(data)) as reader:
                received = 0
                while count := reader.readinto(target[received:]):
                    received += count
            _, receiving = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert bytes(target) == data
    assert max(sending, receiving) < MIB


def test_deletes_go_in_batches(gcs_bucket: GCSBucket, proxy: FaultProxy) -> None:
    keys = [f"n {number}" for number in range(150)]
    for key in keys[::30]:
        gcs_bucket.write(key, b"x")
    with opened(gcs_bucket) as store:
        store.delete(keys)
    assert proxy.operations() == ["DeleteObjects"] * 2
    assert gcs_bucket.keys() == []


def test_connections_are_used_again(gcs_bucket: GCSBucket) -> None:
    gcs_bucket.write("key", pattern(MIB))
    listener = Listener(gcs_bucket.server.port)
    endpoint = f"http://127.0.0.1:{listener.port}"
    with contextlib.closing(listener), opened(gcs_bucket, endpoint_url=endpoint) as store:
        for start in range(50):
            with store.read_range("key", start, start + 70_000) as reader:
                assert read_all(reader, 70_000) == pattern(MIB)[start : start + 70_000]
            store.put("small", body_of(b"x"))
        assert listener.accepted == 1


def test_tls(gcs_bucket: GCSBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # requests prefers this to a session's own setting
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    authority, certificate = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(certificate)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    listener = Listener(gcs_bucket.server.port, tls)
    options = {"endpoint_url": f"https://127.0.0.1:{listener.port}", "anonymous": True}
    data = pattern(3 * MIB)
    with contextlib.closing(listener):
        with opened(gcs_bucket, **options, ca_bundle=str(certificate)) as store:
            store.put("key", body_of(data))
            with store.read_range("key", 1, len(data)) as reader:
                assert read_all(reader, len(data)) == data[1:]
            assert listener.accepted == 1
        with opened(gcs_bucket, **options) as store, pytest.raises(ConfigurationError, match="ca_bundle"):
            store.head("key")
        with opened(gcs_bucket, **options) as store:
            try:
                store.head("key")
            except ConfigurationError:
                # a broken connection is one, whatever is being handled meanwhile
                nowhere = {**options, "endpoint_url": "https://127.0.0.1:1"}
                with opened(gcs_bucket, **nowhere) as other, pytest.raises(TransientError):
                    other.head("key")
        insecure = urllib3.exceptions.InsecureRequestWarning
        with opened(gcs_bucket, **options, verify_tls=False) as store, pytest.warns(insecure):
            assert store.head("key").size == len(data)


HEADERS = b"x-goog-generation: 1\r\nConnection: close\r\n"


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
        (
            b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
            0,
            UnsupportedError,
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n" + HEADERS + b"\r\n",
            0,
            ConfigurationError,
        ),
        (b"SSH-2.0-OpenSSH_9.9\r\n", 0, TransientError),
        (
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/99\r\nTransfer-Encoding: chunked\r\n"
            + HEADERS + b"\r\na\r\n0123456789\r\n0\r\n\r\n",
            0,
            UnsupportedError,
        ),
    ],
    ids=["range ignored", "cut short", "no generation", "redirect", "not HTTP", "no length"],
)  # fmt: skip
@pytest.mark.usefixtures("gcs_bucket")
def test_odd_responses(response: bytes, start: int, expected: type[Exception]) -> None:
    port, server = responding(response)
    options = GCSOptions(endpoint_url=f"http://127.0.0.1:{port}", anonymous=True)

    def read() -> None:
        with store.read_range("key", start, start + 10) as reader:
            read_all(reader, 10)

    with contextlib.closing(server), contextlib.closing(GCSStore("bucket", options)) as store:
        with pytest.raises(expected):
            read()
        server.shutdown(socket.SHUT_RDWR)


def test_completion_that_fails_late(gcs_bucket: GCSBucket) -> None:
    """An error in the body of a response with status 200 is an error."""
    body = b"<Error><Code>InternalError</Code><Message>later</Message></Error>"
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    port, server = responding(head + body)
    options = {"endpoint_url": f"http://127.0.0.1:{port}", "anonymous": True}
    with contextlib.closing(server), opened(gcs_bucket, **options) as store:
        with pytest.raises(TransientError, match="later"):
            store.finish_upload(Upload("key", "1"), [Part(1, 1, "tag", 0)])
        server.shutdown(socket.SHUT_RDWR)


# what is stored


def test_noncurrent_generations_are_not_listed(gcs_bucket: GCSBucket) -> None:
    """Object Versioning keeps what is replaced and deleted; a checkpoint sees the live objects."""
    bucket = gcs_bucket.client.bucket(gcs_bucket.name)
    bucket.versioning_enabled = True
    bucket.patch()
    url = f"{gcs_bucket.url}/run"
    save(url)
    load(url, save(url))
    assert len(gcs_bucket.generations()) == 4
    with opened(gcs_bucket) as store:
        live = [info.key for info in store.list("")]
        assert len(live) == 2
        old = store.head("run/.metadata").version
        store.put("run/.metadata", body_of(b"newer"))
        with pytest.raises(ConflictError), store.read_range("run/.metadata", 0, 1, version=old):
            pass
        store.delete(live)
        assert list(store.list("")) == []
    assert len(gcs_bucket.generations()) == 5


def test_compressed_objects_are_refused(gcs_bucket: GCSBucket) -> None:
    blob = gcs_bucket.client.bucket(gcs_bucket.name).blob("key")
    blob.content_encoding = "gzip"
    blob.upload_from_string(gzip.compress(pattern(1000)), "application/octet-stream")
    with opened(gcs_bucket) as store:
        with pytest.raises(UnsupportedError, match="Content-Encoding 'gzip'"):
            store.get("key")
        with pytest.raises(UnsupportedError, match="Content-Encoding"), store.read_range("key", 0, 5):
            pass


def test_a_version_of_an_absent_object(gcs_bucket: GCSBucket) -> None:
    with opened(gcs_bucket) as store, pytest.raises(ConflictError):
        store.put("key", body_of(b"x"), ReplaceVersion("12345"))
    assert gcs_bucket.keys() == []


def test_a_checkpoint_moves_between_clouds(gcs_bucket: GCSBucket, seaweedfs_bucket: Bucket) -> None:
    """A plain copy of the objects is a checkpoint there."""
    state = save(f"{gcs_bucket.url}/run")
    for key in gcs_bucket.keys("run/"):
        seaweedfs_bucket.write(key.replace("run/", "moved/"), gcs_bucket.read(key))
    target = scenarios.blanked(state)
    dcp.load(target, storage_reader=CloudStorageReader(f"{seaweedfs_bucket.url}/moved"))
    scenarios.assert_same(target, state)
    for key in seaweedfs_bucket.keys("moved/"):
        gcs_bucket.write(key.replace("moved/", "back/"), seaweedfs_bucket.read(key))
    load(f"{gcs_bucket.url}/back", state)


# who asks


@pytest.fixture
def private(gcs_bucket: GCSBucket) -> GCSBucket:
    """A bucket for one service account to write and another to read."""
    server = gcs_bucket.server
    gcs_bucket.allow(
        objectAdmin=[f"serviceAccount:{server.email('admin')}"],
        objectViewer=[f"serviceAccount:{server.email('reader')}"],
    )
    return gcs_bucket


def key_file(bucket: GCSBucket, account: str) -> dict[str, str]:
    return {"credentials_file": str(bucket.server.key_file(account))}


def access_token(server: GCSServer, account: str) -> str:
    """A token as gcloud would print it."""
    credentials = service_account.Credentials.from_service_account_file(
        server.key_file(account), scopes=["https://www.googleapis.com/auth/devstorage.full_control"]
    )
    credentials.refresh(google.auth.transport.requests.Request())
    return str(credentials.token)


def revoke(server: GCSServer, token: str) -> None:
    requests.post(f"{server.endpoint}/revoke", data={"token": token}, timeout=30).raise_for_status()


def test_service_accounts(private: GCSBucket) -> None:
    url = f"{private.url}/run"
    state = save(url, **key_file(private, "admin"))
    load(url, state, **key_file(private, "reader"))
    error = error_of(lambda: save(url, **key_file(private, "reader")))
    assert type(error) is PermissionDeniedError
    for word in ("storage.multipartUploads.create", "run/__0_0.", private.name, "reader@"):
        assert word in str(error)
    load(url, state, **key_file(private, "reader"))


def test_anonymous_callers_of_a_private_bucket(private: GCSBucket) -> None:
    for work in (lambda: save(f"{private.url}/run"), lambda: load(f"{private.url}/run", {})):
        error = error_of(work)
        assert type(error) is PermissionDeniedError
        assert "Anonymous caller" in str(error)


def test_project_to_bill_goes_before_that_of_the_credentials(private: GCSBucket, proxy: FaultProxy) -> None:
    content = json.loads(private.server.key_file("admin").read_text()) | {"quota_project_id": "other"}
    path = private.server.folder / "with-project.json"
    path.write_text(json.dumps(content))
    with opened(private, credentials_file=str(path), user_project="billed") as store:
        store.put("key", body_of(b"x"))
    assert proxy.requests[-1].headers["x-goog-user-project"] == "billed"


def test_error_whose_text_breaks_off(gcs_bucket: GCSBucket, proxy: FaultProxy) -> None:
    gcs_bucket.allow(objectViewer=["allUsers"])
    proxy.add(Fault("reset_response", operation="PutObject", after=20))
    with opened(gcs_bucket) as store, pytest.raises(TransientError, match="PutObject"):
        store.put("key", body_of(b"x"))
    assert [seen.fault for seen in proxy.requests] == ["reset_response"]


def test_default_credentials(private: GCSBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an emulator's variable the SDK finds the key, and the endpoint is an option."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(private.server.key_file("admin")))
    options = {"endpoint_url": private.server.endpoint}
    load(f"{private.url}/run", save(f"{private.url}/run", **options), **options)


def test_no_credentials(gcs_bucket: GCSBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    error = error_of(lambda: save(f"{gcs_bucket.url}/run", endpoint_url=gcs_bucket.server.endpoint))
    assert type(error) is CredentialsError
    for word in ("GOOGLE_APPLICATION_CREDENTIALS", "anonymous=True", gcs_bucket.name):
        assert word in str(error)


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", '{"type": "martian"}', '{"type": "service_account"}']
)
def test_bad_credentials_file(gcs_bucket: GCSBucket, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "key.json"
    if content is not None:
        path.write_text(content)
    error = error_of(lambda: save(f"{gcs_bucket.url}/run", credentials_file=str(path)))
    assert type(error) is CredentialsError
    assert "key.json" in str(error)
    assert gcs_bucket.keys() == []


def test_key_that_the_server_does_not_know(private: GCSBucket, tmp_path: Path) -> None:
    """The name of one account with the key of another."""
    content = json.loads(private.server.key_file("reader").read_text())
    content["client_email"] = private.server.email("admin")
    (tmp_path / "key.json").write_text(json.dumps(content))
    error = error_of(lambda: save(f"{private.url}/run", credentials_file=str(tmp_path / "key.json")))
    assert type(error) is CredentialsError
    assert "replace the key" in str(error)
    assert content["private_key"].splitlines()[3] not in str(error)


def test_clock_that_is_wrong(private: GCSBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token server refuses what was signed two hours ago."""
    wrong = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(hours=2)
    monkeypatch.setattr("google.auth._helpers.utcnow", lambda: wrong)
    error = error_of(lambda: save(f"{private.url}/run", **key_file(private, "admin")))
    assert type(error) is CredentialsError
    assert "set this machine's clock" in str(error)


def test_token_that_ended(private: GCSBucket) -> None:
    """A token alone cannot be renewed: a 401 is final, and never shows it."""
    token = access_token(private.server, "admin")
    state = save(f"{private.url}/run", access_token=token)
    revoke(private.server, token)
    for work in (
        lambda: save(f"{private.url}/run", access_token=token),
        lambda: load(f"{private.url}/run", state, access_token=token),
    ):
        error = error_of(work)
        assert type(error) is PermissionDeniedError
        assert "renew the credentials" in str(error)
        assert token not in str(error)


def test_token_that_ended_is_renewed(private: GCSBucket, proxy: FaultProxy) -> None:
    """The store refuses a part with a 401; with a new token the whole part is sent again."""
    with opened(private, **key_file(private, "admin")) as store:
        upload = store.start_upload("key")
        revoke(private.server, store.clients.get()._http.credentials.token)
        part = store.put_part(upload, 1, body_of(pattern(3 * MIB)))
        store.finish_upload(upload, [part])
        revoke(private.server, store.clients.get()._http.credentials.token)
        store.put("small", body_of(b"small"))
        assert store.get("small")[0] == b"small"
        revoke(private.server, store.clients.get()._http.credentials.token)
        with store.read_range("key", 1, 3 * MIB) as reader:
            assert read_all(reader, 3 * MIB) == pattern(3 * MIB)[1:]
    assert [seen.status for seen in proxy.requests if seen.operation == "UploadPart"] == [401, 200]


def test_deleting_is_a_permission_of_its_own(private: GCSBucket) -> None:
    private.allow(
        objectCreator=[f"serviceAccount:{private.server.email('admin')}"],
        objectViewer=["allUsers"],
    )
    with opened(private, **key_file(private, "admin")) as store:
        store.put("key", body_of(b"data"))
        with pytest.raises(PermissionDeniedError, match=r"storage\.objects\.delete") as caught:
            store.delete(["absent", "key"])
        assert caught.value.bucket == private.name
    assert private.read("key") == b"data"


@pytest.mark.parametrize(
    ("said", "expected", "word"),
    [
        ((400, "UserProjectMissing"), ConfigurationError, "user_project="),
        ((403, "RequestTimeTooSkewed"), ConfigurationError, "clock"),
        ((400, "CloudKmsDisabledKey"), ConfigurationError, "kms_key_name"),
        ((401, "Anything"), PermissionDeniedError, "renew the credentials"),
        ((429, "Anything"), TransientError, "fewer requests"),
        ((500, "Anything"), TransientError, "internal error"),
        ((418, "Anything"), ConfigurationError, "refused"),
    ],
)
def test_what_the_store_may_say(
    gcs_bucket: GCSBucket, proxy: FaultProxy, said: tuple[int, str], expected: type[Exception], word: str
) -> None:
    proxy.add(Fault("error", operation="PutObject", status=said[0], code=said[1]))
    with opened(gcs_bucket) as store, pytest.raises(expected, match=word) as caught:
        store.put("some key", body_of(b"x"))
    assert "some key" in str(caught.value)
    assert caught.value.__cause__ is not None


# bad input


@pytest.mark.parametrize("kind", [CloudStorageWriter, CloudStorageReader, GCSStorageWriter, GCSStorageReader])
@pytest.mark.parametrize(
    "url",
    [
        "gs:/bucket/key", "gs://", "gs:///key", "gs://ab/x", "gs://Bucket/x", "gs://-bucket/x", "gs://b b/x",
        "gs://10.0.0.1/x", "gs://" + "a" * 64, "gs://a..b/x", "gs://bucket/" + "p" * 961, "gs://bucket/\n",
        "gs://user:hush@bucket/x", "gs://bucket/.well-known/acme-challenge/x",
    ],
)  # fmt: skip
def test_malformed_url(kind: Any, url: str) -> None:
    with pytest.raises(InvalidLocationError) as caught:
        kind(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("url", ["gs://a_b-c.d/x", "gs://" + "a" * 63, "gs://example.com/", "gs://123/x"])
def test_right_url(url: str) -> None:
    assert CloudStorageWriter(url).checkpoint_id == url.removesuffix("/")


@pytest.mark.parametrize(
    "options",
    [
        {"kms_key_name": "my-key"}, {"endpoint_url": "storage.example.com"}, {"stall_timeout": 0},
        {"connect_timeout": -1}, {"anonymous": True, "access_token": "hush"},
        {"credentials_file": "f", "anonymous": True}, {"access_token": "hush\n"}, {"user_project": "prøject"},
        {"storage_class": ""}, {"kms_key_name": f"{KMS_KEY} "},
    ],
)  # fmt: skip
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))) as caught:
        CloudStorageWriter("gs://bucket/x", **options)
    assert "hush" not in str(caught.value)


def test_emulator_variable_without_a_scheme(gcs_bucket: GCSBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"127.0.0.1:{gcs_bucket.server.port}")
    error = error_of(lambda: save(f"{gcs_bucket.url}/run"))
    assert type(error) is ConfigurationError
    assert "STORAGE_EMULATOR_HOST" in str(error)


def test_nothing_listens(gcs_bucket: GCSBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.getsockname()[1]}")
    error = error_of(lambda: save(f"{gcs_bucket.url}/run", retry_timeout=0.5))
    assert type(error) is TransientError
    assert gcs_bucket.name in str(error)


def test_secrets_stay_secret() -> None:
    writer = GCSStorageWriter("gs://bucket/run", access_token="hush")
    assert "hush" not in repr(writer) + repr(writer.checkpoint.store_options)
    assert pickle.loads(pickle.dumps(writer)).checkpoint.store_options.access_token == "hush"
