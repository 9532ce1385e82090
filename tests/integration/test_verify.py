"""``dcp-cloud verify``: every damaged byte is found where it is, and nothing whole is called damaged."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from support.command import as_json, command, environment, run
from support.ranks import Ranks
from support.torch_releases import since

from dcp_core import CheckpointReplacedError, CloudStorageWriter
from dcp_core.upkeep.verify import Report, verify_checkpoint

World = Callable[[int], Ranks]

MIB = 1 << 20
KIB = 1 << 10


def state_of(seed: int) -> dict[str, Any]:
    """6 MiB in one tensor, so that it has several checksum blocks, and small items."""
    return {"large": scenarios.noise(seed, (6, 1024, 256)), "small": scenarios.noise(2, (10,)), "step": seed}


def save(url: str, seed: int = 1) -> None:
    dcp.save(state_of(seed), storage_writer=CloudStorageWriter(url))


def data_key(bucket: Bucket, prefix: str = "run/") -> str:
    (key,) = (key for key in bucket.keys(prefix) if key.endswith(".distcp"))
    return key


def flipped(data: bytes, *places: int) -> bytes:
    changed = bytearray(data)
    for place in places:
        changed[place] ^= 1
    return bytes(changed)


def test_a_checkpoint_as_it_was_saved(bucket: Bucket) -> None:
    url = f"{bucket.url}/run"
    dcp.save(scenarios.plain_state(1), storage_writer=CloudStorageWriter(url))
    said = command("verify", url)
    assert said.startswith(f"{url}: nothing wrong in ")
    assert said.count("\n") == 1
    report = verify_checkpoint(url)
    assert report.ok
    assert report.records == [".metadata"]
    assert report.checked == report.size == len(bucket.read(data_key(bucket)))
    assert report.defects == report.unaccounted == []
    quick = verify_checkpoint(url, quick=True)
    assert (quick.ok, quick.checked, quick.size) == (True, 0, report.size)


def test_damage_is_found_where_it_is(bucket: Bucket) -> None:
    """A flipped bit of any item, of the header of its frame or behind it."""
    url = f"{bucket.url}/run"
    save(url)
    key = data_key(bucket)
    whole = bucket.read(key)
    large = scenarios.bits(state_of(1)["large"])
    start = whole.index(large)
    places = {start + 3 * MIB: "checksum", start - 20: "frame", start + len(large) + 40: "frame"}
    places[whole.index(scenarios.bits(state_of(1)["small"]))] = "checksum"
    for place, kind in places.items():
        bucket.write(key, flipped(whole, place))
        (defect,) = verify_checkpoint(url).defects
        assert defect.kind == kind
        assert defect.object == key.removeprefix("run/")
        assert defect.start <= place < defect.stop
        assert defect.item == ("small at [0]" if place < start - 2000 else "large at [0, 0, 0]")
        assert verify_checkpoint(url, quick=True).ok
    bucket.write(key, flipped(whole, *places))
    said = command("verify", url, code=1)
    assert said.count("checksum: ") == 2
    assert said.count("frame: ") == 2
    assert "4 defects in 3 items of 1 objects" in said
    bucket.write(key, whole)
    assert verify_checkpoint(url).ok


def test_cut_long_and_missing_objects_are_found_by_their_sizes(bucket: Bucket) -> None:
    url = f"{bucket.url}/run"
    save(url)
    key = data_key(bucket)
    whole = bucket.read(key)
    for quick in (False, True):
        bucket.write(key, whole[:-1])
        defects = verify_checkpoint(url, quick=quick).defects
        assert [(one.kind, one.item) for one in defects] == [("cut", "large at [0, 0, 0]")]
        bucket.write(key, whole + b"xy")
        (defect,) = verify_checkpoint(url, quick=quick).defects
        assert (defect.kind, defect.start, defect.stop) == ("extra", len(whole), len(whole) + 2)
        bucket.delete(key)
        defects = verify_checkpoint(url, quick=quick).defects
        assert [one.kind for one in defects] == ["missing"] * 3
    assert "3 defects in 3 items of 1 objects" in command("verify", url, "--quick", code=1)


def test_another_checkpoint_s_object_in_place(seaweedfs_bucket: Bucket) -> None:
    """Whole and of the right size, but of another save: only the recorded checksums tell."""
    for step in (1, 2):
        save(f"{seaweedfs_bucket.url}/run/{step}", step)
    first, second = (data_key(seaweedfs_bucket, f"run/{step}/") for step in (1, 2))
    seaweedfs_bucket.write(first, seaweedfs_bucket.read(second))
    assert verify_checkpoint(f"{seaweedfs_bucket.url}/run/1", quick=True).ok
    defects = verify_checkpoint(f"{seaweedfs_bucket.url}/run/1").defects
    assert {one.kind for one in defects} == {"checksum"}
    assert {one.item for one in defects} == {"large at [0, 0, 0]", "step"}
    assert verify_checkpoint(f"{seaweedfs_bucket.url}/run/2").ok


def test_a_damaged_record_is_a_finding(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    record = seaweedfs_bucket.read("run/.metadata")
    for damaged in (record[:-100], flipped(record, len(record) // 2), b"", b"no pickle"):
        seaweedfs_bucket.write("run/.metadata", damaged)
        assert [(one.kind, one.object) for one in verify_checkpoint(url).defects] == [("record", ".metadata")]
    assert command("verify", url, code=1).startswith("record: .metadata: ")


def test_many_defects_are_shown_in_part(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    state = {f"layer {n:03}": torch.full((100,), float(n)) for n in range(50)}
    dcp.save(state, storage_writer=CloudStorageWriter(url))
    seaweedfs_bucket.delete(data_key(seaweedfs_bucket))
    said = command("verify", url, code=1)
    assert said.count("missing: ") == 20
    assert re.search(r"^… and 30 more in __0_0\.\w+\.distcp; --json has them all$", said, re.MULTILINE)
    assert "50 defects in 50 items" in said
    assert len(as_json("verify", url, code=1)["defects"]) == 50


# --- other writers, and more than one rank


def uploaded(bucket: Bucket, folder: Path) -> str:
    for path in folder.iterdir():
        bucket.write(f"copied/{path.name}", path.read_bytes())
    return f"{bucket.url}/copied"


def test_what_torch_s_own_writer_wrote(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    """Its frames have CRC32s, of which it is said that they are there or that they are not."""
    dcp.save(state_of(1), storage_writer=dcp.FileSystemWriter(tmp_path))
    url = uploaded(seaweedfs_bucket, tmp_path)
    report = verify_checkpoint(url)
    assert report.ok
    assert report.checked + report.parsed == report.size > 6 * MIB
    key = data_key(seaweedfs_bucket, "copied/")
    whole = seaweedfs_bucket.read(key)
    place = whole.index(scenarios.bits(state_of(1)["large"])) + 5 * MIB
    seaweedfs_bucket.write(key, flipped(whole, place))
    (defect,) = verify_checkpoint(url).defects
    assert defect.item == "large at [0, 0, 0]"
    assert defect.start <= place < defect.stop
    seaweedfs_bucket.write(key, whole[:-200])
    assert {one.kind for one in verify_checkpoint(url).defects} == {"cut"}


def test_ranks_and_shards(seaweedfs_bucket: Bucket, worlds: World) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    worlds(4).run(scenarios.save_full, url, 5)
    report = verify_checkpoint(url)
    assert report.ok
    assert report.objects == 4
    sizes = {
        key: len(seaweedfs_bucket.read(key)) for key in seaweedfs_bucket.keys() if key.endswith(".distcp")
    }
    assert report.checked == report.size == sum(sizes.values())
    lost = next(key for key in sizes if "/__2_0." in key)
    seaweedfs_bucket.delete(lost)
    defects = verify_checkpoint(url).defects
    assert {(one.kind, one.object) for one in defects} == {("missing", lost.removeprefix("run/"))}


def saves_without_collectives(url: str) -> None:
    rank = dist.get_rank()
    state = {f"rank {rank}": torch.full((50,), float(rank))}
    dcp.save(state, storage_writer=CloudStorageWriter(url), use_collectives=False)


@since(2, 9, "saving without collectives")
def test_records_of_single_ranks(seaweedfs_bucket: Bucket, worlds: World) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    worlds(2).run(saves_without_collectives, url)
    report = verify_checkpoint(url)
    assert (report.ok, report.items, report.objects) == (True, 2, 2)
    assert report.records == ["__0.metadata", "__1.metadata"]
    (key,) = (key for key in seaweedfs_bucket.keys() if "/__1_0." in key)
    seaweedfs_bucket.write(key, seaweedfs_bucket.read(key)[:-1])
    (defect,) = verify_checkpoint(url).defects
    assert (defect.kind, defect.item) == ("cut", "rank 1 at [0]")


def test_a_large_object_takes_few_requests(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    state = {f"layer {n}": scenarios.noise(n, (256, 1024)) for n in range(100)}
    dcp.save(state, storage_writer=CloudStorageWriter(url))
    proxy.clear()
    report = verify_checkpoint(url)
    assert report.ok
    reads = [seen for seen in proxy.requests if seen.path.endswith(".distcp")]
    # 100 MiB in tasks of 64 MiB, each read once
    assert len(reads) == 2
    assert sum(seen.bytes_out for seen in reads) <= report.size + 64 * KIB
    assert report.checked == report.size > 100 * MIB


# --- what happens meanwhile


@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", operation="GetObject", path="distcp", times=2),
        Fault("reset_response", operation="GetObject", path="distcp", after=2 * MIB, times=2),
        Fault("flip_response", operation="GetObject", path="distcp", after=2 * MIB),
        Fault("error", operation="ListObjectsV2"),
    ],
    ids=lambda fault: fault.kind,
)
def test_what_happens_on_the_way_is_no_defect(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, fault: Fault
) -> None:
    """Nor is it hidden: places that were damaged on their way are counted."""
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    proxy.add(fault)
    report = verify_checkpoint(url)
    assert fault.hits > 0
    assert report.ok
    assert report.checked == report.size
    assert report.read_twice == (fault.kind == "flip_response")


def test_without_the_right_to_list_objects_are_asked_for_one_by_one(
    seaweedfs_bucket: Bucket, proxy: FaultProxy
) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    proxy.add(Fault("error", operation="ListObjectsV2", status=403, code="AccessDenied", times=99))
    proxy.requests.clear()
    assert verify_checkpoint(url).ok
    key = data_key(seaweedfs_bucket)
    heads = [seen.path for seen in proxy.requests if seen.operation == "HeadObject"]
    assert [path for path in heads if path.endswith(key)] == [f"/{seaweedfs_bucket.name}/{key}"]
    seaweedfs_bucket.delete(key)
    assert {one.kind for one in verify_checkpoint(url).defects} == {"missing"}


def test_a_checkpoint_that_is_replaced_meanwhile_is_not_damaged(seaweedfs_bucket: Bucket) -> None:
    """Its objects are rightly gone, or going: that is said, and is no defect."""
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    replaced = threading.Event()

    def replace(done: int, total: int) -> None:
        # told once the record is read and the sizes are known, before any data is
        if not replaced.is_set():
            replaced.set()
            thread = threading.Thread(target=save, args=(url, 2))
            thread.start()
            thread.join()

    with pytest.raises(CheckpointReplacedError, match="verify again"):
        verify_checkpoint(url, progress=replace)
    assert replaced.is_set()
    assert verify_checkpoint(url).ok


# --- progress


def test_progress_adds_up(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    told: list[tuple[int, int]] = []
    report: Report = verify_checkpoint(url, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, report.size)
    assert told[-1] == (report.size, report.size)
    assert {total for _, total in told} == {report.size}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) > 6


def test_lines_of_progress_do_not_disturb_json(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url)
    # a line is due every ten seconds: here at each chance
    (tmp_path / "sitecustomize.py").write_text(
        "import dcp_core.cli.output as output\noutput._LINE_EVERY = 0.0\n"
    )
    path = ":".join(filter(None, [str(tmp_path), environment().get("PYTHONPATH")]))
    done = run("verify", url, "--json", PYTHONPATH=path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["ok"]
    lines = done.stderr.splitlines()
    assert lines
    assert all(re.fullmatch(r"verifying: \d+\.\d MiB of 6\.0 MiB", line) for line in lines)
