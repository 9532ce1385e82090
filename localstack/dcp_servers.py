"""Real object-store servers on this machine, without Docker: for the tests, the demo and by hand.

::

    python localstack/dcp_servers.py install
    python localstack/dcp_servers.py run seaweedfs --bucket demo

One module a cloud has its servers (``dcp_s3_servers.py``, ``dcp_azure_servers.py``); ``dcp_server.py``
runs any of them.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
from collections.abc import Iterator, Sequence

from dcp_azure_servers import Azurite
from dcp_gcs_servers import GCSServer
from dcp_s3_servers import LocalStack, SeaweedFS
from dcp_server import Server, install

SERVERS: dict[str, type[Server]] = {
    server.name: server for server in (SeaweedFS, LocalStack, GCSServer, Azurite)
}


@contextlib.contextmanager
def running(name: str, buckets: Sequence[str]) -> Iterator[Server]:
    """A started server with buckets."""
    with SERVERS[name]() as server:
        for bucket in buckets:
            server.make_bucket(bucket)
        yield server


def main() -> None:
    parser = argparse.ArgumentParser(description="Object-store servers on this machine, without Docker.")
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
            print(f"export {name}={shlex.quote(value)}")
        print("# Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
