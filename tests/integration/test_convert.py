"""Checkpoints from one format into another, on disks and in buckets."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from dcp_fault_proxy import Fault, FaultProxy
from support import scenarios
from support.command import as_json, environment, run
from support.ranks import Ranks
from torch.distributed.checkpoint import format_utils
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CheckpointReplacedError,
    CloudStorageReader,
    CloudStorageWriter,
    ConfigurationError,
    InvalidLocationError,
    TransientError,
    UnsupportedError,
    UntrustedDataError,
)
from dcp_core.convert import Format, TorchSaveReader, convert, dcp_to_torch_save, torch_save_to_dcp
from dcp_core.convert.local_files import LocalSink
from dcp_core.convert.nest import nested
from dcp_core.huggingface import HuggingFaceStorageReader, HuggingFaceStorageWriter

World = Callable[[int], Ranks]


def state_of(seed: int) -> dict[str, Any]:
    """A training state: nested, small and large tensors, views, shared storages, objects."""
    weight = scenarios.noise(seed, (300, 200))
    return {
        "model": {
            "weight": weight,
            "tied": weight,
            "transposed": scenarios.noise(seed + 1, (150, 200)).t(),
            "slice": scenarios.noise(seed + 2, (500, 100))[100:200, 3:7],
            "half": scenarios.noise(seed + 3, (99_999,), torch.bfloat16),
            "scalar": torch.tensor(float(seed)),
            "empty": torch.empty(0, 3),
            "parameter": torch.nn.Parameter(torch.full((20_000,), float(seed))),
        },
        "optimizer": {
            "state": {"0": {"step": torch.tensor(seed), "moment": scenarios.noise(seed + 4, (300, 200))}},
            "groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0, 1]}],
        },
        "history": [scenarios.noise(seed + 5, (3,)), scenarios.noise(seed + 6, (30_000,))],
        "step": seed,
        "names": ["a", None],
    }


def same(found: Any, expected: Any, path: str = "") -> None:
    """As ``scenarios.assert_same``, also for tensors in lists."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), path
        for key in expected:
            same(found[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected)
        assert len(found) == len(expected), path
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{path}/{number}")
    else:
        scenarios.assert_same(found, expected, path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "state.pt"
    torch.save(state_of(3), path)
    return path


def downloaded(bucket: Bucket, prefix: str, folder: Path) -> Path:
    folder.mkdir()
    for key in bucket.keys(f"{prefix}/"):
        (folder / key.removeprefix(f"{prefix}/")).write_bytes(bucket.read(key))
    return folder


# --- between torch.save files and DCP checkpoints


def test_from_a_file_through_the_bucket_and_back(bucket: Bucket, file: Path, tmp_path: Path) -> None:
    """Every pair of a path and a URL."""
    url = bucket.url
    torch_save_to_dcp(file, f"{url}/checkpoint")
    dcp_to_torch_save(f"{url}/checkpoint", f"{url}/again.pt")
    assert bucket.read("again.pt")[:4] == b"PK\x03\x04"
    torch_save_to_dcp(f"{url}/again.pt", tmp_path / "folder")
    dcp_to_torch_save(tmp_path / "folder", f"{url}/third.pt")
    torch_save_to_dcp(f"{url}/third.pt", f"{url}/fourth")
    dcp_to_torch_save(f"{url}/fourth", tmp_path / "last.pt")
    same(torch.load(tmp_path / "last.pt"), state_of(3))
    assert bucket.uploads() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "last.pt", "state.pt"]


def test_what_torch_makes_of_the_same_is_the_same(
    seaweedfs_bucket: Bucket, file: Path, tmp_path: Path
) -> None:
    """torch's functions and ours make one another's input."""
    torch_save_to_dcp(file, f"{seaweedfs_bucket.url}/ours")
    folder = downloaded(seaweedfs_bucket, "ours", tmp_path / "ours")
    format_utils.dcp_to_torch_save(folder, tmp_path / "stock.pt")
    dcp_to_torch_save(f"{seaweedfs_bucket.url}/ours", tmp_path / "ours.pt")
    same(torch.load(tmp_path / "ours.pt"), torch.load(tmp_path / "stock.pt"))
    format_utils.torch_save_to_dcp(file, tmp_path / "stock")
    for path in (tmp_path / "stock").iterdir():
        seaweedfs_bucket.write(f"stock/{path.name}", path.read_bytes())
    dcp_to_torch_save(f"{seaweedfs_bucket.url}/stock", tmp_path / "of stock.pt")
    same(torch.load(tmp_path / "of stock.pt"), state_of(3))


def test_a_converted_file_is_a_sound_archive(seaweedfs_bucket: Bucket, file: Path, tmp_path: Path) -> None:
    torch_save_to_dcp(file, f"{seaweedfs_bucket.url}/run")
    dcp_to_torch_save(f"{seaweedfs_bucket.url}/run", tmp_path / "made.pt")
    with zipfile.ZipFile(tmp_path / "made.pt") as archive:
        assert archive.testzip() is None
    # mapped, as large models are
    same(torch.load(tmp_path / "made.pt", mmap=True), state_of(3))


def save_sharded(url: str) -> None:
    full = scenarios.sharded_state(4)
    dcp.save({"model": scenarios.sharded(full), "step": 4}, storage_writer=CloudStorageWriter(url))


def test_a_sharded_checkpoint_becomes_one_file(
    seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path
) -> None:
    worlds(4).run(save_sharded, f"{seaweedfs_bucket.url}/run")
    dcp_to_torch_save(f"{seaweedfs_bucket.url}/run", tmp_path / "made.pt")
    expected = {"model": scenarios.sharded_state(4), "step": 4}
    scenarios.assert_same(torch.load(tmp_path / "made.pt"), expected)


def load_sharded(url: str) -> None:
    full = scenarios.sharded_state(4)
    found = scenarios.blanked({"model": scenarios.sharded(full)})
    dcp.load(found, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(found["model"], full)


def test_a_file_is_loaded_by_ranks_once_it_is_a_checkpoint(
    seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path
) -> None:
    torch.save({"model": scenarios.sharded_state(4)}, tmp_path / "full.pt")
    torch_save_to_dcp(tmp_path / "full.pt", f"{seaweedfs_bucket.url}/run")
    worlds(2).run(load_sharded, f"{seaweedfs_bucket.url}/run")


def legacy(path: Path) -> None:
    torch.save(state_of(5), path, _use_new_zipfile_serialization=False)


def in_a_tuple(path: Path) -> None:
    torch.save({"pair": (1, scenarios.noise(1, (40_000,))), "list": [(scenarios.noise(2, (30_000,)),)]}, path)


def sparse(path: Path) -> None:
    torch.save({"sparse": torch.eye(300).to_sparse(), "dense": scenarios.noise(3, (40_000,))}, path)


def conjugate(path: Path) -> None:
    value = scenarios.noise(4, (200, 200), torch.complex64)
    torch.save({"conjugate": torch.view_as_complex(torch.ones(20_000, 2)).conj(), "plain": value}, path)


def of_the_other_byte_order(path: Path) -> None:
    torch.save({"weight": scenarios.noise(6, (40_000,))}, path.with_name("little"))
    with zipfile.ZipFile(path.with_name("little")) as old, zipfile.ZipFile(path, "w") as new:
        for record in old.infolist():
            data = old.read(record)
            if record.filename.endswith("byteorder"):
                data = b"big"
            elif "/data/" in record.filename:
                data = bytes(
                    torch.frombuffer(bytearray(data), dtype=torch.float32)
                    .view(torch.int32)
                    .numpy()
                    .byteswap()
                )
            new.writestr(record.filename, data)


def compressed(path: Path) -> None:
    torch.save({"weight": torch.zeros(90_000)}, path.with_name("stored"))
    with (
        zipfile.ZipFile(path.with_name("stored")) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))


@pytest.mark.parametrize("make", [legacy, in_a_tuple, conjugate, of_the_other_byte_order, compressed])
def test_files_of_every_kind(seaweedfs_bucket: Bucket, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "file.pt")
    try:
        expected = torch.load(tmp_path / "file.pt")
    except RuntimeError:
        pytest.skip("this torch does not read it either")
    seaweedfs_bucket.write("file.pt", (tmp_path / "file.pt").read_bytes())
    torch_save_to_dcp(f"{seaweedfs_bucket.url}/file.pt", f"{seaweedfs_bucket.url}/run")
    dcp_to_torch_save(f"{seaweedfs_bucket.url}/run", tmp_path / "made.pt")
    found = torch.load(tmp_path / "made.pt")
    if make is in_a_tuple:
        # torch's planner takes lists and tuples apart, and remembers both as lists
        found = {"pair": tuple(found["pair"]), "list": [tuple(one) for one in found["list"]]}
    same(found, expected)


def test_what_a_checkpoint_cannot_hold_is_refused(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    sparse(tmp_path / "file.pt")
    with pytest.raises(CheckpointException):
        torch_save_to_dcp(tmp_path / "file.pt", f"{seaweedfs_bucket.url}/run")
    assert seaweedfs_bucket.keys() == []


# --- memory, and what is asked for

LARGE = """
    import json, sys, torch, gc
    from pathlib import Path
    from dcp_core.convert import convert

    def resident(field):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) << 10

    limits = {"memory_limit": 48 << 20, "concurrency": 2}
    source, target, warm = sys.argv[1:]
    # what the SDK takes by itself
    convert("warm.pt", warm)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    convert(source, target, source_options=limits, target_options=limits)
    print(json.dumps(resident("VmHWM") - before))
"""


def extra_memory(folder: Path, source: str, target: str) -> int:
    """Bytes that a process of its own takes more while it converts."""
    torch.save({"warm": torch.ones(99_999)}, folder / "warm.pt")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LARGE), source, target, f"{target}.warm"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout))


