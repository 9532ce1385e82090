"""What differs between releases of torch, and every name of torch's that is not public.

Nothing else in the library uses such a name; a test holds that. ``c`` is ``torch.distributed.checkpoint``.

=========================================  =======  ==================================================
name                                       since    without it
=========================================  =======  ==================================================
``c.filesystem._StorageInfo``,             2.0      ``UnsupportedError`` on import: what is written
``c.metadata._MEM_FORMAT_ENCODING``                 would not be what stock torch reads
``c.filesystem.CURRENT_DCP_VERSION``       2.9      records have no version, like stock ones before
``c._extension``                           2.7      ``UnsupportedError`` when an item is loaded that
                                                    went through a stream transform (a compression)
``c.state_dict_saver._storage_setup``,     2.2      ``UnsupportedError`` from
``c.state_dict_loader._storage_setup``              ``use_url_checkpoint_ids()``
``c.filesystem.FileSystem.init_path``      2.3      torch's writers of local folders make folders of URLs
``c.state_dict_saver.``                    2.7      saves in a process of their own have to be given a
``_ProcessBasedAsyncCheckpointExecutor``            writer: URLs as ids do not reach them
``torch.serialization._save``,             1.6      frames come from the public ``torch.save``, which
``torch._C.PyTorchFileWriter``                      reads blank elements for zip CRCs: 0.3 CPU seconds
                                                    a GiB, once a process for each dtype and shape
``torch.serialization.``                   2.7      the file writer's own default, 64 bytes
``_get_storage_alignment``
``torch.distributed._functional_``         2.1      tensors that a collective is still bringing are
``collectives.AsyncCollectiveTensor``               refused as those of an unknown subclass
``torch.accelerator.current_accelerator``  2.6      (2.6 raises where there is no accelerator)
``torch.Stream.__enter__``                 2.7      the stream is made current, then the one before
``c.staging.DefaultStager``                2.9      the older, public stager copies states for
                                                    ``async_save``
``WriteItem.bytes_io_data``                2.8      non-tensor items are planned with 0 bytes
errors gathered with plain tracebacks      2.12     Python is told how to pickle a ``FrameSummary``,
                                                    where it could not
``rank=`` for writers and readers          2.9      the rank in the default process group
``torch.distributed.distributed_c10d.``    2.0      ranks learn of each other's failures only when torch
``_get_default_store``                              gathers results
``torch._C._len_torch_dispatch_stack``,    2.1      work of other threads goes past such modes of the
``torch._C._len_torch_function_stack``,             caller, and past its default device
``torch._C._get_function_stack_at``
``torch.utils._python_dispatch.``          2.0      modes of the caller see buffers of ours being made
``_disable_current_modes``,
``torch._C.DisableTorchFunction``
``torch._C.DisableTorchFunctionSubclass``  2.0      a subclass's own functions look at its storage
``torch._C.``                              2.0      subclasses that change nothing are copied by their
``_disabled_torch_function_impl``,                  own type instead of received in place
``torch._C._disabled_torch_dispatch_impl``
=========================================  =======  ==================================================
"""

from __future__ import annotations

import copyreg
import inspect
import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache, partial
from typing import IO, TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import filesystem, metadata, staging, state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.planner import WriteItem

from dcp_core.errors import UnsupportedError

try:
    from torch.distributed.checkpoint import _extension
except ImportError:
    _extension = None  # type: ignore[assignment]
try:
    from torch.distributed._functional_collectives import AsyncCollectiveTensor
except ImportError:
    AsyncCollectiveTensor = None  # type: ignore[assignment,misc]

__all__ = [
    "MEMORY_FORMAT_ENCODING",
    "PASSES_RANK",
    "RECORD_VERSION",
    "StorageInfo",
    "changes_operations",
    "current_accelerator",
    "default_device_mode",
    "default_store",
    "differs",
    "group_rank",
    "has_foreign_modes",
    "is_fake",
    "look_at_folders",
    "on_stream",
    "planned_object_bytes",
    "staged_copy",
    "subclasses_off",
    "transforming",
    "undo_transforms",
    "waited_for",
    "without_modes",
    "write_archive",
    "wrap_storage_setup",
    "write_zip",
]

