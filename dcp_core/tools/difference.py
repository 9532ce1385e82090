"""Two checkpoints held against each other.

::

    compare
    ├── of their records     names, kinds, shapes, dtypes                     pure
    └── values
        ├── by checksums     chunks that are cut alike and have them          pure
        └── by elements      all others, read by ranges in bounded memory

That checksums are equal makes it likely, at odds of 4 billion to 1 for each MiB, that the bytes are; that
they differ proves that those do.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from dcp_core.errors import UnsupportedError, UntrustedDataError
from dcp_core.format.stored import payload_of, transforms_of
from dcp_core.tools.elements import Elements, batches, boxes
from dcp_core.tools.places import Opened, open_checkpoint

__all__ = ["Difference", "Differences", "compare", "of_records", "same_by_checksums"]

Kind = Literal["only in A", "only in B", "kind", "shape", "dtype", "elements", "values"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Difference:
    """One thing that is not alike; ``a`` and ``b`` say for people what each has."""

    kind: Kind
    name: str
    a: str | None = None
    b: str | None = None


@dataclass
class Differences:
    """What a comparison found.

    Attributes:
        items: names in both.
        by_checksums: of those, items whose values were compared by their recorded checksums.
        by_elements: items whose values were read.
        read: bytes of elements that were read, of each.
        found: everything that is not alike, by name.
    """

    items: int = 0
    by_checksums: int = 0
    by_elements: int = 0
    read: int = 0
    found: list[Difference] = field(default_factory=list)


def compare(
    a: str, b: str, *, values: bool = False, progress: Progress | None = None, **options: Any
) -> Differences:
    """Compare the checkpoints at two paths or URLs.

    Args:
        values: compare values too, not only names, shapes and dtypes.
        progress: told of bytes read and bytes to read, of one of the two.
        **options: of reading.

    Raises:
        CheckpointNotFoundError: nothing is committed at one of them.
        UnsupportedError: ranks saved the same names apart at one of them.
        CloudCheckpointError: one could not be read.
    """
    with ExitStack() as stack:
        first, second = (stack.enter_context(open_checkpoint(one, **options)) for one in (a, b))
        for one in (first, second):
            _require_distinct(one)
        report, alike = of_records(first.metadata, second.metadata)
        if values:
            _compare_values(report, alike, first, second, progress or _untold)
    report.found.sort(key=lambda one: (one.name, one.kind))
    return report


def _require_distinct(opened: Opened) -> None:
    """Make sure that nothing is hidden: several ranks may have saved values of their own under one name."""
    seen: set[MetadataIndex] = set()
    for record in opened.records:
        indices = record.metadata.storage_data.keys()
        if not seen.isdisjoint(indices):
            name = next(index.fqn for index in indices if index in seen)
            raise UnsupportedError(
                f"several ranks saved values of their own for {name!r} at {opened.url}: they are not compared"
            )
        seen |= indices


def of_records(a: Metadata, b: Metadata) -> tuple[Differences, list[str]]:
    """What two records say, and the names of which they say the same."""
    ours, theirs = a.state_dict_metadata, b.state_dict_metadata
    report = Differences(items=len(ours.keys() & theirs.keys()))
    alike: list[str] = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            report.found.append(Difference("only in A", name, _described(ours[name]), None))
        elif name not in ours:
            report.found.append(Difference("only in B", name, None, _described(theirs[name])))
        else:
            found = list(_of_entries(name, ours[name], theirs[name]))
            report.found += found
            if not found:
                alike.append(name)
    return report, alike


def _of_entries(name: str, a: Any, b: Any) -> Iterator[Difference]:
    if not (isinstance(a, TensorStorageMetadata) and isinstance(b, TensorStorageMetadata)):
        if type(a) is not type(b):
            yield Difference("kind", name, _described(a), _described(b))
        return
    if a.size != b.size:
        yield Difference("shape", name, str(list(a.size)), str(list(b.size)))
    if a.properties.dtype != b.properties.dtype:
        yield Difference("dtype", name, _dtype(a), _dtype(b))
    ours, theirs = _elements(a), _elements(b)
    if a.size == b.size and ours != theirs:
        yield Difference("elements", name, f"{ours} saved", f"{theirs} saved")


def _elements(entry: TensorStorageMetadata) -> int:
    """How many elements there are: a save of some ranks alone leaves out others'."""
    return sum(math.prod(chunk.sizes) for chunk in entry.chunks)


