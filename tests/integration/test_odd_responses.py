"""Responses that lack what each cloud's API promises: one error of ours, which says which request got them.

The usual cause is another endpoint than the store's, such as a console's port or a login page, or a proxy
that strips headers. A real server stands behind the proxy that makes these.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support import scenarios
from support.altering_proxy import (
    PAGE,
    Alter,
    AlteringProxy,
    Asked,
    Response,
    emptied,
    page,
    unchanged,
    without,
)
from torch.distributed.checkpoint.api import CheckpointException

from dcp_azure import AzureOptions
from dcp_azure.store import AzureStore
from dcp_core import (
    CheckpointCorruptError,
    CloudCheckpointError,
    CloudStorageReader,
    CloudStorageWriter,
    UnsupportedError,
)
from dcp_core.seam.store import ObjectStore, Part, Upload
from dcp_core.testing import body_of, read_all
from dcp_gcs import GCSOptions
from dcp_gcs.store import GCSStore
from dcp_s3 import S3Options
from dcp_s3.store import S3Store

#: The header with an object's version, and the one by which a store names a request.
HEADERS = {
    "seaweedfs": ("ETag", "x-amz-request-id"),
    "gcs": ("x-goog-generation", "x-guploader-uploadid"),
    "azure": ("ETag", "x-ms-request-id"),
}
STATE = {"weight": torch.arange(1000.0), "step": 3}


@pytest.fixture(params=list(HEADERS))
def cloud(request: pytest.FixtureRequest) -> str:
    """A server of each kind of API."""
    name: str = request.param
    return name


@pytest.fixture
def bucket(request: pytest.FixtureRequest, cloud: str) -> Any:
    return request.getfixturevalue(f"{cloud}_bucket")


@pytest.fixture
def altered(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[AlteringProxy]:
    """The proxy before the bucket's server; the environment's variables lead to it."""
    with AlteringProxy(bucket.server.endpoint) as proxy:
        for variable, value in bucket.environment_at(proxy.endpoint).items():
            monkeypatch.setenv(variable, value)
        yield proxy


@pytest.fixture
def store(cloud: str, bucket: Any, altered: AlteringProxy) -> Iterator[ObjectStore]:
    opened: ObjectStore
    if cloud == "gcs":
        opened = GCSStore(bucket.name, GCSOptions())
    elif cloud == "azure":
        opened = AzureStore(bucket.name, AzureOptions())
    else:
        opened = S3Store(bucket.name, S3Options())
    with contextlib.closing(opened):
        yield opened


def save(url: str) -> None:
    dcp.save(dict(STATE), storage_writer=CloudStorageWriter(url))


def load(url: str) -> None:
    target = scenarios.blanked(STATE)
    dcp.load(target, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(target, STATE)


def refused(
    work: Callable[[], object], *words: str, kind: type[CloudCheckpointError] = UnsupportedError
) -> None:
    """``work`` ends in an error of ``kind``, on every rank where it is torch that runs it."""
    with pytest.raises((CloudCheckpointError, CheckpointException)) as caught:
        work()
    error = caught.value
    if isinstance(error, CheckpointException):
        error = error.failures[0][0]
    assert type(error) is kind, repr(error)
    for word in words:
        assert word in str(error), str(error)


def read(store: ObjectStore, key: str, start: int, stop: int) -> bytes:
    with store.read_range(key, start, stop) as reader:
        return read_all(reader, stop - start)


def test_a_version_is_needed(cloud: str, bucket: Any, store: ObjectStore, altered: AlteringProxy) -> None:
    """It pins what is read and makes the commit conditional: to do without would mix two checkpoints."""
    save(f"{bucket.url}/run")
    bucket.write("key", b"data")
    upload = store.start_upload("large")
    version, _ = HEADERS[cloud]
    altered.alter = without(version, "ETag")
    for work in (
        lambda: store.head("key"),
        lambda: store.get("key"),
        lambda: read(store, "key", 0, 4),
        lambda: store.put("key", body_of(b"data")),
    ):
        refused(work, f"has no {version.title()} header", "changes responses", bucket.name, "'key'")
    if cloud != "azure":  # where the client names the blocks
        refused(lambda: store.put_part(upload, 1, body_of(b"part")), "has no Etag header", "'large'")
    refused(
        lambda: load(f"{bucket.url}/run"), "GetObject" if cloud != "azure" else "Get Blob", "run/.metadata"
    )
    refused(lambda: save(f"{bucket.url}/run"), "run/.metadata")
    altered.alter = unchanged
    load(f"{bucket.url}/run")


def test_the_time_of_a_change_is_not_needed(bucket: Any, store: ObjectStore, altered: AlteringProxy) -> None:
    altered.alter = without("Last-Modified")
    save(f"{bucket.url}/run")
    save(f"{bucket.url}/run")
    load(f"{bucket.url}/run")
    assert store.head("run/.metadata").modified is None
    assert len(bucket.keys("run/")) == 2


def test_a_web_page_is_no_object(bucket: Any, store: ObjectStore, altered: AlteringProxy) -> None:
    """With status 200, whatever is asked for."""
    save(f"{bucket.url}/run")
    held = {key: bucket.read(key) for key in bucket.keys()}
    upload = store.start_upload("large")
    altered.alter = page
    for work in (
        lambda: store.head("key"),
        lambda: store.get("key"),
        lambda: read(store, "key", 0, 4),
        lambda: store.put("key", body_of(b"data")),
        lambda: store.finish_upload(upload, [Part(1, 4, "tag", 0)]),
        lambda: list(store.list("run/")),
        lambda: list(store.list_uploads("run/")),
        lambda: load(f"{bucket.url}/run"),
        lambda: save(f"{bucket.url}/run"),
    ):
        refused(work)
    altered.alter = unchanged
    assert {key: bucket.read(key) for key in held} == held
    load(f"{bucket.url}/run")


def test_a_web_page_with_the_headers_of_an_object(
    cloud: str, bucket: Any, store: ObjectStore, altered: AlteringProxy
) -> None:
    """A web server's login page has an ETag of its own; what it lacks is the id of a store's request."""
    save(f"{bucket.url}/run")
    version, request_id = HEADERS[cloud]

    def alter(asked: Asked, response: Response) -> Response:
        kept = without(request_id)(asked, response).headers
        if asked.method == "HEAD":
            return Response(200, {**kept, version: '"7"', "Content-Type": "text/html"}, b"")
        return Response(200, {**kept, version: '"7"', "Content-Type": "text/html"}, PAGE)

    altered.alter = alter
    for work in (
        lambda: store.head("run/.metadata"),
        lambda: store.get("run/.metadata"),
        lambda: read(store, "run/.metadata", 0, 4),
        lambda: load(f"{bucket.url}/run"),
    ):
        refused(work, "is a web page", "run/.metadata")
    refused(lambda: store.put("run/.metadata", body_of(b"data")), "run/.metadata")


def test_an_object_may_be_of_the_type_of_a_page(
    bucket: Any, store: ObjectStore, altered: AlteringProxy
) -> None:
    """The store then names the request."""
    bucket.write("key", b"<p>data</p>")

    def alter(asked: Asked, response: Response) -> Response:
        named = {name: "1" for _, name in HEADERS.values()}
        return replace(response, headers={**response.headers, **named, "Content-Type": "text/html"})

    altered.alter = alter
    assert store.get("key")[0] == b"<p>data</p>"
    assert read(store, "key", 3, 7) == b"data"


def test_an_empty_body_is_no_record(bucket: Any, altered: AlteringProxy) -> None:
    save(f"{bucket.url}/run")
    altered.alter = emptied
    refused(lambda: load(f"{bucket.url}/run"), "run/.metadata", kind=CheckpointCorruptError)
    altered.alter = unchanged
    load(f"{bucket.url}/run")


def said(content_range: str) -> Alter:
    """Responses to requests for a range that claim another one."""

    def alter(_: Asked, response: Response) -> Response:
        if response.status != 206:
            return response
        kept = {name: value for name, value in response.headers.items() if name.lower() != "content-range"}
        return replace(response, headers={**kept, "Content-Range": content_range})

    return alter


@pytest.mark.parametrize(
    "content_range", ["bytes 0-1/4", "bytes 1-3/4", "bytes 1-2", "nonsense", "bytes 1-2/*"]
)
def test_another_range_than_the_one_asked_for(
    bucket: Any, store: ObjectStore, altered: AlteringProxy, content_range: str
) -> None:
    """The bytes are placed by it: where it cannot be trusted, none are."""
    bucket.write("key", b"0123")
    assert read(store, "key", 1, 3) == b"12"
    altered.alter = said(content_range)
    refused(lambda: read(store, "key", 1, 3), "another range", repr(content_range), "'key'")
    altered.alter = said("bytes 1-2/4")
    assert read(store, "key", 1, 3) == b"12"


def test_a_range_of_another_length(bucket: Any, store: ObjectStore, altered: AlteringProxy) -> None:
    bucket.write("key", b"0123")
    for body in (b"1", b"123"):
        altered.alter = lambda _, response, body=body: replace(response, body=body)
        refused(lambda: read(store, "key", 1, 3), "another range", "'key'")


def test_a_start_without_an_upload(cloud: str, store: ObjectStore, altered: AlteringProxy) -> None:
    if cloud == "azure":
        pytest.skip("Azure's uploads are named by the client")
    altered.alter = substituted(rb"<UploadId>.*?</UploadId>", b"")
    refused(lambda: store.start_upload("key"), "has no UploadId", "'key'")


def substituted(pattern: bytes, by: bytes) -> Alter:
    """Bodies in which ``pattern`` is replaced; one that lacks it fails the test."""

    def alter(_: Asked, response: Response) -> Response:
        body, count = re.subn(pattern, by, response.body, flags=re.DOTALL)
        assert count, response.body
        return replace(response, body=body)

    return alter


#: Elements of an entry in a list of objects.
ELEMENTS = {
    "seaweedfs": [rb"<Key>.*?</Key>", rb"<Size>.*?</Size>", rb"<ETag>.*?</ETag>"],
    "gcs": [rb'"name": ?"run[^"]*",?', rb'"size": ?"[^"]*",?', rb'"generation": ?"[^"]*",?'],
    "azure": [rb"<Content-Length>.*?</Content-Length>", rb"<Etag>.*?</Etag>"],
}


def test_a_list_that_lacks_what_it_promises(
    cloud: str, bucket: Any, store: ObjectStore, altered: AlteringProxy
) -> None:
    bucket.write("run/key", b"data")
    for element in ELEMENTS[cloud]:
        altered.alter = _without_element(cloud, element)
        refused(lambda: list(store.list("run/")), bucket.name, "run/")
    altered.alter = unchanged
    assert [(info.key, info.size) for info in store.list("run/")] == [("run/key", 4)]


@pytest.mark.parametrize("element", ["<Key>.*?</Key>", "<Key>.*?</Key>|<EncodingType>.*?</EncodingType>"])
def test_an_entry_of_s3_s_list_without_its_key(
    seaweedfs_bucket: Any, monkeypatch: pytest.MonkeyPatch, element: str
) -> None:
    """Whether the SDK decodes keys or not; its own handler fails by a KeyError."""
    seaweedfs_bucket.write("run/key", b"data")
    with AlteringProxy(seaweedfs_bucket.server.endpoint) as proxy:
        for variable, value in seaweedfs_bucket.environment_at(proxy.endpoint).items():
            monkeypatch.setenv(variable, value)
        with contextlib.closing(S3Store(seaweedfs_bucket.name, S3Options())) as store:
            proxy.alter = substituted(element.encode(), b"")
            words = ("ListObjectsV2", "an entry of Contents has no Key", seaweedfs_bucket.name, "run/")
            refused(lambda: list(store.list("run/")), *words)
            proxy.alter = substituted(rb"<Prefix>run/[^<]*</Prefix></CommonPrefixes>", b"</CommonPrefixes>")
            seaweedfs_bucket.write("run/folder/key", b"data")
            words = ("ListObjectsV2", "an entry of CommonPrefixes has no Prefix", seaweedfs_bucket.name)
            refused(lambda: list(store.list_rolled("run/", "/")), *words)


def _without_element(cloud: str, element: bytes) -> Alter:
    if cloud != "gcs":
        return substituted(element, b"")

    def alter(_: Asked, response: Response) -> Response:
        document = json.loads(response.body)
        name = element.split(b'"')[1].decode()
        for entry in document["items"]:
            del entry[name]
        return replace(response, body=json.dumps(document).encode())

    return alter


def truncated(cloud: str, marker: str) -> Alter:
    """Pages of a list that all say they are not the last one, and that the next begins at ``marker``."""

    if cloud == "azure":
        said = f"<NextMarker>{marker}</NextMarker>"
        return substituted(rb"<NextMarker ?/>|<NextMarker>.*?</NextMarker>", said.encode())
    if cloud == "seaweedfs":
        said = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{marker}</NextContinuationToken>"
        return substituted(rb"<IsTruncated>.*?</IsTruncated>", said.encode())

    def alter(_: Asked, response: Response) -> Response:
        document = {**json.loads(response.body), "nextPageToken": marker}
        return replace(response, body=json.dumps(document).encode())

    return alter


def test_a_list_that_never_ends(cloud: str, bucket: Any, store: ObjectStore, altered: AlteringProxy) -> None:
    """Every page names the same next one: it is asked for once."""
    bucket.write("run/key", b"data")
    altered.alter = truncated(cloud, "run/key")
    refused(lambda: list(islice(store.list("run/"), 10)), bucket.name, "run/")
    assert len(altered.seen) == 2


def test_a_page_for_deletes(bucket: Any, store: ObjectStore, altered: AlteringProxy) -> None:
    """Nothing tells what became of the objects, so it is not taken for success."""
    for number in range(3):
        bucket.write(f"run/{number}", b"data")
    altered.alter = lambda asked, _: page(asked, Response(200, {}, b""))
    refused(lambda: store.delete([f"run/{number}" for number in range(3)]), bucket.name)


def test_an_upload_that_is_listed_without_its_id(
    cloud: str, bucket: Any, store: ObjectStore, altered: AlteringProxy
) -> None:
    if cloud == "azure":
        pytest.skip("Azure's uploads are named by the client")
    bucket.start_upload("run/key")
    altered.alter = substituted(rb"<UploadId>.*?</UploadId>", b"")
    refused(lambda: list(store.list_uploads("run/")), "has no UploadId", bucket.name)
    altered.alter = unchanged
    (found,) = store.list_uploads("run/")
    assert isinstance(found.upload, Upload)
