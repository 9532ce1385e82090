"""Where credentials come from, and what happens when that fails, or when they end in the middle of a save."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google.auth._exponential_backoff
import google.auth.compute_engine._metadata
import google.auth.transport.requests
import pytest
import requests
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_server import free_ports
from google.oauth2 import service_account
from support import scenarios
from support.altering_proxy import AlteringProxy, Asked, s3_error
from support.azure_bucket import VARIABLES, AzureBucket, SecureAzurite, Token
from support.gcs_bucket import GCSBucket
from support.metadata_services import (
    ALWAYS,
    ContainerCredentials,
    GoogleMetadata,
    InstanceMetadata,
    ManagedIdentity,
    MetadataService,
)
from torch.distributed.checkpoint.api import CheckpointException

from dcp_azure import AzureOptions
from dcp_azure.store import AzureStore
from dcp_core import (
    CloudCheckpointError,
    CloudStorageReader,
    CloudStorageWriter,
    CredentialsError,
    PermissionDeniedError,
    TransientError,
)
from dcp_core.testing import body_of, in_threads
from dcp_gcs import GCSOptions
from dcp_gcs.store import GCSStore
from dcp_s3 import S3Options
from dcp_s3.store import S3Store

MIB = 1 << 20
STATE = {"weight": scenarios.noise(1, (3, 1024, 1024)), "step": 3}
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def save(url: str, **options: Any) -> None:
    dcp.save(dict(STATE), storage_writer=CloudStorageWriter(url, part_size=5 * MIB, **options))


def load(url: str, **options: Any) -> None:
    target = {"weight": torch.zeros(3, 1024, 1024), "step": 0}
    dcp.load(target, storage_reader=CloudStorageReader(url, **options))
    scenarios.assert_same(target, STATE)


def error_of(work: Callable[[], object]) -> CloudCheckpointError:
    with pytest.raises(CheckpointException) as caught:
        work()
    error: CloudCheckpointError = caught.value.failures[0][0]
    return error


def lead_to(service: MetadataService, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in service.environment().items():
        monkeypatch.setenv(variable, value)


# Amazon

OnEC2 = Callable[..., InstanceMetadata]


@pytest.fixture
def on_ec2(seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnEC2]:
    """Makes this a machine whose only credentials are those of its metadata service."""
    with contextlib.ExitStack() as running:

        def use(port: int = 0) -> InstanceMetadata:
            server = seaweedfs_bucket.server
            service = InstanceMetadata(server.access_key, server.secret_key, port=port)
            running.enter_context(service)
            for variable in KEYS:
                monkeypatch.delenv(variable, raising=False)
            lead_to(service, monkeypatch)
            return service

        yield use


@contextlib.contextmanager
def opened(bucket: Bucket) -> Iterator[S3Store]:
    with contextlib.closing(S3Store(bucket.name, S3Options())) as store:
        yield store


@pytest.mark.parametrize("failures", [1, 2, 3, 7])
def test_a_metadata_service_that_fails_at_first(
    seaweedfs_bucket: Bucket, on_ec2: OnEC2, failures: int
) -> None:
    """With many processes on a machine the service refuses some of their requests."""
    service = on_ec2()
    service.failures = failures
    writer = CloudStorageWriter(f"{seaweedfs_bucket.url}/run", part_size=5 * MIB)
    dcp.save(dict(STATE), storage_writer=writer)
    load(f"{seaweedfs_bucket.url}/run")
    assert service.failures == 0


def test_a_writer_recovers_from_a_metadata_service_that_was_down(
    seaweedfs_bucket: Bucket, on_ec2: OnEC2
) -> None:
    """botocore keeps for ever that it found nothing; the writer does not."""
    service = on_ec2()
    service.failures = ALWAYS
    writer = CloudStorageWriter(f"{seaweedfs_bucket.url}/run", part_size=5 * MIB, retry_timeout=1)
    error = error_of(lambda: dcp.save(dict(STATE), storage_writer=writer))
    assert type(error) is TransientError
    assert "instance metadata service responds with 503" in str(error)
    assert seaweedfs_bucket.keys() == []
    service.failures = 0
    dcp.save(dict(STATE), storage_writer=writer)
    load(f"{seaweedfs_bucket.url}/run")


def test_a_metadata_service_that_is_not_there_yet(
    seaweedfs_bucket: Bucket, on_ec2: OnEC2, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    for variable in KEYS:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{port}")
    with opened(seaweedfs_bucket) as store:
        with pytest.raises(TransientError, match="metadata service cannot be reached") as caught:
            store.head("key")
        assert type(caught.value) is TransientError
        on_ec2(port)
        store.put("key", body_of(b"data"))
    assert seaweedfs_bucket.read("key") == b"data"


def test_a_renewal_that_fails_once(seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that end within minutes are renewed before each request: one cannot be, the next can."""
    server = seaweedfs_bucket.server
    for variable in KEYS:
        monkeypatch.delenv(variable)
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    with (
        ContainerCredentials(server.access_key, server.secret_key, lifetime=120) as service,
        opened(seaweedfs_bucket) as store,
    ):
        lead_to(service, monkeypatch)
        store.put("first", body_of(b"data"))
        given = service.documents
        service.failures = 3  # as often as botocore asks for one renewal
        with pytest.raises(TransientError, match="looking for credentials again"):
            store.put("second", body_of(b"data"))
        assert service.documents == given
        store.put("second", body_of(b"data"))
        assert service.documents > given
    assert seaweedfs_bucket.keys() == ["first", "second"]


