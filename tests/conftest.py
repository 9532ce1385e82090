"""Servers and buckets for the tests."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from dcp_fault_proxy import FaultProxy
from dcp_s3_servers import LocalStack, S3Server, SeaweedFS
from hypothesis import settings
from support.azure_bucket import azure_bucket, azurite  # noqa: F401  # fixtures
from support.gcs_bucket import gcs, gcs_bucket  # noqa: F401  # fixtures
from support.ranks import Ranks

# an example may take any time on a busy machine
settings.register_profile("without a clock", deadline=None)
# make test-long: as many as it takes for what is rare to come
settings.register_profile("long", deadline=None, max_examples=10_000)
settings.load_profile("without a clock")

_numbers = itertools.count(1)

#: Each has a fixture ``<name>_bucket``, and the tests of ``bucket`` run on it.
BUCKETS = [
    "seaweedfs",
    "localstack",
    "gcs",
    "azure",
]


@dataclass
class Bucket:
    """A bucket of its own for one test."""

    server: S3Server
    name: str
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        return self.server.environment()

    def keys(self, prefix: str = "") -> list[str]:
        """Every key, as the server has it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def uploads(self) -> list[str]:
        """Keys of unfinished uploads, as the server has them."""
        return [
            entry["Key"] for entry in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", ())
        ]

    def read(self, key: str) -> bytes:
        body = self.client.get_object(Bucket=self.name, Key=key)["Body"]
        with contextlib.closing(body):
            data: bytes = body.read()
        return data

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)

    def start_upload(self, key: str) -> None:
        """Leave an unfinished upload."""
        self.client.create_multipart_upload(Bucket=self.name, Key=key)

    def environment_at(self, endpoint: str) -> dict[str, str]:
        """Variables that lead to the server through a proxy."""
        return {**self.environment, "AWS_ENDPOINT_URL": endpoint}

    def bucket_names(self) -> list[str]:
        """All buckets of the server."""
        return [bucket["Name"] for bucket in self.client.list_buckets()["Buckets"]]

    def remove(self) -> None:
        """Delete the bucket and all in it: a session makes hundreds, and a store has limits."""
        for upload in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", ()):
            found = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
            self.client.abort_multipart_upload(Bucket=self.name, **found)
        for key in self.keys():
            self.delete(key)
        self.client.delete_bucket(Bucket=self.name)


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    with SeaweedFS() as server:
        yield server


@pytest.fixture(scope="session")
def localstack() -> Iterator[LocalStack]:
    with LocalStack() as server:
        yield server


def _bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    name = f"test-{next(_numbers)}"
    server.make_bucket(name)
    for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in server.environment().items():
        monkeypatch.setenv(variable, value)
    with contextlib.closing(server.client()) as client:
        bucket = Bucket(server, name, client)
        yield bucket
        bucket.remove()


@pytest.fixture
def seaweedfs_bucket(seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A new bucket on SeaweedFS; the environment's AWS variables lead to it."""
    yield from _bucket(seaweedfs, monkeypatch)


@pytest.fixture
def localstack_bucket(localstack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A new bucket on LocalStack; the environment's AWS variables lead to it."""
    yield from _bucket(localstack, monkeypatch)


@pytest.fixture(params=["seaweedfs", "localstack"])
def s3_bucket(request: pytest.FixtureRequest) -> Bucket:
    """A new bucket on each S3 server in turn."""
    found: Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return found


@pytest.fixture(params=BUCKETS)
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """A new bucket on each server of each cloud in turn."""
    found: Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return found


@contextlib.contextmanager
def proxied(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A fault proxy before the server of a bucket of any cloud; the environment's variables lead to it."""
    with FaultProxy(bucket.server.endpoint) as running:
        for variable, value in bucket.environment_at(running.endpoint).items():
            monkeypatch.setenv(variable, value)
        yield running


@pytest.fixture
def proxy(seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A fault proxy before SeaweedFS; the environment's AWS variables lead to the proxy."""
    with proxied(seaweedfs_bucket, monkeypatch) as running:
        yield running


@pytest.fixture(scope="session")
def worlds() -> Iterator[Callable[[int], Ranks]]:
    """Real processes by world size, kept from test to test; those of two sizes, for each takes half a GB."""
    known: dict[int, Ranks] = {}

    def world(size: int) -> Ranks:
        known[size] = known.pop(size, None) or Ranks(size)
        for other in list(known)[:-2]:
            known[other].close()
        return known[size]

    yield world
    for ranks in known.values():
        ranks.close()
