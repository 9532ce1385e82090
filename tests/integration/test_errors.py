"""Bad input: one clear error of ours each, with what a user needs to mend it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_s3_servers import SeaweedFS
from support import scenarios
from torch.distributed.checkpoint.api import CheckpointException

import dcp_core
from dcp_core import (
    BucketNotFoundError,
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointReplacedError,
    CloudCheckpointError,
    CloudStorageReader,
    CloudStorageWriter,
    ConfigurationError,
    CredentialsError,
    InvalidLocationError,
    PeerFailedError,
    PermissionDeniedError,
    ThrottledError,
    UnknownSchemeError,
    UntrustedDataError,
    errors,
)
from dcp_s3 import S3StorageReader, S3StorageWriter

STATE = {"weight": torch.arange(1000.0), "step": 3}


def save(url: str, **options: Any) -> None:
    dcp.save(dict(STATE), storage_writer=CloudStorageWriter(url, **options))


def load(url: str, **options: Any) -> None:
    target = scenarios.blanked(STATE)
    dcp.load(target, storage_reader=CloudStorageReader(url, **options))
    scenarios.assert_same(target, STATE)


def error_of(kind: type[BaseException], work: Any, *words: str, **options: Any) -> BaseException:
    """The error that ``work`` gives every rank; its text must hold ``words``."""
    with pytest.raises(CheckpointException) as caught:
        work(**options)
    error: BaseException = caught.value.failures[0][0]
    assert type(error) is kind, error
    for word in words:
        assert word in str(error)
    return error


@pytest.mark.parametrize("kind", [CloudStorageWriter, CloudStorageReader, S3StorageWriter, S3StorageReader])
@pytest.mark.parametrize(
    "url", ["s3:/bucket/key", "bucket/key", "", "s3://", "s3:///key", "s3://b_/\nx", "s3://a?/x"]
)
def test_malformed_url(kind: Any, url: str) -> None:
    with pytest.raises(InvalidLocationError) as caught:
        kind(url)
    assert "s3" in str(caught.value) or repr(url) in str(caught.value)


def test_unknown_scheme() -> None:
    with pytest.raises(UnknownSchemeError, match=r"s3://"):
        CloudStorageWriter("ftp://host/path")


@pytest.mark.parametrize(
    ("scheme", "extra", "packages"),
    [
        ("s3", "s3", ["boto3", "botocore"]),
        ("gs", "gcs", ["google", "requests"]),
        *((scheme, "azure", ["azure.core", "azure.storage.blob"]) for scheme in ("az", "abfs", "abfss")),
        *((scheme, "http", ["aiohttp"]) for scheme in ("http", "https")),
    ],
)
def test_missing_sdk(scheme: str, extra: str, packages: list[str]) -> None:
    """Without its SDK a URL names the extra to install; the core imports all the same."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({packages}))\n"
        "import dcp_core\n"
        f"try: dcp_core.CloudStorageReader('{scheme}://bucket/x')\n"
        "except dcp_core.MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"pip install 'dcp-cloud[{extra}]'" in done.stdout


def test_unknown_option() -> None:
    with pytest.raises(ConfigurationError, match=r"'part_sise'.*part_size"):
        CloudStorageWriter("s3://bucket/x", part_sise=5)


@pytest.mark.parametrize(
    "options", [{"part_size": 0}, {"concurrency": -1}, {"sse": "rot13"}, {"kms_key_id": "x"}, {"deadline": 0}]
)
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        CloudStorageWriter("s3://bucket/x", **options)


def test_missing_bucket(bucket: Bucket) -> None:
    url = bucket.url.replace(bucket.name, "no-such-bucket-here")
    for work in (save, load):
        error = error_of(BucketNotFoundError, lambda w=work: w(f"{url}/x"))
        assert "no-such-bucket-here" in str(error)
    assert "no-such-bucket-here" not in bucket.bucket_names()


def test_no_credentials(seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    url = f"{seaweedfs_bucket.url}/x"
    for work in (save, load):
        error_of(CredentialsError, lambda w=work: w(url), "AWS_ACCESS_KEY_ID", seaweedfs_bucket.name)


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(seaweedfs_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "not-this-one")
    for work in (save, load):
        error = error_of(PermissionDeniedError, lambda w=work: w(f"{seaweedfs_bucket.url}/x"), "key")
        assert error.bucket == seaweedfs_bucket.name  # type: ignore[attr-defined]
        assert "not-this-one" not in str(error) or variable == "AWS_ACCESS_KEY_ID"


def test_read_only_credentials(seaweedfs_bucket: Bucket) -> None:
    save(f"{seaweedfs_bucket.url}/run")
    keys = {
        "access_key_id": SeaweedFS.read_only_access_key,
        "secret_access_key": SeaweedFS.read_only_secret_key,
    }
    load(f"{seaweedfs_bucket.url}/run", **keys)
    error_of(PermissionDeniedError, lambda: save(f"{seaweedfs_bucket.url}/run", **keys), "policy", "__0_0.")
    load(f"{seaweedfs_bucket.url}/run")


def test_nothing_there(bucket: Bucket) -> None:
    error_of(
        CheckpointNotFoundError, lambda: load(f"{bucket.url}/run"), f"{bucket.url}/run", "nothing is there"
    )


def test_unfinished_save_is_told_apart(bucket: Bucket) -> None:
    bucket.write("run/__0_0.0123456789abcdef.distcp", b"data")
    bucket.start_upload("run/__1_0.0123456789abcdef.distcp")
    error_of(
        CheckpointNotFoundError, lambda: load(f"{bucket.url}/run"),
        "unfinished save", "1 data objects", "1 unfinished uploads",
    )  # fmt: skip


def test_parent_of_checkpoints(seaweedfs_bucket: Bucket) -> None:
    save(f"{seaweedfs_bucket.url}/run/step-5")
    error_of(CheckpointNotFoundError, lambda: load(f"{seaweedfs_bucket.url}/run"), "'step-5'")


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    "record", [b"", b"garbage", pickle.dumps({"a": 1}), pickle.dumps(_Evil()), pickle.dumps(dcp.Metadata({}))]
)
def test_corrupt_record(seaweedfs_bucket: Bucket, capfd: pytest.CaptureFixture[str], record: bytes) -> None:
    seaweedfs_bucket.write("run/.metadata", record)
    error_of(
        CheckpointCorruptError, lambda: load(f"{seaweedfs_bucket.url}/run"), "run/.metadata", "commit record"
    )
    assert "this must not run" not in capfd.readouterr().out
    # a broken record can be overwritten
    save(f"{seaweedfs_bucket.url}/run")
    load(f"{seaweedfs_bucket.url}/run")


