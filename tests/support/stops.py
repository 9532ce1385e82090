"""Saves and loads that stop where a test wants them to, and go on when it says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan

from dcp_core import CloudStorageWriter
from support.unreliable_store import Request

__all__ = ["PlannedSave", "Stop", "in_another_thread", "on_a_thread"]

_T = TypeVar("_T")
#: Seconds after which a test that waits has failed.
_LIMIT = 30.0


class Stop:
    """A fault of an unreliable store: the request waits until :meth:`go_on`, and then gets through."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._goes_on = threading.Event()

    def __call__(self, request: Request) -> Any:
        self._reached.set()
        assert self._goes_on.wait(_LIMIT), "nobody let the request go on"
        return request.deliver()

    def wait(self) -> None:
        """Until a request has come here."""
        assert self._reached.wait(_LIMIT), "no request came"

    def go_on(self) -> None:
        self._goes_on.set()


@contextmanager
def on_a_thread(work: Callable[[], _T], stop: Stop) -> Iterator[Future[_T]]:
    """Have a thread do ``work``, which is at ``stop`` within the context and done behind it."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        stop.wait()
        try:
            yield future
        finally:
            stop.go_on()
    future.result(_LIMIT)


def in_another_thread(work: Callable[[], _T]) -> _T:
    """What ``work`` returns or raises in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(_LIMIT)


class PlannedSave:
    """A save of one rank, step by step, as ``dcp.save`` takes them."""

    def __init__(self, writer: CloudStorageWriter, state: dict[str, Any]) -> None:
        self._writer = writer
        self._state = state
        self.planner = DefaultSavePlanner()
        self.plan = SavePlan([])
        self.metadata = Metadata({})
        self.results: list[Any] = []

    def set_up(self) -> None:
        meta = self._writer.storage_meta()
        self.planner.set_up_planner(self._state, storage_meta=meta, is_coordinator=True)
        self._writer.set_up_storage_writer(True)

    def prepare(self) -> None:
        plan = self._writer.prepare_local_plan(self.planner.create_local_plan())
        plans, self.metadata = self.planner.create_global_plan([plan])
        self.plan = self.planner.finish_plan(self._writer.prepare_global_plan(plans)[0])

    def write(self) -> None:
        self.results = [self._writer.write_data(self.plan, self.planner).wait()]

    def finish(self) -> None:
        self._writer.finish(metadata=self.metadata, results=self.results)

    @property
    def steps(self) -> list[Callable[[], None]]:
        return [self.set_up, self.prepare, self.write, self.finish]
