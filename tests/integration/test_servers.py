"""The servers that the other tests stand on: what they promise, and that nothing of them stays behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dcp_servers
import pytest
from botocore.exceptions import ClientError
from conftest import Bucket
from dcp_s3_servers import LocalStack, SeaweedFS
from dcp_server import Server, ServerError, free_ports, install

SERVERS = [SeaweedFS, LocalStack]


@pytest.fixture(params=["seaweedfs", "localstack"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """On each server of S3 in turn: what is asked here is asked with boto3."""
    found: Bucket = request.getfixturevalue(f"{request.param}_bucket")
    return found


def status_of(request: Callable[..., Any], **arguments: Any) -> int:
    """The HTTP status of a request that is refused."""
    with pytest.raises(ClientError) as caught:
        request(**arguments)
    status: int = caught.value.response["ResponseMetadata"]["HTTPStatusCode"]
    return status


def wait_until(holds: Callable[[], bool], limit: float = 20.0) -> bool:
    ends_at = time.monotonic() + limit
    while not holds() and time.monotonic() < ends_at:
        time.sleep(0.02)
    return holds()


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def traces(server: Server) -> list[Path]:
    """Every place where the server leaves something while it runs."""
    return [server.folder, *map(Path, server.leftovers())]


def named(pid: int) -> list[Path]:
    """What in the shared temporary folder has the number in its name."""
    temporary = Path("/tmp")
    found = [*temporary.glob("*"), *temporary.glob("*/*")]
    return [path for path in found if re.search(rf"\b{pid}\b", path.name)]


def test_conditional_writes(s3_bucket: Bucket) -> None:
    put = s3_bucket.client.put_object
    first = put(Bucket=s3_bucket.name, Key="k", Body=b"1", IfNoneMatch="*")
    assert status_of(put, Bucket=s3_bucket.name, Key="k", Body=b"2", IfNoneMatch="*") == 412
    second = put(Bucket=s3_bucket.name, Key="k", Body=b"3", IfMatch=first["ETag"])
    assert status_of(put, Bucket=s3_bucket.name, Key="k", Body=b"4", IfMatch=first["ETag"]) == 412
    assert s3_bucket.read("k") == b"3"
    assert second["ETag"] != first["ETag"]
    assert (
        status_of(s3_bucket.client.get_object, Bucket=s3_bucket.name, Key="k", IfMatch=first["ETag"]) == 412
    )


def test_replacing_an_absent_object_fails(s3_bucket: Bucket) -> None:
    assert status_of(
        s3_bucket.client.put_object, Bucket=s3_bucket.name, Key="none", Body=b"", IfMatch='"abc"'
    ) in (404, 412)  # fmt: skip


def test_checksums_of_parts_are_checked(s3_bucket: Bucket) -> None:
    target = {"Bucket": s3_bucket.name, "Key": "k"}
    upload = s3_bucket.client.create_multipart_upload(**target, ChecksumAlgorithm="CRC32C")["UploadId"]
    target |= {"UploadId": upload, "PartNumber": 1}
    assert (
        status_of(s3_bucket.client.upload_part, **target, Body=b"damaged", ChecksumCRC32C="AAAAAA==") == 400
    )
    # CRC32C of b"123456789", from RFC 3720's polynomial
    part = s3_bucket.client.upload_part(**target, Body=b"123456789", ChecksumCRC32C="4waSgw==")
    del target["PartNumber"]
    parts = [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumCRC32C": "4waSgw=="}]
    s3_bucket.client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})
    assert s3_bucket.read("k") == b"123456789"
    assert s3_bucket.uploads() == []


def test_unfinished_uploads_are_listed(s3_bucket: Bucket) -> None:
    upload = s3_bucket.client.create_multipart_upload(Bucket=s3_bucket.name, Key="a/k")["UploadId"]
    assert s3_bucket.uploads() == ["a/k"]
    s3_bucket.client.abort_multipart_upload(Bucket=s3_bucket.name, Key="a/k", UploadId=upload)
    assert s3_bucket.uploads() == []


def test_unknown_key_is_refused(seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for attribute in ("access_key", "secret_key"):
        with monkeypatch.context() as patch:
            patch.setattr(seaweedfs_bucket.server, attribute, "wrong")
            with contextlib.closing(seaweedfs_bucket.server.client()) as client:
                assert status_of(client.list_objects_v2, Bucket=seaweedfs_bucket.name) == 403


def test_reader_cannot_write(
    seaweedfs: SeaweedFS, seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    seaweedfs_bucket.write("k", b"data")
    monkeypatch.setattr(seaweedfs, "access_key", seaweedfs.read_only_access_key)
    monkeypatch.setattr(seaweedfs, "secret_key", seaweedfs.read_only_secret_key)
    with contextlib.closing(seaweedfs.client()) as client:
        assert client.head_object(Bucket=seaweedfs_bucket.name, Key="k")["ContentLength"] == 4
        target = {"Bucket": seaweedfs_bucket.name, "Key": "k"}
        assert status_of(client.put_object, **target, Body=b"") == 403
        assert status_of(client.create_multipart_upload, **target) == 403
        assert status_of(client.delete_object, **target) == 403
    assert seaweedfs_bucket.read("k") == b"data"


def test_making_a_bucket_again_is_no_error(bucket: Bucket) -> None:
    bucket.write("k", b"data")
    bucket.server.make_bucket(bucket.name)
    assert bucket.read("k") == b"data"


def test_only_loopback_listens(seaweedfs: SeaweedFS, localstack: LocalStack) -> None:
    for server in (seaweedfs, localstack):
        assert {address for address, _ in listening(server.pid)} == {"127.0.0.1"}


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports a process listens on, from the kernel's own tables."""
    inodes = set()
    for number in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(number).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and inode in inodes:
                address, _, port = local.partition(":")
                known = len(address) == 8
                text = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if known else f"[{address}]"
                found.add((text, int(port, 16)))
    return found


