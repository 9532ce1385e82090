"""Which tensors have their elements in memory of their own, and where it lies."""

from __future__ import annotations

import gc
import itertools
import math
import mmap
import tempfile
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.odd_tensors import KINDS, blank, full, holds, raw_bytes
from torch._subclasses.fake_tensor import FakeTensorMode

from dcp_core.runtime import torch_private
from dcp_core.runtime.memory_map import ReadOnlyMemory
from dcp_core.runtime.tensor_memory import (
    cpu_buffer,
    memory_span,
    overlaps_itself,
    tensor_bytes,
    unreachable,
)

IN_MEMORY = [
    *("dense", "parameter", "buffer", "leaf that requires grad", "inference", "slice", "transposed"),
    *("expanded", "conjugated", "negated", "subclass that changes nothing", "shared memory"),
    *("mapped file", "unaligned"),
]
BY_TYPE = [
    *("wrapper", "parameter of a wrapper", "subclass with a function", "subclass with a dispatch"),
    *("quantized per tensor", "quantized per channel", "subclass that shows something else"),
]
OUT_OF_REACH = {
    "sparse coo": "has the layout torch.sparse_coo",
    "sparse csr": "has the layout torch.sparse_csr",
    "sparse csc": "has the layout torch.sparse_csc",
    "sparse bsr": "has the layout torch.sparse_bsr",
    "sparse bsc": "has the layout torch.sparse_bsc",
    "mkldnn": "has the layout torch._mkldnn",
    "nested": "is a nested tensor",
    "nested jagged": "is a nested tensor",
    "meta": "is a meta tensor, which holds no data",
    "fake": "is a fake tensor, which holds no data",
    "functional": "has no memory of its own",
    "batched": "has no memory of its own",
    "freed": "takes 96 bytes of a storage that has 0: was it freed?",
    "shrunk": "takes 96 bytes of a storage that has 8: was it freed?",
    "subclass that was freed": "takes 96 bytes of a storage that has 0: was it freed?",
}


def elements(tensor: torch.Tensor) -> list[Any]:
    """Addresses of all elements, in C order."""
    places = itertools.product(*map(range, tensor.shape))
    strides = tensor.stride()
    return [
        tensor.data_ptr() + tensor.element_size() * sum(map(math.prod, zip(place, strides, strict=True)))
        for place in places
    ]


@pytest.mark.parametrize("name", IN_MEMORY)
def test_elements_in_memory(name: str) -> None:
    """The span is from the first element to the last, and where they are in C order there is a view."""
    tensor = full(name)
    span = memory_span(tensor)
    addresses = elements(tensor)
    assert span == (min(addresses), max(addresses) + tensor.element_size())
    assert unreachable(tensor) is None
    if not tensor.is_contiguous():
        with pytest.raises(ValueError, match="needs a contiguous CPU tensor"):
            tensor_bytes(tensor)
        return
    assert len(tensor_bytes(tensor)) == tensor.nbytes
    if not (tensor.is_conj() or tensor.is_neg()):
        assert bytes(tensor_bytes(tensor)) == bytes(raw_bytes(tensor.detach()).numpy())


@pytest.mark.parametrize(
    "name", ["dense", "parameter", "slice", "unaligned", "subclass that changes nothing"]
)
def test_a_view_is_the_memory_itself(name: str) -> None:
    """What is written through it is in the tensor, which it keeps alive."""
    tensor, source = blank(name), full(name)
    tensor_bytes(tensor)[:] = tensor_bytes(source)
    assert holds(name, tensor)
    view = tensor_bytes(full(name))[8:16]
    kept = bytes(view)
    gc.collect()
    assert bytes(view) == kept


def test_a_view_keeps_its_tensor_for_as_long_as_itself() -> None:
    tensor = torch.ones(10)
    alive, view = weakref.ref(tensor), tensor_bytes(tensor)[4:8]
    del tensor
    gc.collect()
    assert alive() is not None
    view.release()
    del view
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("name", BY_TYPE)
def test_elements_that_only_their_type_reaches(name: str) -> None:
    """They are copied by their own type: reading their memory would find something else, or nothing."""
    tensor = full(name)
    assert memory_span(tensor) is None
    assert unreachable(tensor) is None
    with pytest.raises(ValueError, match="needs a tensor with memory of its own"):
        tensor_bytes(tensor)


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_elements_out_of_reach(name: str) -> None:
    tensor = full(name)
    with KINDS[name].around():
        assert memory_span(tensor) is None
        reason = unreachable(tensor)
    assert reason is not None
    assert reason.startswith(OUT_OF_REACH[name])


