"""What a load owes to planners: order, memory, the caller's modes, refusals before anything is changed."""

from __future__ import annotations

import io
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Bucket
from support import scenarios
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.planner import LoadPlan
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dcp_core import (
    CheckpointCorruptError,
    CloudCheckpointError,
    CloudStorageReader,
    CloudStorageWriter,
    UnsupportedTensorError,
    UntrustedDataError,
)
from dcp_core.testing import MemoryBackend, MemoryStore, body_of


class MemoryWriter(CloudStorageWriter):
    backend = MemoryBackend()


class MemoryReader(CloudStorageReader):
    backend = MemoryBackend()


@pytest.fixture
def url() -> str:
    MemoryStore.create_bucket("planners")
    return "memory://planners/run"


def save(url: str, state: dict[str, Any]) -> None:
    dcp.save(state, storage_writer=MemoryWriter(url))


def load(url: str, state: dict[str, Any], planner: DefaultLoadPlanner | None = None, **options: Any) -> None:
    dcp.load(state, storage_reader=MemoryReader(url, **options), planner=planner)


def failure_of(call: Callable[[], Any]) -> CloudCheckpointError:
    """What this library raised inside torch's exception."""
    with pytest.raises(CheckpointException) as caught:
        call()
    found = caught.value.failures[0][0]
    assert isinstance(found, CloudCheckpointError)
    return found


def copied(folder: Path) -> Path:
    """The checkpoint as files, for stock readers."""
    store = MemoryStore("planners")
    for info in store.list("run/"):
        (folder / info.key.removeprefix("run/")).write_bytes(store.get(info.key)[0])
    return folder


# --- order and memory


class Buffer(bytearray):
    """Memory of a planner's own, which tells when it goes."""


class BufferedLoader(DefaultLoadPlanner):
    """Makes a buffer for each item and is done with it when the item is complete."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._alive: weakref.WeakValueDictionary[int, Buffer] = weakref.WeakValueDictionary()
        self._count = 0

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        lengths = tuple(read_item.lengths)
        memory = Buffer(4 * torch.Size(lengths).numel())
        self._count += 1
        self._alive[self._count] = memory
        self.most = max(self.most, len(self._alive))
        return torch.frombuffer(memory, dtype=torch.float32).view(lengths)

    def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
        with torch.no_grad():
            self.lookup_tensor(read_item.dest_index).copy_(tensor)


@pytest.mark.parametrize(
    "elements",
    [4096, 262144, 786432],
    ids=lambda elements: {4096: "16 KiB"}.get(elements, f"{elements >> 18} MiB"),
)
def test_a_planners_buffers_are_as_many_as_requests_in_flight(
    seaweedfs_bucket: Bucket, elements: int
) -> None:
    """Two for each request at most, and one between two requests, however large the checkpoint is."""
    url, concurrency = f"{seaweedfs_bucket.url}/run", 4
    state = {f"layer {n}": torch.full((elements,), float(n)) for n in range(64)}
    dcp.save(state, storage_writer=CloudStorageWriter(url))
    planner, target = BufferedLoader(), {name: torch.zeros(elements) for name in state}
    dcp.load(target, storage_reader=CloudStorageReader(url, concurrency=concurrency), planner=planner)
    scenarios.assert_same(target, state)
    assert 1 <= planner.most <= 2 * concurrency + 1


class OrderedLoader(DefaultLoadPlanner):
    """Notes what it is asked, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        self.calls.append(("resolve", read_item.dest_index.fqn))
        return super().resolve_tensor(read_item)

    def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
        self.calls.append(("commit", read_item.dest_index.fqn))
        super().commit_tensor(read_item, tensor)

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        self.calls.append(("bytes", read_item.dest_index.fqn))
        super().load_bytes(read_item, value)


