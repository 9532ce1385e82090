"""Checkpoints that were saved to S3 and are loaded over HTTP, from real servers."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
import torch.distributed.checkpoint as dcp
import trustme
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from dcp_http_servers import Asked, WebServer
from dcp_s3_servers import SeaweedFS
from support import scenarios
from support.ranks import Ranks
from support.web import Folder
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointReplacedError,
    CloudCheckpointError,
    CloudStorageReader,
    CloudStorageWriter,
    ConfigurationError,
    InvalidLocationError,
    ObjectNotFoundError,
    PermissionDeniedError,
    TransientError,
    UnsupportedError,
)
from dcp_http import HTTPOptions, HTTPStorageReader

World = Callable[[int], Ranks]
MIB = 1 << 20
SECRET = "hush-9f3"


def state() -> dict[str, Any]:
    """6 MiB and two small things: several requests of 1 MiB."""
    return {"large": scenarios.noise(1, (6, 1024, 256)), "small": scenarios.noise(2, (10,)), "step": 4}


@pytest.fixture(scope="module")
def saved(seaweedfs: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, saved to S3 and copied object by object."""
    folder = Folder(tmp_path_factory.mktemp("saved"))
    seaweedfs.make_bucket("http-tests")
    with contextlib.closing(seaweedfs.client()) as client:
        bucket = Bucket(seaweedfs, "http-tests", client)
        writer = CloudStorageWriter(
            f"{bucket.url}/run",
            endpoint_url=seaweedfs.endpoint,
            access_key_id=seaweedfs.access_key,
            secret_access_key=seaweedfs.secret_key,
        )
        dcp.save(state(), storage_writer=writer)
        folder.copy(bucket, "run/")
        bucket.remove()
    return folder.path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Folder:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return Folder(tmp_path)


@pytest.fixture
def server(folder: Folder) -> Iterator[WebServer]:
    with WebServer(folder.path) as server:
        yield server


def load(url: str, **options: Any) -> None:
    target = scenarios.blanked(state())
    dcp.load(target, storage_reader=CloudStorageReader(url, **options))
    scenarios.assert_same(target, state())


def error_of(kind: type[BaseException], url: str, *words: str, **options: Any) -> CloudCheckpointError:
    """The error that a load gives; its text must hold ``words``, and nothing may hold the secret."""
    with pytest.raises(CheckpointException) as caught:
        load(url, **options)
    error: CloudCheckpointError = caught.value.failures[0][0]
    assert type(error) is kind, error
    for word in words:
        assert word in str(error), error
    assert SECRET not in "".join(traceback.format_exception(error)) + repr(error)
    return error


def test_four_to_four_two_and_one(seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path) -> None:
    worlds(4).run(scenarios.save_full, f"{seaweedfs_bucket.url}/run/a", 7)
    Folder(tmp_path).copy(seaweedfs_bucket, "run/")
    with WebServer(tmp_path) as server:
        for size in (4, 2, 1):
            worlds(size).run(scenarios.load_full, f"{server.url}/run/a", 7, {"max_request_size": MIB})
        assert {asked.status for asked in server.seen} == {200, 206}


def test_only_what_is_needed(server: WebServer) -> None:
    """40 bytes of 6 MiB: the server sends no more than a request's worth around them."""
    target = {"small": torch.zeros(10)}
    dcp.load(target, storage_reader=CloudStorageReader(f"{server.url}/run"))
    scenarios.assert_same(target, {"small": state()["small"]})
    assert sum(asked.sent for asked in server.seen if "distcp" in asked.path) < 64 * 1024


@pytest.mark.parametrize("prefix", ["with space", "ümläut/日本", "100%", "a%20b+c", "q?x=1&y#z", "'quotes\""])
def test_odd_prefixes(seaweedfs_bucket: Bucket, tmp_path: Path, prefix: str) -> None:
    """In a URL of the web a key is percent-encoded; below a reader's URL, a name is as it is."""
    dcp.save(state(), storage_writer=CloudStorageWriter(f"{seaweedfs_bucket.url}/{prefix}"))
    Folder(tmp_path).copy(seaweedfs_bucket, "")
    with WebServer(tmp_path) as server:
        load(f"{server.url}/{quote(prefix)}")
        reader = CloudStorageReader(f"{server.url}/")
        target = scenarios.blanked(state())
        dcp.load(target, checkpoint_id=prefix, storage_reader=reader)
        scenarios.assert_same(target, state())
        assert reader.checkpoint_id == f"{server.url}/{quote(prefix, safe='/~')}"


