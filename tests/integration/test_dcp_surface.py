"""What torch lets people do with a writer and a reader, on a bucket."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
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
from support.ranks import Ranks
from support.torch_releases import since
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlanner

from dcp_core import (
    CheckpointNotFoundError,
    CloudStorageReader,
    CloudStorageWriter,
    ConfigurationError,
    TransientError,
    use_url_checkpoint_ids,
)

World = Callable[[int], Ranks]


def state_of(seed: int) -> dict[str, Any]:
    return {
        "weight": scenarios.noise(seed, (200, 100)),
        "nested": {"step": seed, "list": [seed, {"a": None}]},
    }


def load(url: str, seed: int, **options: Any) -> None:
    target = scenarios.blanked(state_of(seed))
    target["nested"]["list"] = [None, {"a": 0}]
    dcp.load(target, storage_reader=CloudStorageReader(url, **options))
    scenarios.assert_same(target, state_of(seed))


# --- async_save


def async_saves(url: str, kind: str) -> None:
    """Three saves in a row with one writer, the state changed as soon as torch allows it."""
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    writer = CloudStorageWriter(url)
    for seed in (1, 2, 3):
        full = {"dim 0": scenarios.noise(seed, (64, 48))}
        state = scenarios.sharded(full)
        response = dcp.async_save(
            state,
            storage_writer=writer,
            checkpoint_id=f"step-{seed}",
            async_checkpointer_type=AsyncCheckpointerType[kind],
        )
        state["dim 0"].to_local().zero_()
        response.result()
        loaded = scenarios.blanked(scenarios.sharded(full))
        dcp.load(loaded, storage_reader=CloudStorageReader(f"{url}/step-{seed}"))
        scenarios.assert_same(loaded, full)


@since(2, 7, "a choice of the executor, and with it staging of what is in CPU memory")
@pytest.mark.parametrize("kind", ["THREAD", "PROCESS"])
def test_async_save(seaweedfs_bucket: Bucket, worlds: World, kind: str) -> None:
    worlds(2).run(async_saves, f"{seaweedfs_bucket.url}/run", kind)
    assert len(seaweedfs_bucket.keys()) == 3 * 3


def failing_async_save(url: str) -> None:
    state = scenarios.sharded({"dim 0": scenarios.noise(1, (64, 48))})
    dcp.async_save(state, storage_writer=CloudStorageWriter(url, max_attempts=1)).result()


def test_async_save_reports_its_failure(seaweedfs_bucket: Bucket, proxy: FaultProxy, worlds: World) -> None:
    proxy.add(Fault("error", operation="PutObject", path="__1_0", times=9))
    for error in worlds(2).outcomes(failing_async_save, f"{seaweedfs_bucket.url}/run"):
        assert isinstance(error, CheckpointException)
        assert isinstance(error.failures[1][0], TransientError)
        assert error.failures[1][0].rank == 1


# --- plans


def saves_with_cached_plans(url: str) -> None:
    planner = DefaultSavePlanner(enable_plan_caching=True)
    writer = CloudStorageWriter(url)
    try:
        for seed in (1, 2, 3):
            full = {"dim 0": scenarios.noise(seed, (64, 48)), "replicated": scenarios.noise(seed, (5,))}
            metadata = dcp.save(
                scenarios.sharded(full), storage_writer=writer, planner=planner, checkpoint_id=f"step-{seed}"
            )
            assert metadata.storage_data
            for earlier in range(1, seed + 1):
                expected = {
                    "dim 0": scenarios.noise(earlier, (64, 48)),
                    "replicated": scenarios.noise(earlier, (5,)),
                }
                loaded = scenarios.blanked(scenarios.sharded(expected))
                dcp.load(loaded, storage_reader=CloudStorageReader(f"{url}/step-{earlier}"))
                scenarios.assert_same(loaded, expected)
    finally:
        for cache in vars(SavePlanner).values():
            if isinstance(cache, dict):
                cache.clear()


@since(2, 7, "plan caching")
def test_plan_caching(seaweedfs_bucket: Bucket, worlds: World) -> None:
    """torch hands out the first save's plan again; names and tokens must not."""
    worlds(2).run(saves_with_cached_plans, f"{seaweedfs_bucket.url}/run")


class HalfPrecision(DefaultSavePlanner):
    """Changes dtypes on the way, as torch's documentation shows."""

    def resolve_data(self, write_item: Any) -> Any:
        data = super().resolve_data(write_item)
        return data.half() if isinstance(data, torch.Tensor) else data


