"""``dcp-cloud gc`` on real buckets: leftovers go, and nothing else ever does."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from support.command import command, run

from dcp_core import CloudStorageWriter, LoadOptions
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.upkeep.leftovers import Cleanup, Found
from dcp_core.upkeep.verify import verify_checkpoint

TOKEN = "0123456789abcdef"


def save(url: str) -> None:
    state = {"weight": scenarios.noise(1, (512, 512)), "step": 3}
    dcp.save(state, storage_writer=CloudStorageWriter(url))


def aged() -> datetime:
    """The clock of an hour from now: everything that is there is an hour old."""
    return datetime.now(timezone.utc) + timedelta(hours=1)


def test_gc_removes_only_leftovers(bucket: Bucket) -> None:
    url = f"{bucket.url}/run"
    for step in ("step-1", "step-2"):
        save(f"{url}/{step}")
    bucket.write("run/notes.distcp", b"not ours")
    bucket.write("run/broken/.metadata", b"garbage")
    bucket.write(f"run/broken/__0_0.{TOKEN}.distcp", b"may be referenced")
    bucket.write(f"running/__0_0.{TOKEN}.distcp", b"below another URL")
    kept = set(bucket.keys())
    bucket.write(f"run/step-1/__3_0.{TOKEN}.distcp", b"left by a failed save")
    bucket.write(f"run/step-9/__0_0.{TOKEN}.distcp", b"never committed")
    bucket.start_upload(f"run/step-9/__1_0.{TOKEN}.distcp")

    said = command("gc", url)  # all too young
    assert "0 objects (0.0 MiB) and 0 uploads found" in said
    done = run("gc", url, "--older-than-hours", "0")
    assert done.returncode == 1
    assert "2 objects (0.0 MiB) and 1 uploads found; --delete removes them" in done.stdout
    assert "left alone: run/broken/.metadata: " in done.stdout
    assert "1 folders left alone" in done.stdout
    assert len(bucket.keys()) == len(kept) + 2

    command("gc", url, "--older-than-hours", "0", "--delete", code=1)
    assert set(bucket.keys()) == kept
    assert bucket.uploads() == []
    for step in ("step-1", "step-2"):
        assert verify_checkpoint(f"{url}/{step}").ok


def test_gc_for_programs(seaweedfs_bucket: Bucket) -> None:
    """One line of JSON for each finding, and one at the end."""
    url = f"{seaweedfs_bucket.url}/run"
    save(f"{url}/step-1")
    left = f"run/step-1/__3_0.{TOKEN}.distcp"
    seaweedfs_bucket.write(left, b"left by a failed save")
    seaweedfs_bucket.write("run/step-2/.metadata", b"garbage")
    seaweedfs_bucket.write(f"run/step-2/__0_0.{TOKEN}.distcp", b"may be referenced")
    seaweedfs_bucket.start_upload(f"run/step-3/__1_0.{TOKEN}.distcp")
    for deleted in (False, True):
        options = ("--delete",) if deleted else ()
        said = command("gc", url, "--older-than-hours", "0", "--json", *options, code=1)
        *lines, summary = map(json.loads, said.splitlines())
        found = {line["kind"]: line for line in lines}
        assert len(lines) == 3
        assert found["object"] == {"kind": "object", "key": left, "size": 21, "deleted": deleted}
        assert found["upload"].pop("upload_id")
        upload = {"kind": "upload", "key": f"run/step-3/__1_0.{TOKEN}.distcp", "deleted": deleted}
        assert found["upload"] == upload
        assert found["left_alone"]["key"] == "run/step-2/.metadata"
        assert found["left_alone"]["folder"] == "run/step-2/"
        assert found["left_alone"]["reason"]
        counts = {"objects": 1, "size": 21, "uploads": 1, "left_alone": 1}
        assert summary == {"kind": "summary", "deleted": deleted, **counts}
    assert left not in seaweedfs_bucket.keys()


def test_beside_committed_checkpoints_a_record_costs_one_request(
    seaweedfs_bucket: Bucket, proxy: FaultProxy
) -> None:
    """A thousand good checkpoints must not take a thousand times the requests of one listing and more."""
    url = f"{seaweedfs_bucket.url}/run"
    for step in range(6):
        save(f"{url}/step-{step}")
    proxy.requests.clear()
    assert list(cleanup_at(url).find()) == []
    gets = [seen.path for seen in proxy.requests if seen.operation == "GetObject"]
    assert sorted(gets) == [f"/{seaweedfs_bucket.name}/run/step-{step}/.metadata" for step in range(6)]
    others = [seen.operation for seen in proxy.requests if seen.operation != "GetObject"]
    assert sorted(others) == ["ListMultipartUploads", "ListObjectsV2"]


def cleanup_at(url: str) -> Cleanup:
    checkpoint = CheckpointStore(url, LoadOptions, {})
    return Cleanup(
        checkpoint.writable_store(),
        checkpoint.location,
        timedelta(minutes=30),
        checkpoint.options,
        now=aged(),
    )


@pytest.mark.parametrize("operation", ["ListObjectsV2", "ListMultipartUploads"])
def test_a_listing_that_breaks_is_gone_on_with(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, operation: str
) -> None:
    """It begins anew, and tells nothing twice."""
    url = f"{seaweedfs_bucket.url}/run"
    left = {f"run/step-{step}/__{rank}_0.{TOKEN}.distcp" for step in range(5) for rank in range(3)}
    for key in left:
        seaweedfs_bucket.write(key, b"left by a failed save")
        seaweedfs_bucket.start_upload(key)
    proxy.add(Fault("reset_response", operation=operation, after=500))
    proxy.add(Fault("error", operation=operation, times=2))
    found = [finding for finding in cleanup_at(url).find() if isinstance(finding, Found)]
    assert sorted(info.key for finding in found for info in finding.objects) == sorted(left)
    assert sorted(info.upload.key for finding in found for info in finding.uploads) == sorted(left)
    asked = [seen for seen in proxy.requests if seen.operation == operation]
    assert sum(seen.fault is not None for seen in asked) >= 2
    for finding in found:
        list(cleanup_at(url).remove(finding))
    assert seaweedfs_bucket.keys() == []
    assert seaweedfs_bucket.uploads() == []