def test_server_without_ranges(server: WebServer) -> None:
    server.ranges = False
    load(f"{server.url}/run")
    error = error_of(
        UnsupportedError, f"{server.url}/run", "cannot send ranges", "whole_object_limit=1048576",
        whole_object_limit=MIB, max_request_size=MIB,
    )  # fmt: skip
    assert str(error.key).endswith(".distcp")


def test_server_without_ranges_or_lengths(server: WebServer) -> None:
    server.ranges = server.lengths = False
    error_of(UnsupportedError, f"{server.url}/run", "does not say how large")


def test_server_without_etags(server: WebServer) -> None:
    server.etags = False
    load(f"{server.url}/run", max_request_size=MIB)


def test_wrong_range(server: WebServer) -> None:
    server.wrong_range = 1
    error_of(UnsupportedError, f"{server.url}/run", "another range")


def test_encoded_answers(server: WebServer) -> None:
    server.encode = True
    error_of(UnsupportedError, f"{server.url}/run", "'gzip'", "switch that off")


def test_token(server: WebServer) -> None:
    server.token = SECRET
    load(f"{server.url}/run", token=SECRET)
    load(f"{server.url}/run", headers={"Authorization": f"Bearer {SECRET}"})
    error = error_of(PermissionDeniedError, f"{server.url}/run", "401", "token=")
    assert (error.bucket, error.key) == (server.host, "run/.metadata")
    error_of(PermissionDeniedError, f"{server.url}/run", "403", token=SECRET + "x")


def test_query(server: WebServer) -> None:
    """A signature in the URL, or as an option, goes with every request, byte for byte, and is never shown."""
    server.query = f"sig={SECRET}%2Bx%3D&e=1"
    load(f"{server.url}/run?{server.query}")
    load(f"{server.url}/run", query=server.query)
    load(f"{server.url}/run?sig={SECRET}%2Bx%3D", query="?e=1")
    reader = HTTPStorageReader(f"{server.url}/?{server.query}")
    target = scenarios.blanked(state())
    dcp.load(target, checkpoint_id="run", storage_reader=reader)
    scenarios.assert_same(target, state())
    assert reader.checkpoint_id == f"{server.url}/run"
    assert SECRET not in repr(reader) + repr(reader.checkpoint.location) + reader.checkpoint_id
    error_of(PermissionDeniedError, f"{server.url}/run?sig={SECRET}", "403", "signature", "expired")


def test_another_query_for_another_checkpoint(server: WebServer) -> None:
    reader = HTTPStorageReader(f"{server.url}/run?sig=old")
    server.query = "sig=new"
    target = scenarios.blanked(state())
    dcp.load(target, checkpoint_id=f"{server.url}/run?sig=new", storage_reader=reader)
    scenarios.assert_same(target, state())


def test_secrets_stay_secret(server: WebServer) -> None:
    options = HTTPOptions(
        headers={"X-Key": SECRET}, token=SECRET, query=SECRET, urls={"a": f"http://h/{SECRET}"}
    )
    assert SECRET not in repr(options)
    for url in (f"http://user:{SECRET}@host/x", f"http:/host/x?{SECRET}", f"http://host:bad/x?{SECRET}",
                f"http:///x?{SECRET}", f"http://host/x?{SECRET} y"):  # fmt: skip
        with pytest.raises(InvalidLocationError) as caught:
            CloudStorageReader(url)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
    # what is no HTTP at all: aiohttp's own error would show the URL
    with FaultProxy(server.url) as proxy:
        proxy.add(Fault("lose_response", times=99))
        error_of(TransientError, f"{proxy.endpoint}/run?{SECRET}", "broke", retry_timeout=0.5)


@pytest.mark.parametrize(
    "url", ["http:/host/key", "http://", "http:///key", "http://host:port/x", "http://a b/x", "http://h/x#y",
            "http://u@h/x", "http://h/%ff", "http://h:0/x", "http://h/a b?c d", "http://" + "h" * 70 + "/x",
            "http://ü.de/x", "http://[::1/x", "http://h%41/x"],
)  # fmt: skip
def test_malformed_url(url: str) -> None:
    for kind in (CloudStorageReader, HTTPStorageReader, CloudStorageWriter):
        with pytest.raises(InvalidLocationError):
            kind(url)


