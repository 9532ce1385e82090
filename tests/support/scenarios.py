"""What ranks save and load in the tests. Everything derives from a seed, so any world can check it."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from dcp_core import CloudStorageReader, CloudStorageWriter

#: Every dtype whose tensors torch.save takes and CPU tensors can have, as far as this torch knows it.
DTYPES = [
    getattr(torch, name)
    for name in [
        *("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    ]
    # float8_e8m0fnu came with torch 2.7
    if hasattr(torch, name)
]

ODD_KEYS = [
    "with space",
    "ümläut/日本",
    "100%",
    "a%20b",
    "a+b",
    "a//b",
    "/lead",
    "trail/",
    "..",
    "q?x=1&y#z",
    "'\"<>",
]


def noise(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random bits of any dtype: bit for bit comparison has no trouble with NaN."""
    count = 1
    for size in shape:
        count *= size
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    if dtype is torch.bool:
        raw &= 1
    return raw.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


def bits(tensor: torch.Tensor) -> bytes:
    """The elements in C order as bytes."""
    flat = tensor.detach().resolve_conj().contiguous().view(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def plain_state(seed: int) -> dict[str, Any]:
    """Tensors and objects of every kind; the same on all ranks."""
    base = noise(seed + 1, (64, 96))
    return {
        "dtypes": {str(dtype): noise(seed + n, (5, 7), dtype) for n, dtype in enumerate(DTYPES)},
        "large": noise(seed + 2, (1500, 1024)),
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "expanded": noise(seed + 9, (1, 33)).expand(40, 33),
        "view": noise(seed + 3, (4096,))[100:200],
        "scalar": noise(seed + 4, ()),
        "empty": torch.empty(0, 3),
        "no rows": torch.empty(3, 0, 2, dtype=torch.bfloat16),
        "channels last": noise(seed + 5, (2, 3, 4, 5)).contiguous(memory_format=torch.channels_last),
        "conjugate": noise(seed + 6, (9, 9), torch.complex64).conj(),
        "objects": {
            "none": None,
            "text": "x" * seed,
            "no bytes": b"",
            "bytes": bytes(range(256)) * 4096,
            "list": [1, 2.5, "three", (4, None)],
            "step": seed,
        },
        "keys": {key: noise(seed + n, (3,)) for n, key in enumerate(ODD_KEYS)},
    }


def sharded_state(seed: int) -> dict[str, torch.Tensor]:
    """Full tensors; each world shards them in its own way."""
    return {
        "dim 0": noise(seed + 20, (64, 48)),
        "dim 1": noise(seed + 21, (48, 64)),
        "uneven": noise(seed + 22, (13, 5)),
        "few rows": noise(seed + 23, (2, 7)),
        "wide": noise(seed + 24, (4, 300_000), torch.bfloat16),
        "replicated": noise(seed + 25, (17, 3)),
        "cube": noise(seed + 26, (6, 8, 10), torch.float64),
    }


_PLACEMENTS = {"dim 0": 0, "dim 1": 1, "uneven": 0, "few rows": 0, "wide": 1, "cube": 2}


def sharded(full: dict[str, torch.Tensor]) -> dict[str, DTensor]:
    world = mesh()
    return {
        name: distribute_tensor(
            tensor, world, [Shard(_PLACEMENTS[name]) if name in _PLACEMENTS else Replicate()]
        )
        for name, tensor in full.items()
    }


def full_state(seed: int, *, blank: bool = False) -> dict[str, Any]:
    state: dict[str, Any] = {"plain": plain_state(seed), "sharded": sharded(sharded_state(seed))}
    return blanked(state) if blank else state


def blanked(value: Any) -> Any:
    """The same structure with nothing in it."""
    if isinstance(value, dict):
        return {key: blanked(item) for key, item in value.items()}
    if isinstance(value, DTensor):
        return torch.zeros_like(value)
    if isinstance(value, torch.Tensor):
        return (
            torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(
                torch.zeros((), dtype=torch.uint8).to(value.dtype)
            )
            if 0 not in value.stride()
            else torch.zeros(value.shape, dtype=value.dtype)
        )
    return "nothing"


def assert_same(actual: Any, expected: Any, path: str = "") -> None:
    """Bit for bit, and of the same type."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for key in expected:
            assert_same(actual[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, torch.Tensor):
        if isinstance(actual, DTensor):
            actual = actual.full_tensor()
        if isinstance(expected, DTensor):
            expected = expected.full_tensor()
        assert actual.dtype == expected.dtype, path
        assert actual.shape == expected.shape, path
        assert bits(actual) == bits(expected), path
    else:
        assert actual == expected, path


def save_full(url: str, seed: int, options: dict[str, Any] | None = None) -> None:
    dcp.save(full_state(seed), storage_writer=CloudStorageWriter(url, **(options or {})))


def load_full(url: str, seed: int, options: dict[str, Any] | None = None) -> None:
    """Load into this world and compare with what ``seed`` makes."""
    state = full_state(seed, blank=True)
    dcp.load(state, storage_reader=CloudStorageReader(url, **(options or {})))
    assert_same(state, {"plain": plain_state(seed), "sharded": sharded_state(seed)})


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(24, 24) for _ in range(3))
        self.norm = torch.nn.LayerNorm(24)
        self.head = torch.nn.Linear(24, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.head(self.norm(x))


def trained(kind: str, seed: int, steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model and optimizer of any parallelism after ``steps`` of training on the same batches."""
    torch.manual_seed(seed)
    random.seed(seed)
    model: torch.nn.Module = Net()
    if kind == "fsdp2":
        world = mesh()
        for block in model.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=world)
        fully_shard(model, mesh=world)
    elif kind == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        batch = torch.randn(8, 24, generator=torch.Generator().manual_seed(step))
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def gathered(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The training state with whole tensors, for comparison between worlds."""
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: whole(item) for key, item in value.items()}
        if isinstance(value, list):
            return [whole(item) for item in value]
        return value.full_tensor() if isinstance(value, DTensor) else copy.deepcopy(value)

    return whole(states)


def save_training(url: str, kind: str) -> dict[str, Any]:
    model, optimizer = trained(kind, 1, 3)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, storage_writer=CloudStorageWriter(url))
    return gathered(model, optimizer)


def load_training(url: str, kind: str) -> dict[str, Any]:
    model, optimizer = trained(kind, 2, 1)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, storage_reader=CloudStorageReader(url))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return gathered(model, optimizer)


#: Rows of 512 KiB, more than a gap that a load reads through.
SHARDED = noise(77, (64, 128 * 1024))


def save_sharded(url: str, dim: int) -> None:
    dcp.save(
        {"weight": distribute_tensor(SHARDED, mesh(), [Shard(dim)])}, storage_writer=CloudStorageWriter(url)
    )


def load_sharded(url: str, dim: int) -> None:
    """Load and compare with what :func:`save_sharded` saved."""
    state = {"weight": distribute_tensor(torch.zeros_like(SHARDED), mesh(), [Shard(dim)])}
    dcp.load(state, storage_reader=CloudStorageReader(url))
    assert_same(state["weight"], SHARDED)