_ADVICE = "Use a release of dcp-cloud that knows this torch: docs/compatibility.md has the tested ones"


def _lacks(name: str, consequence: str) -> UnsupportedError:
    return UnsupportedError(f"torch {torch.__version__} has no {name}: {consequence}. {_ADVICE}")


def differs(name: str, what: str) -> UnsupportedError:
    """The error for ``name`` of torch that does something else than in the releases that are known."""
    return UnsupportedError(f"{name} of torch {torch.__version__} {what}. {_ADVICE}")


def _needed(module: Any, name: str) -> Any:
    """What a commit record must name for stock torch to read it."""
    found = getattr(module, name, None)
    if found is None:
        raise _lacks(f"{module.__name__}.{name}", "commit records that stock torch reads cannot be written")
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


#: Bytes; of every file that a release before 2.7 writes.
_DEFAULT_ALIGNMENT = 64


class _Sink(Protocol):
    def write(self, data: bytes | memoryview, /) -> int: ...
    def flush(self) -> None: ...


def write_zip(value: torch.Tensor, sink: _Sink, alignment: int | None = None) -> bool:
    """Hand ``sink`` what ``torch.save`` writes for ``value``, the elements as a view of their own memory.

    Args:
        alignment: of the elements in the file, in bytes; that of torch's configuration by default.

    Returns:
        Whether the zip CRCs were left out, and ``value``'s elements so never read.

    Raises:
        UnsupportedError: this torch cannot align otherwise than it is configured to.
    """
    save = getattr(torch.serialization, "_save", None)
    writer_type = getattr(torch._C, "PyTorchFileWriter", None)
    if save is None or writer_type is None:
        if alignment is not None:
            raise _lacks("torch.serialization._save", f"frames aligned to {alignment} cannot be made")
        # only a switch of the whole process leaves the CRCs out here, and that is the user's
        torch.save(value, sink)  # type: ignore[arg-type]
        return False
    writer = writer_type(sink, False, *_alignment(alignment))
    records = writer if alignment is None else _Aligned(writer, alignment)
    save(value, records, pickle, torch.serialization.DEFAULT_PROTOCOL, False)
    writer.write_end_of_file()
    return True


def _alignment(wanted: int | None) -> tuple[int, ...]:
    """How storages are aligned in a file, as an argument of its writer."""
    current = getattr(torch.serialization, "_get_storage_alignment", None)
    if current is not None:
        return (wanted or current(),)
    if wanted not in (None, _DEFAULT_ALIGNMENT):
        name = "torch.serialization._get_storage_alignment"
        raise _lacks(name, f"frames aligned to {wanted} cannot be made")
    return ()


def write_archive(
    value: Any, sink: _Sink, contents: Callable[[torch.UntypedStorage], torch.UntypedStorage]
) -> None:
    """Write what ``torch.save`` writes for ``value``, the elements of each storage being those of
    ``contents(storage)``, which is asked for when they are due and let go of afterwards.

    Raises:
        UnsupportedError: this torch writes in another way.
    """
    save = getattr(torch.serialization, "_save", None)
    writer_type = getattr(torch._C, "PyTorchFileWriter", None)
    if save is None or writer_type is None:
        raise _lacks("torch.serialization._save", "files cannot be written a tensor at a time")
    options = getattr(torch.serialization, "get_crc32_options", None)
    guarded = _Guarded(sink)
    writer = writer_type(guarded, True if options is None else options(), *_alignment(None))
    try:
        save(value, _Late(writer, guarded, contents), pickle, torch.serialization.DEFAULT_PROTOCOL, False)
    except BaseException as error:
        guarded.error = guarded.error or error
        raise
    finally:
        # a writer that goes without it ends the process if the sink fails then
        writer.write_end_of_file()
    guarded.check()