def test_planner_that_changes_dtypes(seaweedfs_bucket: Bucket) -> None:
    url, weight = f"{seaweedfs_bucket.url}/run", torch.randn(30, 20)
    dcp.save({"weight": weight}, storage_writer=CloudStorageWriter(url), planner=HalfPrecision())
    target = {"weight": torch.zeros(30, 20)}
    dcp.load(target, storage_reader=CloudStorageReader(url))
    assert torch.equal(target["weight"], weight.half().float())


def test_planner_with_its_own_bytes(seaweedfs_bucket: Bucket) -> None:
    """0 bytes to 100 MiB in a format of the planner's own."""

    class SaveRaw(DefaultSavePlanner):
        def transform_object(self, write_item: Any, object: Any) -> Any:
            return io.BytesIO(object)

    class LoadRaw(DefaultLoadPlanner):
        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            self.original_state_dict[read_item.dest_index.fqn] = value.getvalue()

    url = f"{seaweedfs_bucket.url}/run"
    state = {"none": b"", "one": b"x", "many": os.urandom(1 << 20) * 100}
    dcp.save(dict(state), storage_writer=CloudStorageWriter(url), planner=SaveRaw())
    loaded: dict[str, Any] = dict.fromkeys(state)
    dcp.load(loaded, storage_reader=CloudStorageReader(url, weights_only=False), planner=LoadRaw())
    assert loaded == state


def test_loads_into_other_dtypes_and_layouts(seaweedfs_bucket: Bucket) -> None:
    url, weight = f"{seaweedfs_bucket.url}/run", torch.randn(300, 2000)
    dcp.save({"weight": weight}, storage_writer=CloudStorageWriter(url))
    targets = {
        "double": torch.zeros(300, 2000, dtype=torch.float64),
        "transposed": torch.zeros(2000, 300).t(),
        "every other": torch.zeros(300, 4000)[:, ::2],
        "parameter": torch.nn.Parameter(torch.zeros(300, 2000)),
    }
    for target in targets.values():
        state = {"weight": target}
        dcp.load(state, storage_reader=CloudStorageReader(url, max_request_size=1 << 20))
        assert torch.equal(target.detach().float(), weight)


# --- ranks


def saves_without_collectives(url: str) -> None:
    rank = dist.get_rank()
    dcp.save(
        {f"rank {rank}": torch.full((5,), float(rank))},
        storage_writer=CloudStorageWriter(url),
        use_collectives=False,
    )


def loads_without_collectives(url: str) -> None:
    rank = dist.get_rank()
    state = {f"rank {rank}": torch.zeros(5)}
    dcp.load(state, storage_reader=CloudStorageReader(url))
    assert (state[f"rank {rank}"] == rank).all()


@since(2, 9, "saving without collectives")
def test_without_collectives(seaweedfs_bucket: Bucket, worlds: World) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    for _ in range(2):  # and over itself
        worlds(2).run(saves_without_collectives, url)
        worlds(2).run(loads_without_collectives, url)
    assert sorted(key for key in seaweedfs_bucket.keys() if key.endswith(".metadata")) == [
        "run/__0.metadata",
        "run/__1.metadata",
    ]
    assert len(seaweedfs_bucket.keys()) == 4


def test_every_rank_gets_the_real_error(seaweedfs_bucket: Bucket, worlds: World) -> None:
    """dcp.load swallows what read_metadata raises; it must come out all the same."""
    for error in worlds(2).outcomes(scenarios.load_full, f"{seaweedfs_bucket.url}/nothing", 1):
        assert isinstance(error, CheckpointException)
        assert {type(failure[0]) for failure in error.failures.values()} == {CheckpointNotFoundError}
        assert [failure[0].rank for failure in error.failures.values()] == [0, 1]


# --- one writer, many checkpoints


def test_reset_takes_names_and_urls(seaweedfs_bucket: Bucket) -> None:
    base = f"{seaweedfs_bucket.url}/run"
    writer, reader = CloudStorageWriter(base), CloudStorageReader(base)
    for checkpoint, url in (
        ("step-1", f"{base}/step-1"),
        (f"{seaweedfs_bucket.url}/else", None),
        ("a/b", f"{base}/a/b"),
    ):
        dcp.save(state_of(4), checkpoint_id=checkpoint, storage_writer=writer)
        load(url or checkpoint, 4)
        target = scenarios.blanked(state_of(4))
        target["nested"]["list"] = [None, {"a": 0}]
        dcp.load(target, checkpoint_id=checkpoint, storage_reader=reader)
        scenarios.assert_same(target, state_of(4))


