"""Bad input on Azure: one clear error of ours each, with what a user needs to mend it."""

from __future__ import annotations

import contextlib
import datetime
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from azure.identity import DefaultAzureCredential
from azure.storage.blob import generate_container_sas
from support import scenarios
from support.azure_bucket import VARIABLES, AzureBucket
from support.sockets import responding
from torch.distributed.checkpoint.api import CheckpointException

from dcp_azure import AzureOptions, AzureStorageReader, AzureStorageWriter
from dcp_azure.account import find_account
from dcp_azure.store import AzureStore
from dcp_core import (
    BucketNotFoundError,
    CheckpointNotFoundError,
    CloudCheckpointError,
    CloudStorageReader,
    CloudStorageWriter,
    ConfigurationError,
    CredentialsError,
    InvalidLocationError,
    PermissionDeniedError,
    TransientError,
)

STATE = {"weight": torch.arange(1000.0), "step": 3}
OTHER_KEY = "bm90IHRoaXMgYWNjb3VudCdzIGtleQ=="


def save(url: str, **options: Any) -> None:
    dcp.save(dict(STATE), storage_writer=CloudStorageWriter(url, **options))


def load(url: str, **options: Any) -> None:
    target = scenarios.blanked(STATE)
    dcp.load(target, storage_reader=CloudStorageReader(url, **options))
    scenarios.assert_same(target, STATE)


def error_of(kind: type[BaseException], work: Callable[[], None], *words: str) -> CloudCheckpointError:
    """The error that ``work`` gives every rank; its text must hold ``words``."""
    with pytest.raises(CheckpointException) as caught:
        work()
    error = caught.value.failures[0][0]
    assert type(error) is kind, error
    for word in words:
        assert word in str(error)
    assert isinstance(error, CloudCheckpointError)
    return error


@pytest.mark.parametrize("kind", [CloudStorageWriter, AzureStorageWriter, AzureStorageReader])
@pytest.mark.parametrize(
    "url",
    [
        *("az:/bucket/key", "az://", "az:///key", "az://ab/x", "az://Upper/x", "az://two--hyphens/x"),
        *("az://-start/x", "az://under_score/x", f"az://{'a' * 64}/x", "az://bucket/../x", "az://bucket/a/./b"),
        *("az://bucket/back\\slash", f"az://bucket/{'p' * 961}", "az://bucket@account.blob.core.windows.net/x"),
        *("abfss://bucket/x", "abfs://bucket@account/x", "abfss://bucket@UPPER.dfs.core.windows.net/x", "abfss://bucket@account.dfs.example.com/x"),
        *("abfss://@account.dfs.core.windows.net/x", "abfss://Bad@account.dfs.core.windows.net/x"),
    ],
)  # fmt: skip
def test_malformed_url(kind: Any, url: str) -> None:
    with pytest.raises(InvalidLocationError) as caught:
        kind(url)
    assert any(word in str(caught.value) for word in ("az:", "abfs", "Azure", "characters")), caught.value


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("abfss://data@acc0unt.dfs.core.windows.net/run", "https://acc0unt.blob.core.windows.net"),
        ("abfs://data@acc.dfs.core.usgovcloudapi.net", "https://acc.blob.core.usgovcloudapi.net"),
        ("abfss://data@acc.z12.dfs.storage.azure.net/a/b", "https://acc.z12.blob.storage.azure.net"),
    ],
)
def test_endpoints_of_data_lake_urls(url: str, endpoint: str) -> None:
    writer = AzureStorageWriter(url, account_key=OTHER_KEY)
    store = writer.checkpoint.store()
    assert isinstance(store, AzureStore)
    assert store.clients.get().container.primary_endpoint == f"{endpoint}/data"
    assert store.bucket == "data"
    writer.close()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"access_tier": "Archive"}, "access_tier"),
        ({"upload_checksum": "sha1"}, "upload_checksum"),
        ({"encryption_key": "short"}, "encryption_key"),
        ({"account_key": "?"}, "account_key"),
        ({"account_key": OTHER_KEY, "sas_token": "sv=1"}, "account_key and sas_token"),
        ({"anonymous": True, "sas_token": "sv=1"}, "anonymous"),
        ({"account_url": "https://a.blob.core.windows.net?sig=x"}, "sas_token"),
        ({"stall_timeout": 0}, "stall_timeout"),
        ({"part_sise": 1}, "part_size"),
    ],
)
def test_impossible_options(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word) as caught:
        CloudStorageWriter("az://bucket/x", **options)
    assert "sig=x" not in str(caught.value)