class _Guarded:
    """A sink whose failures do not pass through torch's writer; after one, nothing is written any more."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self.error: BaseException | None = None

    def write(self, data: bytes | memoryview) -> int:
        if self.error is None:
            try:
                return self._sink.write(data)
            except BaseException as error:  # noqa: BLE001  # raised by check()
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        self._sink.flush()

    def check(self) -> None:
        if self.error is not None:
            raise self.error


class _Late:
    """A zip writer that gets the elements of storages when it is about to write them."""

    def __init__(
        self,
        writer: Any,
        sink: _Guarded,
        contents: Callable[[torch.UntypedStorage], torch.UntypedStorage],
    ) -> None:
        self._writer = writer
        self._sink = sink
        self._contents = contents

    def write_record(self, name: str, data: Any, size: int) -> None:
        if isinstance(data, torch.UntypedStorage):
            data = self._contents(data)
            if data.nbytes() < size:
                raise differs("torch.save", f"writes {size} bytes of a storage of {data.nbytes()}")
        self._writer.write_record(name, data, size)
        self._sink.check()


class _Aligned:
    """A zip writer that aligns otherwise than torch is configured to, and says so in the file."""

    def __init__(self, writer: Any, alignment: int) -> None:
        self._writer = writer
        self._alignment = str(alignment)

    def write_record(self, name: str, data: Any, size: int) -> None:
        if name == ".storage_alignment":
            data, size = self._alignment, len(self._alignment)
        self._writer.write_record(name, data, size)


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


def transforming(sink: IO[bytes], extensions: Sequence[Any]) -> tuple[IO[bytes], list[str]]:
    """A stream that writes to ``sink`` through stream transforms, and how a record names those.

    Raises:
        UnsupportedError: this torch has no stream transforms, so that nothing of its could read them.
    """
    if _extension is None:
        raise _lacks("torch.distributed.checkpoint._extension", "stream transforms cannot be recorded")
    for extension in extensions:
        sink = extension.transform_to(sink)
    # The first one's output is what is stored, so a reader undoes it first. torch's own writer names them the
    # other way around, and its reader cannot load what went through two.
    return sink, [str(extension.get_descriptor()) for extension in extensions]


def undo_transforms(stream: IO[bytes], descriptors: Sequence[str], registry: Any = None) -> IO[bytes]:
    """``stream`` as it was before its writer's stream transforms, which ``descriptors`` name.

    Args:
        registry: an ``ExtensionRegistry``; torch's own extensions by default.

    Raises:
        UnsupportedError: there are some, and this torch has no stream transforms, or none of such a name.
    """
    if not descriptors:
        return stream
    if _extension is None:
        raise _lacks(
            "torch.distributed.checkpoint._extension",
            f"what was saved through {', '.join(descriptors)} cannot be read",
        )
    try:
        extensions = (registry or _extension.ExtensionRegistry()).from_descriptor_list(descriptors)
    # of the registry, and of the extensions themselves
    except ValueError as error:
        raise UnsupportedError(
            f"what was saved through {', '.join(descriptors)} cannot be read ({error}): register the "
            "extension with an ExtensionRegistry, and give that to the reader as extension_registry="
        ) from error
    for extension in extensions:
        if isinstance(extension, _extension.StreamTransformExtension):
            stream = extension.transform_from(stream)
    return stream


def wrap_storage_setup(wrap: Callable[[Any], Any]) -> None:
    """Put ``wrap(function)`` in the place of the function that chooses a writer or reader for a
    ``checkpoint_id``, wherever torch calls it.

    Raises:
        UnsupportedError: this torch chooses in another way; nothing was changed.
    """
    modules = (state_dict_saver, state_dict_loader)
    for module in modules:
        if not callable(getattr(module, "_storage_setup", None)):
            raise _lacks(
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


def group_rank(passed: Mapping[str, Any]) -> int:
    """The rank that torch passed among keyword arguments, or this process's own where it passes none."""
    if passed.get("rank") is not None:
        return int(passed["rank"])
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def planned_object_bytes(item: WriteItem) -> int:
    """Bytes of a non-tensor item as far as its plan knows them."""
    known = getattr(item, "bytes_io_data", None)
    return 0 if known is None else int(known.nbytes)


