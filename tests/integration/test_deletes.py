"""Deletes on stores with S3's API: batches where the store takes them, one object at a time where not."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Iterator

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from support import scenarios
from support.altering_proxy import AlteringProxy, Asked, Refuse, Response, s3_error

from dcp_core import (
    CloudCheckpointError,
    CloudStorageReader,
    CloudStorageWriter,
    PermissionDeniedError,
    ThrottledError,
    TransientError,
)
from dcp_s3 import S3Options
from dcp_s3.store import S3Store


@pytest.fixture
def proxy(seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[AlteringProxy]:
    with AlteringProxy(seaweedfs_bucket.server.endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture
def store(seaweedfs_bucket: Bucket, proxy: AlteringProxy) -> Iterator[S3Store]:
    for number in range(3):
        seaweedfs_bucket.write(f"run/{number}", b"data")
    with contextlib.closing(S3Store(seaweedfs_bucket.name, S3Options())) as opened:
        yield opened


KEYS = [f"run/{number}" for number in range(3)]


def is_batch(asked: Asked) -> bool:
    return asked.method == "POST" and asked.path.endswith("?delete")


def batches(proxy: AlteringProxy) -> list[Asked]:
    return [asked for asked in proxy.seen if is_batch(asked)]


def refused(status: int, code: str) -> Refuse:
    return lambda asked: s3_error(status, code) if is_batch(asked) else None


def without_md5(asked: Asked) -> Response | None:
    """What stores do that know none of the newer checksums."""
    if not is_batch(asked):
        return None
    wanted = base64.b64encode(hashlib.md5(asked.body).digest()).decode()
    if "Content-MD5" not in asked.headers:
        return s3_error(400, "MissingContentMD5")
    return None if asked.headers["Content-MD5"] == wanted else s3_error(400, "BadDigest")


@pytest.mark.parametrize(
    ("refuse", "in_batches"),
    [
        (without_md5, True),
        (refused(400, "InvalidDigest"), False),
        (refused(400, "InvalidRequest"), False),
        (refused(400, "MalformedXML"), False),
        (refused(405, "MethodNotAllowed"), False),
        (refused(501, "NotImplemented"), False),
    ],
    ids=["wants MD5", "wants another MD5", "wants something", "reads no XML", "not allowed", "not there"],
)
def test_superseded_data_goes_whatever_the_store_wants(
    seaweedfs_bucket: Bucket, proxy: AlteringProxy, refuse: Refuse, in_batches: bool
) -> None:
    """Four saves over one URL leave the data of one."""
    proxy.refuse = refuse
    url = f"{seaweedfs_bucket.url}/run"
    for seed in range(4):
        dcp.save({"weight": torch.full((10,), float(seed))}, storage_writer=CloudStorageWriter(url))
    assert sum(key.endswith(".distcp") for key in seaweedfs_bucket.keys()) == 1
    target = {"weight": torch.zeros(10)}
    dcp.load(target, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(target, {"weight": torch.full((10,), 3.0)})
    assert len(batches(proxy)) == 3  # each save has a store of its own
    assert sum(asked.method == "DELETE" for asked in proxy.seen) == (0 if in_batches else 3)


def test_a_store_that_lacks_batches_is_asked_once(
    seaweedfs_bucket: Bucket, proxy: AlteringProxy, store: S3Store
) -> None:
    proxy.refuse = refused(501, "NotImplemented")
    store.delete(KEYS[:2])
    assert seaweedfs_bucket.keys() == KEYS[2:]
    store.delete([*KEYS[2:], "absent"])
    assert seaweedfs_bucket.keys() == []
    assert len(batches(proxy)) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [("AccessDenied", PermissionDeniedError), ("SlowDown", ThrottledError), ("Anything", TransientError)],
)
def test_an_object_that_stays_is_an_error_of_its_own_kind(
    proxy: AlteringProxy, store: S3Store, code: str, kind: type[CloudCheckpointError]
) -> None:
    """A batch succeeds as a whole, with what failed in its response."""
    said = (
        "<DeleteResult><Error><Key>gone</Key><Code>NoSuchKey</Code></Error>"
        f"<Error><Key>run/1</Key><Code>{code}</Code><Message>said the test</Message></Error></DeleteResult>"
    )
    response = Response(200, {"Content-Type": "application/xml"}, said.encode())
    proxy.refuse = lambda asked: response if is_batch(asked) else None
    with pytest.raises(CloudCheckpointError, match="said the test") as caught:
        store.delete(["gone", *KEYS])
    assert type(caught.value) is kind
    assert caught.value.key == "run/1"


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId"])
def test_batches_that_are_not_permitted_are_not_tried_one_by_one(
    seaweedfs_bucket: Bucket, proxy: AlteringProxy, store: S3Store, code: str
) -> None:
    proxy.refuse = refused(403, code)
    for _ in range(2):
        with pytest.raises(PermissionDeniedError):
            store.delete(KEYS)
    assert {asked.method for asked in proxy.seen} == {"POST"}
    assert len(batches(proxy)) == 2
    assert seaweedfs_bucket.keys() == KEYS


def test_many_objects_go_in_batches_of_a_thousand(proxy: AlteringProxy, store: S3Store) -> None:
    """Absent ones are no error."""
    store.delete([f"absent/{number}" for number in range(2001)])
    assert [asked.body.count(b"<Key>") for asked in batches(proxy)] == [1000, 1000, 1]