def test_a_slice_behind_the_end_of_its_storage() -> None:
    """A storage that is large enough for it, were it at the beginning."""
    base = torch.arange(48.0).view(8, 6)
    part = base[4:]
    assert memory_span(part) is not None
    base.untyped_storage().resize_(part.nbytes)
    assert memory_span(part) is None
    assert unreachable(part) == "takes 96 bytes of a storage that has 0: was it freed?"
    assert memory_span(base[:4]) is not None


def test_an_empty_tensor_has_nothing_that_could_be_missing() -> None:
    for tensor in (torch.empty(0, 6), torch.empty(3, 0).t(), torch.empty(5)[5:]):
        assert memory_span(tensor) == (0, 0)
        assert unreachable(tensor) is None
        assert not overlaps_itself(tensor)
    assert tensor_bytes(torch.empty(0, 6)) == b""
    freed = torch.empty(4)[4:]
    freed.untyped_storage().resize_(0)
    assert memory_span(freed) == (0, 0)
    assert unreachable(freed) is None


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=4))
def test_overlap_is_what_counting_finds(dims: list[tuple[int, int]]) -> None:
    """Whatever the strides."""
    tensor = torch.zeros(200).as_strided([size for size, _ in dims], [stride for _, stride in dims])
    addresses = elements(tensor) if tensor.numel() else []
    assert overlaps_itself(tensor) == (len(set(addresses)) < len(addresses))


@pytest.mark.parametrize("size", [100, 2 << 20])
@pytest.mark.parametrize("mode", [FakeTensorMode, torch.inference_mode, lambda: torch.device("meta")])
def test_own_memory_under_any_mode(mode: Any, size: int) -> None:
    """Buffers of ours, and what is found out with them, are not those of the caller's mode."""
    with mode():
        buffer = cpu_buffer(size)
        strided = torch.empty_strided((2, 3), (3, 2), device="cpu")
        overlaps = overlaps_itself(strided)
    assert type(buffer) is torch.Tensor
    assert buffer.device.type == "cpu"
    assert not buffer.is_inference()
    tensor_bytes(buffer)[:] = b"x" * size
    assert bytes(buffer.numpy()) == b"x" * size
    assert not overlaps


def resident() -> int:
    """Bytes of memory that this process has."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


def test_large_buffers_go_back_to_the_system() -> None:
    """Whatever was allocated between them, and only when no view needs them any more."""
    before = resident()
    between = []
    for number in range(12):
        buffer = cpu_buffer(24 << 20)
        buffer.fill_(number)
        between.append(bytearray(200_000))
        view = buffer.view(torch.float32)[-4:]
        del buffer
    assert view.view(torch.uint8).tolist() == [11] * 16
    del view
    assert resident() - before < 24 << 20


@pytest.mark.parametrize(
    "name",
    ["_disabled_torch_function_impl", "_disabled_torch_dispatch_impl", "DisableTorchFunction"],
)
def test_releases_of_torch_without_a_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A subclass that may change something is not taken for one that does not; memory is still ours."""
    torch_private.changes_operations.cache_clear()
    monkeypatch.delattr(torch._C, name)
    try:
        for kind in BY_TYPE:
            assert memory_span(full(kind)) is None
        assert memory_span(full("dense")) is not None
        plain = memory_span(full("subclass that changes nothing"))
        assert (plain is None) == (name == "_disabled_torch_dispatch_impl")
        assert cpu_buffer(10).nbytes == 10
    finally:
        torch_private.changes_operations.cache_clear()


def test_memory_that_cannot_be_written() -> None:
    """A mapping for reading, and none that is written to, whatever came in the place of one."""
    size = 4 * mmap.PAGESIZE
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        read_only = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        copied = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        written = mmap.mmap(file.fileno(), size)
    found = ReadOnlyMemory()
    spans = []
    for memory, expected in ((read_only, True), (copied, False), (written, False)):
        # torch warns of memory that is not writable
        with pytest.warns(UserWarning, match="not writable") if expected else nullcontext():
            start, stop = memory_span(torch.frombuffer(memory, dtype=torch.uint8)) or (0, 0)
        assert stop - start == size
        spans.append((start, stop))
        for part in ((start, stop), (start, start + 1), (stop - 1, stop), (start + 99, stop - 99)):
            assert found.holds(*part) == expected
    assert found.holds(spans[0][0] - 1, spans[0][0] + 1)
    assert found.holds(spans[0][1] - 1, spans[0][1] + 1)
    # it is asked anew before anything is refused
    read_only.close()
    assert not found.holds(*spans[0])
    tensor = full("mapped for reading only")
    assert ReadOnlyMemory().holds(*(memory_span(tensor) or (0, 0)))
