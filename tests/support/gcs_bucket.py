"""Google's emulator and buckets on it, for the tests. The interface is that of ``conftest.Bucket``."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
import requests
from dcp_gcs_servers import GCSServer

_numbers = itertools.count(1)


@dataclass
class GCSBucket:
    """A bucket of its own for one test."""

    server: GCSServer
    name: str
    client: Any

    @property
    def url(self) -> str:
        return f"gs://{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        return self.server.environment()

    def environment_at(self, endpoint: str) -> dict[str, str]:
        """Variables that lead to the server through a proxy."""
        return {**self.environment, "STORAGE_EMULATOR_HOST": endpoint}

    def keys(self, prefix: str = "") -> list[str]:
        """Every key, as the server has it."""
        return [blob.name for blob in self.client.list_blobs(self.name, prefix=prefix)]

    def generations(self) -> list[str]:
        """The key of every generation, noncurrent ones included."""
        # the emulator wants "true", and the SDK writes "True"
        response = requests.get(
            f"{self.server.endpoint}/storage/v1/b/{self.name}/o?versions=true", timeout=30
        )
        response.raise_for_status()
        return [entry["name"] for entry in response.json()["items"]]

    def uploads(self) -> list[str]:
        """Keys of unfinished uploads, as the server has them."""
        return [key for key, _ in self._uploads()]

    def _uploads(self) -> list[tuple[str, str]]:
        response = requests.get(f"{self.server.endpoint}/{self.name}?uploads", timeout=30)
        response.raise_for_status()
        found = ElementTree.fromstring(response.content).findall("{*}Upload")
        return [(entry.findtext("{*}Key", ""), entry.findtext("{*}UploadId", "")) for entry in found]

    def _object_url(self, key: str) -> str:
        return f"{self.server.endpoint}/{self.name}/{quote(key, safe='')}"

    def start_upload(self, key: str) -> None:
        """Leave an unfinished upload."""
        requests.post(f"{self._object_url(key)}?uploads", timeout=30).raise_for_status()

    def read(self, key: str) -> bytes:
        data: bytes = self.client.bucket(self.name).blob(key).download_as_bytes()
        return data

    def write(self, key: str, data: bytes) -> None:
        self.client.bucket(self.name).blob(key).upload_from_string(data, "application/octet-stream")

    def delete(self, key: str) -> None:
        self.client.bucket(self.name).delete_blob(key)

    def bucket_names(self) -> list[str]:
        """All buckets of the server."""
        return [bucket.name for bucket in self.client.list_buckets()]

    def allow(self, **roles: list[str]) -> None:
        """Give the bucket a policy: members by role, such as ``objectViewer=["allUsers"]``."""
        policy = self.client.bucket(self.name).get_iam_policy()
        policy.bindings = [
            {"role": f"roles/storage.{role}", "members": set(members)} for role, members in roles.items()
        ]
        self.client.bucket(self.name).set_iam_policy(policy)

    def remove(self) -> None:
        """Delete the bucket and all in it."""
        self.allow(admin=["allUsers"])
        for key, upload_id in self._uploads():
            requests.delete(f"{self._object_url(key)}?uploadId={upload_id}", timeout=30).raise_for_status()
        for key in self.keys():
            self.delete(key)
        self.client.bucket(self.name).delete()


@pytest.fixture(scope="session")
def gcs() -> Iterator[GCSServer]:
    with GCSServer() as server:
        yield server


@pytest.fixture
def gcs_bucket(gcs: GCSServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[GCSBucket]:
    """A new bucket on the emulator; the environment's variables lead to it."""
    name = f"test-{next(_numbers)}"
    gcs.make_bucket(name)
    for variable in ("GOOGLE_APPLICATION_CREDENTIALS", "API_ENDPOINT_OVERRIDE", "GCLOUD_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in gcs.environment().items():
        monkeypatch.setenv(variable, value)
    # nothing may look for credentials at a metadata server
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with contextlib.closing(gcs.client()) as client:
        bucket = GCSBucket(gcs, name, client)
        yield bucket
        bucket.remove()
