"""HuggingFace checkpoints in buckets, beside torch's own classes and the safetensors package."""

from __future__ import annotations

import importlib.util
import json
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import Bucket, proxied
from dcp_fault_proxy import Fault, FaultProxy
from dcp_http_servers import WebServer
from support import scenarios
from support.ranks import Ranks
from support.torch_releases import since
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from dcp_core import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointIncompleteError,
    CheckpointNotFoundError,
    CheckpointReplacedError,
    CloudStorageReader,
    ConfigurationError,
    UnsupportedError,
    UnsupportedTensorError,
)
from dcp_core.huggingface import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
    QuantizedHuggingFaceStorageReader,
)
from dcp_core.huggingface.exchange import Exchange
from dcp_core.huggingface.header import dtype_name

World = Callable[[int], Ranks]
MIB = 1 << 20
INDEX = "model.safetensors.index.json"
torchs_own = since(2, 9, "torch's HuggingFace classes as they are now")


def model(seed: int = 1) -> dict[str, torch.Tensor]:
    """Whole tensors of every kind that safetensors has."""
    dtypes = [dtype for dtype in scenarios.DTYPES if dtype_name(dtype) and dtype.itemsize <= 8]
    named = {str(dtype): scenarios.noise(seed + n, (5, 7), dtype) for n, dtype in enumerate(dtypes)}
    return {
        **{name: tensor for name, tensor in named.items() if "e8m0" not in name},
        "large": scenarios.noise(seed + 40, (1500, 1024)),
        "strided": scenarios.noise(seed + 41, (64, 96))[::2, 1::3],
        "transposed": scenarios.noise(seed + 42, (64, 96), torch.bfloat16).t(),
        "scalar": scenarios.noise(seed + 43, ()),
        "empty": torch.empty(0, 3),
        "ümläut/日本": scenarios.noise(seed + 44, (3,)),
    }


def blank(full: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros(tensor.shape, dtype=torch.uint8).to(tensor.dtype) for name, tensor in full.items()
    }