def test_missing_container(azure_bucket: AzureBucket) -> None:
    for work in (save, load):
        error_of(
            BucketNotFoundError, lambda w=work: w("az://no-such-container/x"), "no-such-container", "create"
        )


def test_nothing_there_beside_blocks(azure_bucket: AzureBucket) -> None:
    azure_bucket.start_upload("run/__1_0.0123456789abcdef.distcp")
    error_of(
        CheckpointNotFoundError, lambda: load(f"{azure_bucket.url}/run"), "unfinished save", "1 unfinished"
    )


def test_wrong_key(azure_bucket: AzureBucket) -> None:
    server = azure_bucket.server
    options = {"account_url": f"{server.endpoint}/{server.account}", "account_key": OTHER_KEY}
    for work in (save, load):
        error = error_of(
            PermissionDeniedError, lambda w=work: w(f"{azure_bucket.url}/x", **options), "account key"
        )
        assert (error.bucket, error.key) == (azure_bucket.name, "x/.metadata")
        assert error.request_id is not None
        assert OTHER_KEY not in str(error)


@pytest.mark.parametrize(
    ("name", "hours"), [(None, -1.0), ("another", 1.0)], ids=["expired", "other container"]
)
def test_sas_that_does_not_fit(azure_bucket: AzureBucket, name: str | None, hours: float) -> None:
    expiry = datetime.datetime.now(datetime.timezone.utc) + timedelta(hours=hours)
    token = generate_container_sas(
        azure_bucket.server.account, name or azure_bucket.name, account_key=azure_bucket.server.key,
        permission="racwdl", expiry=expiry,
    )  # fmt: skip
    for work in (save, load):
        error = error_of(
            PermissionDeniedError, lambda w=work: w(f"{azure_bucket.url}/x", sas_token=token), "SAS"
        )
        shown = "".join(traceback.format_exception(error))
        assert token.rpartition("sig=")[2] not in shown


def test_sas_is_not_shown_when_connections_fail() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    options = AzureOptions(
        account_url=f"http://127.0.0.1:{port}/account", sas_token="sv=1&sig=s3cret%2Fs3cret"
    )
    with contextlib.closing(AzureStore("bucket", options)) as store:
        with pytest.raises(TransientError, match="could not be reached") as caught:
            store.head("key")
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))
        with pytest.raises(TransientError) as caught:
            list(store.list(""))
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("code", "expected"), [(socket.EAI_NONAME, ConfigurationError), (socket.EAI_AGAIN, TransientError)]
)
def test_unknown_account(monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]) -> None:
    """The resolver decides: no such name, or no response."""

    def resolve(host: str, *arguments: Any) -> Any:
        raise socket.gaierror(code, "made by the test")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    options = AzureOptions(account="nosuchaccount", account_key=OTHER_KEY)
    with contextlib.closing(AzureStore("bucket", options)) as store:
        with pytest.raises(expected, match=r"nosuchaccount\.blob\.core\.windows\.net") as caught:
            store.get("key")
        assert type(caught.value) is expected
        with pytest.raises(expected):
            list(store.list_uploads(""))


