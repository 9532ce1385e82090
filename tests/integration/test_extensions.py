"""Stream transforms on the way to a bucket and back, and the other keywords of torch's own writer."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from support import scenarios
from support.ranks import Ranks
from support.torch_releases import since
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import (
    CheckpointCorruptError,
    CloudStorageReader,
    CloudStorageWriter,
    ConfigurationError,
    UnsupportedError,
)
from dcp_core.cli.app import run

pytestmark = since(2, 7, "stream extensions")

World = Callable[[int], Ranks]

try:
    from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension, ZStandard
except ImportError:
    ExtensionRegistry = StreamTransformExtension = ZStandard = object


class _Through(io.RawIOBase):
    """Writes what a function makes of the bytes, and at its end what it kept back."""

    def __init__(self, output: IO[bytes], change: Callable[[bytes], bytes]) -> None:
        self._output = output
        self._change = change
        self._kept = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        new = bytes(data)
        whole = self._kept + new
        # in pieces that are not the writer's
        count = len(whole) // 7 * 7
        self._output.write(self._change(whole[:count]))
        self._kept = whole[count:]
        return len(new)

    def close(self) -> None:
        if not self.closed:
            self._output.write(self._change(self._kept))
            self._output.close()
        super().close()


class Shifted(StreamTransformExtension):
    """A transform of a user's own: every byte plus one."""

    @staticmethod
    def registry_name() -> str:
        return "stream.shifted@example.org"

    @classmethod
    def from_descriptor(cls, version: str) -> Any:
        if version != "1":
            raise ValueError(f"version {version}")
        return cls()

    def get_descriptor(self) -> str:
        return f"{self.registry_name()}/1"

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        return _Through(output, self.change)

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:
        return io.BytesIO(self.undo(input.read()))

    def change(self, data: bytes) -> bytes:
        return data.translate(bytes((value + 1) % 256 for value in range(256)))

    def undo(self, data: bytes) -> bytes:
        return data.translate(bytes((value - 1) % 256 for value in range(256)))


class Masked(Shifted):
    """Another one, which does not commute with it."""

    @staticmethod
    def registry_name() -> str:
        return "stream.masked@example.org"

    def change(self, data: bytes) -> bytes:
        return data.translate(bytes(value ^ 0x5A for value in range(256)))

    undo = change


def registry() -> Any:
    made = ExtensionRegistry()
    made.register(Shifted)
    made.register(Masked)
    return made


def state_of(seed: int) -> dict[str, Any]:
    return {
        "weight": scenarios.noise(seed, (200, 100)),
        "transposed": scenarios.noise(seed + 1, (30, 20)).t(),
        "half": scenarios.noise(seed + 2, (33,), torch.bfloat16),
        "scalar": torch.tensor(seed),
        "empty": torch.empty(0, 3),
        "nested": {"step": seed, "names": ["a" * 100, None]},
    }


def blank() -> dict[str, Any]:
    state = scenarios.blanked(state_of(1))
    state["nested"]["names"] = ["", None]
    return state


def load(reader: Any) -> dict[str, Any]:
    state = blank()
    dcp.load(state, storage_reader=reader)
    return state


def kinds() -> list[Any]:
    return [
        pytest.param(lambda: [ZStandard()], id="zstd"),
        pytest.param(lambda: [Shifted()], id="of the user's own"),
        pytest.param(lambda: [Shifted(), Masked()], id="two"),
        pytest.param(lambda: [ZStandard(), Shifted()], id="zstd of the shifted"),
    ]


@pytest.mark.parametrize("make", kinds())
def test_what_goes_through_transforms_comes_back(bucket: Bucket, make: Callable[[], list[Any]]) -> None:
    url = f"{bucket.url}/run"
    dcp.save(state_of(3), storage_writer=CloudStorageWriter(url, _extensions=make()))
    scenarios.assert_same(load(CloudStorageReader(url, _extension_registry=registry())), state_of(3))


@pytest.mark.parametrize("make", kinds())
def test_the_reader_of_torch_loads_what_ours_transformed(
    seaweedfs_bucket: Bucket, tmp_path: Path, make: Callable[[], list[Any]]
) -> None:
    dcp.save(state_of(5), storage_writer=CloudStorageWriter(f"{seaweedfs_bucket.url}/run", extensions=make()))
    for key in seaweedfs_bucket.keys("run/"):
        (tmp_path / key.removeprefix("run/")).write_bytes(seaweedfs_bucket.read(key))
    stock = dcp.FileSystemReader(tmp_path, _extension_registry=registry())
    scenarios.assert_same(load(stock), state_of(5))


def test_a_transform_of_the_users_own_in_a_checkpoint_of_torch(
    seaweedfs_bucket: Bucket, tmp_path: Path
) -> None:
    dcp.save(state_of(6), storage_writer=dcp.FileSystemWriter(tmp_path, _extensions=[Shifted()]))
    for path in tmp_path.iterdir():
        seaweedfs_bucket.write(f"run/{path.name}", path.read_bytes())
    reader = CloudStorageReader(f"{seaweedfs_bucket.url}/run", _extension_registry=registry())
    scenarios.assert_same(load(reader), state_of(6))