def _dtype(entry: TensorStorageMetadata) -> str:
    return str(entry.properties.dtype).removeprefix("torch.")


def _described(entry: Any) -> str:
    if isinstance(entry, TensorStorageMetadata):
        return f"{_dtype(entry)} {list(entry.size)}"
    return "object"


def same_by_checksums(name: str, a: Metadata, b: Metadata) -> bool | None:
    """Whether an item has the same checksums in both records; ``None`` where they do not tell."""
    ours, theirs = _checksums(name, a), _checksums(name, b)
    if ours is None or theirs is None or ours.keys() != theirs.keys():
        return None
    if ours == theirs:
        return True
    pairs = [(one, theirs[chunk]) for chunk, one in ours.items()]
    # frames that were compressed, and objects, may be of other bytes and the same value
    return False if all(one.telling and other.telling for one, other in pairs) else None


class _Stored(NamedTuple):
    """What the bytes of one chunk must be; ``telling`` if its value differs where they do."""

    plain: bool
    size: int
    checksums: bytes
    telling: bool


def _checksums(name: str, metadata: Metadata) -> dict[Any, _Stored] | None:
    """By chunk; ``None`` if one has no checksums."""
    entry = metadata.state_dict_metadata[name]
    is_tensor = isinstance(entry, TensorStorageMetadata)
    chunks: list[tuple[Any, ...]] = [(None, ())]
    if isinstance(entry, TensorStorageMetadata):
        chunks = [(chunk.offsets, tuple(chunk.sizes)) for chunk in entry.chunks]
    found: dict[Any, _Stored] = {}
    for chunk in chunks:
        info = metadata.storage_data.get(MetadataIndex(name, chunk[0]))
        payload = None if info is None else payload_of(info)
        if info is None or payload is None or (payload.size and not payload.checksums):
            return None
        telling = is_tensor and not transforms_of(info)
        found[chunk] = _Stored(payload.plain, payload.size, payload.checksums, telling)
    return found


def _compare_values(report: Differences, alike: list[str], a: Opened, b: Opened, progress: Progress) -> None:
    left: list[str] = []
    for name in alike:
        same = same_by_checksums(name, a.metadata, b.metadata)
        if same is None:
            left.append(name)
            continue
        report.by_checksums += 1
        if not same:
            report.found.append(Difference("values", name))
    report.by_elements = len(left)
    _Reading(report, a, b, progress).compare(left)


class _Reading:
    """Values of items that have to be read."""

    def __init__(self, report: Differences, a: Opened, b: Opened, progress: Progress) -> None:
        self._report = report
        self._entries = a.metadata.state_dict_metadata
        self._a, self._b = Elements(a), Elements(b)
        self._progress = progress

    def compare(self, names: list[str]) -> None:
        """Add those of ``names`` whose values differ to the report."""
        tensors = {
            name: entry for name in names if isinstance(entry := self._entries[name], TensorStorageMetadata)
        }
        differ = self._differing(tensors)
        differ |= {name for name in names if name not in tensors and self._objects_differ(name)}
        self._report.found += (Difference("values", name) for name in differ)

    def _differing(self, tensors: Mapping[str, TensorStorageMetadata]) -> set[str]:
        differ: set[str] = set()
        total = sum(math.prod(one.size) * one.properties.dtype.itemsize for one in tensors.values())
        wanted = (box for name, entry in tensors.items() for box in boxes(name, entry))
        for held in batches(wanted):
            self._progress(self._report.read, total)
            # a tensor that is known to differ is read no further
            batch = [box for box in held if box.name not in differ]
            for box, one, other in zip(batch, self._a.read(batch), self._b.read(batch), strict=True):
                self._report.read += box.size
                if not torch.equal(_bytes(one), _bytes(other)):
                    differ.add(box.name)
        return differ

    def _objects_differ(self, name: str) -> bool:
        """Whether two objects differ; those that cannot be read without trust do if their bytes do."""
        if self._a.frame(name) == self._b.frame(name):
            return False
        try:
            return _saved(self._a.value(name)) != _saved(self._b.value(name))
        except (UntrustedDataError, pickle.PicklingError, TypeError, RecursionError):
            return True


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _saved(value: Any) -> bytes:
    saved = io.BytesIO()
    torch.save(value, saved)
    return saved.getvalue()


def _untold(done: int, total: int) -> None:
    """No one asked for progress."""
