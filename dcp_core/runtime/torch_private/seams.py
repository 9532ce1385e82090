"""Where this library puts itself into torch's way, and what it takes from it there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint import filesystem, staging, state_dict_loader, state_dict_saver

from dcp_core.runtime.torch_private.errors import lacks

__all__ = ["default_store", "look_at_folders", "staged_copy", "wrap_process_saves", "wrap_storage_setup"]


def staged_copy(state: dict[str, Any]) -> dict[str, Any]:
    """What ``async_save`` saves where no stager is given: a copy of ``state`` in CPU memory of its own."""
    kind = getattr(staging, "DefaultStager", None)
    # which fails on those of FSDP's first version: it asks a ShardedTensor for its address
    if kind is None or _has_sharded_tensor(state):
        return staging.BlockingAsyncStager().stage(state)
    # without any of its options: a copy is complete on return, and no later one uses its memory
    stager = kind(staging.StagingOptions(False, False, False, False))
    try:
        copied: dict[str, Any] = stager.stage(state)
        return copied
    finally:
        stager.close()


def _has_sharded_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_sharded_tensor(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_sharded_tensor(item) for item in value)
    return hasattr(value, "local_shards")


def wrap_storage_setup(wrap: Callable[[Any], Any]) -> None:
    """Put ``wrap(function)`` in the place of the function that chooses a writer or reader for a
    ``checkpoint_id``, wherever torch calls it.

    Raises:
        UnsupportedError: this torch chooses in another way; nothing was changed.
    """
    modules = (state_dict_saver, state_dict_loader)
    for module in modules:
        if not callable(getattr(module, "_storage_setup", None)):
            raise lacks(
                f"{module.__name__}._storage_setup",
                "URLs cannot be made to work as checkpoint_id. Pass storage_writer= and storage_reader=",
            )
    for module in modules:
        vars(module)["_storage_setup"] = wrap(vars(module)["_storage_setup"])


def look_at_folders(look: Callable[[Any], None]) -> None:
    """Have torch's own writers and readers of local folders call ``look(path)`` first, which may refuse.

    They make a ``Path`` of whatever they are given, and then a folder of it. Where torch goes another way,
    they go on doing so.
    """
    kind: Any = filesystem.FileSystem
    current = getattr(kind, "init_path", None)
    if not callable(current):
        return
    original = getattr(current, "_dcp_cloud", current)

    def init_path(self: Any, path: Any) -> Any:
        look(path)
        return original(self, path)

    setattr(init_path, "_dcp_cloud", original)  # noqa: B010
    kind.init_path = init_path


def wrap_process_saves(choose: Callable[[Any, Any], Any]) -> bool:
    """Have saves in a process of their own (``AsyncCheckpointerType.PROCESS``) take the writer that
    ``choose(storage_writer, checkpoint_id)`` returns: that process imports torch anew, without any wrapping.

    Returns:
        Whether this torch has what it takes; otherwise such saves have to be given a writer.
    """
    name = "_ProcessBasedAsyncCheckpointExecutor"
    executor = getattr(state_dict_saver, name, None)
    if not callable(getattr(executor, "execute_save", None)):
        return False
    executor = getattr(executor, "_dcp_cloud", executor)

    class Executor(executor):  # type: ignore[misc, valid-type]
        _dcp_cloud = executor

        def execute_save(
            self, staged: Any, *, checkpoint_id: Any = None, storage_writer: Any = None, **options: Any
        ) -> Any:
            writer = choose(storage_writer, checkpoint_id)
            return super().execute_save(staged, checkpoint_id=checkpoint_id, storage_writer=writer, **options)

    vars(state_dict_saver)[name] = Executor
    return True


def default_store() -> Any | None:
    """The key-value store of the default process group, a ``torch.distributed.Store``.

    ``None`` where there is no process group, or one without a store (MPI), or no way to it: ranks then learn
    of each other's failures only when torch gathers results.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    try:
        # since 2.0 at least; the group's own get_group_store() is younger, and undocumented as well
        return dist.distributed_c10d._get_default_store()
    # whatever a process group of another kind makes of it
    except Exception:  # noqa: BLE001
        return None