def waited_for(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` itself, or what it wraps once the collective that brings it is done."""
    if AsyncCollectiveTensor is not None and isinstance(tensor, AsyncCollectiveTensor):
        return tensor.wait()
    return tensor


def current_accelerator() -> torch.device | None:
    """The kind of accelerator that this torch was built for, if one is there."""
    try:
        return torch.accelerator.current_accelerator()
    # where none is: 2.6 alone raises
    except RuntimeError:
        return None


@contextmanager
def on_stream(stream: torch.Stream) -> Iterator[None]:
    """Queue work on ``stream`` of its device."""
    if hasattr(stream, "__enter__"):
        with stream:
            yield
        return
    accelerator: Any = torch.accelerator
    device, before = accelerator.current_device_idx(), accelerator.current_stream(stream.device)
    accelerator.set_stream(stream)
    try:
        yield
    finally:
        accelerator.set_stream(before)
        accelerator.set_device_idx(device)


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


def default_device_mode() -> torch.device | None:
    """The device that ``torch.set_default_device`` or ``with torch.device(…)`` set in this thread.

    ``None`` where there is none, or the name is gone: :func:`has_foreign_modes` then counts it among those.
    """
    for mode in _function_modes():
        if type(mode).__name__ == "DeviceContext":
            device: torch.device | None = getattr(mode, "device", None)
            return device
    return None


def has_foreign_modes() -> bool:
    """Whether a ``TorchDispatchMode`` is active in this thread, or a ``TorchFunctionMode`` that is not the
    default device.

    ``False`` where the names are gone: work of other threads then goes past such modes.
    """
    dispatch = getattr(torch._C, "_len_torch_dispatch_stack", None)
    if dispatch is not None and dispatch():
        return True
    modes = _function_modes()
    return len(modes) > (default_device_mode() is not None)


def _function_modes() -> list[Any]:
    length = getattr(torch._C, "_len_torch_function_stack", None)
    item = getattr(torch._C, "_get_function_stack_at", None)
    if length is None or item is None:
        return []
    return [item(number) for number in range(length())]


@contextmanager
def without_modes() -> Iterator[None]:
    """torch as it is by itself, for memory of this library's own: whatever modes this thread has are off.

    Where the names are gone, function and dispatch modes of the caller see such memory being made.
    """
    with ExitStack() as stack:
        if has_foreign_modes():
            off = getattr(torch.utils._python_dispatch, "_disable_current_modes", None)
            if off is not None:
                stack.enter_context(off())
        functions_off = getattr(torch._C, "DisableTorchFunction", None)
        if functions_off is not None:
            stack.enter_context(functions_off())
        stack.enter_context(torch.inference_mode(False))
        yield


def subclasses_off() -> Any:
    """A context in which methods of tensors are torch's, whatever ``__torch_function__`` a subclass has."""
    return getattr(torch._C, "DisableTorchFunctionSubclass", nullcontext)()


@lru_cache(maxsize=1024)
def changes_operations(kind: type[torch.Tensor]) -> bool:
    """Whether a subclass of tensors may do something else than torch where it is copied.

    True for all that do not say, where the names are gone: they are then copied by their own type.
    """
    function = getattr(kind, "__torch_function__", None)
    plain_functions = (
        getattr(torch.Tensor.__torch_function__, "__func__", None),
        getattr(torch._C, "_disabled_torch_function_impl", None),
    )
    return (
        getattr(function, "__func__", function) not in plain_functions
        or kind.__torch_dispatch__ is not getattr(torch._C, "_disabled_torch_dispatch_impl", None)
        or kind.copy_ is not torch.Tensor.copy_
    )


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is one of ``FakeTensorMode``, which has a shape and no data."""
    return any(kind.__name__ == "FakeTensor" for kind in type(tensor).__mro__)
