"""``dcp-cloud show``, ``diff``, ``head``, ``du`` and ``rm`` on real buckets and on a disk."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from support.command import as_json, command, fails
from support.ranks import Ranks, replace_variables
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from dcp_core import (
    CheckpointReplacedError,
    CheckpointRun,
    CloudStorageReader,
    CloudStorageWriter,
    LoadOptions,
)
from dcp_core.format.metadata import encode_metadata
from dcp_core.format.stored import StorageInfo
from dcp_core.run.leases import hold
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.tools.difference import compare
from dcp_core.tools.removal import removal_at
from dcp_core.transfer import Transfer

World = Callable[[int], Ranks]

TOKEN = "0123456789abcdef"
MIB = 1 << 20


def save(url: str, state: dict[str, Any]) -> None:
    dcp.save(state, storage_writer=CloudStorageWriter(url))


def save_to_disk(folder: Path, state: dict[str, Any]) -> None:
    dcp.save(state, storage_writer=FileSystemWriter(folder))


def state_of(seed: int) -> dict[str, Any]:
    return {
        "model": {
            "layers": {"0": {"w": scenarios.noise(seed, (512, 512))}, "1": {"w": torch.ones(3)}},
            "norm": torch.zeros(4, dtype=torch.bfloat16),
        },
        "step": 3,
    }


# --- show


def test_show_is_a_tree(bucket: Bucket) -> None:
    url = f"{bucket.url}/run"
    save(url, state_of(1))
    lines = [line.split() for line in command("show", url).splitlines()]
    size = ["1.0", "MiB"]
    assert lines[1] == ["model/", "bfloat16,", "float32", *size, "3", "3", "1"]
    assert lines[2] == ["layers/", "float32", *size, "2", "2", "1"]
    assert lines[4] == ["w", "float32", "[512,", "512]", *size, "1", "1"]
    assert [line[0] for line in lines[1:-1]] == ["model/", "layers/", "0/", "w", "1/", "w", "norm", "step"]
    assert lines[-1] == ["4", "items", "in", "4", "chunks", "of", "1", "ranks,", "1.0", "MiB"]


def test_show_folds_and_looks_at_a_part(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url, state_of(1))
    folded = as_json("show", url, "--depth", "2")
    assert [row["name"] for row in folded["rows"]] == ["model", "model.layers", "model.norm", "step"]
    layers = {"name": "model.layers", "depth": 1, "kind": "folder", "shape": None, "items": 2}
    layers |= {"bytes": MIB + 12, "chunks": 2, "ranks": [0], "dtypes": ["float32"]}
    assert folded["rows"][1] == layers
    part = as_json("show", url, "--under", "model.layers")
    assert [row["name"] for row in part["rows"] if row["kind"] == "tensor"] == [
        "model.layers.0.w",
        "model.layers.1.w",
    ]
    assert part["items"] == 2
    assert "0 items" in command("show", url, "--under", "model.lay", code=1)


def test_show_tells_how_tensors_are_sharded(seaweedfs_bucket: Bucket, worlds: World) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    full = scenarios.sharded_state(1)
    worlds(2).run(_save_sharded, seaweedfs_bucket.environment, url)
    rows = {row["name"]: row for row in as_json("show", url)["rows"]}
    for name in ("dim 0", "dim 1", "wide", "cube"):
        assert (rows[name]["chunks"], rows[name]["ranks"]) == (2, [0, 1])
        assert rows[name]["bytes"] == full[name].nbytes
    assert rows["replicated"]["chunks"] == 1


def _save_sharded(environment: dict[str, str], url: str) -> None:
    replace_variables(environment)
    state = scenarios.sharded(scenarios.sharded_state(1))
    dcp.save(state, storage_writer=CloudStorageWriter(url))


def test_names_of_any_depth_are_shown(seaweedfs_bucket: Bucket) -> None:
    """They come from a bucket: neither the stack nor memory may depend on them."""
    url, name = f"{seaweedfs_bucket.url}/run", "\x1b[2J." + ".".join("x" * 5000)
    save(url, {name: torch.ones(2), ".": torch.ones(1), "": torch.ones(1)})
    assert r"\x1b[2J" in command("show", url)
    rows = as_json("show", url)["rows"]
    assert len(rows) < 50
    assert {row["name"] for row in rows if row["kind"] == "tensor"} == {name, ".", ""}


# --- diff


def test_diff_of_names_shapes_and_dtypes(bucket: Bucket) -> None:
    first = {"same": torch.ones(4), "gone": torch.ones(2), "shape": torch.ones(4), "kind": 1, "n": 1}
    first["dtype"] = torch.ones(4)
    second = {"same": torch.zeros(4), "new": 7, "shape": torch.ones(2, 2), "kind": torch.ones(1), "n": 2}
    second["dtype"] = torch.ones(4, dtype=torch.float64)
    a, b = f"{bucket.url}/a", f"{bucket.url}/b"
    save(a, first)
    save(b, second)
    lines = command("diff", a, b, code=1).splitlines()
    assert lines == [
        "dtype: dtype: float32 and float64",
        "only in A: gone: float32 [2]",
        "kind: kind: object and float32 [1]",
        "only in B: new: object",
        "shape: shape: [4] and [2, 2]",
        "5 differences; 5 items in both",
    ]
    assert command("diff", a, a) == "no difference; 6 items in both\n"
    found = as_json("diff", a, b, "--values", code=1)
    assert [one["name"] for one in found["found"] if one["kind"] == "values"] == ["n", "same"]
    assert found["equal"] is False
    assert (found["by_checksums"], found["by_elements"]) == (1, 1)


def test_diff_of_values_needs_only_the_records(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    """One bit in the last of three MiB; no data object is asked for."""
    large = scenarios.noise(1, (3, 512, 512))
    changed = large.clone()
    changed.view(torch.uint8).view(-1)[-1] ^= 1
    a, b = f"{seaweedfs_bucket.url}/a", f"{seaweedfs_bucket.url}/b"
    save(a, {"large": large, "other": torch.ones(5), "none": torch.empty(0, 3), "n": [1, "two"]})
    save(b, {"large": changed, "other": torch.ones(5), "none": torch.empty(0, 3), "n": [1, "two"]})
    proxy.requests.clear()
    said = command("diff", a, b, "--values", code=1)
    assert said.splitlines()[0] == "values: large"
    assert "values of 4 compared by checksums and of 0 by reading" in said
    assert {seen.path.rpartition("/")[2] for seen in proxy.requests} == {".metadata"}
    assert len(proxy.requests) == 2


def test_diff_of_other_shards_reads_them(seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path) -> None:
    """The same state from two ranks, from one, and from stock torch: equal until a bit differs."""
    sharded, whole = f"{seaweedfs_bucket.url}/a", f"{seaweedfs_bucket.url}/b"
    state: dict[str, Any] = dict(scenarios.sharded_state(1))
    worlds(2).run(_save_sharded, seaweedfs_bucket.environment, sharded)
    save(whole, state)
    save_to_disk(tmp_path, state)
    found = as_json("diff", sharded, whole, "--values")
    # few rows are in one chunk each way, and so are replicated ones
    assert found["by_elements"] >= 5
    assert found["read"] > 4 * 300_000 * 2
    assert as_json("diff", str(tmp_path), sharded, "--values")["by_elements"] == len(state)
    state["wide"].view(torch.uint8).view(-1)[-1] ^= 1
    state["cube"][3, 4, 5] = 7.0
    save(whole, state)
    found = as_json("diff", sharded, whole, "--values", code=1)
    assert [one["name"] for one in found["found"]] == ["cube", "wide"]


def test_diff_compares_every_element_whatever_its_kind(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    """What is saved twice is the same, from two writers with different frames."""
    url = f"{seaweedfs_bucket.url}/run"
    state = scenarios.plain_state(1)
    save(url, state)
    save_to_disk(tmp_path, state)
    report = compare(url, str(tmp_path), values=True)
    assert report.found == []
    assert report.by_elements == report.items > 40


# --- head


def test_head_of_a_tensor(bucket: Bucket) -> None:
    url = f"{bucket.url}/run"
    values = torch.arange(4000, dtype=torch.float32).reshape(40, 100)
    values[0, 2], values[0, 3], values[39, 99] = float("nan"), float("-inf"), -5.0
    save(url, {"w": values, "flags": torch.tensor([True, False]), "note": {"a": [1, "x"]}})
    found = as_json("head", url, "w", "-n", "5")
    assert found["values"] == [0.0, 1.0, "nan", "-inf", 4.0]
    finite = values[values.isfinite()].double()
    facts = found["statistics"]
    assert (facts["elements"], facts["nan"], facts["infinite"], facts["zero"]) == (4000, 1, 1, 1)
    assert (facts["min"], facts["max"]) == (-5.0, 3998.0)
    assert math.isclose(facts["mean"], float(finite.mean()), rel_tol=1e-12)
    assert math.isclose(facts["std"], float(finite.std(correction=0)), rel_tol=1e-12)
    said = command("head", url, "w", "--count", "2", "--no-statistics")
    assert said == "w: float32 [40, 100]\nvalues 0, 1 …\n"
    assert command("head", url, "flags", "--no-statistics") == "flags: bool [2]\nvalues True, False\n"
    assert command("head", url, "note.a") == "note.a: object\n[1, 'x']\n"


def test_head_reads_ranges(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    """Of one tensor among others: the record and a few bytes; all of it for the statistics, once."""
    url = f"{seaweedfs_bucket.url}/run"
    wanted = scenarios.noise(3, (20, 1024, 256))
    save(url, {"a": scenarios.noise(1, (MIB,)), "wanted": wanted, "z": scenarios.noise(2, (MIB,))})
    proxy.requests.clear()
    found = as_json("head", url, "wanted", "--no-statistics")
    assert found["values"] == [_plain(one) for one in wanted.flatten()[:8].tolist()]
    assert sum(seen.bytes_out for seen in proxy.requests if seen.path.endswith(".distcp")) < 64 << 10
    proxy.requests.clear()
    facts = as_json("head", url, "wanted")["statistics"]
    read = sum(seen.bytes_out for seen in proxy.requests if seen.path.endswith(".distcp"))
    assert wanted.nbytes <= read < wanted.nbytes + (1 << 20)
    finite = wanted[wanted.isfinite()].double()
    assert facts["elements"] == wanted.numel()
    assert facts["nan"] == int(wanted.isnan().sum())
    assert (facts["min"], facts["max"]) == (float(finite.min()), float(finite.max()))


def _plain(value: float) -> Any:
    return value if math.isfinite(value) else str(value)


@pytest.mark.parametrize("dtype", scenarios.DTYPES, ids=str)
def test_head_knows_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = scenarios.noise(1, (7, 9), dtype)
    save_to_disk(tmp_path, {"w": tensor})
    found = as_json("head", str(tmp_path), "w", "-n", "100")
    assert found["dtype"] == str(dtype).removeprefix("torch.")
    assert len(found["values"]) == found["statistics"]["elements"] == 63


def test_head_of_what_is_not_there(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url, state_of(1))
    assert "is it 'model.layers.0.w'" in fails("head", url, "model.layer.0.w")
    assert "no '\\x1bxyz'" in fails("head", url, "\x1bxyz")
    # of an empty tensor there is nothing to say
    save(url, {"none": torch.empty(0, 3)})
    found = as_json("head", url, "none")
    assert (found["values"], found["statistics"]["elements"], found["statistics"]["min"]) == ([], 0, None)


# --- du


def test_du_tells_checkpoints_from_leftovers(bucket: Bucket) -> None:
    url = f"{bucket.url}/runs"
    for step in (1, 2):
        save(f"{url}/a/step-{step}", state_of(step))
    whole = {key: len(bucket.read(key)) for key in bucket.keys()}
    bucket.write(f"runs/a/step-2/__3_0.{TOKEN}.distcp", b"left by a failed save")
    bucket.write("runs/a/step-2/notes.txt", b"seven b")
    bucket.write(f"runs/a/step-3/__0_0.{TOKEN}.distcp", b"unfinished")
    bucket.write("runs/b/.metadata", b"damaged")
    bucket.write("runs/readme", b"x" * 11)
    bucket.write("else", b"another URL")
    bucket.start_upload(f"runs/a/step-4/__0_0.{TOKEN}.distcp")
    found = as_json("du", url)
    rows = {row["path"]: row for row in found["folders"]}
    assert set(rows) == {"", "a/step-1", "a/step-2", "a/step-3", "a/step-4", "b"}
    for step in (1, 2):
        row = rows[f"a/step-{step}"]
        mine = [size for key, size in whole.items() if f"step-{step}/" in key]
        assert (row["state"], row["size"], row["objects"]) == ("committed", sum(mine), 2)
        assert row["modified"]
    assert (rows["a/step-2"]["leftover_size"], rows["a/step-2"]["other_size"]) == (21, 7)
    assert (rows["a/step-3"]["state"], rows["a/step-3"]["leftover_size"]) == ("unfinished", 10)
    assert (rows["a/step-4"]["state"], rows["a/step-4"]["uploads"]) == ("unfinished", 1)
    assert (rows["b"]["state"], rows["b"]["size"]) == ("damaged", 7)
    assert (rows[""]["state"], rows[""]["other_size"]) == ("other", 11)
    totals = {"checkpoints": 2, "size": sum(whole.values()) + 7, "leftover_size": 31, "other_size": 18}
    assert found["totals"] == {**totals, "uploads": 1}
    said = command("du", url)
    assert re.search(r"a/step-1 +committed .* 2 +1\.0 MiB", said)
    assert "2 checkpoints 2.0 MiB, leftovers 0.0 MiB and 1 uploads, others 0.0 MiB" in said
    assert command("du", f"{bucket.url}/none", code=1) == f"nothing is at {bucket.url}/none\n"


def test_du_of_checkpoints_of_stock_torch(tmp_path: Path) -> None:
    """Their names say little: the record decides."""
    save_to_disk(tmp_path / "run" / "1", state_of(1))
    (tmp_path / "run" / "1" / "__1_0.distcp").write_bytes(b"left")
    save_to_disk(tmp_path / "run" / "2", state_of(1))
    found = as_json("du", str(tmp_path))
    assert [
        (row["path"], row["state"], row["objects"], row["leftover_size"]) for row in found["folders"]
    ] == [
        ("run/1", "committed", 2, 4),
        ("run/2", "committed", 2, 0),
    ]
    files = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert found["totals"]["size"] + 4 == files


# --- rm


def test_rm_removes_a_checkpoint_and_nothing_else(bucket: Bucket) -> None:
    url = f"{bucket.url}/run"
    for step in (1, 10):
        save(f"{url}/step-{step}", state_of(step))
    (data,) = (key for key in bucket.keys("run/step-1/") if key.endswith(".distcp"))
    bucket.write("run/step-1/notes.txt", b"not ours")
    bucket.write(f"run/step-1/__3_0.{TOKEN}.distcp", b"left by a failed save")
    before = bucket.keys()
    said = command("rm", f"{url}/step-1")
    assert said.splitlines()[0] == "commit record .metadata"
    assert said.endswith("1 commit record and 1 objects (1.0 MiB) found; --yes removes them\n")
    assert bucket.keys() == before
    found = as_json("rm", f"{url}/step-1", "--yes")
    assert (found["removed"], found["data_removed"]) == (True, True)
    assert [one["name"] for one in found["objects"]] == [data.removeprefix("run/step-1/")]
    assert set(before) - set(bucket.keys()) == {"run/step-1/.metadata", data}
    assert command("verify", f"{url}/step-10").startswith(f"{url}/step-10: nothing wrong")


def test_rm_refuses_what_is_no_checkpoint(bucket: Bucket) -> None:
    url = f"{bucket.url}/run"
    save(f"{url}/step-1", state_of(1))
    bucket.write(f"left/__0_0.{TOKEN}.distcp", b"never committed")
    bucket.write("broken/.metadata", b"garbage")
    bucket.write(f"broken/__0_0.{TOKEN}.distcp", b"who knows")
    before = bucket.keys()
    for name in ("run", "left", "none", "run/step-10"):
        assert "no committed checkpoint" in fails("rm", f"{bucket.url}/{name}", "--yes")
    assert "not readable" in fails("rm", f"{bucket.url}/broken", "--yes")
    assert bucket.keys() == before


def test_rm_of_what_was_replaced_meanwhile(bucket: Bucket) -> None:
    """The other save's checkpoint stays whole."""
    url = f"{bucket.url}/run"
    save(url, state_of(1))
    with removal_at(url) as removal:
        found = removal.find()
        save(url, state_of(2))
        kept = bucket.keys()
        with pytest.raises(CheckpointReplacedError, match="another save has replaced"):
            removal.remove(found)
    assert bucket.keys() == kept
    loaded = scenarios.blanked(state_of(2))
    dcp.load(loaded, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(loaded, state_of(2))


def test_rm_that_is_interrupted_leaves_no_record_without_data(
    seaweedfs_bucket: Bucket, proxy: FaultProxy
) -> None:
    """The record goes first; what is left is what gc removes."""
    url = f"{seaweedfs_bucket.url}/run"
    save(url, state_of(1))
    before = seaweedfs_bucket.keys()
    proxy.add(Fault("error", operation="DeleteObject", status=403, code="AccessDenied", times=1))
    said = fails("rm", url, "--yes")
    assert "s3:DeleteObject" in said
    assert seaweedfs_bucket.keys() == before
    proxy.add(Fault("error", operation="DeleteObjects", status=403, code="AccessDenied", times=1))
    said = fails("rm", url, "--yes")
    assert "the checkpoint is gone, and some of its 1 data objects may be left: `dcp-cloud gc`" in said
    (left,) = seaweedfs_bucket.keys()
    assert left.endswith(".distcp")
    assert "no committed checkpoint" in fails("rm", url, "--yes")
    command("gc", url, "--older-than-hours", "0", "--delete")
    assert seaweedfs_bucket.keys() == []


def test_rm_goes_on_after_a_lost_response(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url, state_of(1))
    proxy.add(Fault("lose_response", operation="DeleteObject", times=1))
    proxy.add(Fault("lose_response", operation="DeleteObjects", times=1))
    command("rm", url, "--yes")
    assert seaweedfs_bucket.keys() == []


@contextlib.contextmanager
def lease_on(run: str, step: int) -> Iterator[None]:
    with contextlib.closing(CheckpointStore(run, LoadOptions, {})) as place:
        transfer = Transfer(place.options, None)
        with hold(place.writable_store(), place.location, step, transfer, 3600.0):
            yield


def test_rm_of_a_step_that_is_being_loaded(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    with CheckpointRun(url) as run:
        for step in (1, 2):
            run.save(step, {"w": torch.ones(3)})
    with lease_on(url, 1):
        before = seaweedfs_bucket.keys("run/step-")
        assert "step 1 is being loaded" in fails("rm", f"{url}/step-1/", "--yes")
        assert seaweedfs_bucket.keys("run/step-") == before
        command("rm", f"{url}/step-2", "--yes")
        assert seaweedfs_bucket.keys("run/step-2/") == []
    command("rm", f"{url}/step-1", "--yes")
    assert seaweedfs_bucket.keys("run/step-") == []


def test_rm_leaves_the_data_to_a_load_that_began_meanwhile(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(f"{url}/step-1", state_of(1))
    with removal_at(f"{url}/step-1") as removal:
        found = removal.find()
        with lease_on(url, 1):
            assert removal.remove(found) is False
    (left,) = seaweedfs_bucket.keys("run/step-1/")
    assert left.endswith(".distcp")


def test_rm_on_a_disk(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    save(url, state_of(1))
    for step in ("step-1", "step-2"):
        command("cp", url, str(tmp_path / step))
    command("rm", str(tmp_path / "step-1"), "--yes")
    assert list((tmp_path / "step-1").iterdir()) == []
    assert command("show", f"file://{tmp_path}/step-2").endswith("1.0 MiB\n")
    assert not (tmp_path / ".run").exists()


def test_rm_leaves_checkpoints_of_stock_torch(tmp_path: Path) -> None:
    """Its next save gives the same names: they may be of a checkpoint that is committed by then."""
    save_to_disk(tmp_path / "step-1", state_of(1))
    before = sorted((tmp_path / "step-1").iterdir())
    assert "did not name" in fails("rm", str(tmp_path / "step-1"), "--yes")
    assert sorted((tmp_path / "step-1").iterdir()) == before


def test_a_record_can_make_nobody_remove_other_checkpoints(seaweedfs_bucket: Bucket) -> None:
    """Whoever can write one object must not have others removed by whoever may."""
    url = f"{seaweedfs_bucket.url}/run"
    save(f"{url}/step-1", state_of(1))
    (data,) = (key for key in seaweedfs_bucket.keys() if key.endswith(".distcp"))
    stored = {MetadataIndex("w"): StorageInfo(data.removeprefix("run/"), 0, 10)}
    record = encode_metadata(Metadata({"w": BytesStorageMetadata()}, None, stored))
    seaweedfs_bucket.write("run/.metadata", record)
    fails("rm", url, "--yes")
    assert seaweedfs_bucket.keys() == sorted(["run/.metadata", "run/step-1/.metadata", data])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_tensors_are_compared_and_not_looked_into(seaweedfs_bucket: Bucket) -> None:
    """Their frames are what there is of them."""
    a, b, c = (f"{seaweedfs_bucket.url}/{name}" for name in "abc")
    values = torch.arange(8.0)
    for url, scale in ((a, 0.5), (b, 0.5), (c, 0.25)):
        save(url, {"q": torch.quantize_per_tensor(values, scale, 0, torch.qint8)})
    assert as_json("diff", a, b, "--values")["by_checksums"] == 1
    assert as_json("diff", a, c, "--values", code=1)["found"][0]["name"] == "q"
    assert "qint8" in fails("head", a, "q")


def test_objects_that_would_run_code_are_not_loaded(seaweedfs_bucket: Bucket) -> None:
    a, b = (f"{seaweedfs_bucket.url}/{name}" for name in "ab")
    save(a, {"x": Path("one")})
    save(b, {"x": Path("two")})
    assert "which loading refuses" in fails("head", a, "x")
    assert command("diff", a, b, "--values", code=1).startswith("values: x\n")
    assert command("diff", a, a, "--values").startswith("no difference")
