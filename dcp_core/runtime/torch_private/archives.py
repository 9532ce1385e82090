"""Files of ``torch.save``, and streams that go through a transform."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import IO, Any, Protocol

import torch

from dcp_core.errors import UnsupportedError
from dcp_core.runtime.torch_private.errors import differs, lacks

try:
    from torch.distributed.checkpoint import _extension
except ImportError:
    _extension = None  # type: ignore[assignment]

__all__ = ["transforming", "undo_transforms", "write_archive", "write_zip"]

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
            raise lacks("torch.serialization._save", f"frames aligned to {alignment} cannot be made")
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
        raise lacks(name, f"frames aligned to {wanted} cannot be made")
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
        raise lacks("torch.serialization._save", "files cannot be written a tensor at a time")
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


def transforming(sink: IO[bytes], extensions: Sequence[Any]) -> tuple[IO[bytes], list[str]]:
    """A stream that writes to ``sink`` through stream transforms, and how a record names those.

    Raises:
        UnsupportedError: this torch has no stream transforms, so that nothing of its could read them.
    """
    if _extension is None:
        raise lacks("torch.distributed.checkpoint._extension", "stream transforms cannot be recorded")
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
        raise lacks(
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
