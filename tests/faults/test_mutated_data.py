"""Data objects that are not what was saved: a load says so, or gives the right bytes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from support.records import read
from support.scenarios import noise
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import CheckpointCorruptError, CloudStorageReader, CloudStorageWriter
from dcp_core.format.stored import payload_of
from dcp_core.upkeep.verify import verify_checkpoint

MIB = 1 << 20


def state(seed: int = 0) -> dict[str, Any]:
    """Tensors of one block, of several, and an object."""
    return {
        "large": noise(seed + 1, (3, 300_000)),
        "small": noise(seed + 2, (10,)),
        "half": noise(seed + 3, (700,), torch.bfloat16),
        "step": seed + 4,
    }


def failure(url: str) -> CheckpointCorruptError | None:
    """What a load says; nothing if it gives the right bytes. What is wrong never ends well."""
    target = scenarios.blanked(state())
    try:
        dcp.load(target, storage_reader=CloudStorageReader(url))
    except CheckpointException as caught:
        ((error, _),) = caught.failures.values()
        assert isinstance(error, CheckpointCorruptError), error
        return error
    scenarios.assert_same(target, state())
    return None


@pytest.fixture
def url(seaweedfs_bucket: Bucket) -> str:
    dcp.save(state(), storage_writer=CloudStorageWriter(f"{seaweedfs_bucket.url}/run"))
    return f"{seaweedfs_bucket.url}/run"


def data_key(bucket: Bucket, prefix: str = "run/") -> str:
    (found,) = (key for key in bucket.keys(prefix) if key.endswith(".distcp"))
    return found


def payloads(bucket: Bucket) -> dict[str, tuple[int, int]]:
    """Bytes of the object that are a tensor's elements, or an object."""
    found = {}
    for index, info in read(bucket.read("run/.metadata")).storage_data.items():
        payload = payload_of(info)
        assert payload is not None
        start = info.offset + payload.offset
        found[index.fqn] = (start, start + payload.size)
    return found