def test_what_is_larger_than_memory_is_converted_in_both_directions(
    seaweedfs_bucket: Bucket, tmp_path: Path
) -> None:
    """384 MiB in tensors of 24 MiB, with a limit of 48."""
    state = {str(number): scenarios.noise(number, (6 << 20,)) for number in range(16)}
    torch.save(state, tmp_path / "large.pt")
    url = seaweedfs_bucket.url
    seaweedfs_bucket.client.upload_file(str(tmp_path / "large.pt"), seaweedfs_bucket.name, "large.pt")
    for source, target in ((f"{url}/large.pt", f"{url}/run"), (f"{url}/run", f"{url}/again.pt")):
        extra = extra_memory(tmp_path, source, target)
        # the limits of both sides, a tensor or two, and what threads take
        assert extra < 160 << 20, (source, extra >> 20)
    seaweedfs_bucket.client.download_file(seaweedfs_bucket.name, "again.pt", str(tmp_path / "again.pt"))
    scenarios.assert_same(torch.load(tmp_path / "again.pt", mmap=True), state)


def test_a_file_is_read_once_and_its_heads_together(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    state = {str(number): scenarios.noise(number, (30, 1000)) for number in range(200)}
    torch.save(state, tmp_path / "file.pt")
    data = (tmp_path / "file.pt").read_bytes()
    seaweedfs_bucket.write("file.pt", data)
    torch_save_to_dcp(f"{seaweedfs_bucket.url}/file.pt", tmp_path / "made")
    gets = [one for one in proxy.requests if one.operation == "GetObject"]
    # the heads of records lie too far apart to be read through; nothing else is asked for twice
    assert sum(one.bytes_out for one in gets) < 1.1 * len(data)
    assert len(gets) < 2 * len(state) + 20


# --- failures


def test_a_conversion_that_fails_leaves_what_was_there(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    url = seaweedfs_bucket.url
    state = {str(number): scenarios.noise(number, (1 << 20,)) for number in range(8)}
    dcp.save(state, storage_writer=CloudStorageWriter(f"{url}/run"))
    seaweedfs_bucket.write("made.pt", b"of before")
    proxy.add(Fault("error", operation="UploadPart", status=500, times=99))
    limits = {"max_attempts": 2, "part_size": 5 << 20, "memory_limit": 64 << 20}
    with pytest.raises(TransientError):
        dcp_to_torch_save(f"{url}/run", f"{url}/made.pt", target_options=limits)
    assert seaweedfs_bucket.read("made.pt") == b"of before"
    assert seaweedfs_bucket.uploads() == []


def test_a_read_that_fails_leaves_no_file_on_the_disk(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    url = seaweedfs_bucket.url
    dcp.save({"weight": scenarios.noise(1, (1 << 20,))}, storage_writer=CloudStorageWriter(f"{url}/run"))
    proxy.add(Fault("error", operation="GetObject", path=".distcp", status=500, times=99))
    with pytest.raises(TransientError):
        dcp_to_torch_save(f"{url}/run", tmp_path / "made.pt", source_options={"max_attempts": 2})
    assert list(tmp_path.iterdir()) == []


def test_lost_parts_are_sent_again(seaweedfs_bucket: Bucket, proxy: FaultProxy, tmp_path: Path) -> None:
    url = seaweedfs_bucket.url
    state = {str(number): scenarios.noise(number, (1 << 20,)) for number in range(8)}
    dcp.save(state, storage_writer=CloudStorageWriter(f"{url}/run"))
    proxy.add(Fault("error", operation="UploadPart", status=503, code="SlowDown", times=3))
    limits = {"part_size": 5 << 20, "memory_limit": 64 << 20}
    dcp_to_torch_save(f"{url}/run", f"{url}/made.pt", target_options=limits)
    (tmp_path / "made.pt").write_bytes(seaweedfs_bucket.read("made.pt"))
    scenarios.assert_same(torch.load(tmp_path / "made.pt"), state)


def test_a_file_that_changes_meanwhile_is_not_mixed(seaweedfs_bucket: Bucket, file: Path) -> None:
    from dcp_core.convert.torch_file import TorchFileSource

    seaweedfs_bucket.write("state.pt", file.read_bytes())
    source = TorchFileSource(f"{seaweedfs_bucket.url}/state.pt", {})
    torch.save(state_of(9), file)
    seaweedfs_bucket.write("state.pt", file.read_bytes())
    with pytest.raises(CheckpointReplacedError):
        source.fetch([source.state["model"]["weight"]])
    source.close()


@pytest.mark.parametrize("where", ["a bucket", "a disk"])
def test_overwrite_false_keeps_what_is_there(
    seaweedfs_bucket: Bucket, file: Path, tmp_path: Path, where: str
) -> None:
    base = seaweedfs_bucket.url if where == "a bucket" else str(tmp_path / "below")
    (tmp_path / "below").mkdir()
    for _ in range(2):
        torch_save_to_dcp(file, f"{base}/run")
        dcp_to_torch_save(f"{base}/run", f"{base}/made.pt")
    options = {"overwrite": False}
    with pytest.raises((CheckpointExistsError, CheckpointException)) as caught:
        torch_save_to_dcp(file, f"{base}/run", target_options=options)
    if isinstance(caught.value, CheckpointException):
        assert isinstance(caught.value.failures[0][0], CheckpointExistsError)
    with pytest.raises(CheckpointExistsError):
        dcp_to_torch_save(f"{base}/run", f"{base}/made.pt", target_options=options)


def test_a_file_that_would_run_code_is_refused(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3), "custom": Path("x")}, tmp_path / "file.pt")
    with pytest.raises(UntrustedDataError, match="weights_only=False"):
        torch_save_to_dcp(tmp_path / "file.pt", f"{seaweedfs_bucket.url}/run")
    assert seaweedfs_bucket.keys() == []
    trust = {"weights_only": False}
    torch_save_to_dcp(tmp_path / "file.pt", f"{seaweedfs_bucket.url}/run", source_options=trust)
    with pytest.raises(UntrustedDataError):
        dcp_to_torch_save(f"{seaweedfs_bucket.url}/run", tmp_path / "made.pt")
    dcp_to_torch_save(f"{seaweedfs_bucket.url}/run", tmp_path / "made.pt", source_options=trust)
    assert torch.load(tmp_path / "made.pt", weights_only=False)["custom"] == Path("x")


@pytest.mark.parametrize(
    "data",
    [b"", b"PK", b"something else" * 1000, pickle.dumps({"a": 1}), b"PK\x03\x04" + bytes(5000)],
    ids=["empty", "two bytes", "text", "a pickle", "zeros"],
)
def test_what_is_no_file_of_torch_is_said_to_be_none(
    seaweedfs_bucket: Bucket, tmp_path: Path, data: bytes
) -> None:
    seaweedfs_bucket.write("file.pt", data)
    with pytest.raises((CheckpointCorruptError, UntrustedDataError), match=r"file\.pt"):
        torch_save_to_dcp(f"{seaweedfs_bucket.url}/file.pt", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_file_cut_short_is_found(seaweedfs_bucket: Bucket, file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    for size in (len(data) - 1, len(data) // 2, 40_000):
        seaweedfs_bucket.write("file.pt", data[:size])
        with pytest.raises(CheckpointCorruptError):
            torch_save_to_dcp(f"{seaweedfs_bucket.url}/file.pt", tmp_path / "made")


def test_a_file_of_something_else_than_a_state_dict(tmp_path: Path) -> None:
    torch.save([torch.ones(3)], tmp_path / "file.pt")
    with pytest.raises(ConfigurationError, match="list"):
        torch_save_to_dcp(tmp_path / "file.pt", tmp_path / "made")


def test_where_nothing_is(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    """torch's own command says that it skips this, and exits with 0."""
    url = seaweedfs_bucket.url
    for source in (f"{url}/none", tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointNotFoundError):
            convert(source, tmp_path / "made.pt")
        with pytest.raises(CheckpointNotFoundError):
            dcp_to_torch_save(source, tmp_path / "made.pt")
    for missing in (f"{url}/none.pt", tmp_path / "none.pt"):
        with pytest.raises(CheckpointNotFoundError):
            torch_save_to_dcp(missing, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_a_folded_url_is_no_folder(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target in (Path("s3://bucket/run"), "s3:/bucket/run.pt"):
        with pytest.raises(InvalidLocationError, match="pathlib"):
            torch_save_to_dcp(file, target)
        with pytest.raises(InvalidLocationError, match="pathlib"):
            dcp_to_torch_save(target, "made.pt")
        with pytest.raises(InvalidLocationError, match="pathlib"):
            convert(target, "made.pt")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_what_to_make_must_be_clear(seaweedfs_bucket: Bucket, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="copy"):
        convert(file, tmp_path / "other.pt")
    convert(file, tmp_path / "run")
    with pytest.raises(ConfigurationError, match="not clear"):
        convert(tmp_path / "run", f"{seaweedfs_bucket.url}/model")
    assert convert(tmp_path / "run", f"{seaweedfs_bucket.url}/copy", target=Format.DCP) is Format.DCP
    with pytest.raises(ConfigurationError, match="bucket"):
        convert(tmp_path / "run", seaweedfs_bucket.url, target=Format.TORCH)


def test_progress_reaches_its_end(seaweedfs_bucket: Bucket, file: Path, tmp_path: Path) -> None:
    for source, target in (
        (file, f"{seaweedfs_bucket.url}/run"),
        (f"{seaweedfs_bucket.url}/run", tmp_path / "a.pt"),
    ):
        seen: list[tuple[int, int]] = []
        convert(source, target, progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert seen[-1][0] == seen[-1][1] > 500_000


# --- nested names


def test_paths_of_a_record_are_not_trusted() -> None:
    assert nested({"a.b": 1, "c": 2}, {"a.b": ("a", "b"), "c": ("c",)}) == {"a": {"b": 1}, "c": 2}
    assert nested({"x": 1, "y": 2}, {"x": ("l", 2), "y": ("l", 0)}) == {"l": [2, None, 1]}
    assert nested({"a.b": 1}, None) == {"a.b": 1}
    for paths in (
        {"x": ("l", 10**12), "y": ("l", 0)},
        {"x": ("l", -1), "y": ("l", 0)},
        {"x": ("a",), "y": ("a", "b")},
        {"x": ("a", "b"), "y": ("a",)},
        {"x": ("a",), "y": ("a",)},
    ):
        with pytest.raises(CheckpointCorruptError):
            nested({"x": 1, "y": 2}, paths)


# --- HuggingFace folders


def test_a_huggingface_folder_from_a_checkpoint_and_back(bucket: Bucket, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    url = bucket.url
    model = {f"layer.{number}": scenarios.noise(number, (60, 70)) for number in range(4)}
    torch.save(model, tmp_path / "model.pt")
    assert convert(tmp_path / "model.pt", f"{url}/hf", target=Format.HUGGINGFACE) is Format.HUGGINGFACE
    found = {name: torch.zeros(60, 70) for name in model}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(f"{url}/hf"))
    scenarios.assert_same(found, model)
    assert convert(f"{url}/hf", f"{url}/run") is Format.DCP
    assert convert(f"{url}/run", tmp_path / "again.pt") is Format.TORCH
    scenarios.assert_same(torch.load(tmp_path / "again.pt"), model)
    assert convert(f"{url}/hf", tmp_path / "direct.pt") is Format.TORCH
    scenarios.assert_same(torch.load(tmp_path / "direct.pt"), model)


def test_a_huggingface_folder_on_a_disk(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = {"a": scenarios.noise(1, (60, 70)), "b": scenarios.noise(2, (7,))}
    (tmp_path / "hf").mkdir()
    safetensors.save_file(model, tmp_path / "hf" / "model.safetensors")
    assert convert(tmp_path / "hf", f"{seaweedfs_bucket.url}/run") is Format.DCP
    assert convert(f"{seaweedfs_bucket.url}/run", tmp_path / "made", target=Format.HUGGINGFACE)
    (made,) = (tmp_path / "made").glob("*.safetensors")
    scenarios.assert_same(safetensors.load_file(made), model)


def test_what_is_no_model_is_no_huggingface_folder(seaweedfs_bucket: Bucket, file: Path) -> None:
    with pytest.raises(UnsupportedError, match="tensors only"):
        convert(file, f"{seaweedfs_bucket.url}/hf", target=Format.HUGGINGFACE)
    assert seaweedfs_bucket.keys() == []


def test_a_large_model_goes_into_several_files(
    seaweedfs_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcp_core.convert import formats

    monkeypatch.setattr(formats, "_FILE_SIZE", 40_000)
    model = {f"layer.{number}": scenarios.noise(number, (60, 70)) for number in range(6)}
    torch.save(model, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", f"{seaweedfs_bucket.url}/hf", target=Format.HUGGINGFACE)
    names = sorted(seaweedfs_bucket.keys("hf/"))
    assert [name for name in names if name.endswith(".safetensors")] == [
        f"hf/model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    index = json.loads(seaweedfs_bucket.read("hf/model.safetensors.index.json"))
    assert set(index["weight_map"]) == set(model)


def test_an_export_of_a_run_is_found_by_its_writer(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    url = f"{seaweedfs_bucket.url}/hf"
    model = {"weight": scenarios.noise(1, (60, 70))}
    dcp.save(model, storage_writer=HuggingFaceStorageWriter(url))
    convert(url, tmp_path / "model.pt")
    scenarios.assert_same(torch.load(tmp_path / "model.pt"), model)


# --- torch.save files as checkpoints


def load_from_a_file(url: str, planner: str | None) -> None:
    full = scenarios.sharded_state(4)
    found = scenarios.blanked(scenarios.sharded(full))
    made = getattr(format_utils, planner)() if planner else None
    dcp.load({"model": found}, storage_reader=TorchSaveReader(), planner=made, checkpoint_id=url)
    scenarios.assert_same(found, full)


@pytest.mark.parametrize("planner", ["DynamicMetaLoadPlanner", None])
def test_ranks_load_a_file_in_a_bucket(
    seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path, planner: str | None
) -> None:
    torch.save({"model": scenarios.sharded_state(4)}, tmp_path / "full.pt")
    seaweedfs_bucket.write("full.pt", (tmp_path / "full.pt").read_bytes())
    worlds(2).run(load_from_a_file, f"{seaweedfs_bucket.url}/full.pt", planner)


def test_a_file_is_loaded_with_its_objects_and_in_part(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    state = {"large": scenarios.noise(1, (4 << 20,)), "small": scenarios.noise(2, (30_000,)), "step": 5}
    torch.save(state, tmp_path / "file.pt")
    seaweedfs_bucket.write("file.pt", (tmp_path / "file.pt").read_bytes())
    found = {"small": torch.zeros(30_000), "step": None}
    dcp.load(found, storage_reader=TorchSaveReader(f"{seaweedfs_bucket.url}/file.pt"))
    same(found, {"small": state["small"], "step": 5})
    gets = [one for one in proxy.requests if one.operation == "GetObject"]
    assert sum(one.bytes_out for one in gets) < 2 << 20


def test_the_reader_says_what_is_wrong_with_a_file(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3), "b": 5}, tmp_path / "file.pt")
    seaweedfs_bucket.write("file.pt", (tmp_path / "file.pt").read_bytes())
    url = f"{seaweedfs_bucket.url}/file.pt"
    dynamic = format_utils.DynamicMetaLoadPlanner
    for state in (
        {"c": torch.zeros(3)},
        {"a": torch.zeros(4)},
        {"a": torch.zeros(3, 1)},
        {"b": torch.zeros(1)},
    ):
        with pytest.raises(CheckpointException) as caught:
            dcp.load(state, storage_reader=TorchSaveReader(url), planner=dynamic())
        assert isinstance(caught.value.failures[0][0], CheckpointCorruptError)
    assert TorchSaveReader.validate_checkpoint_id(url)
    assert not TorchSaveReader.validate_checkpoint_id("none.pt")


# --- the command


def test_the_command_converts(seaweedfs_bucket: Bucket, file: Path, tmp_path: Path) -> None:
    url = seaweedfs_bucket.url
    done = run("convert", str(file), f"{url}/run", PYTHONWARNINGS="error")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{url}/run: dcp\n", "")
    made = str(tmp_path / "made.pt")
    assert as_json("convert", f"{url}/run", made) == {"from": f"{url}/run", "to": made, "format": "torch"}
    same(torch.load(made), state_of(3))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("convert", "none", "made.pt"), "nothing is there"),
        (("convert", "state.pt", "made.pt"), "copy it"),
        (("convert", "s3:/bucket/run", "made.pt"), "pathlib"),
        (("convert", "state.pt"), "TO"),
        (("convert", "state.pt", "made", "--to", "zip"), "zip"),
        (("convert", "state.pt", "made", "--to", "huggingface"), "tensors only"),
        (("convert", "state.pt", "https://host/run"), "read-only"),
    ],
)
def test_what_is_wrong_is_one_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(file.parent)
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("dcp-cloud convert: ")
    assert said in done.stderr
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_disk_that_is_full_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    """As /dev/full is: it takes a name, and no byte."""
    sink = LocalSink(str(tmp_path / "made.pt"), overwrite=True)
    sink._file.close()
    sink._file = open("/dev/full", "wb", buffering=1 << 20)  # noqa: SIM115  # closed by abort()
    with pytest.raises(ConfigurationError, match=r"made\.pt cannot be written: No space left") as caught:
        sink.write(bytes(1 << 22))
    sink.abort(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "made.pt"
    sink = LocalSink(str(path), overwrite=False)
    sink.write(b"of this")
    path.write_bytes(b"of another")
    with pytest.raises(CheckpointExistsError, match="is there already") as caught:
        sink.finish()
    sink.abort(caught.value)
    assert path.read_bytes() == b"of another"
    assert list(tmp_path.iterdir()) == [path]
