"""Azurite and containers on it, for the tests. The interface is that of ``conftest.Bucket``."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from azure.core.credentials import AccessToken
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobBlock, LinearRetry
from dcp_azure_servers import Azurite

_numbers = itertools.count(1)

#: Variables that lead somewhere, or that credentials come from.
VARIABLES = [
    *("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY"),
    *("AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET"),
]


@dataclass
class AzureBucket:
    """A container; ``client`` is the SDK's own, for raw access."""

    server: Azurite
    name: str
    client: Any

    @property
    def url(self) -> str:
        return f"az://{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        return self.server.environment()

    def environment_at(self, endpoint: str) -> dict[str, str]:
        """Variables that lead to the server through a proxy."""
        return {
            **self.environment,
            "AZURE_STORAGE_CONNECTION_STRING": self.server.connection_string(endpoint),
        }

    def keys(self, prefix: str = "") -> list[str]:
        """Every key, as the server has it."""
        return [blob.name for blob in self.client.list_blobs(name_starts_with=prefix or None)]

    def uploads(self) -> list[str]:
        """Keys of blobs that are nothing but staged blocks, as the server has them."""
        found = []
        for blob in self.client.list_blobs(include=["uncommittedblobs"]):
            _, staged = self.client.get_blob_client(blob.name).get_block_list("all")
            found += [blob.name] if staged else []
        return found

    def start_upload(self, key: str) -> None:
        """Stage a block as another tool would."""
        self.client.get_blob_client(key).stage_block("another", b"data")

    def commit(self, key: str) -> None:
        """Make an object of what :meth:`start_upload` staged."""
        self.client.get_blob_client(key).commit_block_list([BlobBlock("another")])

    def read(self, key: str) -> bytes:
        data: bytes = self.client.download_blob(key).readall()
        return data

    def write(self, key: str, data: bytes) -> None:
        self.client.upload_blob(key, data, overwrite=True)

    def delete(self, key: str) -> None:
        self.client.delete_blob(key)

    def bucket_names(self) -> list[str]:
        """All containers of the server."""
        with self.server.client() as client:
            return [container.name for container in client.list_containers()]

    def remove(self) -> None:
        """Delete the container and all in it."""
        try:
            self.client.delete_container()
        except ResourceNotFoundError:
            return


class SecureAzurite(Azurite):
    """Over TLS, and with the tokens that azure-identity gets."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.certificate, key, chain = (folder / name for name in ("authority.pem", "key.pem", "chain.pem"))
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.certificate)
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(key)
        issued.cert_chain_pems[0].write_to_path(chain)
        self.flags = [f"--cert={chain}", f"--key={key}", "--oauth=basic"]

    @property
    def endpoint(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def client(self, **options: Any):  # type: ignore[no-untyped-def]
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(
            self.connection_string(self.endpoint),
            retry_total=0,
            connection_verify=str(self.certificate),
            **options,
        )


class Token:
    """A credential as azure-identity has them; the emulator checks all of its token but the signature."""

    def __init__(self, audience: str = "https://storage.azure.com") -> None:
        self.audience = audience

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        now = int(time.time())
        claims = {"aud": self.audience, "iss": "https://sts.windows.net/x/", "nbf": now - 60, "iat": now - 60}
        parts = [{"typ": "JWT", "alg": "RS256"}, {**claims, "exp": now + 3600}, "signature"]
        encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        return AccessToken(".".join(encoded), now + 3600)


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    with Azurite() as server:
        yield server


@pytest.fixture
def azure_bucket(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureBucket]:
    """A new container on Azurite; the environment's Azure variables lead to it."""
    name = f"test-{next(_numbers)}"
    azurite.make_bucket(name)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in azurite.environment().items():
        monkeypatch.setenv(variable, value)
    # the server closes connections that were idle for a while
    retries = LinearRetry(backoff=1, retry_total=3, random_jitter_range=0)
    with azurite.client(retry_policy=retries) as service, service.get_container_client(name) as client:
        bucket = AzureBucket(azurite, name, client)
        yield bucket
        bucket.remove()