def test_one_connection_keeps_the_order_of_stock(url: str, tmp_path: Path) -> None:
    """One item is complete before the next one is asked for, in the order of stock's own file."""
    state = {f"layer {n}": scenarios.noise(n, (300, 1000)) for n in range(6)}
    dcp.save({**state, "step": 1}, storage_writer=dcp.FileSystemWriter(tmp_path))
    for path in tmp_path.iterdir():
        MemoryStore("planners").put(f"run/{path.name}", body_of(path.read_bytes()))
    calls = []
    for reader in (dcp.FileSystemReader(tmp_path), MemoryReader(url, concurrency=1)):
        planner, target = OrderedLoader(), {**scenarios.blanked(state), "step": 0}
        dcp.load(target, storage_reader=reader, planner=planner)
        scenarios.assert_same(target, {**state, "step": 1})
        calls.append(planner.calls)
    stock, ours = ([call for call in found if call[0] != "bytes"] for found in calls)
    assert ours == stock
    assert [call for call in calls[1] if call[0] == "bytes"] == [("bytes", "step")]


class OneAtATime(DefaultLoadPlanner):
    """Not safe for threads, as planners need not be."""

    def __init__(self) -> None:
        super().__init__()
        self._busy = threading.Lock()
        self.loaded: list[str] = []
        self.threads: set[int] = set()

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        assert self._busy.acquire(blocking=False), "two items at once"
        try:
            time.sleep(0.002)  # a second one would come in
            self.threads.add(threading.get_ident())
            self.loaded.append(read_item.dest_index.fqn)
            super().load_bytes(read_item, value)
        finally:
            self._busy.release()


def test_objects_are_handed_over_one_by_one(url: str) -> None:
    state = {f"object {n}": bytes([n]) * (1 << 20) for n in range(32)}
    save(url, state)
    planner, target = OneAtATime(), dict.fromkeys(state)
    load(url, target, planner, concurrency=8)
    assert target == state
    assert sorted(planner.loaded) == sorted(state)


# --- the caller's modes


