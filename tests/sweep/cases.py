"""What the ranks do: saves and loads of a small state with everything in it that a checkpoint may have."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support import scenarios
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dcp_core import CloudStorageReader, CloudStorageWriter

__all__ = [
    "OPTIONS",
    "SAVE_OPTIONS",
    "STALL_TIMEOUT",
    "WrongValuesError",
    "load",
    "save",
    "seed_in",
    "seed_of",
    "state",
]

MIB = 1 << 20
#: Seconds without a byte after which a request is cut.
STALL_TIMEOUT = 2.0
#: Of writers and readers. What passes may take its time: a busy machine must not make an error of it.
OPTIONS: dict[str, Any] = {
    **{"concurrency": 4, "retry_timeout": 60.0},
    **{"connect_timeout": 5.0, "stall_timeout": STALL_TIMEOUT},
}
#: Two parts: S3's smallest, and the rest.
SAVE_OPTIONS = {**OPTIONS, "part_size": 5 * MIB}
_LARGE = 5 * MIB + 256 * 1024


class WrongValuesError(AssertionError):
    """A load succeeded with other values than those of a checkpoint."""


@functools.cache
def _noise() -> torch.Tensor:
    return scenarios.noise(1, (_LARGE,), torch.uint8)


def full_state(seed: int) -> dict[str, Any]:
    """What a checkpoint holds. Seeds have four digits, so that all are of the same size.

    The states of two seeds that follow each other differ in every byte of the large tensor.
    """
    return {
        "seed": seed,
        "objects": {"text": f"seed {seed}", "list": [1.5, None, (seed, "three")]},
        "small": {
            "float": scenarios.noise(seed, (33,)),
            "bfloat": scenarios.noise(seed, (5, 7), torch.bfloat16),
        },
        "empty": torch.empty(0, 3),
        "sharded": scenarios.noise(seed + 1, (64, 48)),
        "large": _noise() ^ (seed % 256),
    }


def state(seed: int) -> dict[str, Any]:
    """The same with one tensor sharded over the ranks, where there are any."""
    full = full_state(seed)
    if dist.is_initialized():
        full["sharded"] = distribute_tensor(full["sharded"], _mesh(), [Shard(0)])
    return full


@functools.cache
def _mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def save(url: str, seed: int, options: dict[str, Any]) -> None:
    """Save the state of ``seed``."""
    writer = CloudStorageWriter(url, **{**SAVE_OPTIONS, **options})
    try:
        dcp.save(state(seed), storage_writer=writer)
    finally:
        writer.close()


def load(url: str, seed: int, options: dict[str, Any]) -> None:
    """Load and compare with the state of ``seed``.

    Raises:
        WrongValuesError: the load succeeded with something else.
    """
    found = seed_of(url, options)
    if found != seed:
        raise WrongValuesError(f"loaded the state of seed {found}, not of {seed}")


def seed_of(url: str, options: dict[str, Any]) -> int:
    """:func:`seed_in` what is at a URL."""
    reader = CloudStorageReader(url, **{**OPTIONS, **options})
    try:
        return seed_in(reader)
    finally:
        reader.close()


def seed_in(reader: CloudStorageReader) -> int:
    """Load, and return the seed whose state it is, bit for bit.

    Raises:
        WrongValuesError: the load succeeded with the state of no seed.
    """
    target = scenarios.blanked(state(0))
    dcp.load(target, storage_reader=reader)
    seed = target["seed"]
    if not isinstance(seed, int):
        raise WrongValuesError(f"loaded {seed!r} as the seed")
    try:
        scenarios.assert_same(target, full_state(seed))
    except AssertionError as error:
        raise WrongValuesError(f"loaded other values than those of seed {seed}: {error}") from error
    return seed