def test_truncated_record(seaweedfs_bucket: Bucket) -> None:
    save(f"{seaweedfs_bucket.url}/run")
    record = seaweedfs_bucket.read("run/.metadata")
    for size in (1, len(record) // 2, len(record) - 1):
        seaweedfs_bucket.write("run/.metadata", record[:size])
        error_of(CheckpointCorruptError, lambda: load(f"{seaweedfs_bucket.url}/run"), "run/.metadata")


def _data_key(bucket: Bucket) -> str:
    return next(key for key in bucket.keys("run/") if key.endswith(".distcp"))


def test_missing_data_object(bucket: Bucket) -> None:
    save(f"{bucket.url}/run")
    key = _data_key(bucket)
    bucket.delete(key)
    error_of(CheckpointCorruptError, lambda: load(f"{bucket.url}/run"), key, "does not exist", "rank 0")


@pytest.mark.parametrize("left", [0, 1, 2000])
def test_truncated_data_object(bucket: Bucket, left: int) -> None:
    save(f"{bucket.url}/run")
    key = _data_key(bucket)
    bucket.write(key, bucket.read(key)[:left])
    error_of(CheckpointCorruptError, lambda: load(f"{bucket.url}/run"), key, "rank 0")


def test_damaged_data_object(seaweedfs_bucket: Bucket) -> None:
    """A flipped bit of a tensor or of an object's pickle is found; unverified loads do not look."""
    save(f"{seaweedfs_bucket.url}/run")
    key = _data_key(seaweedfs_bucket)
    data = bytearray(seaweedfs_bucket.read(key))
    at = data.find(torch.arange(1000.0).numpy().tobytes())
    data[at + 7] ^= 1
    seaweedfs_bucket.write(key, bytes(data))
    error_of(CheckpointCorruptError, lambda: load(f"{seaweedfs_bucket.url}/run"), key, "'weight'", "checksum")
    target = scenarios.blanked(STATE)
    dcp.load(target, storage_reader=CloudStorageReader(f"{seaweedfs_bucket.url}/run", verify_checksums=False))
    assert int((target["weight"] != STATE["weight"]).sum()) == 1


def test_replaced_during_a_load(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url)

    class Slow(dcp.DefaultLoadPlanner):
        def finish_plan(self, new_plan: dcp.LoadPlan) -> dcp.LoadPlan:
            save(url)
            return super().finish_plan(new_plan)

    def load_slowly() -> None:
        dcp.load(scenarios.blanked(STATE), storage_reader=CloudStorageReader(url), planner=Slow())

    error_of(CheckpointReplacedError, load_slowly, "load again")


class Custom:
    """A class of the user's own in a checkpoint."""

    def __init__(self) -> None:
        self.value = 5


def test_code_in_a_checkpoint_needs_consent(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    dcp.save({"custom": Custom()}, storage_writer=CloudStorageWriter(url))

    def load_custom(**options: Any) -> dict[str, Any]:
        state: dict[str, Any] = {"custom": None}
        dcp.load(state, storage_reader=CloudStorageReader(url, **options))
        return state

    error_of(UntrustedDataError, load_custom, "'custom'", "Custom", "weights_only=False", "add_safe_globals")
    assert load_custom(weights_only=False)["custom"].value == 5
    with torch.serialization.safe_globals([Custom]):
        assert load_custom()["custom"].value == 5


def test_secrets_stay_secret() -> None:
    writer = S3StorageWriter(
        "s3://bucket/run", access_key_id="AKIA", secret_access_key="hush", session_token="shh"
    )
    assert "hush" not in repr(writer) + repr(writer.checkpoint.store_options)
    assert "shh" not in repr(writer) + repr(writer.checkpoint.store_options)
    with pytest.raises(InvalidLocationError) as caught:
        CloudStorageWriter("s3://key:hush@bucket/run")
    assert "hush" not in str(caught.value)


def test_every_error_survives_pickling() -> None:
    names = [name for name in dcp_core.__all__ if name.endswith("Error")]
    assert set(names) == set(errors.__all__)
    for name in names:
        error = getattr(dcp_core, name)("what", bucket="b", key="k", request_id="r").at_rank(3).at_rank(4)
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert (copy.message, copy.bucket, copy.key, copy.rank, copy.request_id) == ("what", "b", "k", 3, "r")


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (ThrottledError("what", retry_after=2.5), "retry_after"),
        (PermissionDeniedError("what", denied=True), "denied"),
        (PeerFailedError("what", failed_rank=7), "failed_rank"),
    ],
)
def test_fields_of_single_errors_survive_pickling(error: CloudCheckpointError, field: str) -> None:
    assert getattr(pickle.loads(pickle.dumps(error)), field) == getattr(error, field)