class Seen(TorchFunctionMode):
    """A function mode that notes what it sees."""

    calls: ClassVar[list[str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    """A dispatch mode that notes what it sees."""

    calls: ClassVar[list[str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "function mode": Seen,
    "dispatch mode": Dispatched,
}


def modes_now() -> tuple[Any, ...]:
    """What this thread's modes make of torch."""
    before = len(Seen.calls), len(Dispatched.calls)
    device = torch.empty(0).device
    return (
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        str(device),
        len(Seen.calls) > before[0],
        len(Dispatched.calls) > before[1],
    )


class NotingSaver(DefaultSavePlanner):
    def __init__(self) -> None:
        super().__init__()
        self.modes: set[tuple[Any, ...]] = set()

    def resolve_data(self, write_item: Any) -> Any:
        self.modes.add(modes_now())
        return super().resolve_data(write_item)


class NotingLoader(DefaultLoadPlanner):
    """A planner of somebody else's, which is asked for tensors when their bytes arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: set[tuple[Any, ...]] = set()
        self.calls = 0

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        self._note()
        return super().resolve_tensor(read_item)

    def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
        self._note()
        super().commit_tensor(read_item, tensor)

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        self._note()
        super().load_bytes(read_item, value)

    def _note(self) -> None:
        self.calls += 1
        self.modes.add(modes_now())


#: Shape of the tensors below: several requests and several pieces each.
SHAPE = (700, 900)


@pytest.mark.parametrize("mode", MODES)
def test_planners_are_called_under_the_callers_modes(url: str, mode: str) -> None:
    state = {f"layer {n}": scenarios.noise(n, SHAPE) for n in range(6)}
    target = {name: torch.zeros(SHAPE) for name in state}
    saver, loader = NotingSaver(), NotingLoader()
    with MODES[mode]():
        expected = modes_now()
        dcp.save({**state, "step": 3}, storage_writer=MemoryWriter(url), planner=saver)
        load(url, {**target, "step": 0}, loader)
    assert saver.modes == {expected}
    assert loader.modes == {expected}
    assert loader.calls == 2 * len(state) + 1
    scenarios.assert_same(target, state)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("planner", [DefaultLoadPlanner, NotingLoader], ids=["torch's planner", "another"])
def test_tensors_of_a_mode_are_filled_under_it(
    url: str, mode: str, planner: type[DefaultLoadPlanner]
) -> None:
    """Tensors that were made under a mode may be of use under that mode only."""
    state = {name: torch.randn(SHAPE) for name in ("same", "double", "transposed", "every other")}
    save(url, state)
    with MODES[mode]():
        target = {
            "same": torch.zeros(SHAPE, device="cpu"),
            "double": torch.zeros(SHAPE, dtype=torch.float64, device="cpu"),
            "transposed": torch.zeros(SHAPE[::-1], device="cpu").t(),
            "every other": torch.zeros(SHAPE[0], 2 * SHAPE[1], device="cpu")[:, ::2],
        }
        load(url, target, planner(), max_request_size=1 << 20)
    for name, tensor in target.items():
        assert torch.equal(tensor.float(), state[name]), name


@pytest.mark.parametrize("mode", [Seen, Dispatched])
def test_modes_see_what_changes_tensors(url: str, mode: type[Seen | Dispatched]) -> None:
    """Bytes that a socket puts into a tensor go past every mode, so they are copied while one is there."""
    state = {f"layer {n}": scenarios.noise(n, SHAPE) for n in range(3)}
    save(url, state)
    target = scenarios.blanked(state)
    mode.calls.clear()
    with mode():
        load(url, target)
    assert mode.calls.count("copy_") >= len(state)
    scenarios.assert_same(target, state)


@pytest.fixture
def meta_by_default() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_a_default_device_of_the_process(url: str, meta_by_default: None) -> None:
    """Buffers of ours are on the CPU all the same, and planners see the device."""
    state = {"weight": torch.ones(SHAPE, device="cpu").t(), "whole": torch.ones(SHAPE, device="cpu")}
    target = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in state.items()}
    saver, loader = NotingSaver(), NotingLoader()
    dcp.save({**state, "step": 4}, storage_writer=MemoryWriter(url), planner=saver)
    load(url, {**target, "step": 0}, loader)
    assert {found[3] for found in saver.modes | loader.modes} == {"meta"}
    for name, tensor in target.items():
        assert torch.equal(tensor, state[name]), name


def test_autograd_sees_that_a_tensor_was_loaded_into(url: str) -> None:
    """A backward pass over values that are gone must fail, not use the new ones."""
    save(url, {"weight": torch.ones(SHAPE)})
    weight = torch.full(SHAPE, 2.0, requires_grad=True)
    loss = (weight * weight).sum()
    load(url, {"weight": weight})
    assert (weight == 1).all()
    assert weight.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- refusals


def test_what_cannot_be_loaded_is_refused_before_anything_is_changed(url: str) -> None:
    state = {f"layer {n}": torch.ones(30, 20) for n in range(4)}
    save(url, state)
    freed = torch.zeros(30, 20)
    freed.untyped_storage().resize_(0)
    for odd in (torch.zeros(1, 20).expand(30, 20), torch.zeros(30, 20).to_sparse(), freed):
        # the last one of the plan
        target = {**{name: torch.zeros(30, 20) for name in state}, "layer 3": odd}
        error = failure_of(lambda target=target: load(url, target))
        assert isinstance(error, UnsupportedTensorError)
        assert "'layer 3'" in str(error)
        assert not any(tensor.any() for name, tensor in target.items() if name != "layer 3")


class Uncopyable(torch.Tensor):
    """A type that cannot be copied into, which only trying shows."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.copy_:
            raise RuntimeError("this type is read-only")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_what_its_own_type_cannot_copy_fails_before_the_rest_is_changed(url: str) -> None:
    state = {f"layer {n}": torch.ones(30, 20) for n in range(4)}
    save(url, state)
    target = {name: torch.zeros(30, 20) for name in state}
    target["layer 3"] = torch.zeros(30, 20).as_subclass(Uncopyable)
    error = failure_of(lambda: load(url, target))
    assert isinstance(error, UnsupportedTensorError)
    assert "Uncopyable" in str(error)
    assert "this type is read-only" in str(error)
    assert not any(target[f"layer {n}"].any() for n in range(3))


class Giving(DefaultLoadPlanner):
    """Hands out something for every tensor."""

    def __init__(self, something: Any) -> None:
        super().__init__()
        self._something = something

    def resolve_tensor(self, read_item: Any) -> Any:
        return self._something


def test_a_planner_that_gives_something_else_is_told_so(url: str) -> None:
    save(url, {"weight": torch.ones(30, 20)})
    for something in ("a string", None, [[0.0] * 20] * 30):
        target = {"weight": torch.zeros(30, 20)}
        planner = Giving(something)
        error = failure_of(lambda target=target, planner=planner: load(url, target, planner))
        assert isinstance(error, UnsupportedTensorError)
        assert f"the planner gave a {type(something).__name__}" in str(error)


def test_another_shape_is_an_error_and_not_a_corner_of_the_tensor(url: str) -> None:
    save(url, {"weight": torch.ones(30, 20)})
    for shape in ((31, 20), (30, 21), (20, 30), (29, 20), (600,), (1, 30, 20)):
        given = torch.zeros(shape)
        target = {"weight": torch.zeros(30, 20)}
        planner = Giving(given)
        error = failure_of(lambda target=target, planner=planner: load(url, target, planner))
        assert isinstance(error, CheckpointCorruptError)
        assert f"a tensor of shape {shape}" in str(error)
        assert not given.any()


class ChangedPlan(DefaultLoadPlanner):
    """Plans by itself, and wrongly."""

    def __init__(self, change: dict[str, tuple[int, ...]]) -> None:
        super().__init__(allow_partial_load=True)
        self._change = {name: torch.Size(value) for name, value in change.items() if min(value) >= 0}
        self._change |= {name: value for name, value in change.items() if min(value) < 0}
        self.resolved = 0

    def create_local_plan(self) -> LoadPlan:
        plan = super().create_local_plan()
        changed = [
            replace(item, **self._change) if item.dest_index.fqn == "weight" else item for item in plan.items
        ]
        return replace(plan, items=changed)

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        self.resolved += 1
        return torch.zeros(tuple(read_item.lengths))


@pytest.mark.parametrize(
    "change",
    [
        {"storage_offsets": (1, 0)},
        {"storage_offsets": (0, -1)},
        {"storage_offsets": (0,), "lengths": (64,)},
        {"lengths": (65, 64)},
        {"lengths": (-64, -64)},
    ],
    ids=str,
)
def test_a_plan_reads_nothing_beyond_a_chunk(url: str, change: dict[str, tuple[int, ...]]) -> None:
    """What lies beyond is another item's: here the neighbours, which must not end up in the tensor."""
    save(url, {"before": torch.ones(64, 64), "weight": torch.zeros(64, 64), "behind": torch.ones(64, 64)})
    planner = ChangedPlan(change)
    error = failure_of(lambda: load(url, {"weight": torch.zeros(64, 64)}, planner))
    assert isinstance(error, CheckpointCorruptError)
    assert "'weight' is planned to be read" in str(error)
    assert planner.resolved == 0


# --- tensors that share memory


def test_tensors_that_share_memory_end_as_with_stock(url: str, tmp_path: Path) -> None:
    """Tied weights, slices of a fused one, views of other strides and dtypes: the last one read stays."""
    shapes = {"tied": (400, 300), "fused": (400, 300), "rows": (100, 300), "columns": (400, 10)}
    shapes |= {"again": (400, 300), "t": (300, 400), "apart": (400, 300)}
    save(url, {name: scenarios.noise(n, shape) for n, (name, shape) in enumerate(shapes.items())})

    def targets() -> dict[str, torch.Tensor]:
        one, other = torch.zeros(400, 300), torch.zeros(400, 300)
        return {
            "tied": one,
            "fused": other,
            "rows": other[50:150],
            "columns": other[:, 290:],
            "again": one,
            "t": one.t(),
            "apart": torch.zeros(400, 300),
        }

    stock, ours = targets(), targets()
    dcp.load(stock, storage_reader=dcp.FileSystemReader(copied(tmp_path)))
    for _ in range(3):
        load(url, ours, max_request_size=1 << 16)
        scenarios.assert_same(ours, stock)


class Wrapped(torch.Tensor):
    """A tensor whose elements are another one's; only its own ``copy_`` reaches them."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapped:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*(arg.inner if isinstance(arg, Wrapped) else arg for arg in args), **(kwargs or {}))
        if func.overloadpacket.__name__ == "copy_":
            return args[0]
        return cls(found) if isinstance(found, torch.Tensor) else found


def test_a_wrapper_under_two_names_ends_as_with_stock(url: str, tmp_path: Path) -> None:
    save(url, {name: scenarios.noise(n, (400, 300)) for n, name in enumerate(("a", "b", "c"))})
    found = []
    for reader in (dcp.FileSystemReader(copied(tmp_path)), *(MemoryReader(url) for _ in range(3))):
        one = Wrapped(torch.zeros(400, 300))
        dcp.load({"a": one, "b": one, "c": one}, storage_reader=reader)
        found.append(one.inner)
    for ours in found[1:]:
        scenarios.assert_same(ours, found[0])


# --- objects


@dataclass
class Schedule:
    """A type of the user's own."""

    step: int


@pytest.mark.parametrize("how", ["weights_only", "safe_globals"])
def test_an_admitted_type_loads(url: str, how: str) -> None:
    save(url, {"schedule": Schedule(7)})
    error = failure_of(lambda: load(url, {"schedule": None}))
    assert isinstance(error, UntrustedDataError)
    assert f"{Schedule.__module__}.Schedule" in str(error)
    state: dict[str, Any] = {"schedule": None}
    if how == "weights_only":
        load(url, state, weights_only=False)
    else:
        with torch.serialization.safe_globals([Schedule]):
            load(url, state)
    assert state == {"schedule": Schedule(7)}


class Code:
    """Unpickled, it calls something."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def test_an_object_sets_nothing_in_this_process(url: str) -> None:
    """Neither by code that it brings, nor by way of the types that it needs."""
    name = "DCP_CLOUD_TEST_OF_CODE"
    admitted = set(torch.serialization.get_safe_globals())
    for value in (
        Code(os.putenv, name, "1"),
        Code(exec, f"import os; os.environ[{name!r}] = '1'"),
        ({1, 2}, Code(exec, f"import os; os.environ[{name!r}] = '1'")),
        Code(torch.serialization.add_safe_globals, [Schedule]),
    ):
        save(url, {"value": value})
        assert isinstance(failure_of(lambda: load(url, {"value": None})), UntrustedDataError)
        assert name not in os.environ
        assert set(torch.serialization.get_safe_globals()) == admitted


def test_values_of_python_itself_need_no_consent(url: str) -> None:
    state = {
        "set": {1, 2, "three"},
        "frozen": frozenset({(1, 2), None}),
        "bytes": b"\0\xff",
        "bytearray": bytearray(b"abc"),
        "complex": 1 + 2j,
        "none": None,
        "mixed": ({"a": (1.5, True, {b"x"})}, [2**70], -1, "ü"),
    }
    admitted = set(torch.serialization.get_safe_globals())
    save(url, {"values": {**state}, "alone": {3, 4}})
    target: dict[str, Any] = {"values": dict.fromkeys(state), "alone": None}
    load(url, target)
    assert target == {"values": state, "alone": {3, 4}}
    assert set(torch.serialization.get_safe_globals()) == admitted