def test_one_writer_saves_again_without_reset(seaweedfs_bucket: Bucket) -> None:
    writer = CloudStorageWriter(f"{seaweedfs_bucket.url}/run")
    for seed in (1, 2, 3):
        dcp.save(state_of(seed), storage_writer=writer)
        load(f"{seaweedfs_bucket.url}/run", seed)
    assert len(seaweedfs_bucket.keys()) == 2


def test_save_ids_are_new_and_recorded(seaweedfs_bucket: Bucket) -> None:
    writer = CloudStorageWriter(f"{seaweedfs_bucket.url}/run")
    seen = set()
    for seed in (1, 2):
        announced = writer.storage_meta().save_id
        metadata = dcp.save(state_of(seed), storage_writer=writer)
        assert metadata.storage_meta.save_id == announced
        assert metadata.storage_meta.checkpoint_id == writer.checkpoint_id
        seen.add(announced)
    assert len(seen) == 2


def test_pickled_after_use(seaweedfs_bucket: Bucket) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    writer = CloudStorageWriter(url, part_size=5 << 20)
    dcp.save(state_of(1), storage_writer=writer)
    dcp.save(state_of(2), storage_writer=pickle.loads(pickle.dumps(writer)))
    reader = CloudStorageReader(url)
    reader.read_metadata()
    clone = pickle.loads(pickle.dumps(reader))
    target = scenarios.blanked(state_of(2))
    target["nested"]["list"] = [None, {"a": 0}]
    dcp.load(target, storage_reader=clone)
    scenarios.assert_same(target, state_of(2))