@contextlib.contextmanager
def refusing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, refused: Callable[[Asked], bool], code: str
) -> Iterator[AlteringProxy]:
    """A proxy before the bucket that gives S3's error ``code`` to some requests."""
    with AlteringProxy(bucket.server.endpoint) as proxy:
        proxy.refuse = lambda asked: s3_error(400, code) if refused(asked) else None
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken", "InvalidAccessKeyId"])
def test_an_expiry_in_the_middle_of_a_save_costs_one_renewal(
    seaweedfs_bucket: Bucket, on_ec2: OnEC2, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """All threads are refused at once, one of them looks for other credentials."""
    service = on_ec2()

    def ended(asked: Asked) -> bool:
        return "partNumber" in asked.path and service.documents < 2

    with refusing(seaweedfs_bucket, monkeypatch, ended, code) as proxy:
        writer = CloudStorageWriter(f"{seaweedfs_bucket.url}/run", part_size=5 * MIB)
        dcp.save(dict(STATE), storage_writer=writer)
        parts = [asked for asked in proxy.seen if "partNumber" in asked.path]
        assert service.documents == 2
        assert len(parts) > 3  # there are three, and some were refused
        load(f"{seaweedfs_bucket.url}/run")


def test_credentials_that_are_refused_anew_are_final(
    seaweedfs_bucket: Bucket, on_ec2: OnEC2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second set that is refused at once says that it is not the credentials' age."""
    service = on_ec2()
    with refusing(seaweedfs_bucket, monkeypatch, lambda _: True, "ExpiredToken") as proxy:
        error = error_of(lambda: save(f"{seaweedfs_bucket.url}/run"))
    assert type(error) is PermissionDeniedError
    assert "renew the credentials" in str(error)
    assert service.documents == 2
    assert len(proxy.seen) == 2


def test_keys_that_cannot_change_are_sent_once(
    seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing(seaweedfs_bucket, monkeypatch, lambda _: True, "InvalidAccessKeyId") as proxy:
        error = error_of(lambda: save(f"{seaweedfs_bucket.url}/run"))
    assert type(error) is PermissionDeniedError
    assert "does not know the access key" in str(error)
    assert len(proxy.seen) == 1


def test_keys_that_were_replaced_in_the_file_are_found(
    seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A rotation of the keys, which the process did not hear of."""
    server, file = seaweedfs_bucket.server, tmp_path / "credentials"

    def write(access_key: str) -> None:
        file.write_text(
            f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {server.secret_key}\n"
        )

    for variable in KEYS:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    write("a-key-that-was-deleted")
    with opened(seaweedfs_bucket) as store:
        with pytest.raises(PermissionDeniedError, match="does not know the access key"):
            store.put("key", body_of(b"data"))
        write(server.access_key)
        with pytest.raises(TransientError, match="looking for credentials again"):
            store.put("key", body_of(b"data"))
        store.put("key", body_of(b"data"))
    assert seaweedfs_bucket.read("key") == b"data"


def test_no_credentials_anywhere_is_said_at_once(
    seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is configured that could give any later: the first attempt is the last."""
    for variable in KEYS:
        monkeypatch.delenv(variable)
    error = error_of(lambda: save(f"{seaweedfs_bucket.url}/run"))
    assert type(error) is CredentialsError
    assert "AWS_PROFILE" in str(error)
    assert "attempts" not in str(error)


def test_a_machine_without_a_role_is_told_at_once(seaweedfs_bucket: Bucket, on_ec2: OnEC2) -> None:
    service = on_ec2()
    service.role = False
    error = error_of(lambda: save(f"{seaweedfs_bucket.url}/run"))
    assert type(error) is CredentialsError
    assert "no credentials were found" in str(error)
    # botocore asks for a token and the role, and so do we, to learn why it found nothing
    assert len(service.seen) == 4


def process(tmp_path: Path, server: Any, failures: int) -> Path:
    """The shared configuration with a ``credential_process`` that fails so many times; counts its runs."""
    keys = {"AccessKeyId": server.access_key, "SecretAccessKey": server.secret_key}
    script, runs = tmp_path / "keys.py", tmp_path / "runs"
    script.write_text(
        f"import pathlib, sys\n"
        f"runs = pathlib.Path({str(runs)!r})\n"
        f"runs.write_text(runs.read_text() + 'x' if runs.exists() else 'x')\n"
        f"sys.exit('not now') if len(runs.read_text()) <= {failures} else None\n"
        f"print({json.dumps({'Version': 1, **keys})!r})\n"
    )
    file = tmp_path / "config"
    file.write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")
    return file


def test_a_process_that_fails_once_is_asked_again(
    seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in KEYS:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(process(tmp_path, seaweedfs_bucket.server, 1)))
    save(f"{seaweedfs_bucket.url}/run")
    assert (tmp_path / "runs").read_text() == "xx"
    load(f"{seaweedfs_bucket.url}/run")


def test_a_process_that_keeps_failing_is_final(
    seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a minute, which is cut short here."""
    for variable in KEYS:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(process(tmp_path, seaweedfs_bucket.server, ALWAYS)))
    monkeypatch.setattr("dcp_core.transport.clients.PATIENCE", 0.5)
    error = error_of(lambda: save(f"{seaweedfs_bucket.url}/run"))
    assert type(error) is CredentialsError
    assert "not now" in str(error)
    assert len((tmp_path / "runs").read_text()) >= 2


def test_one_thread_looks_for_credentials_while_the_others_wait(
    seaweedfs_bucket: Bucket, on_ec2: OnEC2
) -> None:
    """A process costs the machine's metadata service one request, whatever its concurrency."""
    service = on_ec2()
    with opened(seaweedfs_bucket) as store:
        in_threads(lambda number: store.put(f"{number}", body_of(b"data")), 8)
    assert service.documents == 1
    assert len(seaweedfs_bucket.keys()) == 8


# Google


@pytest.fixture
def private(gcs_bucket: GCSBucket) -> GCSBucket:
    """A bucket that everybody may read and one service account may write."""
    admin = f"serviceAccount:{gcs_bucket.server.email('admin')}"
    gcs_bucket.allow(objectAdmin=[admin], objectViewer=["allUsers"])
    return gcs_bucket


def access_token(bucket: GCSBucket) -> str:
    """A new token of the account that may write."""
    credentials = service_account.Credentials.from_service_account_file(
        bucket.server.key_file("admin"), scopes=["https://www.googleapis.com/auth/devstorage.full_control"]
    )
    credentials.refresh(google.auth.transport.requests.Request())
    return str(credentials.token)


@pytest.fixture
def on_gce(
    private: GCSBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[GoogleMetadata, dict[str, Any], list[str]]]:
    """A machine whose only credentials are its metadata server's; options for it, and the tokens given."""
    tokens: list[str] = []

    def token() -> str:
        tokens.append(access_token(private))
        return tokens[-1]

    with GoogleMetadata(token) as service:
        lead_to(service, monkeypatch)
        monkeypatch.delenv("STORAGE_EMULATOR_HOST")
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
        # read when the module is imported
        metadata = google.auth.compute_engine._metadata
        monkeypatch.setattr(metadata, "_GCE_METADATA_HOST", service.host)
        monkeypatch.setattr(metadata, "_NO_GCE_CHECK", False)
        # google-auth's own attempts need not take their time
        monkeypatch.setattr(google.auth._exponential_backoff, "time", NoTime)
        yield service, {"endpoint_url": private.server.endpoint}, tokens


class NoTime:
    """In the place of the module ``time``."""

    @staticmethod
    def sleep(seconds: float) -> None:
        del seconds


OnGCE = tuple[GoogleMetadata, dict[str, Any], list[str]]


def test_a_metadata_server_that_fails_at_first(private: GCSBucket, on_gce: OnGCE) -> None:
    """google-auth takes the machine for one that has none."""
    service, options, tokens = on_gce
    service.failures = 3
    save(f"{private.url}/run", **options)
    load(f"{private.url}/run", **options)
    assert service.failures == 0
    assert tokens


@pytest.mark.parametrize(("status", "expected"), [(503, TransientError), (404, CredentialsError)])
def test_a_metadata_server_that_fails_at_a_token(
    private: GCSBucket,
    on_gce: OnGCE,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    expected: type[Exception],
) -> None:
    """That the machine has no account is final, after a minute which is left out here; that the server is
    overloaded passes."""
    monkeypatch.setattr("dcp_core.transport.clients.PATIENCE", 0.0)
    service, options, _ = on_gce
    service.token_status = status
    with contextlib.closing(GCSStore(private.name, GCSOptions(**options))) as store:
        with pytest.raises(CloudCheckpointError) as caught:
            store.put("key", body_of(b"data"))
        assert type(caught.value) is expected
        service.token_status = 200
        store.put("key", body_of(b"data"))
    assert private.keys() == ["key"]


def test_a_token_that_ended_costs_one_renewal(private: GCSBucket, on_gce: OnGCE) -> None:
    _, options, tokens = on_gce
    with contextlib.closing(GCSStore(private.name, GCSOptions(**options))) as store:
        store.put("first", body_of(b"data"))
        endpoint = private.server.endpoint
        requests.post(f"{endpoint}/revoke", data={"token": tokens[-1]}, timeout=30).raise_for_status()
        before = len(tokens)
        store.put("second", body_of(b"data"))
        store.put("third", body_of(b"data"))
        assert len(tokens) == before + 1
    assert private.keys() == ["first", "second", "third"]


def test_no_credentials_of_google_is_said_at_once(
    gcs_bucket: GCSBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There is no machine of Google's that could have some in a while."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    error = error_of(lambda: save(f"{gcs_bucket.url}/run", endpoint_url=gcs_bucket.server.endpoint))
    assert type(error) is CredentialsError
    assert "gcloud auth application-default login" in str(error)
    assert "attempts" not in str(error)


# Azure


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Options for an emulator that takes tokens, with a container ``tokens``."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with SecureAzurite(tmp_path) as server:
        server.make_bucket("tokens")
        yield {
            "account_url": f"{server.endpoint}/{server.account}",
            "ca_bundle": str(server.certificate),
        }


def test_a_managed_identity_that_fails_at_first(
    secure: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
    with ManagedIdentity(lambda: Token().get_token().token) as service:
        lead_to(service, monkeypatch)
        service.failures, service.failure = 2, 400
        save("az://tokens/run", **secure)
        load("az://tokens/run", **secure)
        assert service.failures == 0
        assert service.documents


def test_an_account_key_that_was_replaced_is_found(
    azure_bucket: AzureBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation of the account's keys, which the process did not hear of."""
    server = azure_bucket.server
    right = server.connection_string(server.endpoint)
    wrong = right.replace(server.key, "b3RoZXI=")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", wrong)
    with contextlib.closing(AzureStore(azure_bucket.name, AzureOptions())) as store:
        with pytest.raises(PermissionDeniedError):
            store.put("key", body_of(b"data"))
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", right)
        with pytest.raises(TransientError, match="looking for credentials again"):
            store.put("key", body_of(b"data"))
        store.put("key", body_of(b"data"))
    assert azure_bucket.read("key") == b"data"