def test_compressed_data_is_smaller_in_the_bucket(seaweedfs_bucket: Bucket) -> None:
    state = {"zeros": torch.zeros(1 << 20)}
    for name, extensions in (("plain", []), ("small", [ZStandard()])):
        url = f"{seaweedfs_bucket.url}/{name}"
        dcp.save(state, storage_writer=CloudStorageWriter(url, _extensions=extensions))
    plain, small = (
        sum(len(seaweedfs_bucket.read(key)) for key in seaweedfs_bucket.keys(f"{name}/"))
        for name in ("plain", "small")
    )
    assert plain > 4 << 20
    assert small < plain // 100


def test_nothing_of_a_transformed_item_lies_there_as_it_is(seaweedfs_bucket: Bucket) -> None:
    """An encryption must see every byte, headers and objects included."""
    secret = b"the secret word"
    state = {
        "secret": secret.decode(),
        "tensor": torch.frombuffer(bytearray(secret * 9000), dtype=torch.uint8),
    }
    writer = CloudStorageWriter(f"{seaweedfs_bucket.url}/run", _extensions=[Shifted()])
    dcp.save(state, storage_writer=writer)
    data = [seaweedfs_bucket.read(key) for key in seaweedfs_bucket.keys() if key.endswith(".distcp")]
    assert data
    assert all(secret not in one and b"PK" not in one[:2] for one in data)
    assert any(Shifted().change(secret) in one for one in data)


def save_sharded(url: str) -> None:
    full = {"dim 0": scenarios.noise(1, (64, 48)), "dim 1": scenarios.noise(2, (6, 5))}
    dcp.save(scenarios.sharded(full), storage_writer=CloudStorageWriter(url, _extensions=[Shifted()]))


def load_sharded(url: str) -> None:
    full = {"dim 0": scenarios.noise(1, (64, 48)), "dim 1": scenarios.noise(2, (6, 5))}
    found = scenarios.blanked(scenarios.sharded(full))
    dcp.load(found, storage_reader=CloudStorageReader(url, _extension_registry=registry()))
    scenarios.assert_same(found, full)


def test_transformed_shards_load_on_other_ranks(seaweedfs_bucket: Bucket, worlds: World) -> None:
    worlds(4).run(save_sharded, f"{seaweedfs_bucket.url}/run")
    worlds(2).run(load_sharded, f"{seaweedfs_bucket.url}/run")


def test_a_large_transformed_item_goes_in_parts(seaweedfs_bucket: Bucket) -> None:
    state = {"large": scenarios.noise(1, (24 << 20,), torch.uint8), "small": torch.ones(3)}
    url = f"{seaweedfs_bucket.url}/run"
    writer = CloudStorageWriter(url, _extensions=[Shifted()], part_size=5 << 20, memory_limit=64 << 20)
    dcp.save(state, storage_writer=writer)
    found = scenarios.blanked(state)
    dcp.load(found, storage_reader=CloudStorageReader(url, _extension_registry=registry()))
    scenarios.assert_same(found, state)


def error_of(function: Callable[[], Any]) -> BaseException:
    with pytest.raises(CheckpointException) as caught:
        function()
    return caught.value.failures[0][0]


