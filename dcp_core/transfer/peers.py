"""The other ranks of one save or load: when one of them fails for good, the rest stop within seconds.

::

    prepare_global_plan    the coordinator, which has all plans, puts one Channel into each
    write_data, read_data  every rank
      ├─ Peers.heard       a thread looks for the channel's key, about once a second
      └─ Peers.tell        the rank that fails writes who failed, why, and with which object

The key is in the store of the default process group, which torch's rendezvous set up. Nothing is agreed on
in the middle of a save, no collective is added, and as long as no rank fails nothing is written. Without a
process group, or with a plan of one rank only (``no_dist=True``, ``use_collectives=False``), nothing happens
at all, and torch gathers the ranks' errors at the end as ever.

The channel travels in ``storage_data`` of the plans. With plan caching torch hands out the plans of an
earlier save, and an earlier channel with them, to all ranks alike: what an earlier save told is then removed
before the next one begins (:func:`forget_failures`). A planner that drops ``storage_data`` takes its rank out
of this.

The store's client has one lock, which a thread that waits for a key holds for as long as it waits. So no
thread that matters to a save or load ever calls it.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan

from dcp_core.errors import CloudCheckpointError, PeerFailedError
from dcp_core.runtime.torch_private import default_store
from dcp_core.transfer.clock import SYSTEM_CLOCK
from dcp_core.transfer.watch import start_thread

__all__ = ["Channel", "Peers", "forget_failures", "with_channel"]

logger = logging.getLogger("dcp_core")

_Plan = TypeVar("_Plan", SavePlan, LoadPlan)

#: Seconds between two looks, and the looks a second of all ranks together that the store's one thread gets.
_INTERVAL = 1.0
_LOOKS_PER_SECOND = 4000
#: Seconds that a failure may be held up by telling the others.
_TELLING = 2.0
#: Characters of a failure's message that the others get.
_MESSAGE = 2000

_NOT_THERE = "?"

#: Keys that were written by this process or read in it.
_failures: set[str] = set()


@dataclass(frozen=True)
class Channel:
    """Where the ranks of one save or load find each other."""

    name: str


def with_channel(plans: Sequence[_Plan]) -> list[_Plan]:
    """The plans of all ranks, each with the same new channel, unless the planner uses ``storage_data``."""
    if len(plans) < 2 or any(plan.storage_data is not None for plan in plans):
        return list(plans)
    channel = Channel(uuid.uuid4().hex)
    return [replace(plan, storage_data=channel) for plan in plans]


class Peers:
    """The other ranks, for as long as this one writes or reads data.

    Args:
        channel: of this save or load.
        rank: this one.
        store: a ``torch.distributed.Store``.
    """

    def __init__(self, channel: Channel, rank: int, store: Any) -> None:
        self._key = f"dcp_cloud/failure/{channel.name}"
        self._rank = rank
        self._store = store
        self._over = threading.Event()
        self._telling: threading.Thread | None = None
        self._lock = threading.Lock()
        self._told = False

    @classmethod
    def of(cls, plan: SavePlan | LoadPlan, rank: int) -> Peers | None:
        """The ranks that got their plans together with ``plan``; ``None`` if there are none to hear of."""
        channel = plan.storage_data
        store = default_store() if isinstance(channel, Channel) else None
        return None if store is None else cls(channel, rank, store)

    def tell(self, error: BaseException) -> None:
        """Let the others know that this rank fails with ``error``, unless it fails because of one of them."""
        with self._lock:
            if self._told or isinstance(error, PeerFailedError):
                return
            self._told = True
            self._telling = start_thread("peers", lambda: self._write(_Failure.of(error, self._rank)))

    def _write(self, failure: _Failure) -> None:
        _failures.add(self._key)
        try:
            self._store.set(self._key, json.dumps(failure.__dict__))
        # a store may raise anything; the others then learn of the failure when torch gathers results
        except Exception as error:  # noqa: BLE001
            logger.debug("the other ranks could not be told: %s", error)

    @contextmanager
    def heard(self, stop: Callable[[PeerFailedError], None]) -> Iterator[None]:
        """While this lasts, call ``stop`` once another rank has failed."""
        thread = start_thread("peers", lambda: self._listen(stop))
        try:
            yield
        finally:
            self._over.set()
            if thread is not None:
                # not for long: somebody may hold the store's lock
                thread.join(0.1)

    def _listen(self, stop: Callable[[PeerFailedError], None]) -> None:
        interval = max(_INTERVAL, dist.get_world_size() / _LOOKS_PER_SECOND)
        try:
            # all ranks begin together, and need not look together
            while not self._over.wait(SYSTEM_CLOCK.uniform(interval / 2, interval)) and not self._told:
                failure = self._read()
                if failure is not None:
                    _failures.add(self._key)
                    if not self._over.is_set():
                        stop(failure.as_error(self._rank))
                    return
        # as above
        except Exception as error:  # noqa: BLE001
            logger.debug("the other ranks' failures are not heard of: %s", error)

    def _read(self) -> _Failure | None:
        if not self._store.check([self._key]):
            return None
        # get() would wait for a key that was removed meanwhile; this writes only where nothing was expected
        data = self._store.compare_set(self._key, _NOT_THERE, _NOT_THERE)
        return None if data == _NOT_THERE.encode() else _Failure(**json.loads(data))

    def end(self) -> None:
        """Wait, for a moment, until what was told is told."""
        if self._telling is not None:
            self._telling.join(_TELLING)


def forget_failures() -> None:
    """Remove the keys of earlier saves and loads that failed; called when the next one is set up."""
    store = default_store() if _failures else None
    if store is None:
        return

    def remove() -> None:
        try:
            while _failures:
                store.delete_key(_failures.pop())
        # as above
        except Exception as error:  # noqa: BLE001
            logger.debug("keys of earlier failures stay behind: %s", error)

    thread = start_thread("peers", remove)
    if thread is not None:
        thread.join(_TELLING)


@dataclass(frozen=True)
class _Failure:
    """What ranks tell each other."""

    rank: int
    message: str
    bucket: str | None = None
    key: str | None = None

    @classmethod
    def of(cls, error: BaseException, rank: int) -> _Failure:
        if isinstance(error, CloudCheckpointError):
            return cls(rank, error.message[:_MESSAGE], error.bucket, error.key)
        return cls(rank, f"{type(error).__name__}: {error}"[:_MESSAGE])

    def as_error(self, rank: int) -> PeerFailedError:
        return PeerFailedError(
            f"stopped because rank {self.rank} failed: {self.message}",
            failed_rank=self.rank,
            bucket=self.bucket,
            key=self.key,
            rank=rank,
        )
