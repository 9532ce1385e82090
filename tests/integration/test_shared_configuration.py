"""What users have configured for all tools of a cloud holds here too; options that are given go before it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from azure.identity import DefaultAzureCredential
from botocore.config import Config
from conftest import Bucket
from dcp_gcs_servers import GCSServer
from support.altering_proxy import AlteringProxy, s3_error
from support.azure_bucket import VARIABLES
from support.gcs_bucket import GCSBucket
from torch.distributed.checkpoint.api import CheckpointException

from dcp_azure import AzureOptions
from dcp_azure.account import find_account
from dcp_core import CloudStorageReader, CloudStorageWriter, TransientError
from dcp_core.testing import body_of
from dcp_gcs import GCSOptions
from dcp_gcs.session import Session
from dcp_gcs.store import GCSStore
from dcp_s3 import S3Options
from dcp_s3.client import open_client
from dcp_s3.store import S3Store

Configure = Callable[[str], None]


# Amazon


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Configure:
    """Writes the shared configuration file; nothing else is configured but keys."""
    for variable in (
        *("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
        *("AWS_DEFAULTS_MODE", "AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE", "AWS_SESSION_TOKEN"),
        *("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"),
    ):
        monkeypatch.delenv(variable, raising=False)
    file = tmp_path / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    def write(text: str) -> None:
        file.write_text(text)

    return write


@contextlib.contextmanager
def client_of(**options: Any) -> Iterator[Any]:
    """The SDK's client."""
    opened = open_client(S3Options(**{"region": "us-east-1", **options}), 8)
    with contextlib.closing(opened):
        yield opened.sdk


def settings(**options: Any) -> Any:
    """Its configuration."""
    with client_of(**options) as client:
        found: Config = client.meta.config
        return found


@contextlib.contextmanager
def nobody(status: int, code: str) -> Iterator[AlteringProxy]:
    """A server that refuses everything; as an HTTP proxy it needs no names that resolve."""
    with AlteringProxy("http://nowhere.invalid") as proxy:
        proxy.refuse = lambda _: s3_error(status, code)
        yield proxy


