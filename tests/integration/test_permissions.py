"""What ``docs/permissions.md`` says of each operation, on servers that enforce it.

SeaweedFS enforces bucket policies action by action (``s3:PutObject`` includes aborting and listing uploads
there), the gateway before Google's emulator enforces roles, Azurite enforces signatures.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from azure.storage.blob import generate_container_sas
from conftest import Bucket
from dcp_s3_servers import SeaweedFS
from support import scenarios
from support.altering_proxy import AlteringProxy, Asked, Response
from support.azure_bucket import AzureBucket
from support.gcs_bucket import GCSBucket
from torch.distributed.checkpoint.api import CheckpointException

from dcp_azure import AzureOptions
from dcp_azure.error_table import AzureErrors
from dcp_azure.store import AzureStore
from dcp_core import (
    CloudCheckpointError,
    CloudStorageReader,
    CloudStorageWriter,
    PermissionDeniedError,
)
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectStore, Upload
from dcp_core.testing import body_of
from dcp_core.transport.error_table import ErrorTable
from dcp_core.upkeep.leftovers import Cleanup, Found
from dcp_gcs import GCSOptions
from dcp_gcs.error_table import GCSErrors
from dcp_gcs.store import GCSStore
from dcp_s3 import S3Options
from dcp_s3.error_table import S3Errors
from dcp_s3.store import S3Store

MIB = 1 << 20
PAGE = Path(__file__).parents[2] / "docs" / "permissions.md"


def state(seed: int = 1) -> dict[str, Any]:
    """More than a part, so that it is an upload."""
    return {"large": scenarios.noise(seed, (5, 1024, 1024)), "step": seed}


def save(url: str, seed: int = 1, **options: Any) -> None:
    dcp.save(state(seed), storage_writer=CloudStorageWriter(url, part_size=8 * MIB, **options))


def load(url: str, seed: int = 1, **options: Any) -> None:
    target = {"large": torch.zeros(5, 1024, 1024), "step": 0}
    dcp.load(target, storage_reader=CloudStorageReader(url, **options))
    scenarios.assert_same(target, state(seed))


def error_of(work: Callable[[], object]) -> CloudCheckpointError:
    with pytest.raises(CheckpointException) as caught:
        work()
    error: CloudCheckpointError = caught.value.failures[0][0]
    return error


def leave_something(bucket: Any) -> list[str]:
    """A checkpoint, and what a save that failed leaves beside it; the keys of the checkpoint."""
    save(f"{bucket.url}/run")
    kept: list[str] = bucket.keys()
    bucket.write("run/__0_0.0123456789abcdef.distcp", b"data")
    bucket.start_upload("run/__1_0.0123456789abcdef.distcp")
    return kept


def collect(store: ObjectStore, url: str) -> None:
    """What ``dcp-cloud gc --delete`` does, an hour later."""
    now = datetime.now(timezone.utc) + timedelta(hours=1)
    cleanup = Cleanup(store, Location.parse(url), timedelta(0), now=now)
    for finding in cleanup.find():
        assert isinstance(finding, Found), finding
        assert all(isinstance(removed, Found) for removed in cleanup.remove(finding))


def needed(cloud: str, operation: str) -> list[str]:
    """The cells of an operation in the page's table for a cloud, without their Markdown."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition(f"\n## {cloud}\n")
    rows = re.findall(r"^\| (.*) \|$", section.partition("\n## ")[0], re.MULTILINE)
    (cells,) = (row.split(" | ")[1:] for row in rows if row.split(" | ")[0] == operation)
    return [cell.replace("`", "") for cell in cells]


# Amazon S3

LIMITED = {
    "access_key_id": SeaweedFS.limited_access_key,
    "secret_access_key": SeaweedFS.limited_secret_key,
}


def allow(bucket: Bucket, *operations: str) -> None:
    """Let the limited identity do what the page says for these operations, and nothing else."""
    actions = [action for operation in operations for action in needed("Amazon S3", operation)[0].split(", ")]
    place = f"arn:aws:s3:::{bucket.name}"
    statement = {"Effect": "Allow", "Principal": "*", "Action": actions, "Resource": [place, f"{place}/*"]}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    bucket.client.put_bucket_policy(Bucket=bucket.name, Policy=policy)


@contextlib.contextmanager
def limited(bucket: Bucket) -> Iterator[S3Store]:
    with contextlib.closing(S3Store(bucket.name, S3Options(**LIMITED))) as store:
        yield store


