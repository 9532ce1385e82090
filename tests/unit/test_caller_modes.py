"""What torch keeps for each thread, in the threads that work for a caller."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.saves_in_memory import reader, writer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dcp_core.config import LoadOptions
from dcp_core.runtime.caller_modes import CallerModes
from dcp_core.testing import MemoryStore
from dcp_core.transfer import Transfer

WORKERS = 3


def in_workers(work: Callable[[], Any]) -> list[tuple[threading.Thread, Any]]:
    """What ``work`` finds in each of the threads that a transfer has, this one among them."""
    together = threading.Barrier(WORKERS, timeout=20)

    def meet(_: int) -> tuple[threading.Thread, Any]:
        together.wait()
        return threading.current_thread(), work()

    found = Transfer(LoadOptions(), None).run(range(WORKERS), meet, WORKERS)
    assert len({thread for thread, _ in found}) == WORKERS
    return found


def modes_here() -> dict[str, Any]:
    """What torch does in this thread, seen from outside."""
    return {
        "inference": torch.is_inference_mode_enabled(),
        "grad": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_autocast_dtype("cpu"),
        "device": torch.empty(0).device,
        "made": torch.empty(0).is_inference(),
    }


MODES: dict[str, Callable[[], list[AbstractContextManager[Any]]]] = {
    "none": lambda: [],
    "inference_mode": lambda: [torch.inference_mode()],
    "no_grad": lambda: [torch.no_grad()],
    "autocast": lambda: [torch.autocast("cpu", torch.float16)],
    "device": lambda: [torch.device("meta")],
    "inference_mode+autocast+device": lambda: [
        torch.inference_mode(),
        torch.autocast("cpu", torch.float16),
        torch.device("meta"),
    ],
    "inference_mode+inference_mode+enable_grad": lambda: [
        torch.inference_mode(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ],
}


@pytest.mark.parametrize("modes", MODES)
def test_workers_have_the_callers_modes(modes: str) -> None:
    outside = modes_here()
    with ExitStack() as stack:
        for mode in MODES[modes]():
            stack.enter_context(mode)
        here = modes_here()
        assert (here == outside) == (modes in ("none", "inference_mode+inference_mode+enable_grad"))
        assert [found for _, found in in_workers(modes_here)] == [here] * WORKERS
    assert modes_here() == outside


def test_workers_have_the_callers_default_device() -> None:
    torch.set_default_device("meta")
    try:
        assert [str(found["device"]) for _, found in in_workers(modes_here)] == ["meta"] * WORKERS
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("workers", [1, 8])
def test_a_tensor_of_inference_mode_is_filled_in_inference_mode(workers: int) -> None:
    """torch refuses to change such a tensor anywhere else. These are not received in place, but copied."""
    MemoryStore.create_bucket("bucket")
    store = MemoryStore("bucket")
    tensors = {f"weight {number}": torch.rand(300, 400) for number in range(8)}
    dcp.save(tensors, storage_writer=writer(store), no_dist=True)
    with torch.inference_mode():
        found = {name: torch.zeros(400, 300).t() for name in tensors}
        dcp.load(found, storage_reader=reader(store, concurrency=workers), no_dist=True)
    for name, tensor in tensors.items():
        assert found[name].is_inference()
        assert torch.equal(found[name], tensor)


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [_Functions, _Dispatches, FakeTensorMode])
def test_under_a_mode_of_its_own_the_caller_does_all_the_work(mode: type[Any]) -> None:
    """Such a mode keeps state that no other thread may touch."""
    with mode():
        workers = Transfer(LoadOptions(), None).run(
            range(20), lambda _: (threading.current_thread(), type(torch.empty(0))), 8
        )
        kind = type(torch.empty(0))
    assert workers == [(threading.current_thread(), kind)] * 20
    with torch.device("meta"):
        in_workers(modes_here)


def test_looking_for_modes_starts_no_accelerator() -> None:
    """A process that saves from the CPU, as for an asynchronous save, takes no memory of a device."""
    started = torch.cuda.is_initialized()
    modes = CallerModes.of_this_thread()
    assert torch.cuda.is_initialized() == started
    assert (modes.stream is None) == (not started)


def test_modes_are_those_of_when_they_were_looked_for() -> None:
    """What the caller does afterwards, and what the work does, stays where it is."""
    with torch.no_grad():
        bound = CallerModes.of_this_thread().bind(torch.is_grad_enabled)
    assert torch.is_grad_enabled()
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.extend((bound(), torch.is_grad_enabled())))
    thread.start()
    thread.join(20)
    assert found == [False, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_workers_have_the_callers_device_and_stream() -> None:
    device = torch.cuda.device_count() - 1
    stream = torch.cuda.Stream(device)

    def here() -> tuple[int, torch.cuda.Stream]:
        return torch.cuda.current_device(), torch.cuda.current_stream()

    with torch.cuda.stream(stream):
        assert [found for _, found in in_workers(here)] == [(device, stream)] * WORKERS
    assert torch.cuda.current_stream() != stream
