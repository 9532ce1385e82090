"""Range requests carried out: bytes received where they belong, checked, and asked for again if need be.

::

    load
    ├── _probe          foreign frames above 1 MiB: where are the elements?  (first bytes of each)
    └── Transfer.run
        └── _Fetch      one request; after a broken connection it goes on where it was
            └── step    receive into the target, or into scratch and place
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from dcp_core.collector import collector_paused
from dcp_core.config import MIB, LoadOptions
from dcp_core.errors import CheckpointCorruptError, CheckpointReplacedError, TransientError
from dcp_core.format.checksum import BLOCK_SIZE, crc32c
from dcp_core.format.frames import find_payload
from dcp_core.load.plan import Placement, Request, Step, coalesce, request_size_for
from dcp_core.load.source import Catalog, Source
from dcp_core.load.target import BytesTarget, Completion, Target, TensorTarget
from dcp_core.store import ObjectStore, RangeReader
from dcp_core.transfer import Transfer, tensor_bytes

__all__ = ["RankReader"]

#: Tensors are cut into pieces of this size; a request fetches many.
_PIECE = 4 * MIB
#: Foreign frames up to this size are read whole; of larger ones the first bytes are read before.
_PROBE_ABOVE = 1 << 20
_PROBE_SIZE = 8192


class _ChecksumMismatch(TransientError):
    """Bytes differ from their checksum: damaged on the way, until a second reading says otherwise."""


class RankReader:
    """Loads what one rank was planned to read."""

    def __init__(
        self, store: ObjectStore, options: LoadOptions, transfer: Transfer, key_of: Callable[[str], str]
    ) -> None:
        self._store = store
        self._options = options
        self._transfer = transfer
        self._key_of = key_of
        self._versions: dict[str, str] = {}
        self._lock = threading.Lock()

    def read(self, plan: LoadPlan, planner: LoadPlanner, catalog: Catalog) -> None:
        """Fetch all items of ``plan`` into the state dict of ``planner``."""
        targets, requests, completion = self.plan(plan, planner, catalog)
        self._transfer.run(
            requests,
            lambda request: _Fetch(self, request, targets, completion).run(),
            max(1, min(self._options.concurrency, len(requests))),
        )
        for device in {target.device for target in targets if target.device.type != "cpu"}:
            torch.accelerator.synchronize(device)

    def plan(
        self, plan: LoadPlan, planner: LoadPlanner, catalog: Catalog
    ) -> tuple[list[Target], list[Request], Completion]:
        """What to ask for and where it goes; asks for nothing but the heads of large foreign frames."""
        with collector_paused():
            sources = [(item.type, catalog.source(item)) for item in plan.items]
        located = self._located(sources)
        completion = Completion(planner)
        with collector_paused():
            reads = zip(plan.items, located, strict=True)
            targets = [self._target(number, read, planner) for number, read in enumerate(reads)]
            return targets, self._requests(targets, completion), completion

    def _target(self, number: int, read: tuple[ReadItem, Source], planner: LoadPlanner) -> Target:
        item, source = read
        if item.type is LoadItemType.BYTE_IO:
            return BytesTarget(number, item, source, self._options)
        return TensorTarget(number, item, source, planner.resolve_tensor(item))

    def _requests(self, targets: Sequence[Target], completion: Completion) -> list[Request]:
        options = self._options
        # What does not go straight into a tensor passes through a buffer of one piece for each connection.
        # Small pieces also let requests come out even.
        piece = min(_PIECE, options.request_size, max(BLOCK_SIZE, options.memory // options.concurrency))
        placements: list[Placement] = []
        for target in targets:
            before = len(placements)
            placements += target.placements(piece, options.gap)
            completion.expect(target, len(placements) - before)
        total = sum(placement.stop - placement.start for placement in placements)
        return coalesce(
            placements, request_size_for(total, options.request_size, options.concurrency), options.gap
        )

    def _located(self, sources: list[tuple[LoadItemType, Source]]) -> list[Source]:
        """Sources with the elements of large foreign frames found. One request a frame, in parallel."""
        frames = {
            (source.info.relative_path, source.info.offset): source
            for kind, source in sources
            if kind is LoadItemType.TENSOR
            and source.payload is None
            and source.info.length > _PROBE_ABOVE
            and not source.info.transform_descriptors
        }
        if not frames:
            return [source for _, source in sources]
        found = self._transfer.run(frames.values(), self._probe, min(self._options.concurrency, len(frames)))
        located = dict(zip(frames, found, strict=True))
        return [located.get((source.info.relative_path, source.info.offset), source) for _, source in sources]

    def _probe(self, source: Source) -> Source:
        head = torch.empty(_PROBE_SIZE, dtype=torch.uint8)
        start = source.info.offset
        request = Request(source.info.relative_path, start, start + _PROBE_SIZE)

        def read() -> None:
            with self.open(request, start) as reader:
                receive(reader, tensor_bytes(head), request.name)

        self._transfer.attempt(read)
        assert source.dtype is not None
        offset = find_payload(tensor_bytes(head), source.dtype, source.shape)
        return source if offset is None else source.with_elements_at(offset)

    def open(self, request: Request, start: int) -> _Checked:
        """Open ``request`` from ``start`` on."""
        return _Checked(self, request, start)

    def attempt(self, call: Callable[[], None]) -> None:
        self._transfer.attempt(call)

    def check_deadline(self) -> None:
        self._transfer.check_deadline()

    @property
    def verify(self) -> bool:
        return self._options.verify

    def pin(self, request: Request, reader: RangeReader) -> None:
        """Hold the object to the version and size that the rest of this load relies on."""
        info = reader.info
        with self._lock:
            version = self._versions.setdefault(request.name, info.version)
        if version != info.version:
            raise CheckpointReplacedError(
                "the object changed during this load; load again",
                bucket=self._store.bucket,
                key=self._key_of(request.name),
            )
        if info.size < request.stop:
            raise CheckpointCorruptError(
                f"the object has {info.size} bytes, the commit record needs {request.stop}: it is cut short",
                bucket=self._store.bucket,
                key=self._key_of(request.name),
            )


class _Checked:
    """A range reader whose object has been checked against the rest of the load."""

    def __init__(self, owner: RankReader, request: Request, start: int) -> None:
        self._owner = owner
        self._request = request
        self._context = owner._store.read_range(owner._key_of(request.name), start, request.stop)

    def __enter__(self) -> RangeReader:
        reader = self._context.__enter__()
        try:
            self._owner.pin(self._request, reader)
        except BaseException as error:
            self._context.__exit__(type(error), error, error.__traceback__)
            raise
        return reader

    def __exit__(self, *details: object) -> None:
        self._context.__exit__(*details)  # type: ignore[arg-type]


class _Fetch:
    """One request, with the position reached so far."""

    def __init__(
        self, owner: RankReader, request: Request, targets: Sequence[Target], completion: Completion
    ) -> None:
        self._owner = owner
        self._request = request
        self._targets = targets
        self._completion = completion
        self._steps = iter(request.steps)
        self._mismatches = 0
        self._step: _StepState | None = None
        self._advance()

    def run(self) -> None:
        while self._step is not None:
            self._owner.attempt(self._receive)

    def _advance(self) -> _StepState | None:
        """Go on with the next step."""
        step = next(self._steps, None)
        scratch = None if self._step is None else self._step.scratch
        self._step = None if step is None else _StepState(step, self._targets, scratch)
        return self._step

    def _receive(self) -> None:
        step = self._step
        if step is None:
            return
        position = step.position
        with self._owner.open(self._request, position) as reader:
            while step is not None:
                _skip(reader, step.position - position, self._request.name)
                self._receive_step(step, reader)
                position = step.step.stop
                step = self._advance()

    def _receive_step(self, step: _StepState, reader: RangeReader) -> None:
        for start, stop in step.stretches():
            self._owner.check_deadline()
            receive(reader, step.view(start, stop), self._request.name)
            if self._owner.verify:
                self._verify(step, start, stop)
            step.position = stop
        for target in step.place():
            self._completion.done(target)

    def _verify(self, step: _StepState, start: int, stop: int) -> None:
        found = step.mismatch(start, stop)
        if found is None:
            return
        placement, problem = found
        self._mismatches += 1
        kind = CheckpointCorruptError if self._mismatches > 1 else _ChecksumMismatch
        raise kind(problem, bucket=self._owner._store.bucket, key=self._owner._key_of(placement.name))


class _StepState:
    """One step: the memory it is received into, and how far it has come.

    ``scratch`` is the buffer of the request's earlier steps, used again where nothing else refers to it.
    """

    def __init__(self, step: Step, targets: Sequence[Target], scratch: torch.Tensor | None) -> None:
        self.step = step
        self.position = step.start
        self.scratch = scratch
        self._targets = [targets[placement.item] for placement in step.placements]
        self._direct: memoryview | None = None
        if len(self._targets) == 1:
            self._direct = self._targets[0].direct(step.placements[0])
        self._memory = self._direct

    def view(self, start: int, stop: int) -> memoryview:
        """The memory for bytes ``[start, stop)`` of the object."""
        if self._memory is None:
            self._memory = self._allocate()
        return self._memory[start - self.step.start : stop - self.step.start]

    def _allocate(self) -> memoryview:
        size = self.step.stop - self.step.start
        if any(target.device.type != "cpu" for target in self._targets):
            # copies to a device are not waited for: the allocator holds the buffer until they are done
            self.scratch = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        elif self.scratch is None or self.scratch.numel() < size or self.scratch.is_pinned():
            self.scratch = torch.empty(size, dtype=torch.uint8)
        return tensor_bytes(self.scratch)

    def stretches(self) -> Iterator[tuple[int, int]]:
        """Bytes to receive before the next check: up to the end of the next whole checksum block.

        A step of several placements is received at once: their blocks need not line up.
        """
        position, end = self.position, self.step.stop
        source = self._targets[0].source
        if len(self._targets) > 1 or source.payload is None:
            yield position, end
            return
        base = source.start
        while position < end:
            border = base + ((position - base) // BLOCK_SIZE + 1) * BLOCK_SIZE
            yield position, min(border, end)
            position = min(border, end)

    def mismatch(self, start: int, stop: int) -> tuple[Placement, str] | None:
        """The first placement with a block that lies wholly in ``[start, stop)`` and is not as saved."""
        for target, placement in zip(self._targets, self.step.placements, strict=True):
            payload, base = target.source.payload, target.source.start
            if payload is None or not payload.checksums:
                continue
            low, high = max(start, placement.start) - base, min(stop, placement.stop) - base
            block = -(-low // BLOCK_SIZE)
            while (first := block * BLOCK_SIZE) < high:
                last = min(first + BLOCK_SIZE, payload.size)
                if last > high:
                    break
                if crc32c(self.view(base + first, base + last)) != payload.checksum(block):
                    return placement, (
                        f"bytes {base + first}–{base + last} of {target.item.storage_index.fqn!r} "
                        "do not have the checksum they were saved with"
                    )
                block += 1
        return None

    def place(self) -> list[Target]:
        """Hand the bytes over, unless they are there; returns the targets that got theirs."""
        if self._direct is None:
            assert self.scratch is not None
            for target, placement in zip(self._targets, self.step.placements, strict=True):
                start, stop = placement.start - self.step.start, placement.stop - self.step.start
                memory = target.direct(placement)
                if memory is None:
                    target.place(placement, self.scratch[start:stop])
                else:
                    memory[:] = self.view(placement.start, placement.stop)
        return self._targets


def receive(reader: RangeReader, view: memoryview, name: str) -> None:
    """Fill ``view``.

    Raises:
        TransientError: the answer ended early.
    """
    while view.nbytes:
        count = reader.readinto(view)
        if count <= 0:
            raise TransientError(f"the answer ended {view.nbytes} bytes early", key=name)
        view = view[count:]


def _skip(reader: RangeReader, count: int, name: str) -> None:
    """Read ``count`` unneeded bytes, which are at most a gap."""
    if count:
        receive(reader, memoryview(bytearray(count)), name)