@pytest.mark.parametrize(
    "options",
    [{"token": "a\nb"}, {"token": "t", "headers": {"authorization": "x"}}, {"headers": {"Range": "bytes=0-"}},
     {"headers": {"X": "a\r\nY: b"}}, {"headers": {"a b": "c"}}, {"query": "a b"}, {"query": "a#b"},
     {"max_redirects": -1}, {"stall_timeout": 0}, {"urls": {"x": "ftp://h/x"}},
     {"urls": {"x": "http://[h/x"}}, {"urls": {"x": "http://h/a b"}}],
)  # fmt: skip
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"|".join((*options, "query", "positive", "negative"))):
        HTTPStorageReader("http://host/x", **options)


def test_nothing_there(server: WebServer) -> None:
    error_of(
        CheckpointNotFoundError, f"{server.url}/elsewhere?{SECRET}", f"{server.url}/elsewhere",
        "no commit record is there", "cannot list",
    )  # fmt: skip


def test_missing_data_object(server: WebServer, folder: Folder) -> None:
    (key,) = (key for key in folder.keys() if key.endswith(".distcp"))
    (folder.path / key).unlink()
    error_of(CheckpointCorruptError, f"{server.url}/run", key, "does not exist")


def test_no_server() -> None:
    with WebServer(Path()) as gone:
        url = gone.url
    error_of(TransientError, f"{url}/run", "could not be reached", retry_timeout=0.5)


def test_checkpoint_replaced_during_a_load(
    server: WebServer, folder: Folder, seaweedfs_bucket: Bucket
) -> None:
    class Slow(dcp.DefaultLoadPlanner):
        def finish_plan(self, new_plan: dcp.LoadPlan) -> dcp.LoadPlan:
            dcp.save(state(), storage_writer=CloudStorageWriter(f"{seaweedfs_bucket.url}/run"))
            for key in folder.keys():
                (folder.path / key).unlink()
            folder.copy(seaweedfs_bucket, "run/")
            return super().finish_plan(new_plan)

    with pytest.raises(CheckpointException) as caught:
        dcp.load(
            scenarios.blanked(state()), storage_reader=CloudStorageReader(f"{server.url}/run"), planner=Slow()
        )
    assert isinstance(caught.value.failures[0][0], CheckpointReplacedError)


def test_object_replaced_during_a_load(server: WebServer, folder: Folder) -> None:
    """The same bytes under another ETag: nothing tells that they still fit, so they are not mixed."""

    def replace(asked: Asked) -> None:
        if asked.path.endswith(".distcp") and sum(".distcp" in seen.path for seen in server.seen) == 3:
            key = asked.path.lstrip("/")
            folder.write(key, folder.read(key))

    server.before = replace
    error_of(CheckpointReplacedError, f"{server.url}/run", max_request_size=MIB, concurrency=1)


@pytest.mark.parametrize("times", [1, 5])
def test_cut_answers(server: WebServer, times: int) -> None:
    server.cuts, server.cut_after = times, 700_000
    load(f"{server.url}/run", max_request_size=2 * MIB)
    assert server.cuts == 0
    server.cuts, server.cut_after = 999, 0
    error_of(TransientError, f"{server.url}/run", retry_timeout=0.5)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", path="distcp", times=3),
        Fault("error", path="metadata", status=500, times=2),
        Fault("reset_response", path="distcp", after=300_000, times=2),
        Fault("flip_response", path="distcp", after=300_000),
        Fault("stall", path="distcp", after=300_000, seconds=20),
        Fault("lose_response", path="distcp", times=2),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_tried_again(server: WebServer, fault: Fault) -> None:
    with FaultProxy(server.url) as proxy:
        proxy.add(fault)
        load(f"{proxy.endpoint}/run", stall_timeout=1.0)
        assert fault.hits > 0


