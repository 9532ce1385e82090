"""Range requests carried out: bytes received where they belong, checked, and asked for again if need be.

::

    read
    ├── require_covered  does the plan ask for everything?
    ├── _probe           foreign frames above 1 MiB: where are the elements?  (first bytes of each)
    ├── _in_rounds       may all targets be written at the same time?
    └── Transfer.run     a round's requests
        └── Receiver     one request; after a broken connection it goes on where it was
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner

from dcp_core.config import MIB, LoadOptions
from dcp_core.errors import ObjectNotFoundError
from dcp_core.format.checksum import BLOCK_SIZE
from dcp_core.format.frames import find_payload
from dcp_core.format.stored import transforms_of
from dcp_core.load.coverage import require_covered
from dcp_core.load.item import Item, item_of
from dcp_core.load.objects import PinnedObjects
from dcp_core.load.open_targets import OpenTargets, looks_up
from dcp_core.load.overlap import Region, rounds
from dcp_core.load.plan import Placement, Request, coalesce, request_size_for
from dcp_core.load.receive import Receiver, receive
from dcp_core.load.source import Catalog, Source
from dcp_core.load.target import Target, TensorTarget
from dcp_core.runtime.gc_pause import gc_paused
from dcp_core.runtime.tensor_memory import cpu_buffer, tensor_bytes
from dcp_core.runtime.torch_private import current_accelerator
from dcp_core.seam.location import Location
from dcp_core.seam.store import ReadableStore
from dcp_core.transfer import Transfer

__all__ = ["RankReader"]

#: Tensors are cut into pieces of this size; a request fetches many.
_PIECE = 4 * MIB
#: Foreign frames up to this size are read whole; of larger ones the first bytes are read before.
_PROBE_ABOVE = 1 << 20
_PROBE_SIZE = 8192


class RankReader:
    """Loads what one rank was planned to read; ``seen`` are versions of objects by name."""

    def __init__(
        self,
        store: ReadableStore,
        location: Location,
        options: LoadOptions,
        transfer: Transfer,
        seen: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.options = options
        self._store = store
        self._objects = PinnedObjects(store, location, seen)
        self._transfer = transfer

    def read(self, plan: LoadPlan, planner: LoadPlanner, metadata: Metadata) -> None:
        """Fetch all items of ``plan`` into the state dict of ``planner``.

        Raises:
            CheckpointCorruptError: the record or the data is not what was saved; the plan falls short.
            UnsupportedTensorError: a tensor cannot be loaded into.
            UntrustedDataError: an item needs types that are not admitted.
        """
        self.prove(plan, planner, metadata)
        self.fetch(plan, planner, metadata)

    def prove(self, plan: LoadPlan, planner: LoadPlanner, metadata: Metadata) -> None:
        """Make sure that a plan asks for everything; raises like :meth:`read`."""
        with self._objects.named():
            require_covered(plan, planner, metadata)

    def fetch(self, plan: LoadPlan, planner: LoadPlanner, metadata: Metadata) -> None:
        """Fetch items that may be a part only of what there is to load."""
        with self._objects.named():
            items = self.items(plan, Catalog(metadata, self.options.extension_registry))
            targets = OpenTargets(planner)
            for part in _in_rounds(items, targets) if looks_up(planner) else [items]:
                self._receive(self.requests(part, targets), items, targets)
            targets.require_all()
        for device in targets.devices:
            _synchronize(device)

    def small(self, name: str) -> bytes | None:
        """A whole small object of the checkpoint; ``None`` if it is not there."""
        try:
            data, _ = self._transfer.attempt(lambda: self._store.get(self._objects.key(name)))
        except ObjectNotFoundError:
            return None
        return data

    def items(self, plan: LoadPlan, catalog: Catalog) -> list[Item]:
        """The plan's items; asks for nothing but the heads of large foreign frames."""
        with gc_paused():
            sources = [(item.type, catalog.source(item)) for item in plan.items]
        located = self._located(sources)
        with gc_paused():
            reads = zip(plan.items, located, strict=True)
            return [item_of(number, *read, self.options) for number, read in enumerate(reads)]

    def requests(self, items: Iterable[Item], targets: OpenTargets) -> list[Request]:
        """What to ask for, from the plan and the commit record alone."""
        options = self.options
        # What does not go straight into a tensor passes through a buffer of one piece for each connection.
        # Small pieces also let requests come out even.
        piece = min(
            _PIECE, options.max_request_size, max(BLOCK_SIZE, options.memory_limit // options.concurrency)
        )
        placements: list[Placement] = []
        with gc_paused():
            for item in items:
                before = len(placements)
                placements += item.placements(piece, options.max_gap)
                targets.expect(item, len(placements) - before)
            total = sum(placement.stop - placement.start for placement in placements)
            return coalesce(
                placements,
                request_size_for(total, options.max_request_size, options.concurrency),
                options.max_gap,
            )

    def _receive(self, requests: Sequence[Request], items: Sequence[Item], targets: OpenTargets) -> None:
        def fetch(request: Request) -> None:
            Receiver(
                request,
                items,
                targets,
                objects=self._objects,
                transfer=self._transfer,
                verify=self.options.verify_checksums,
            ).run()

        self._transfer.run(requests, fetch, max(1, min(self.options.concurrency, len(requests))))

    def _located(self, sources: list[tuple[LoadItemType, Source]]) -> list[Source]:
        """Sources with the elements of large foreign frames found. One request a frame, in parallel."""
        frames = {
            (source.info.relative_path, source.info.offset): source
            for kind, source in sources
            if kind is LoadItemType.TENSOR
            and source.payload is None
            and source.info.length > _PROBE_ABOVE
            and not transforms_of(source.info)
        }
        if not frames:
            return [source for _, source in sources]
        found = self._transfer.run(frames.values(), self._probe, min(self.options.concurrency, len(frames)))
        located = dict(zip(frames, found, strict=True))
        return [located.get((source.info.relative_path, source.info.offset), source) for _, source in sources]

    def _probe(self, source: Source) -> Source:
        head = cpu_buffer(_PROBE_SIZE)
        start = source.info.offset
        request = Request(source.info.relative_path, start, start + _PROBE_SIZE)

        def read() -> None:
            with self._objects.open(request, start) as reader:
                receive(reader, tensor_bytes(head), request.name)

        self._transfer.attempt(read)
        assert source.dtype is not None
        offset = find_payload(tensor_bytes(head), source.dtype, source.shape)
        return source if offset is None else source.with_elements_at(offset)


def _in_rounds(items: Sequence[Item], targets: OpenTargets) -> list[list[Item]]:
    """``items`` by round: those of one round do not share memory, and where items do, the later ones of
    stock's order come later.

    What its own type has to copy comes first: only trying shows whether that can, and when it cannot, nothing
    else has been changed.
    """
    with gc_paused():
        looked_at = targets.look_at(items)
        objects: dict[str, int] = {}
        for item in items:
            objects.setdefault(item.source.info.relative_path, len(objects))
        # stock reads object by object, in the order of the plan
        order = sorted(range(len(items)), key=lambda n: objects[items[n].source.info.relative_path])
        numbers = rounds([_region(looked_at[n]) for n in order])
        found: dict[tuple[bool, int], list[Item]] = {}
        for number, position in sorted(zip(order, numbers, strict=True)):
            target = looked_at[number]
            own_type = isinstance(target, TensorTarget) and target.span is None
            found.setdefault((not own_type, position), []).append(items[number])
        return [found[key] for key in sorted(found)]


def _region(target: Target) -> Region | None:
    if not isinstance(target, TensorTarget):
        return None
    if target.span is None:
        return Region("objects", target.identity, target.identity + 1, (), ())
    data, itemsize = target.data, target.data.element_size()
    strides = tuple(stride * itemsize for stride in data.stride())
    return Region(str(data.device), *target.span, tuple(data.shape), strides)


def _synchronize(device: torch.device) -> None:
    """Wait for the copies to a device; one that torch.accelerator does not know waits by itself."""
    accelerator = current_accelerator()
    if accelerator is not None and accelerator.type == device.type:
        torch.accelerator.synchronize(device)