def flipped(data: bytes, at: int, bit: int = 3) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def test_a_flipped_bit_is_found(url: str, seaweedfs_bucket: Bucket) -> None:
    """By a load wherever bytes are placed from; by verifying everywhere."""
    key = data_key(seaweedfs_bucket)
    data = seaweedfs_bucket.read(key)
    assert failure(url) is None
    for name, (start, stop) in payloads(seaweedfs_bucket).items():
        for at in (start, (start + stop) // 2, stop - 1):
            seaweedfs_bucket.write(key, flipped(data, at, at % 8))
            error = failure(url)
            assert error is not None, (name, at)
            assert error.key == key
            assert name in str(error)
            (defect,) = verify_checkpoint(url).defects
            assert defect.start <= at < defect.stop
    around = sorted(itertools.chain.from_iterable(payloads(seaweedfs_bucket).values()))
    for at in (0, around[1] + 1, len(data) - 1):
        seaweedfs_bucket.write(key, flipped(data, at))
        assert failure(url) is None, "what is around the elements is not read"
        assert not verify_checkpoint(url).ok


def test_a_cut_object_is_found(url: str, seaweedfs_bucket: Bucket) -> None:
    key = data_key(seaweedfs_bucket)
    data = seaweedfs_bucket.read(key)
    last = max(stop for _, stop in payloads(seaweedfs_bucket).values())
    for size in (0, 1, len(data) // 2, last - 1):
        seaweedfs_bucket.write(key, data[:size])
        error = failure(url)
        assert error is not None, size
        assert error.key == key
        assert not verify_checkpoint(url, quick=True).ok


def test_a_missing_object_is_found(url: str, seaweedfs_bucket: Bucket) -> None:
    key = data_key(seaweedfs_bucket)
    seaweedfs_bucket.delete(key)
    error = failure(url)
    assert error is not None
    assert (error.bucket, error.key) == (seaweedfs_bucket.name, key)
    assert "does not exist" in str(error)
    assert not verify_checkpoint(url, quick=True).ok


def test_an_extended_object_is_found_and_loads(url: str, seaweedfs_bucket: Bucket) -> None:
    """What is behind the last item is read by no one."""
    key = data_key(seaweedfs_bucket)
    seaweedfs_bucket.write(key, seaweedfs_bucket.read(key) + b"more")
    assert failure(url) is None
    (defect,) = verify_checkpoint(url, quick=True).defects
    assert defect.object == key.removeprefix("run/")


def test_another_checkpoint_s_object_is_found(url: str, seaweedfs_bucket: Bucket) -> None:
    """Of the same model, whose items lie at the same places."""
    dcp.save(state(90), storage_writer=CloudStorageWriter(f"{seaweedfs_bucket.url}/other"))
    key, other = data_key(seaweedfs_bucket), data_key(seaweedfs_bucket, "other/")
    theirs = seaweedfs_bucket.read(other)
    assert len(theirs) == len(seaweedfs_bucket.read(key))
    seaweedfs_bucket.write(key, theirs)
    error = failure(url)
    assert error is not None
    assert error.key == key
    assert {defect.kind for defect in verify_checkpoint(url).defects} == {"checksum"}


def test_any_stretch_of_another_checkpoint_s_object_is_found(url: str, seaweedfs_bucket: Bucket) -> None:
    dcp.save(state(90), storage_writer=CloudStorageWriter(f"{seaweedfs_bucket.url}/other"))
    key = data_key(seaweedfs_bucket)
    ours, theirs = seaweedfs_bucket.read(key), seaweedfs_bucket.read(data_key(seaweedfs_bucket, "other/"))
    elements = payloads(seaweedfs_bucket)
    for seed in range(14):
        at, length = (int(value) for value in torch.randint(1, len(ours), (2,), generator=_generator(seed)))
        stop = min(len(ours), at + length % (1 << seed % 22) + 1)
        mixed = ours[:at] + theirs[at:stop] + ours[stop:]
        seaweedfs_bucket.write(key, mixed)
        changed = any(mixed[begin:end] != ours[begin:end] for begin, end in elements.values())
        assert (failure(url) is not None) == changed, (at, stop)
        assert verify_checkpoint(url).ok == (mixed == ours)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_what_was_damaged_on_the_way_is_read_again(url: str, seaweedfs_proxy: FaultProxy) -> None:
    seaweedfs_proxy.add(Fault("flip_response", path=r"\.distcp$", after=300_000, times=1))
    assert failure(url) is None
    flips = [seen for seen in seaweedfs_proxy.requests if seen.fault == "flip_response"]
    assert len(flips) == 1
    # what comes damaged twice lies damaged there
    seaweedfs_proxy.add(Fault("flip_response", path=r"\.distcp$", after=300_000, times=100))
    assert failure(url) is not None


def stock(folder: Path, bucket: Bucket, saved: dict[str, Any], *, crc: bool = True) -> str:
    """A checkpoint of torch's own writer in the bucket."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(crc)
    try:
        dcp.save(saved, checkpoint_id=folder)
    finally:
        torch.serialization.set_crc32_options(before)
    for path in folder.iterdir():
        bucket.write(f"run/{path.name}", path.read_bytes())
    return f"{bucket.url}/run"


def test_a_flipped_bit_of_a_stock_checkpoint_is_found_or_harmless(
    seaweedfs_bucket: Bucket, tmp_path: Path
) -> None:
    """Stock torch records no checksums that a load could use; verifying uses those of the zip files."""
    url = stock(tmp_path / "stock", seaweedfs_bucket, {"small": noise(2, (10,)), "step": 4})
    key = data_key(seaweedfs_bucket)
    data = seaweedfs_bucket.read(key)
    assert verify_checkpoint(url).ok
    found = 0
    for at in range(0, len(data), 67):
        seaweedfs_bucket.write(key, flipped(data, at, at % 8))
        if not verify_checkpoint(url).ok:
            found += 1
            continue
        target = {"small": torch.zeros(10), "step": 0}
        dcp.load(target, storage_reader=CloudStorageReader(url))
        scenarios.assert_same(target, {"small": noise(2, (10,)), "step": 4}, str(at))
    assert found > 0.9 * len(range(0, len(data), 67))


def test_a_stock_checkpoint_without_checksums_is_said_to_be_unverified(
    seaweedfs_bucket: Bucket, tmp_path: Path
) -> None:
    url = stock(tmp_path / "stock", seaweedfs_bucket, state(), crc=False)
    report = verify_checkpoint(url)
    assert report.ok
    assert (report.checked, report.parsed_items) == (0, 4)
    assert report.parsed == report.size
    assert failure(url) is None
    # with checksums nothing is left out
    seaweedfs_bucket.delete("run/.metadata")
    report = verify_checkpoint(stock(tmp_path / "other", seaweedfs_bucket, state()))
    assert report.ok
    assert (report.parsed_items, report.checked > 0) == (0, True)


def test_a_large_stock_tensor_is_read_in_pieces(
    seaweedfs_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head is read before, to find where the elements begin; then they are received where they belong."""
    saved = {"large": noise(5, (9, MIB // 4)), "small": noise(6, (10,))}
    url = stock(tmp_path / "stock", seaweedfs_bucket, saved)
    with FaultProxy(seaweedfs_bucket.server.endpoint) as proxy:
        for variable, value in seaweedfs_bucket.environment_at(proxy.endpoint).items():
            monkeypatch.setenv(variable, value)
        target = {"large": torch.zeros(9, MIB // 4), "small": torch.zeros(10)}
        dcp.load(target, storage_reader=CloudStorageReader(url, max_request_size=2 * MIB))
        asked = [seen.headers["Range"] for seen in proxy.requests if seen.path.endswith(".distcp")]
    scenarios.assert_same(target, saved)
    spans = [tuple(map(int, one.removeprefix("bytes=").split("-"))) for one in asked]
    sizes = [stop + 1 - start for start, stop in spans]
    assert sizes.count(8192) == 1
    assert sum(size > MIB for size in sizes) >= 4
    assert max(sizes) < 5 * MIB
    # the elements once, and little besides
    assert 9 * MIB < sum(sizes) < 9 * MIB + 20_000