def test_an_unknown_transform_is_named_and_so_is_what_to_do(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    dcp.save(state_of(3), storage_writer=CloudStorageWriter(url, _extensions=[Shifted()]))
    error = error_of(lambda: load(CloudStorageReader(url)))
    assert isinstance(error, UnsupportedError)
    assert "stream.shifted@example.org/1" in str(error)
    assert "extension_registry=" in str(error)


def test_a_transform_that_fails_while_loading_is_damage(seaweedfs_bucket: Bucket) -> None:
    class Broken(Shifted):
        def transform_from(self, input: IO[bytes]) -> IO[bytes]:
            raise RuntimeError("no such key")

    url = f"{seaweedfs_bucket.url}/run"
    dcp.save({"weight": torch.ones(9)}, storage_writer=CloudStorageWriter(url, _extensions=[Shifted()]))
    found = ExtensionRegistry()
    found.register(Broken)
    reader = CloudStorageReader(url, _extension_registry=found)
    error = error_of(lambda: dcp.load({"weight": torch.zeros(9)}, storage_reader=reader))
    assert isinstance(error, CheckpointCorruptError)
    assert "no such key" in str(error)
    assert "weight" in str(error)


def test_a_transform_that_fails_while_saving_leaves_nothing(seaweedfs_bucket: Bucket) -> None:
    class Broken(Shifted):
        def change(self, data: bytes) -> bytes:
            raise RuntimeError("no such key")

    writer = CloudStorageWriter(f"{seaweedfs_bucket.url}/run", _extensions=[Broken()])
    error = error_of(lambda: dcp.save(state_of(3), storage_writer=writer))
    assert "no such key" in str(error)
    assert seaweedfs_bucket.keys() == []
    assert seaweedfs_bucket.uploads() == []


def test_a_flipped_byte_of_a_transformed_item_is_found(
    seaweedfs_bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    dcp.save({"weight": torch.ones(999)}, storage_writer=CloudStorageWriter(url, _extensions=[Shifted()]))
    assert run(["verify", url]) == 0
    (key,) = [key for key in seaweedfs_bucket.keys() if key.endswith(".distcp")]
    data = bytearray(seaweedfs_bucket.read(key))
    data[len(data) // 2] ^= 1
    seaweedfs_bucket.write(key, bytes(data))
    reader = CloudStorageReader(url, _extension_registry=registry())
    error = error_of(lambda: dcp.load({"weight": torch.zeros(999)}, storage_reader=reader))
    assert isinstance(error, CheckpointCorruptError)
    assert "checksum" in str(error)
    capsys.readouterr()
    assert run(["verify", url]) == 1
    assert "weight" in capsys.readouterr().out


def test_writer_and_reader_with_extensions_are_pickled_and_reset(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    writer = pickle.loads(pickle.dumps(CloudStorageWriter(url, _extensions=[Shifted()])))
    reader = pickle.loads(pickle.dumps(CloudStorageReader(url, _extension_registry=registry())))
    for name in ("a", "b"):
        dcp.save(state_of(7), storage_writer=writer, checkpoint_id=name)
        state = blank()
        dcp.load(state, storage_reader=reader, checkpoint_id=name)
        scenarios.assert_same(state, state_of(7))
    infos = reader.read_metadata().storage_data.values()
    assert {tuple(info.transform_descriptors) for info in infos} == {("stream.shifted@example.org/1",)}


def test_without_transforms_records_say_nothing_of_them(seaweedfs_bucket: Bucket) -> None:
    for number, given in enumerate((None, [], ())):
        url = f"{seaweedfs_bucket.url}/{number}"
        dcp.save({"a": torch.ones(2)}, storage_writer=CloudStorageWriter(url, _extensions=given))
        (info,) = CloudStorageReader(url).read_metadata().storage_data.values()
        assert info.transform_descriptors is None


# --- the other keywords of FileSystemWriter

SAME: list[tuple[str, Any]] = [
    ("single_file_per_rank", True),
    ("sync_files", True),
    ("cache_staged_state_dict", False),
    ("overwrite", True),
    ("_extensions", None),
]
OTHER: list[tuple[str, Any, str]] = [
    ("thread_count", 4, "concurrency="),
    ("per_thread_copy_ahead", 10_000_000, "memory_limit="),
    ("single_file_per_rank", False, "share objects"),
    ("sync_files", False, "durable"),
    ("cache_staged_state_dict", True, "BlockingAsyncStager(cache_staged_state_dict=True)"),
    ("_extensions", [object()], "StreamTransformExtension"),
]


@pytest.mark.parametrize(("name", "value"), SAME)
def test_a_keyword_that_asks_for_what_is_done_anyway_is_taken(name: str, value: Any) -> None:
    writer = CloudStorageWriter("s3://bucket/run", **{name: value})
    assert writer.checkpoint.options == CloudStorageWriter("s3://bucket/run").checkpoint.options


@pytest.mark.parametrize(("name", "value", "advice"), OTHER)
def test_a_keyword_that_has_no_meaning_here_says_what_to_use(name: str, value: Any, advice: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CloudStorageWriter("s3://bucket/run", **{name: value})
    assert name.strip("_") in str(caught.value)
    assert advice in str(caught.value)


def test_every_keyword_of_the_writer_of_torch_is_here() -> None:
    import inspect

    stock = set(inspect.signature(dcp.FileSystemWriter).parameters) - {"path"}
    assert stock <= {name for name, *_ in (*SAME, *OTHER)} | {"serialization_format"}
    assert set(inspect.signature(dcp.FileSystemReader).parameters) <= {"path", "_extension_registry"}


@since(2, 9, "a choice of formats")
def test_the_formats_of_the_writer_of_torch() -> None:
    from torch.distributed.checkpoint.filesystem import SerializationFormat

    CloudStorageWriter("s3://bucket/run", serialization_format=SerializationFormat.TORCH_SAVE)
    with pytest.raises(ConfigurationError, match="HuggingFaceStorageWriter"):
        CloudStorageWriter("s3://bucket/run", serialization_format=SerializationFormat.SAFETENSORS)


def test_a_keyword_by_both_of_its_names_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="give one of them"):
        CloudStorageWriter("s3://bucket/run", _extensions=[Shifted()], extensions=[Shifted()])


def test_a_registry_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ExtensionRegistry"):
        CloudStorageReader("s3://bucket/run", _extension_registry=[Shifted])