def download(bucket: Bucket, prefix: str, folder: Path) -> Path:
    for key in bucket.keys(prefix):
        target = folder / key.removeprefix(f"{prefix}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(bucket.read(key))
    return folder


def upload(folder: Path, bucket: Bucket, prefix: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            bucket.write(f"{prefix}/{file.relative_to(folder)}", file.read_bytes())


def opened(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every file, as the safetensors package has them."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as one:
            assert one.metadata()["format"] == "pt"
            for name in one.keys():
                assert name not in found
                found[name] = one.get_tensor(name)
    return found


def load(url: str, full: dict[str, torch.Tensor], **options: Any) -> None:
    """Load and compare."""
    state = blank(full)
    dcp.load(state, storage_reader=HuggingFaceStorageReader(url, **options))
    scenarios.assert_same(state, full)


# --- one process


def test_what_is_saved_opens_with_the_package(bucket: Bucket, tmp_path: Path) -> None:
    full = model()
    mapping = {name: 1 + n % 3 for n, name in enumerate(full)}
    writer = HuggingFaceStorageWriter(f"{bucket.url}/m", fqn_to_index_mapping=mapping)
    dcp.save(full, storage_writer=writer)
    folder = download(bucket, "m", tmp_path)
    files = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(file.name for file in folder.iterdir()) == [*files, INDEX]
    scenarios.assert_same(opened(folder), full)
    index = json.loads((folder / INDEX).read_text())
    assert index == {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in full.values())},
        "weight_map": {name: files[number - 1] for name, number in mapping.items()},
    }
    assert bucket.uploads() == []
    load(f"{bucket.url}/m", full)


@torchs_own
def test_what_is_saved_loads_with_torch(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    full = {name: tensor for name, tensor in model().items() if tensor.numel()}
    dcp.save(full, storage_writer=HuggingFaceStorageWriter(f"{seaweedfs_bucket.url}/m"))
    assert seaweedfs_bucket.keys() == ["m/model-00001-of-00001.safetensors", f"m/{INDEX}"]
    folder = download(seaweedfs_bucket, "m", tmp_path)
    state = blank(full)
    dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    scenarios.assert_same(state, full)


@torchs_own
def test_what_torch_saved_loads(bucket: Bucket, tmp_path: Path) -> None:
    full = {name: tensor.contiguous() for name, tensor in model().items()}
    mapping = {name: 1 + n % 2 for n, name in enumerate(full)}
    dcp.save(full, storage_writer=dcp.HuggingFaceStorageWriter(str(tmp_path), fqn_to_index_mapping=mapping))
    upload(tmp_path, bucket, "m")
    load(f"{bucket.url}/m", full)


def test_a_model_in_one_file_loads(bucket: Bucket, tmp_path: Path) -> None:
    """As transformers saves a small one: no index, and files of another kind beside it."""
    full = {name: tensor.contiguous() for name, tensor in model().items()}
    safetensors.torch.save_file(full, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "original").mkdir()
    safetensors.torch.save_file({"large": torch.ones(2)}, tmp_path / "original" / "model.safetensors")
    upload(tmp_path, bucket, "m")
    load(f"{bucket.url}/m", full)


def test_a_model_on_a_web_server_loads(tmp_path: Path) -> None:
    full = {name: tensor.contiguous() for name, tensor in model().items()}
    halves = [dict(list(full.items())[n::2]) for n in (0, 1)]
    for part, tensors in zip(("one", "two"), halves, strict=True):
        (tmp_path / "m").mkdir(exist_ok=True)
        safetensors.torch.save_file(tensors, tmp_path / "m" / f"{part}.safetensors")
    weight_map = {
        name: f"{part}.safetensors"
        for part, half in zip(("one", "two"), halves, strict=True)
        for name in half
    }
    (tmp_path / "m" / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "s").mkdir()
    safetensors.torch.save_file(full, tmp_path / "s" / "model.safetensors")
    with WebServer(tmp_path) as server:
        load(f"{server.url}/m", full)
        load(f"{server.url}/s", full)
        with pytest.raises(CheckpointException, match="a HuggingFace checkpoint is: load it with"):
            dcp.load({"large": full["large"]}, storage_reader=CloudStorageReader(f"{server.url}/m"))
        with pytest.raises(CheckpointException, match=f"neither {re.escape(INDEX)} nor"):
            load(f"{server.url}/nothing", full)


def test_a_long_header_is_read_whole(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    full = {f"{'name' * 20}.{number}": torch.full((2,), number) for number in range(1000)}
    url = f"{seaweedfs_bucket.url}/m"
    dcp.save(full, storage_writer=HuggingFaceStorageWriter(url))
    proxy.clear()
    load(url, full)
    # the index, the header's beginning, its rest, the tensors
    assert proxy.operations() == ["GetObject"] * 4


def test_a_part_of_a_model_loads(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    full = {f"layer.{number}": scenarios.noise(number, (MIB,)) for number in range(8)}
    url = f"{seaweedfs_bucket.url}/m"
    dcp.save(full, storage_writer=HuggingFaceStorageWriter(url))
    proxy.clear()
    load(url, {name: full[name] for name in ("layer.2", "layer.5")})
    assert sum(seen.bytes_out for seen in proxy.requests) <= 1.02 * 2 * 4 * MIB


# --- what is refused, and what is said


def test_the_dcp_reader_says_what_is_there(bucket: Bucket) -> None:
    full = {"w": torch.ones(3)}
    dcp.save(full, storage_writer=HuggingFaceStorageWriter(f"{bucket.url}/m"))
    with pytest.raises(CheckpointException, match="load it with dcp_core\\.huggingface") as caught:
        dcp.load(full, storage_reader=CloudStorageReader(f"{bucket.url}/m"))
    assert isinstance(caught.value.failures[0][0], CheckpointNotFoundError)


def failure(url: str, state: dict[str, Any]) -> BaseException:
    """What a load ends with."""
    with pytest.raises(CheckpointException) as caught:
        dcp.load(state, storage_reader=HuggingFaceStorageReader(url))
    return caught.value.failures[0][0]


def test_the_reader_says_what_is_not_there(seaweedfs_bucket: Bucket) -> None:
    from dcp_core import CloudStorageWriter

    state = {"w": torch.ones(3)}
    error = failure(f"{seaweedfs_bucket.url}/m", state)
    assert isinstance(error, CheckpointNotFoundError)
    assert "no safetensors files are at" in str(error)
    dcp.save(state, storage_writer=CloudStorageWriter(f"{seaweedfs_bucket.url}/m"))
    assert "a DCP checkpoint is: use CloudStorageReader" in str(failure(f"{seaweedfs_bucket.url}/m", state))


INDEXES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "the index is no JSON"),
    "no map": (b"{}", "has no weight_map"),
    "numbers": (b'{"weight_map":{"w":1}}', "has no weight_map"),
    "outside": (b'{"weight_map":{"w":"../o.safetensors"}}', "no file below the checkpoint"),
    "the root": (b'{"weight_map":{"w":"/o.safetensors"}}', "no file below the checkpoint"),
    "a file that is gone": (b'{"weight_map":{"w":"b.safetensors"}}', "names a file that does not exist"),
    "a tensor that is not there": (
        b'{"weight_map":{"w":"a.safetensors","x":"a.safetensors"}}',
        "'x' is in a.safetensors, and it is not",
    ),
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_hostile_index_is_refused(seaweedfs_bucket: Bucket, name: str) -> None:
    index, reason = INDEXES[name]
    seaweedfs_bucket.write(f"m/{INDEX}", index)
    seaweedfs_bucket.write("m/a.safetensors", safetensors.torch.save({"w": torch.ones(3)}))
    error = failure(f"{seaweedfs_bucket.url}/m", {"w": torch.ones(3)})
    assert isinstance(error, CheckpointCorruptError)
    assert reason in str(error)


def test_a_file_that_is_cut_short_is_refused(bucket: Bucket) -> None:
    whole = safetensors.torch.save({"w": torch.ones(3)})
    state = {"w": torch.zeros(3)}
    for size in (4, 40, len(whole) - 1):
        bucket.write("m/model.safetensors", whole[:size])
        error = failure(f"{bucket.url}/m", state)
        assert isinstance(error, CheckpointCorruptError)
        assert error.key == "m/model.safetensors"
    assert not state["w"].any()


def test_a_tensor_that_is_there_twice_is_refused(seaweedfs_bucket: Bucket) -> None:
    for name in ("a", "b"):
        seaweedfs_bucket.write(f"m/{name}.safetensors", safetensors.torch.save({"w": torch.ones(3)}))
    error = failure(f"{seaweedfs_bucket.url}/m", {"w": torch.ones(3)})
    assert isinstance(error, CheckpointCorruptError)
    assert "'w' in a.safetensors, b.safetensors overlap: is it there twice?" in str(error)


def test_an_export_without_some_of_its_files_is_refused(seaweedfs_bucket: Bucket) -> None:
    for number in (1, 3):
        name = f"model-0000{number}-of-00003.safetensors"
        seaweedfs_bucket.write(f"m/{name}", safetensors.torch.save({f"w{number}": torch.ones(3)}))
    error = failure(f"{seaweedfs_bucket.url}/m", {"w1": torch.ones(3)})
    assert isinstance(error, CheckpointIncompleteError)
    assert "no model-00002-of-00003.safetensors either: was the export finished?" in str(error)


def test_a_file_that_changes_during_a_load_is_not_mixed(seaweedfs_bucket: Bucket) -> None:
    def write(value: float) -> None:
        tensors = {"w": torch.full((100_000,), value)}
        seaweedfs_bucket.write("m/model.safetensors", safetensors.torch.save(tensors))

    class Planner(dcp.DefaultLoadPlanner):
        def create_local_plan(self) -> Any:
            write(2.0)
            return super().create_local_plan()

    write(1.0)
    state = {"w": torch.zeros(100_000)}
    with pytest.raises(CheckpointException) as caught:
        dcp.load(
            state,
            storage_reader=HuggingFaceStorageReader(f"{seaweedfs_bucket.url}/m"),
            planner=Planner(),
        )
    assert isinstance(caught.value.failures[0][0], CheckpointReplacedError)
    assert not state["w"].any()


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "an object": ({"step": 1}, UnsupportedError, "'step' is no tensor"),
    "a dtype": (
        {"w": torch.ones(2, dtype=torch.complex128)},
        UnsupportedTensorError,
        "safetensors has no torch.complex128",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_safetensors_cannot_hold_is_refused(seaweedfs_bucket: Bucket, name: str) -> None:
    state, kind, reason = REFUSED[name]
    with pytest.raises(CheckpointException, match=reason) as caught:
        dcp.save(state, storage_writer=HuggingFaceStorageWriter(f"{seaweedfs_bucket.url}/m"))
    assert isinstance(caught.value.failures[0][0], kind)
    assert seaweedfs_bucket.keys() == seaweedfs_bucket.uploads() == []


def test_a_mapping_that_does_not_fit_is_refused(seaweedfs_bucket: Bucket) -> None:
    for number in (0, "2"):
        with pytest.raises(ConfigurationError, match="files count from 1, and 'b' goes to"):
            HuggingFaceStorageWriter("s3://bucket/m", fqn_to_index_mapping={"a": 1, "b": number})
    writer = HuggingFaceStorageWriter(f"{seaweedfs_bucket.url}/m", fqn_to_index_mapping={"a": 1})
    with pytest.raises(CheckpointException, match="does not say which file 'b' goes to") as caught:
        dcp.save({"a": torch.ones(2), "b": torch.ones(2)}, storage_writer=writer)
    assert isinstance(caught.value.failures[0][0], ConfigurationError)
    assert seaweedfs_bucket.keys() == seaweedfs_bucket.uploads() == []


def test_a_cached_plan_is_refused(seaweedfs_bucket: Bucket) -> None:
    """Its uploads are those of the first save."""
    writer = HuggingFaceStorageWriter(f"{seaweedfs_bucket.url}/m")
    planner = DefaultSavePlanner(enable_plan_caching=True)
    state = {"w": torch.ones(2)}
    dcp.save(state, storage_writer=writer, planner=planner)
    with pytest.raises(CheckpointException, match="planner without enable_plan_caching"):
        dcp.save(state, storage_writer=writer, planner=DefaultSavePlanner(enable_plan_caching=True))
    load(f"{seaweedfs_bucket.url}/m", state)


def test_an_export_replaces_an_older_one(bucket: Bucket, tmp_path: Path) -> None:
    url = f"{bucket.url}/m"
    older, newer = model(1), {"w": torch.ones(3)}
    mapping = {name: 1 + n % 2 for n, name in enumerate(older)}
    dcp.save(older, storage_writer=HuggingFaceStorageWriter(url, fqn_to_index_mapping=mapping))
    bucket.write("m/config.json", b"{}")
    with pytest.raises(CheckpointException, match="overwrite=False") as caught:
        dcp.save(newer, storage_writer=HuggingFaceStorageWriter(url, overwrite=False))
    assert isinstance(caught.value.failures[0][0], CheckpointExistsError)
    load(url, older)
    dcp.save(newer, storage_writer=HuggingFaceStorageWriter(url))
    assert sorted(bucket.keys("m/")) == ["m/config.json", "m/model-00001-of-00001.safetensors", f"m/{INDEX}"]
    load(url, newer)


# --- several ranks


def whole_model(seed: int) -> dict[str, torch.Tensor]:
    return {
        "rows": scenarios.noise(seed, (1031, 2048)),
        "columns": scenarios.noise(seed + 1, (2048, 1031), torch.bfloat16),
        "few": scenarios.noise(seed + 2, (2, 7)),
        "cube": scenarios.noise(seed + 3, (6, 8, 10), torch.float64),
        "replicated": scenarios.noise(seed + 4, (300, 400)),
        "bytes": scenarios.noise(seed + 5, (33,), torch.uint8),
        "grid": scenarios.noise(seed + 6, (700, 900), torch.float16),
        "scalar": scenarios.noise(seed + 7, ()),
    }


def sharded(full: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A model as ranks have it: rows, columns, both, uneven, with nothing on some ranks, replicated."""
    size = dist.get_world_size()
    line = init_device_mesh("cpu", (size,))
    grid = init_device_mesh("cpu", (2, size // 2)) if size % 2 == 0 else None
    dims = {"rows": 0, "columns": 1, "few": 0, "cube": 2, "bytes": 0}
    state: dict[str, Any] = {"scalar": full["scalar"].clone()}
    for name, tensor in full.items():
        if name == "grid" and grid is not None:
            state[name] = distribute_tensor(tensor, grid, [Shard(1), Shard(0)])
        elif name != "scalar":
            state[name] = distribute_tensor(
                tensor, line, [Shard(dims[name]) if name in dims else Replicate()]
            )
    return state


def save_sharded_model(url: str, seed: int, options: dict[str, Any]) -> None:
    state = sharded(whole_model(seed))
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(url, save_distributed=True, **options))


def load_sharded_model(url: str, seed: int) -> None:
    state = sharded(blank(whole_model(seed)))
    dcp.load(state, storage_reader=HuggingFaceStorageReader(url))
    scenarios.assert_same(state, whole_model(seed))


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_export_whole_tensors_together(
    bucket: Bucket, worlds: World, tmp_path: Path, ranks: int
) -> None:
    """Parts are small, so that most hold elements of several ranks."""
    mapping = {name: 1 + n % 2 for n, name in enumerate(whole_model(1))}
    options = {"enable_consolidation": True, "fqn_to_index_mapping": mapping, "part_size": MIB}
    worlds(ranks).run(save_sharded_model, f"{bucket.url}/m", 1, options)
    folder = download(bucket, "m", tmp_path)
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX]
    scenarios.assert_same(opened(folder), whole_model(1))
    assert bucket.uploads() == []
    worlds(ranks).run(load_sharded_model, f"{bucket.url}/m", 1)


def export_counted(url: str, options: dict[str, Any]) -> int:
    """Export a model whose rows are sharded; its bytes."""
    full = {f"layer.{n}": scenarios.noise(n, (512, 4096)) for n in range(4)}
    full |= {f"norm.{n}": scenarios.noise(n, (64,)) for n in range(4)}
    line = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {name: distribute_tensor(tensor, line, [Shard(0)]) for name, tensor in full.items()}
    writer = HuggingFaceStorageWriter(url, save_distributed=True, enable_consolidation=True, **options)
    dcp.save(state, storage_writer=writer)
    return sum(tensor.nbytes for tensor in full.values())


def test_an_export_writes_each_byte_once_and_reads_none(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, worlds: World
) -> None:
    (size, *_) = worlds(4).run(export_counted, f"{seaweedfs_bucket.url}/m", {"part_size": 5 * MIB})
    written = [seen for seen in proxy.requests if seen.operation in ("UploadPart", "PutObject")]
    assert size <= sum(seen.bytes_in for seen in written) <= 1.01 * size
    assert "GetObject" not in proxy.operations()
    # nothing is there before all parts are; the index comes last
    operations = proxy.operations()
    assert operations.index("CompleteMultipartUpload") > max(
        n for n, operation in enumerate(operations) if operation == "UploadPart"
    )
    assert operations[-1] == "PutObject"
    assert proxy.requests[-1].path.endswith(INDEX)


def test_ranks_write_files_of_their_own(bucket: Bucket, worlds: World, tmp_path: Path) -> None:
    worlds(4).run(save_sharded_model, f"{bucket.url}/m", 1, {})
    folder = download(bucket, "m", tmp_path)
    assert sorted(file.name for file in folder.iterdir()) == [
        f"shard-{rank:05}-model-00001-of-00001.safetensors" for rank in (1, 2, 3, 4)
    ]
    with safetensors.safe_open(next(folder.glob("shard-00002-*")), framework="pt") as file:
        noted = json.loads(file.metadata()["DCP_SHARDING_INFO"])
        assert file.metadata()["DCP_VERSION"] == "1.0"
        assert noted["rows"] == {"saved_offsets": [258, 0]}
        assert noted["columns"] == {"saved_offsets": [0, 258]}
        expected = whole_model(1)["columns"][:, 258:516]
        scenarios.assert_same(file.get_tensor("columns"), expected)
    worlds(2).run(load_sharded_model, f"{bucket.url}/m", 1)


@torchs_own
def test_files_of_ranks_load_with_torch(seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path) -> None:
    worlds(4).run(save_sharded_model, f"{seaweedfs_bucket.url}/m", 1, {})
    folder = download(seaweedfs_bucket, "m", tmp_path)
    state = blank(whole_model(1))
    dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))
    scenarios.assert_same(state, whole_model(1))


def save_with_torch(folder: str, seed: int, options: dict[str, Any]) -> None:
    state = sharded(whole_model(seed))
    dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(folder, save_distributed=True, **options))


@torchs_own
def test_files_of_torchs_ranks_load(bucket: Bucket, worlds: World, tmp_path: Path) -> None:
    worlds(4).run(save_with_torch, str(tmp_path), 1, {})
    upload(tmp_path, bucket, "m")
    worlds(2).run(load_sharded_model, f"{bucket.url}/m", 1)


def load_counted(url: str, shapes: dict[str, tuple[int, ...]]) -> list[int]:
    """Load a model into FSDP's shards and compare; bytes that this rank needs."""
    from torch.distributed.fsdp import fully_shard

    module = torch.nn.ParameterDict(
        {name.replace(".", "_"): torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    )
    fully_shard(module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    state = {name: module[name.replace(".", "_")].detach() for name in shapes}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(url))
    for number, (name, shape) in enumerate(shapes.items()):
        scenarios.assert_same(state[name], scenarios.noise(number, shape))
    return sum(tensor.to_local().nbytes for tensor in state.values())


def test_ranks_load_what_they_need_and_no_more(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, worlds: World, tmp_path: Path
) -> None:
    shapes = {f"layer.{n}.{part}": (1024, 2048) for n in range(5) for part in ("up", "down")}
    full = {name: scenarios.noise(number, shape) for number, (name, shape) in enumerate(shapes.items())}
    weight_map = {}
    for n in range(2):
        tensors = dict(list(full.items())[n::2])
        safetensors.torch.save_file(tensors, tmp_path / f"{n}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, f"{n}.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    upload(tmp_path, seaweedfs_bucket, "m")
    proxy.clear()
    needed = worlds(4).run(load_counted, f"{seaweedfs_bucket.url}/m", shapes)
    assert sum(needed) == sum(tensor.nbytes for tensor in full.values())
    assert sum(seen.bytes_out for seen in proxy.requests) <= 1.02 * sum(needed)


def export_in_the_background(url: str, kind: str) -> None:
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    state = sharded(whole_model(1))
    writer = HuggingFaceStorageWriter(url, save_distributed=True, enable_consolidation=True, part_size=MIB)
    kinds = AsyncCheckpointerType[kind]
    dcp.async_save(state, storage_writer=writer, async_checkpointer_type=kinds).result()


@since(2, 7, "a choice of the executor, and with it staging of what is in CPU memory")
@pytest.mark.parametrize("kind", ["THREAD", "PROCESS"])
def test_an_export_in_the_background(seaweedfs_bucket: Bucket, worlds: World, kind: str) -> None:
    url = f"{seaweedfs_bucket.url}/m"
    worlds(2).run(export_in_the_background, url, kind)
    worlds(2).run(load_sharded_model, url, 1)


# --- transformers


def causal_model(seed: int) -> Any:
    """A small model of transformers, the same on all ranks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 101}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **counts))


def fully_sharded(model: Any) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    line = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=line)
    fully_shard(model, mesh=line)
    return get_model_state_dict(model)


def save_pretrained(folder: str, seed: int) -> None:
    if dist.get_rank() == 0:
        causal_model(seed).save_pretrained(folder, max_shard_size="50KB")


def load_pretrained_into_shards(url: str, seed: int) -> None:
    state = fully_sharded(causal_model(seed + 1))
    dcp.load(state, storage_reader=HuggingFaceStorageReader(url))
    scenarios.assert_same(state, causal_model(seed).state_dict())


def export_shards(url: str, seed: int) -> None:
    writer = HuggingFaceStorageWriter(url, save_distributed=True, enable_consolidation=True)
    dcp.save(fully_sharded(causal_model(seed)), storage_writer=writer)


def open_with_transformers(folder: str, seed: int) -> None:
    from transformers import LlamaForCausalLM

    opened = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    scenarios.assert_same(dict(opened.state_dict()), dict(causal_model(seed).state_dict()))


def test_models_of_transformers_go_both_ways(seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path) -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    worlds(2).run(save_pretrained, str(theirs), 1)
    assert len(list(theirs.glob("*.safetensors"))) > 1
    upload(theirs, seaweedfs_bucket, "theirs")
    worlds(2).run(load_pretrained_into_shards, f"{seaweedfs_bucket.url}/theirs", 1)
    worlds(2).run(export_shards, f"{seaweedfs_bucket.url}/ours", 2)
    download(seaweedfs_bucket, "ours", ours)
    (ours / "config.json").write_bytes((theirs / "config.json").read_bytes())
    worlds(2).run(open_with_transformers, str(ours), 2)


# --- failures


@pytest.mark.parametrize("distributed", [True, False])
def test_a_rank_that_fails_leaves_nothing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, worlds: World, distributed: bool
) -> None:
    options = {"enable_consolidation": not distributed, "part_size": MIB, "max_attempts": 1}
    with proxied(bucket, monkeypatch) as proxy:
        proxy.add(Fault("error", operation="UploadPart", skip=1))
        outcomes = worlds(4).outcomes(save_sharded_model, f"{bucket.url}/m", 1, options)
    assert all(isinstance(outcome, CheckpointException) for outcome in outcomes)
    assert bucket.keys() == []
    if not distributed:
        assert bucket.uploads() == []


def test_an_export_that_cannot_be_finished_leaves_nothing(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, worlds: World
) -> None:
    mapping = {name: 1 + n % 2 for n, name in enumerate(whole_model(1))}
    options = {"enable_consolidation": True, "fqn_to_index_mapping": mapping, "concurrency": 1}
    refused = Fault(
        "error", operation="CompleteMultipartUpload", skip=1, times=9, status=403, code="AccessDenied"
    )
    proxy.add(refused)
    worlds(2).outcomes(save_sharded_model, f"{seaweedfs_bucket.url}/m", 1, options)
    assert refused.hits > 1
    assert seaweedfs_bucket.keys() == seaweedfs_bucket.uploads() == []


def test_an_export_that_fails_leaves_the_older_one(
    seaweedfs_bucket: Bucket, proxy: FaultProxy, worlds: World
) -> None:
    url = f"{seaweedfs_bucket.url}/m"
    worlds(2).run(save_sharded_model, url, 1, {"enable_consolidation": True})
    proxy.add(Fault("error", operation="UploadPart", times=99))
    options = {"enable_consolidation": True, "max_attempts": 1}
    for outcome in worlds(2).outcomes(save_sharded_model, url, 2, options):
        assert isinstance(outcome, CheckpointException)
    proxy.clear()
    worlds(2).run(load_sharded_model, url, 1)


def save_alone(url: str) -> None:
    writer = HuggingFaceStorageWriter(url, save_distributed=True)
    dcp.save({"w": torch.ones(3)}, storage_writer=writer, use_collectives=False)


@since(2, 9, "saves without collectives")
def test_ranks_that_plan_alone_are_refused(seaweedfs_bucket: Bucket, worlds: World) -> None:
    for outcome in worlds(2).outcomes(save_alone, f"{seaweedfs_bucket.url}/m"):
        assert isinstance(outcome, CheckpointException | UnsupportedError)
        assert "HuggingFace files are made of the plans of all ranks" in str(outcome)
    assert seaweedfs_bucket.keys() == []


# --- block-scaled weights

F8 = torch.float8_e4m3fn


def scaled_model(
    block: tuple[int, int] = (128, 128), scale: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Weights whose blocks are whole, cut off, and smaller than a block; and what is not scaled."""
    generator = torch.Generator().manual_seed(3)
    found = {
        "norm.weight": torch.randn(300, generator=generator),
        "embed.weight": torch.randn(7, 5, generator=generator),
    }
    for number, (rows, columns) in enumerate([(256, 384), (300, 130), (1, 1), (129, 128), (40, 1000)]):
        weight = torch.randn(rows, columns, generator=generator) * 50
        blocks = (-(-rows // block[0]), -(-columns // block[1]))
        found[f"layer.{number}.weight"] = weight.to(F8)
        found[f"layer.{number}.weight_scale_inv"] = torch.rand(blocks, generator=generator).to(scale)
    return found


def put_model(bucket: Bucket, folder: Path, tensors: dict[str, torch.Tensor], config: object = None) -> None:
    """Upload it in two files: some factors are in another one than their weights."""
    halves = [dict(list(tensors.items())[n::2]) for n in (0, 1)]
    weight_map = {}
    for number, half in enumerate(halves):
        safetensors.torch.save_file(half, folder / f"{number}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, f"{number}.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    upload(folder, bucket, "m")


def wanted(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros(tensor.shape, dtype=dtype)
        for name, tensor in tensors.items()
        if "scale" not in name
    }


@since(2, 10, "torch's reader of scaled weights as it is now")
@pytest.mark.parametrize("scale", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_scaled_weights_load_as_with_torch(
    seaweedfs_bucket: Bucket, tmp_path: Path, scale: torch.dtype, target: torch.dtype, dtype: torch.dtype
) -> None:
    from torch.distributed.checkpoint.quantized_hf_storage import (
        QuantizedHuggingFaceStorageReader as TorchsReader,
    )

    tensors = scaled_model(scale=scale)
    put_model(seaweedfs_bucket, tmp_path, tensors)
    expected, state = wanted(tensors, dtype), wanted(tensors, dtype)
    dcp.load(expected, storage_reader=TorchsReader(str(tmp_path), target_dtype=target))
    url = f"{seaweedfs_bucket.url}/m"
    # so little memory that every weight is cut into bands
    for options in ({}, {"memory_limit": 40_000}):
        reader = QuantizedHuggingFaceStorageReader(url, target_dtype=target, **options)
        dcp.load(state, storage_reader=reader)
        scenarios.assert_same(state, expected)


def dequantized(tensors: dict[str, torch.Tensor], block: tuple[int, int]) -> dict[str, torch.Tensor]:
    found = {name: tensor for name, tensor in tensors.items() if "scale" not in name}
    for name, weight in found.items():
        factors = tensors.get(f"{name}_scale_inv")
        if factors is not None:
            blown = factors.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
            found[name] = weight.float() * blown[: weight.shape[0], : weight.shape[1]]
    return found


@pytest.mark.parametrize("block", [(128, 128), (64, 32)])
def test_the_size_of_blocks_is_the_models_or_the_callers(
    bucket: Bucket, tmp_path: Path, block: tuple[int, int]
) -> None:
    tensors = scaled_model(block)
    put_model(bucket, tmp_path, tensors, {"quantization_config": {"weight_block_size": block}})
    state = wanted(tensors, torch.float32)
    reader = QuantizedHuggingFaceStorageReader(f"{bucket.url}/m")
    dcp.load(state, storage_reader=reader)
    scenarios.assert_same(state, dequantized(tensors, block))
    bucket.delete("m/config.json")
    state = wanted(tensors, torch.float32)
    reader = QuantizedHuggingFaceStorageReader(f"{bucket.url}/m", block_size=block)
    dcp.load(state, storage_reader=reader)
    scenarios.assert_same(state, dequantized(tensors, block))


def load_scaled(url: str) -> None:
    expected = dequantized(scaled_model(), (128, 128))
    line = init_device_mesh("cpu", (dist.get_world_size(),))
    for dim in (0, 1):
        state: dict[str, Any] = {
            name: distribute_tensor(torch.zeros_like(tensor), line, [Shard(min(dim, tensor.dim() - 1))])
            for name, tensor in expected.items()
        }
        reader = QuantizedHuggingFaceStorageReader(url, memory_limit=100_000)
        dcp.load(state, storage_reader=reader)
        scenarios.assert_same(state, expected)


@pytest.mark.parametrize("ranks", [3, 4])
def test_ranks_load_shards_of_scaled_weights(
    seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path, ranks: int
) -> None:
    put_model(seaweedfs_bucket, tmp_path, scaled_model())
    worlds(ranks).run(load_scaled, f"{seaweedfs_bucket.url}/m")


def test_factors_that_do_not_fit_their_weight_are_refused(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    tensors = scaled_model()
    url = f"{seaweedfs_bucket.url}/m"
    tensors["layer.1.weight_scale_inv"] = torch.ones(3, 1)
    put_model(seaweedfs_bucket, tmp_path, tensors)
    state = wanted(tensors, torch.float32)
    for reader in (
        QuantizedHuggingFaceStorageReader(url),
        QuantizedHuggingFaceStorageReader(url, block_size=(128, 64)),
    ):
        with pytest.raises(CheckpointException) as caught:
            dcp.load(state, storage_reader=reader)
        assert isinstance(caught.value.failures[0][0], CheckpointCorruptError)
        assert "of [300, 130] needs" in str(caught.value) or "of [256, 384] needs" in str(caught.value)
    assert not any(tensor.any() for tensor in state.values())


@pytest.mark.parametrize("size", [0, -1, (1, 2, 3), (1.5, 2), True])
def test_a_size_of_blocks_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="block_size must be one or two positive numbers"):
        QuantizedHuggingFaceStorageReader("s3://bucket/m", block_size=size)


def test_transforms_are_refused() -> None:
    """Files of safetensors have no frames to transform: leaving tensors as they are would be a silent no."""
    transforms = pytest.importorskip("torch.distributed.checkpoint._extension")
    with pytest.raises(ConfigurationError, match="HuggingFace files have none"):
        HuggingFaceStorageWriter("s3://bucket/m", extensions=[transforms.ZStandard()])


def exchange_again(names: list[str]) -> list[int]:
    """The ranks meet once a name, and each tells the next; those that come late find what the others left."""
    rank, size = dist.get_rank(), dist.get_world_size()
    heard = []
    for number, name in enumerate(names):
        time.sleep(0.2 * ((rank + number) % size))
        with Exchange(range(size), rank, name, 30.0) as exchange:
            mine = torch.full((8,), 10 * number + rank, dtype=torch.uint8)
            before, after = (rank - 1) % size, (rank + 1) % size
            if rank == 0:
                exchange.send(mine, after)
                found = exchange.receive(8, before)
            else:
                found = exchange.receive(8, before)
                exchange.send(mine, after)
        heard.append(int(found[3]))
    return heard


def test_ranks_exchange_rows_in_one_export_after_the_other(worlds: World) -> None:
    names = [uuid.uuid4().hex for _ in range(6)]
    for rank, heard in enumerate(worlds(3).run(exchange_again, names)):
        assert heard == [10 * number + (rank - 1) % 3 for number in range(6)]


def test_each_export_has_a_name_of_its_own(seaweedfs_bucket: Bucket) -> None:
    """Under one name twice, ranks would find the addresses of before and wait for each other for ever."""
    names = set()
    for _ in range(3):
        writer = HuggingFaceStorageWriter(f"{seaweedfs_bucket.url}/m")
        planner = NamingPlanner()
        dcp.save(whole_model(1), storage_writer=writer, planner=planner)
        names.add(planner.name)
    assert len(names) == 3


class NamingPlanner(DefaultSavePlanner):
    """Looks at what the plan says of the export."""

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        self.name = new_plan.storage_data.name
        return super().finish_plan(new_plan)