def _save_in_child(writer: CloudStorageWriter) -> None:
    dcp.save(state_of(2), storage_writer=writer)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_after_use(seaweedfs_bucket: Bucket) -> None:
    """A child opens connections of its own; those of its parent stay usable."""
    writer = CloudStorageWriter(f"{seaweedfs_bucket.url}/run")
    dcp.save(state_of(1), storage_writer=writer)
    child = multiprocessing.get_context("fork").Process(target=_save_in_child, args=(writer,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    child.close()
    load(f"{seaweedfs_bucket.url}/run", 2)
    dcp.save(state_of(3), storage_writer=writer)
    load(f"{seaweedfs_bucket.url}/run", 3)


def test_urls_as_checkpoint_ids(
    seaweedfs_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An explicit opt-in; what is no URL of ours goes where it went."""
    from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

    # what the opt-in replaces in this process is put back afterwards
    names = {state_dict_saver: ("_storage_setup", "_ProcessBasedAsyncCheckpointExecutor")}
    for module, replaced in {**names, state_dict_loader: ("_storage_setup",)}.items():
        for name in replaced:
            monkeypatch.setattr(module, name, getattr(module, name, None), raising=False)
    url = f"{seaweedfs_bucket.url}/run"
    use_url_checkpoint_ids(fsspec=False, overwrite_nothing=1)
    with pytest.raises(ConfigurationError, match="overwrite_nothing"):
        dcp.save(state_of(1), checkpoint_id=url)
    use_url_checkpoint_ids(fsspec=False, max_attempts=2)
    for checkpoint in (url, str(tmp_path / "local")):
        dcp.save(state_of(1), checkpoint_id=checkpoint)
        target = {"weight": torch.zeros(200, 100)}
        dcp.load(target, checkpoint_id=checkpoint)
        scenarios.assert_same(target["weight"], state_of(1)["weight"])
    dcp.async_save(state_of(2), checkpoint_id=url).result()
    load(url, 2)
    assert (tmp_path / "local" / ".metadata").exists()


# --- partial loads


def test_a_partial_load_fetches_only_its_part(seaweedfs_bucket: Bucket, proxy: FaultProxy) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    state = {f"layer {n}": scenarios.noise(n, (256, 1024)) for n in range(8)}
    dcp.save(state, storage_writer=CloudStorageWriter(url))
    proxy.clear()
    target = {"layer 5": torch.zeros(256, 1024)}
    dcp.load(target, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(target["layer 5"], state["layer 5"])
    received = sum(seen.bytes_out for seen in proxy.requests if not seen.path.endswith(".metadata"))
    assert received <= 1.01 * target["layer 5"].nbytes


def rows_of(url: str, seed: int) -> None:
    full = {"dim 0": scenarios.noise(seed, (4096, 512))}
    state = scenarios.blanked(scenarios.sharded(full))
    dcp.load(state, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(state, full)


def test_row_slices_fetch_only_their_rows(seaweedfs_bucket: Bucket, proxy: FaultProxy, worlds: World) -> None:
    url = f"{seaweedfs_bucket.url}/run"
    dcp.save({"dim 0": scenarios.noise(3, (4096, 512))}, storage_writer=CloudStorageWriter(url))
    proxy.clear()
    worlds(4).run(rows_of, url, 3)
    received = sum(seen.bytes_out for seen in proxy.requests if not seen.path.endswith(".metadata"))
    assert received <= 1.01 * 4096 * 512 * 4


# --- other writers


def uploaded(bucket: Bucket, folder: Path) -> str:
    for path in folder.iterdir():
        bucket.write(f"copied/{path.name}", path.read_bytes())
    return f"{bucket.url}/copied"


def big_state(seed: int) -> dict[str, Any]:
    """Frames above and below the size from which foreign frames are probed."""
    state = scenarios.plain_state(seed)
    del state["conjugate"]  # stock torch.save keeps a lazy conjugate, which stock readers do not resolve
    return {
        **state,
        "huge": scenarios.noise(seed, (1200, 1024)),
        "huge t": scenarios.noise(seed, (900, 700)).t(),
    }


@pytest.mark.parametrize("kind", ["stock", "stock, 3 files", "fsspec", "stock, one file an item"])
def test_checkpoints_of_other_writers(seaweedfs_bucket: Bucket, tmp_path: Path, kind: str) -> None:
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

    writer = {
        "stock": lambda: dcp.FileSystemWriter(tmp_path),
        "stock, 3 files": lambda: dcp.FileSystemWriter(tmp_path, thread_count=3),
        "stock, one file an item": lambda: dcp.FileSystemWriter(tmp_path, single_file_per_rank=False),
        "fsspec": lambda: FsspecWriter(f"file://{tmp_path}"),
    }[kind]()
    dcp.save(big_state(5), storage_writer=writer)
    url = uploaded(seaweedfs_bucket, tmp_path)
    target = scenarios.blanked(big_state(5))
    dcp.load(target, storage_reader=CloudStorageReader(url, max_request_size=1 << 20))
    scenarios.assert_same(target, big_state(5))


def stock_save(folder: str, seed: int) -> None:
    dcp.save(scenarios.sharded(scenarios.sharded_state(seed)), storage_writer=dcp.FileSystemWriter(folder))


def reshard(url: str, seed: int) -> None:
    state = scenarios.blanked(scenarios.sharded(scenarios.sharded_state(seed)))
    dcp.load(state, storage_reader=CloudStorageReader(url))
    scenarios.assert_same(state, scenarios.sharded_state(seed))


def test_resharding_a_stock_checkpoint(seaweedfs_bucket: Bucket, worlds: World, tmp_path: Path) -> None:
    worlds(4).run(stock_save, str(tmp_path), 6)
    url = uploaded(seaweedfs_bucket, tmp_path)
    worlds(2).run(reshard, url, 6)
    worlds(1).run(reshard, url, 6)


def stock_load(folder: str, seed: int) -> None:
    state = scenarios.full_state(seed, blank=True)
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder))
    scenarios.assert_same(
        state, {"plain": scenarios.plain_state(seed), "sharded": scenarios.sharded_state(seed)}
    )


def test_stock_reader_loads_ours(bucket: Bucket, worlds: World, tmp_path: Path) -> None:
    worlds(4).run(scenarios.save_full, f"{bucket.url}/run", 11)
    for key in bucket.keys("run/"):
        (tmp_path / key.removeprefix("run/")).write_bytes(bucket.read(key))
    worlds(2).run(stock_load, str(tmp_path), 11)


# --- compressed streams of stock writers


@since(2, 7, "stream extensions")
def test_stream_transforms_of_stock_writers(seaweedfs_bucket: Bucket, tmp_path: Path) -> None:
    from torch.distributed.checkpoint._extension import ZStandard

    dcp.save(state_of(3), storage_writer=dcp.FileSystemWriter(tmp_path, _extensions=[ZStandard()]))
    load(uploaded(seaweedfs_bucket, tmp_path), 3)