def test_redirect_to_another_host(server: WebServer, folder: Folder, tmp_path: Path) -> None:
    """Followed; but token, headers and query stay with the host they were given for."""
    with WebServer(tmp_path) as front:
        front.redirects = {"/latest/": f"{server.url}/run/"}
        front.token = "not looked at: redirects come first"
        load(f"{front.url}/latest?{SECRET}", token=SECRET, headers={"X-Key": SECRET}, max_request_size=MIB)
        assert all(asked.headers["Authorization"] == f"Bearer {SECRET}" for asked in front.seen)
        assert all(asked.query == SECRET for asked in front.seen)
        assert len(server.seen) == len(front.seen) > 6
        for asked in server.seen:
            assert SECRET not in repr(asked)
            assert "Authorization" not in asked.headers
        error_of(ConfigurationError, f"{front.url}/latest", "max_redirects", "127.0.0.1", max_redirects=0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_on_the_same_host(server: WebServer, status: int) -> None:
    server.redirects, server.redirect_status = {"/latest/": "/run/"}, status
    server.token = SECRET
    load(f"{server.url}/latest", token=SECRET)


def test_redirects_that_lead_nowhere(server: WebServer) -> None:
    server.redirects = {"/a/": "/b/", "/b/": "/a/", "/c/": "ftp://host/", "/d/": f"http://[{SECRET}/"}
    error_of(ConfigurationError, f"{server.url}/a", "redirected more than 5 times")
    error_of(ConfigurationError, f"{server.url}/c", "ftp://", "refused")
    error_of(ConfigurationError, f"{server.url}/d", "not a URL")


@pytest.fixture
def tls_server(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WebServer, str]]:
    """A server with a certificate of an authority that nobody knows, and that authority's file."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    bundle = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(bundle)
    with WebServer(folder.path, context) as server:
        yield server, str(bundle)


def test_unknown_certificate(tls_server: tuple[WebServer, str]) -> None:
    server, bundle = tls_server
    error_of(ConfigurationError, f"{server.url}/run", "certificate", "ca_bundle")
    load(f"{server.url}/run", ca_bundle=bundle)
    load(f"{server.url}/run", verify_tls=False)
    # known, but of another host
    other = f"https://127.0.0.1:{server.port}/run"
    error_of(ConfigurationError, other, "certificate", ca_bundle=bundle)
    error_of(ConfigurationError, other, "ca_bundle", "'/not/there'", ca_bundle="/not/there")


def test_redirect_out_of_tls(tls_server: tuple[WebServer, str], server: WebServer) -> None:
    secure, bundle = tls_server
    secure.redirects = {"/run/": f"{server.url}/run/"}
    error_of(ConfigurationError, f"{secure.url}/run", "from https:// to http://", ca_bundle=bundle)
    assert server.seen == []


def test_http_asked_of_a_tls_port(tls_server: tuple[WebServer, str]) -> None:
    error_of(TransientError, f"http://localhost:{tls_server[0].port}/run?{SECRET}", retry_timeout=0.5)


def test_proxy_of_the_environment(server: WebServer, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy is asked for whole URLs; here it has their objects itself."""
    shutil.copytree(folder.path / "run", folder.path / "http:" / "models.invalid" / "run")
    monkeypatch.setenv("http_proxy", server.url)
    load(f"http://models.invalid/run?{SECRET}", token=SECRET)
    assert {asked.headers["Host"] for asked in server.seen} == {"models.invalid"}
    monkeypatch.setenv("no_proxy", "models.invalid")
    error_of(TransientError, "http://models.invalid/run", "could not be resolved", retry_timeout=0.5)


