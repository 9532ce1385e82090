"""What records and plans of torch's have in them, and how errors of ranks travel."""

from __future__ import annotations

import copyreg
import inspect
import traceback
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import filesystem, metadata, state_dict_saver
from torch.distributed.checkpoint.planner import WriteItem

from dcp_core.runtime.torch_private.errors import lacks

__all__ = [
    "MEMORY_FORMAT_ENCODING",
    "PASSES_RANK",
    "RECORD_VERSION",
    "StorageInfo",
    "group_rank",
    "planned_object_bytes",
]


def _needed(module: Any, name: str) -> Any:
    """What a commit record must name for stock torch to read it."""
    found = getattr(module, name, None)
    if found is None:
        raise lacks(f"{module.__name__}.{name}", "commit records that stock torch reads cannot be written")
    return found


# stock readers know the class by its module and name
if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import _StorageInfo as StorageInfo
else:
    StorageInfo = _needed(filesystem, "_StorageInfo")

#: How a record names memory formats, which cannot be pickled themselves.
MEMORY_FORMAT_ENCODING = _needed(metadata, "_MEM_FORMAT_ENCODING")

#: What stock writers put into ``Metadata.version``; ``None`` where they leave it out.
RECORD_VERSION: str | None = getattr(filesystem, "CURRENT_DCP_VERSION", None)

#: Whether torch tells writers and readers their rank, and asks a reader again with it if it has no metadata.
PASSES_RANK = "use_collectives" in inspect.signature(state_dict_saver.save).parameters


def _reduced(frame: traceback.FrameSummary) -> tuple[Any, ...]:
    make = partial(traceback.FrameSummary, lookup_line=False, line=frame.line)
    return make, (frame.filename, frame.lineno, frame.name)


def _let_errors_travel() -> None:
    """Have the tracebacks pickled that torch gathers together with the errors of ranks.

    Their frames hold code objects in newer Pythons, 3.14 among them. torch takes those out since 2.12;
    before, a rank that fails cannot say so, and the others wait for it for ever.
    """
    release = [int(part) for part in torch.__version__.split(".")[:2]]
    if release < [2, 12] and hasattr(traceback.FrameSummary, "_code"):
        copyreg.pickle(traceback.FrameSummary, _reduced)


_let_errors_travel()


def group_rank(passed: Mapping[str, Any]) -> int:
    """The rank that torch passed among keyword arguments, or this process's own where it passes none."""
    if passed.get("rank") is not None:
        return int(passed["rank"])
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def planned_object_bytes(item: WriteItem) -> int:
    """Bytes of a non-tensor item as far as its plan knows them."""
    known = getattr(item, "bytes_io_data", None)
    return 0 if known is None else int(known.nbytes)