def _refusing(date: datetime.datetime, code: str) -> tuple[int, socket.socket]:
    response = (
        f"HTTP/1.1 403 Forbidden\r\nDate: {format_datetime(date, usegmt=True)}\r\nx-ms-error-code: {code}\r\n"
        "x-ms-request-id: r-1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    return responding(response.encode())


@pytest.mark.parametrize(("hours", "expected"), [(1, ConfigurationError), (0, PermissionDeniedError)])
def test_clock_that_is_wrong(hours: int, expected: type[Exception]) -> None:
    """Azure refuses a date that is 15 minutes off as it refuses a wrong key; its own date tells which."""
    now = datetime.datetime.now(datetime.timezone.utc)
    port, server = _refusing(now + timedelta(hours=hours), "AuthenticationFailed")
    options = AzureOptions(account_url=f"http://127.0.0.1:{port}/account", account_key=OTHER_KEY)
    with contextlib.closing(server), contextlib.closing(AzureStore("bucket", options)) as store:
        with pytest.raises(expected, match="clock is -60 minutes" if hours else "account key") as caught:
            store.head("key")
        assert type(caught.value) is expected
        assert caught.value.request_id == "r-1"  # type: ignore[attr-defined]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.usefixtures("nothing_set")
def test_no_account() -> None:
    for work in (save, load):
        error_of(ConfigurationError, lambda w=work: w("az://container/x"), "AZURE_STORAGE_CONNECTION_STRING")


@pytest.mark.usefixtures("nothing_set")
def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """``DefaultAzureCredential`` finds nothing. It is told not to look for a metadata service."""
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    for work in (save, load):
        error_of(
            CredentialsError,
            lambda w=work: w("az://container/x", account="account"),
            "sas_token",
            "container",
        )


@pytest.mark.usefixtures("nothing_set")
def test_tokens_need_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    error_of(
        ConfigurationError, lambda: save("az://container/x", account_url="http://127.0.0.1:9/a"), "HTTPS"
    )


@pytest.mark.parametrize("text", ["nonsense", "AccountName=a;AccountKey", "EndpointSuffix=core.windows.net"])
def test_malformed_connection_string(text: str) -> None:
    error_of(
        ConfigurationError, lambda: save("az://container/x", connection_string=text), "string is malformed"
    )


def test_connection_string_of_another_account(azure_bucket: AzureBucket) -> None:
    string = azure_bucket.server.connection_string(azure_bucket.server.endpoint)
    url = f"abfss://{azure_bucket.name}@another.dfs.core.windows.net/x"
    error_of(ConfigurationError, lambda: save(url, connection_string=string), "devstoreaccount1", "another")


def key_of(options: AzureOptions, named: str | None) -> str:
    key: str = find_account(options, named).credential.named_key.key
    return key


@pytest.mark.usefixtures("nothing_set")
def test_keys_of_the_environment_stay_with_their_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "mine")
    monkeypatch.setenv("AZURE_STORAGE_KEY", OTHER_KEY)
    assert key_of(AzureOptions(), None) == OTHER_KEY
    assert find_account(AzureOptions(), None).endpoint == "https://mine.blob.core.windows.net"
    assert key_of(AzureOptions(account="mine"), None) == OTHER_KEY
    assert key_of(AzureOptions(), "https://mine.blob.core.windows.net") == OTHER_KEY
    for options, named in (
        (AzureOptions(account="theirs"), None),
        (AzureOptions(account_url="https://theirs.blob.core.windows.net"), None),
        (AzureOptions(), "https://theirs.blob.core.windows.net"),
    ):
        found = find_account(options, named)
        assert isinstance(found.credential, DefaultAzureCredential)
        found.credential.close()
    monkeypatch.setenv("AZURE_STORAGE_KEY", "")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "?sv=1&sig=x")
    assert find_account(AzureOptions(), None).credential.signature == "sv=1&sig=x"
    assert find_account(AzureOptions(anonymous=True), None).credential is None


def test_secrets_stay_secret() -> None:
    secrets = {
        "connection_string": f"AccountName=a;AccountKey={OTHER_KEY}",
        "account_key": OTHER_KEY,
        "sas_token": f"sv=1&sig={OTHER_KEY}",
    }
    for name, value in secrets.items():
        writer = AzureStorageWriter("az://container/run", **{name: value})  # type: ignore[misc]
        assert OTHER_KEY not in repr(writer) + repr(writer.checkpoint.store_options)
    with pytest.raises(InvalidLocationError) as caught:
        CloudStorageWriter("abfss://container:hush@account.dfs.core.windows.net/run")
    assert "hush" not in str(caught.value)