@pytest.mark.parametrize("kind", SERVERS)
def test_a_second_one_is_separate(
    kind: type[Server], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: Bucket = request.getfixturevalue(f"{kind.name}_bucket")
    first.write("k", b"data")
    # settings of the user's that are not meant for the server
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stray")
    with kind() as second:
        with contextlib.closing(second.client()) as client:
            assert client.list_buckets()["Buckets"] == []
            second.make_bucket(first.name)
            client.put_object(Bucket=first.name, Key="k", Body=b"other")
        assert not listening(second.pid) & listening(first.server.pid)
    assert first.read("k") == b"data"


@pytest.mark.parametrize("kind", SERVERS)
def test_nothing_stays_behind(kind: type[Server]) -> None:
    with kind() as server:
        pid, left = server.pid, traces(server)
        server.make_bucket(f"bucket-{pid}")
        with contextlib.closing(server.client()) as client:
            client.put_object(Bucket=f"bucket-{pid}", Key="k", Body=bytes(1 << 20))
        assert is_running(pid)
        assert left[0].exists()
    assert not is_running(pid)
    assert [path for path in left if path.exists()] == []
    assert named(pid) == []


STARTS_AND_WAITS = """
import sys, threading, time
import dcp_servers
server = dcp_servers.SERVERS[sys.argv[1]]()
# from a thread that ends: the server must not end with it
starter = threading.Thread(target=server.start)
starter.start()
starter.join()
time.sleep(0.2)
print(server.pid, server.folder, *server.leftovers(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        (SeaweedFS, signal.SIGKILL),
        (SeaweedFS, signal.SIGTERM),
        (SeaweedFS, signal.SIGINT),
        (LocalStack, signal.SIGKILL),
    ],
)
def test_gone_with_its_parent(kind: type[Server], end: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_WAITS, kind.name],
        env={**os.environ, "PYTHONPATH": str(Path(dcp_servers.__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid, *left = parent.stdout.readline().split()
        assert is_running(int(pid))
        assert Path(left[0]).exists()
        parent.send_signal(end)
    assert wait_until(lambda: not is_running(int(pid)))
    assert wait_until(lambda: not any(Path(path).exists() for path in left))


def test_gone_with_its_supervisor() -> None:
    with SeaweedFS() as server:
        pid = server.pid
        assert server._supervisor is not None
        server._supervisor.kill()
        assert wait_until(lambda: not is_running(pid))


class Broken(SeaweedFS):
    """Says why, and ends."""

    def command(self, environment: Path) -> list[str]:
        super().command(environment)
        return [sys.executable, "-c", "print('no such volume'); raise SystemExit(3)"]


class Silent(SeaweedFS):
    """Runs, but never responds."""

    start_limit = 0.5

    def command(self, environment: Path) -> list[str]:
        super().command(environment)
        return [sys.executable, "-c", "import time; print('warming up', flush=True); time.sleep(60)"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Broken, "seaweedfs ended with 3:\nno such volume"),
        (Silent, r"seaweedfs was not ready in 0.5 s:\nwarming up"),
    ],
)
def test_start_that_fails_shows_the_log(kind: type[Server], message: str) -> None:
    server = kind()
    with pytest.raises(ServerError, match=message):
        server.start()
    with pytest.raises(AssertionError, match="not running"):
        server.folder  # noqa: B018


def test_command_that_does_not_exist() -> None:
    class Absent(SeaweedFS):
        def command(self, environment: Path) -> list[str]:
            super().command(environment)
            return [str(environment / "no-such-program")]

    with pytest.raises(ServerError, match="no-such-program"):
        Absent().start()


class Tiny(SeaweedFS):
    """A package made here, so that installing it is quick and asks no registry."""

    name = "tiny"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Server]:
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    information = "tiny-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{information}/RECORD", "")
    monkeypatch.setattr(Tiny, "requirements", (str(wheel),))
    monkeypatch.setenv("DCP_CLOUD_SERVERS", str(tmp_path / "servers"))
    return Tiny


def test_installed_once_by_two_at_once(tiny: type[Server], capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(install, [tiny, tiny])
    assert first == second
    assert list(first.glob("lib/*/site-packages/tiny.py"))
    assert capsys.readouterr().err.count("installing tiny") == 1


def test_interrupted_install_is_done_again(tiny: type[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = tiny.requirements
    monkeypatch.setattr(tiny, "requirements", ("./no-such-package.whl",))
    with pytest.raises(ServerError, match="no-such-package"):
        install(tiny)
    monkeypatch.setattr(tiny, "requirements", requirements)
    folder = install(tiny)
    assert list(folder.glob("lib/*/site-packages/tiny.py"))
    # what it was made with went away
    (folder / "bin" / "python").unlink()
    assert (install(tiny) / "bin" / "python").exists()


def test_free_ports_are_pairs() -> None:
    ports = free_ports(5, offset=10_000)
    assert len({*ports, *(port + 10_000 for port in ports)}) == 10
    assert max(ports) + 10_000 < 65_536


def test_command_line_prints_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    command = [sys.executable, dcp_servers.__file__, "run", "seaweedfs", "--bucket", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdout is not None
        lines = list(iter(process.stdout.readline, "# Ctrl-C ends it\n"))
        exported = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines)
        try:
            listed = subprocess.run(
                [sys.executable, "-c", LISTS_BUCKETS],
                env={**os.environ, **exported},
                capture_output=True,
                text=True,
                check=True,
            )
            assert listed.stdout.split() == ["demo"]
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 0


LISTS_BUCKETS = """
import boto3
print(*(bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]))
"""