def test_the_addressing_style_of_the_profile_is_kept(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some stores know buckets by their host names only."""
    configure("[default]\ns3 =\n    addressing_style = virtual\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://oss.example.com")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with nobody(403, "AccessDenied") as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
        for options, host in (
            ({}, "bucket.oss.example.com"),
            ({"addressing_style": "path"}, "oss.example.com"),
        ):
            proxy.seen.clear()
            writer = CloudStorageWriter("s3://bucket/run", **options)
            with pytest.raises(CheckpointException):
                dcp.save({"weight": torch.ones(2)}, storage_writer=writer)
            assert {asked.headers["Host"] for asked in proxy.seen} == {host}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("addressing_style", "path"),
        ("payload_signing_enabled", True),
        ("use_dualstack_endpoint", True),
        ("use_accelerate_endpoint", True),
        ("use_arn_region", False),
    ],
)
def test_the_s3_section_of_the_profile_is_kept(configure: Configure, name: str, value: object) -> None:
    configure(f"[default]\ns3 =\n    {name} = {str(value).lower()}\n")
    assert settings().s3[name] == value
    if name != "addressing_style":
        # an option that is given replaces its own setting alone
        assert settings(addressing_style="virtual").s3[name] == value


def test_payloads_are_not_hashed_where_nothing_is_said(configure: Configure) -> None:
    configure("[default]\n")
    assert settings().s3["payload_signing_enabled"] is False


def test_checksums_of_the_configuration_are_kept(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default bodies are not read once more, for they carry a CRC32C."""
    names = ("request_checksum_calculation", "response_checksum_validation")
    configure("[default]\n")
    assert [getattr(settings(), name) for name in names] == ["when_required"] * 2
    configure("[default]\n" + "".join(f"{name} = when_supported\n" for name in names))
    assert [getattr(settings(), name) for name in names] == ["when_supported"] * 2
    configure("[default]\n")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    assert [getattr(settings(), name) for name in names] == ["when_supported", "when_required"]


def test_time_limits_of_the_configuration_are_kept(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure("[default]\n")
    assert settings().connect_timeout == 10
    for mode, seconds in (("in-region", 1.1), ("standard", 3.1), ("mobile", 30.0), ("auto", 3.1)):
        configure(f"[default]\ndefaults_mode = {mode}\n")
        assert settings().connect_timeout == seconds
        assert settings(connect_timeout=7.0).connect_timeout == 7.0
        # a stall is one whatever the mode
        assert settings().read_timeout == 30.0
        assert settings(stall_timeout=5.0).read_timeout == 5.0
    monkeypatch.setenv("AWS_DEFAULTS_MODE", "cross-region")
    assert settings().connect_timeout == 3.1


def test_keep_alive_of_the_configuration_is_kept(configure: Configure) -> None:
    configure("[default]\n")
    assert settings().tcp_keepalive is True
    configure("[default]\ntcp_keepalive = false\n")
    assert not settings().tcp_keepalive


def test_regions_endpoints_and_profiles_of_the_configuration_are_kept(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = "aws_access_key_id = key\naws_secret_access_key = secret\n"
    configure(
        "[default]\nregion = eu-west-1\n"
        f"[profile other]\nregion = us-west-2\nservices = mine\n{keys}"
        "[services mine]\ns3 =\n    endpoint_url = http://store.example.com\n"
    )
    with client_of(region=None) as client:
        assert client.meta.region_name == "eu-west-1"
        assert client.meta.endpoint_url == "https://s3.eu-west-1.amazonaws.com"
    with client_of(region=None, profile="other") as client:
        assert client.meta.region_name == "us-west-2"
        assert client.meta.endpoint_url == "http://store.example.com"
    with client_of(region="eu-north-1", profile="other", endpoint_url="http://given.example.com") as client:
        assert client.meta.region_name == "eu-north-1"
        assert client.meta.endpoint_url == "http://given.example.com"
    monkeypatch.setenv("AWS_PROFILE", "other")
    with client_of(region=None) as client:
        assert client.meta.region_name == "us-west-2"


def test_retries_are_off_whatever_is_configured(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conditional write that an SDK repeats reports the success of its first attempt as a conflict."""
    configure("[default]\nmax_attempts = 7\nretry_mode = adaptive\n")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    with nobody(503, "SlowDown") as proxy:
        options = S3Options(endpoint_url=proxy.endpoint, region="us-east-1", addressing_style="path")
        with contextlib.closing(S3Store("bucket", options)) as store:
            for work in (lambda: store.head("key"), lambda: store.put("key", body_of(b"data"))):
                proxy.seen.clear()
                with pytest.raises(TransientError):
                    work()
                assert len(proxy.seen) == 1


def test_a_bucket_needs_no_region_where_the_endpoint_is_configured(
    seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    url = f"{seaweedfs_bucket.url}/run"
    dcp.save({"weight": torch.ones(4)}, storage_writer=CloudStorageWriter(url))
    endpoint = seaweedfs_bucket.server.endpoint
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    target = {"weight": torch.zeros(4)}
    dcp.load(target, storage_reader=CloudStorageReader(url, endpoint_url=endpoint))
    assert (target["weight"] == 1).all()


# Google


def test_the_quota_project_of_the_environment_is_billed(
    gcs_bucket: GCSBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of credentials that the SDK finds; the option goes before it."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(gcs_bucket.server.key_file("admin")))
    monkeypatch.setenv("GOOGLE_CLOUD_QUOTA_PROJECT", "billed-by-default")
    with AlteringProxy(gcs_bucket.server.endpoint) as proxy:
        for options, project in (
            ({}, "billed-by-default"),
            ({"user_project": "billed-by-option"}, "billed-by-option"),
        ):
            opened = GCSStore(gcs_bucket.name, GCSOptions(endpoint_url=proxy.endpoint, **options))
            with contextlib.closing(opened) as store:
                store.put("key", body_of(b"data"))
            assert proxy.seen[-1].headers["x-goog-user-project"] == project


@pytest.fixture
def nothing_of_google(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("STORAGE_EMULATOR_HOST", "API_ENDPOINT_OVERRIDE", "GOOGLE_CLOUD_UNIVERSE_DOMAIN"):
        monkeypatch.delenv(variable, raising=False)


def endpoint_of(**options: Any) -> str:
    with contextlib.closing(Session(GCSOptions(**options), concurrency=1)) as session:
        return session.endpoint


@pytest.mark.usefixtures("nothing_of_google")
@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({}, "https://storage.googleapis.com"),
        ({"GOOGLE_API_USE_MTLS_ENDPOINT": "always"}, "https://storage.mtls.googleapis.com"),
        (
            {
                "API_ENDPOINT_OVERRIDE": "https://private.example.com",
                "GOOGLE_API_USE_MTLS_ENDPOINT": "always",
            },
            "https://private.example.com",
        ),
        ({"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}, "http://127.0.0.1:9"),
    ],
)
def test_endpoints_of_the_environment_are_used(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], endpoint: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert endpoint_of(anonymous=True) == endpoint
    assert endpoint_of(anonymous=True, endpoint_url="http://given.example.com") == "http://given.example.com"


@pytest.mark.usefixtures("nothing_of_google")
def test_another_universe_has_its_own_endpoint(
    gcs: GCSServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Google's clouds of other operators, whose keys say so."""
    content = json.loads(gcs.key_file("admin").read_text()) | {"universe_domain": "example.com"}
    (tmp_path / "key.json").write_text(json.dumps(content))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setenv("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "example.com")
    assert endpoint_of() == "https://storage.example.com"


# Azure

KEY = "b3RoZXI="


def test_variables_of_azures_command_line_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*VARIABLES, "AZURE_STORAGE_SERVICE_ENDPOINT", "AZURE_STORAGE_AUTH_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", "https://mine.blob.core.usgovcloudapi.net/")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "?sv=1&sig=x")
    found = find_account(AzureOptions(), None)
    assert (found.endpoint, found.name) == ("https://mine.blob.core.usgovcloudapi.net", "mine")
    assert found.credential.signature == "sv=1&sig=x"
    # a key goes before a signature
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    assert find_account(AzureOptions(), None).credential.named_key == ("mine", KEY)
    # an account that is named for itself may have another host
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "named")
    found = find_account(AzureOptions(), None)
    assert (found.endpoint, found.name) == ("https://mine.blob.core.usgovcloudapi.net", "named")
    monkeypatch.delenv("AZURE_STORAGE_SERVICE_ENDPOINT")
    assert find_account(AzureOptions(), None).endpoint == "https://named.blob.core.windows.net"
    # keys are left alone where a login is asked for
    monkeypatch.setenv("AZURE_STORAGE_AUTH_MODE", "login")
    found = find_account(AzureOptions(), None)
    assert isinstance(found.credential, DefaultAzureCredential)
    found.credential.close()