def test_writing_is_enough_for_a_first_save(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    allow(seaweedfs_bucket, "first save")
    save(url, **LIMITED)
    load(url)
    assert type(error_of(lambda: load(url, **LIMITED))) is PermissionDeniedError
    allow(seaweedfs_bucket, "load, `inspect`")
    load(url, **LIMITED)


def test_a_save_that_may_only_write_replaces_nothing(seaweedfs_bucket: Bucket) -> None:
    """It does not see that a checkpoint is there; the commit's condition does."""
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    allow(seaweedfs_bucket, "first save")
    error = error_of(lambda: save(url, 2, **LIMITED))
    assert type(error) is PermissionDeniedError
    for word in ("to replace a checkpoint, permission to read", "s3:GetObject", "run/.metadata"):
        assert word in str(error)
    load(url)


def test_reading_and_writing_are_enough_to_replace(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    allow(seaweedfs_bucket, "overwrite")
    save(url, 2, **LIMITED)
    load(url, 2)
    assert len(seaweedfs_bucket.keys()) == 2


def test_reading_is_not_enough_to_save(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    allow(seaweedfs_bucket, "load, `inspect`")
    error = error_of(lambda: save(url, **LIMITED))
    assert type(error) is PermissionDeniedError
    assert "s3:PutObject" in str(error)
    assert seaweedfs_bucket.keys() == seaweedfs_bucket.uploads() == []


def test_errors_name_the_permission(seaweedfs_bucket: Bucket) -> None:
    seaweedfs_bucket.write("key", b"data")
    upload = Upload("key", "no-such-upload")
    with limited(seaweedfs_bucket) as store:
        for work, action in (
            (lambda: store.get("key"), "s3:GetObject"),
            (lambda: store.put("key", body_of(b"other")), "s3:PutObject"),
            (lambda: store.start_upload("key"), "s3:PutObject"),
            (lambda: store.put_part(upload, 1, body_of(b"part")), "s3:PutObject"),
            (lambda: store.abort_upload(upload), "s3:AbortMultipartUpload"),
            (lambda: list(store.list("")), "s3:ListBucket"),
            (lambda: list(store.list_uploads("")), "s3:ListBucketMultipartUploads"),
            (lambda: store.delete(["key"]), "s3:DeleteObject"),
        ):
            with pytest.raises(PermissionDeniedError, match=rf"with {action}\b") as caught:
                work()
            assert caught.value.denied
            assert caught.value.bucket == seaweedfs_bucket.name
    assert seaweedfs_bucket.read("key") == b"data"


def test_reading_writing_and_listing_are_enough_for_gc(seaweedfs_bucket: Bucket) -> None:
    kept = leave_something(seaweedfs_bucket)
    allow(seaweedfs_bucket, "`gc`")
    with limited(seaweedfs_bucket) as store:
        collect(store, f"{seaweedfs_bucket.url}/run")
    assert seaweedfs_bucket.keys() == kept
    assert seaweedfs_bucket.uploads() == []
    load(f"{seaweedfs_bucket.url}/run")


def test_writing_is_enough_to_abort(seaweedfs_bucket: Bucket) -> None:
    allow(seaweedfs_bucket, "first save", "abort")
    with limited(seaweedfs_bucket) as store:
        upload = store.start_upload("key")
        store.put_part(upload, 1, body_of(b"part"))
        assert seaweedfs_bucket.uploads() == ["key"]
        store.abort_upload(upload)
    assert seaweedfs_bucket.uploads() == seaweedfs_bucket.keys() == []


def test_without_the_permission_to_list(seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 then responds with 403 where nothing is. A first save works, an error names ``s3:ListBucket``."""
    body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"

    def hide(_: Asked, response: Response) -> Response:
        return replace(response, status=403, body=body) if response.status == 404 else response

    url = f"{seaweedfs_bucket.url}/run"
    with AlteringProxy(seaweedfs_bucket.server.endpoint) as proxy:
        proxy.alter = hide
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        error = error_of(lambda: load(url))
        assert type(error) is PermissionDeniedError
        assert "s3:ListBucket" in str(error)
        save(url)
        load(url)
        save(url, 2)
        load(url, 2)
        # where the commit has no condition, nothing would show that a checkpoint is there
        error = error_of(lambda: save(f"{url}-2", conditional_commit=False))
        assert "s3:ListBucket" in str(error)
    assert seaweedfs_bucket.keys("run-2") == []


def test_wrong_keys_are_told_before_anything_is_uploaded(
    seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike a missing permission to read, they can only fail."""
    with AlteringProxy(seaweedfs_bucket.server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        keys = {"access_key_id": SeaweedFS.access_key, "secret_access_key": "not this one"}
        error = error_of(lambda: save(f"{seaweedfs_bucket.url}/run", **keys))
    assert type(error) is PermissionDeniedError
    assert not error.denied
    assert "secret key does not match" in str(error)
    assert [asked.method for asked in proxy.seen] == ["GET"]


# Google Cloud Storage


@pytest.fixture
def account(gcs_bucket: GCSBucket) -> Callable[[str], dict[str, str]]:
    """Gives a service account the page's role for an operation; returns options that make it the caller."""

    def give(operation: str) -> dict[str, str]:
        role = needed("Google Cloud Storage", operation)[1].replace("Storage Object ", "object")
        gcs_bucket.allow(
            **{role: [f"serviceAccount:{gcs_bucket.server.email('reader')}"]},
            objectAdmin=[f"serviceAccount:{gcs_bucket.server.email('admin')}"],
        )
        return {"credentials_file": str(gcs_bucket.server.key_file("reader"))}

    return give


Account = Callable[[str], dict[str, str]]


@pytest.fixture
def admin(gcs_bucket: GCSBucket) -> dict[str, str]:
    return {"credentials_file": str(gcs_bucket.server.key_file("admin"))}


def as_seen_by_all(bucket: GCSBucket) -> GCSBucket:
    """The bucket, open to the raw client again."""
    bucket.allow(admin=["allUsers"])
    return bucket


def test_creating_is_enough_for_a_first_save_to_google(
    gcs_bucket: GCSBucket, account: Account, admin: dict[str, str]
) -> None:
    url = f"{gcs_bucket.url}/run"
    creator = account("first save")
    save(url, **creator)
    load(url, **admin)
    assert type(error_of(lambda: load(url, **creator))) is PermissionDeniedError
    # nor does it replace what it cannot see
    error = error_of(lambda: save(url, 2, **creator))
    assert type(error) is PermissionDeniedError
    assert "storage.objects.delete to replace" in str(error)
    load(url, **admin)
    load(url, **account("load, `inspect`"))


def test_using_objects_is_enough_to_replace(gcs_bucket: GCSBucket, account: Account) -> None:
    url = f"{gcs_bucket.url}/run"
    user = account("overwrite")
    save(url, **user)
    save(url, 2, **user)
    load(url, 2, **user)
    assert len(as_seen_by_all(gcs_bucket).keys()) == 2


@contextlib.contextmanager
def gcs_store(bucket: GCSBucket, options: dict[str, str]) -> Iterator[GCSStore]:
    with contextlib.closing(GCSStore(bucket.name, GCSOptions(**options))) as store:
        yield store


def test_using_objects_is_enough_for_gc(gcs_bucket: GCSBucket, account: Account) -> None:
    kept = leave_something(gcs_bucket)
    with gcs_store(gcs_bucket, account("`gc`")) as store:
        collect(store, f"{gcs_bucket.url}/run")
    assert as_seen_by_all(gcs_bucket).keys() == kept
    assert gcs_bucket.uploads() == []


def test_creating_is_enough_to_abort_on_google(gcs_bucket: GCSBucket, account: Account) -> None:
    with gcs_store(gcs_bucket, account("abort")) as store:
        upload = store.start_upload("key")
        store.put_part(upload, 1, body_of(b"part"))
        store.abort_upload(upload)
    assert as_seen_by_all(gcs_bucket).uploads() == []
    assert gcs_bucket.keys() == []


def test_errors_name_googles_permission(gcs_bucket: GCSBucket, account: Account) -> None:
    gcs_bucket.write("key", b"data")
    upload = Upload("key", "1")
    viewer, creator = account("load, `inspect`"), account("first save")
    with gcs_store(gcs_bucket, creator) as store:
        for work, permission in (
            (lambda: store.get("key"), "storage.objects.get"),
            (lambda: list(store.list("")), "storage.objects.list"),
            (lambda: list(store.list_uploads("")), "storage.multipartUploads.list"),
            (lambda: store.delete(["key"]), "storage.objects.delete"),
        ):
            denied(work, permission, gcs_bucket.name)
    account("load, `inspect`")
    with gcs_store(gcs_bucket, viewer) as store:
        for work, permission in (
            (lambda: store.put("new", body_of(b"data")), "storage.objects.create"),
            (lambda: store.start_upload("new"), "storage.multipartUploads.create"),
            (lambda: store.put_part(upload, 1, body_of(b"part")), "storage.multipartUploads.create"),
            (lambda: store.abort_upload(upload), "storage.multipartUploads.abort"),
        ):
            denied(work, permission, gcs_bucket.name)
    assert as_seen_by_all(gcs_bucket).keys() == ["key"]


def denied(work: Callable[[], object], permission: str, bucket: str) -> None:
    with pytest.raises(PermissionDeniedError, match=f"with {re.escape(permission)}") as caught:
        work()
    assert caught.value.denied
    assert caught.value.bucket == bucket


# Azure Blob


def signature(bucket: AzureBucket, operation: str = "", *, letters: str = "") -> dict[str, str]:
    """Options with a signature for what the page says of an operation, or for ``letters``."""
    said = letters or needed("Azure Blob", operation)[1].partition(" ")[0]
    token = generate_container_sas(
        bucket.server.account,
        bucket.name,
        account_key=bucket.server.key,
        permission=said,
        expiry=datetime.now(timezone.utc) + timedelta(hours=1),
    )
    return {"sas_token": token}


@contextlib.contextmanager
def azure_store(bucket: AzureBucket, options: dict[str, str]) -> Iterator[AzureStore]:
    with contextlib.closing(AzureStore(bucket.name, AzureOptions(**options))) as store:
        yield store


def test_creating_and_writing_are_enough_for_a_first_save_to_azure(azure_bucket: AzureBucket) -> None:
    url = f"{azure_bucket.url}/run"
    options = signature(azure_bucket, "first save")
    save(url, **options)
    load(url)
    error = error_of(lambda: save(url, 2, **options))
    assert type(error) is PermissionDeniedError
    assert "to replace a checkpoint, permission to read" in str(error)
    load(url)
    load(url, **signature(azure_bucket, "load, `inspect`"))


def test_reading_writing_and_deleting_are_enough_to_replace(azure_bucket: AzureBucket) -> None:
    url = f"{azure_bucket.url}/run"
    options = signature(azure_bucket, "overwrite")
    save(url, **options)
    save(url, 2, **options)
    load(url, 2, **options)
    assert len(azure_bucket.keys()) == 2


def test_all_of_a_signature_is_enough_for_gc(azure_bucket: AzureBucket) -> None:
    kept = leave_something(azure_bucket)
    with azure_store(azure_bucket, signature(azure_bucket, "`gc`")) as store:
        collect(store, f"{azure_bucket.url}/run")
    assert azure_bucket.keys() == kept
    assert azure_bucket.uploads() == []


def test_reading_writing_and_deleting_are_enough_to_abort_on_azure(azure_bucket: AzureBucket) -> None:
    with azure_store(azure_bucket, signature(azure_bucket, "abort")) as store:
        upload = store.start_upload("key")
        store.put_part(upload, 1, body_of(b"part"))
        assert azure_bucket.uploads() == ["key"]
        store.abort_upload(upload)
    assert azure_bucket.uploads() == azure_bucket.keys() == []


@pytest.mark.parametrize(
    ("letters", "operation", "permission"),
    [
        ("cw", "get", r"blobs/read \(SAS: r\)"),
        ("r", "put", "blobs/write"),
        ("rcw", "delete", "blobs/delete"),
    ],
)
def test_errors_name_azures_permission(
    azure_bucket: AzureBucket, letters: str, operation: str, permission: str
) -> None:
    azure_bucket.write("key", b"data")
    with azure_store(azure_bucket, signature(azure_bucket, letters=letters)) as store:
        work: dict[str, Callable[[], object]] = {
            "get": lambda: store.get("key"),
            "put": lambda: store.put("key", body_of(b"other")),
            "delete": lambda: store.delete(["key"]),
        }
        with pytest.raises(PermissionDeniedError, match=f"with {permission}") as caught:
            work[operation]()
        assert caught.value.denied
    assert azure_bucket.read("key") == b"data"


# the page


@pytest.mark.parametrize("table", [S3Errors, GCSErrors, AzureErrors])
def test_the_page_has_every_permission_that_an_error_may_name(table: type[ErrorTable]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = re.findall(r"s3:\w+|storage\.\w+\.\w+|blobs/\w+", " ".join(table.permissions.values()))
    assert named
    assert [permission for permission in named if permission not in text] == []