def test_netrc_is_not_asked(server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    server.token = SECRET
    load(f"{server.url}/run", token=SECRET)


def test_presigned_urls_of_s3(seaweedfs_bucket: Bucket) -> None:
    """Signed for GET alone, one object each, by a store that checks signatures."""
    dcp.save(state(), storage_writer=CloudStorageWriter(f"{seaweedfs_bucket.url}/run"))
    urls = {
        key.removeprefix("run/"): seaweedfs_bucket.client.generate_presigned_url(
            "get_object", Params={"Bucket": seaweedfs_bucket.name, "Key": key}, ExpiresIn=600
        )
        for key in seaweedfs_bucket.keys("run/")
    }
    base = f"{seaweedfs_bucket.server.endpoint}/{seaweedfs_bucket.name}/run"
    load(base, urls=urls, max_request_size=MIB)
    store = HTTPStorageReader(base, urls=urls).checkpoint.store()
    assert store.head("run/.metadata").size == len(seaweedfs_bucket.read("run/.metadata"))
    store.close()
    forged = {name: url.replace("Signature=", "Signature=0") for name, url in urls.items()}
    error_of(PermissionDeniedError, base, "403", urls=forged)
    error_of(PermissionDeniedError, base, "403")  # no signature, no access
    expired = {name: re.sub(r"Expires=\d+", "Expires=1000000000", url) for name, url in urls.items()}
    error_of(PermissionDeniedError, base, "expired", urls=expired)
    del urls[".metadata"]
    error_of(CheckpointNotFoundError, base, urls=urls)


def test_straight_from_a_bucket(localstack_bucket: Bucket) -> None:
    """A bucket that anyone may read is a web server too."""
    dcp.save(state(), storage_writer=CloudStorageWriter(f"{localstack_bucket.url}/run"))
    url = f"{localstack_bucket.server.endpoint}/{localstack_bucket.name}/run"
    load(url, max_request_size=MIB)
    error = error_of(CheckpointNotFoundError, f"{url}-not")
    assert isinstance(error.__cause__, ObjectNotFoundError)
    assert error.__cause__.request_id


def test_statuses_that_pass(server: WebServer) -> None:
    server.statuses = [429, 408, 425, 500, 502]
    load(f"{server.url}/run")
    assert server.statuses == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (304, ConfigurationError),
        (400, ConfigurationError),
        (402, ConfigurationError),
        (405, UnsupportedError),
        (407, ConfigurationError),
        (410, CheckpointNotFoundError),
        (501, UnsupportedError),
        (599, TransientError),
    ],
)
def test_statuses_that_stay(server: WebServer, status: int, kind: type[CloudCheckpointError]) -> None:
    server.statuses = [status] * 9
    error_of(kind, f"{server.url}/run?{SECRET}", retry_timeout=0.5)


def test_writers_refuse_at_once(server: WebServer, seaweedfs_bucket: Bucket) -> None:
    for url in (f"{server.url}/run?{SECRET}", "https://host/run"):
        with pytest.raises(UnsupportedError, match="read-only") as caught:
            CloudStorageWriter(url)
        assert SECRET not in str(caught.value)
    writer = CloudStorageWriter(f"{seaweedfs_bucket.url}/other")
    with pytest.raises(UnsupportedError, match="read-only"):
        dcp.save(state(), checkpoint_id=f"{server.url}/run", storage_writer=writer)
    assert server.seen == []
    assert seaweedfs_bucket.keys("other") == []


def script(code: str, *arguments: str) -> str:
    """Run ``code``, with every warning an error; nothing may be said on stderr."""
    command = [
        sys.executable,
        "-X",
        "dev",
        "-W",
        "error",
        "-W",
        "ignore::UserWarning",
        "-c",
        code,
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


LOAD = """
import logging, os, sys, torch
# with -X dev, asyncio warns of callbacks that took long, as all do on a busy machine
logging.getLogger("asyncio").setLevel(logging.ERROR)
import torch.distributed.checkpoint as dcp
from dcp_core import CloudStorageReader
def load(reader):
    target = {"small": torch.zeros(10)}
    dcp.load(target, storage_reader=reader)
    return int(target["small"].view(torch.uint8).sum())
reader = CloudStorageReader(sys.argv[1])
"""


def test_an_interpreter_ends_without_close(server: WebServer) -> None:
    script(LOAD + "print(load(reader))", f"{server.url}/run")
    script(LOAD + "print(load(reader)); del reader; import gc; gc.collect()", f"{server.url}/run")


def test_a_forked_child_opens_its_own(server: WebServer) -> None:
    """The child loads, frees what it inherited and ends; the parent's kept connection works on."""
    code = """
import warnings
first = load(reader)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    child = os.fork()
if not child:
    second = load(reader)
    reader.close()
    sys.exit(0 if second == first else 1)
assert os.waitpid(child, 0)[1] == 0
print(first == load(reader))
"""
    assert script(LOAD + code, f"{server.url}/run").strip() == "True"
    assert len(server.connections) == 2


def test_inspect(server: WebServer) -> None:
    program = str(Path(sys.executable).parent / "dcp-cloud")
    variables = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, env=variables
        )

    assert "6.0 MiB of tensors in 1 data objects" in command("inspect", f"{server.url}/run").stdout
    assert "read-only" in command("gc", f"{server.url}/run").stderr
