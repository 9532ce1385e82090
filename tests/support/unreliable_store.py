"""A store in memory behind a network that loses, repeats and delays requests and their responses.

::

    store = UnreliableStore(MemoryStore("bucket"))
    store.fails("put", unanswered, key=is_record)       # the first put of a record is done, no response
    store.fails("get", always(lost))                    # no get arrives
    late = store.holds("put", key=is_record)            # puts of records arrive when the test says so
    late.deliver()

A *fault* is a function that gets one :class:`Request`, delivers it as often as it likes, and returns or
raises what the client hears of it. Each one that :meth:`UnreliableStore.fails` is given is used for one
request; requests for which none is left get through.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from hashlib import md5
from typing import Any

from dcp_core.errors import (
    CloudCheckpointError,
    ConflictError,
    PermissionDeniedError,
    TransientError,
    UnsupportedError,
)
from dcp_core.format.layout import is_data_name, is_metadata_name
from dcp_core.seam.store import (
    Body,
    Condition,
    ObjectInfo,
    ObjectStore,
    Part,
    RangeReader,
    Upload,
    UploadInfo,
)
from dcp_core.testing import MemoryStore

__all__ = [
    "ContentVersions",
    "Fault",
    "Held",
    "Request",
    "UnreliableStore",
    "always",
    "denied",
    "forbidden",
    "is_data",
    "is_record",
    "lost",
    "page",
    "refused",
    "reliable",
    "times",
    "unanswered",
]


class ContentVersions(MemoryStore):
    """Versions are digests of the content, as the entity tags of S3 are: they come back with the content."""

    def _store(self, key: str, data: bytes) -> ObjectInfo:
        info = replace(super()._store(key, data), version=md5(data, usedforsecurity=False).hexdigest())
        self._held.objects[key] = (data, info)
        return info


@dataclass(frozen=True)
class Request:
    """One request on its way.

    Attributes:
        verb: name of the store's method.
        key: of the object; ``""`` for a delete, which has many.
        deliver: has the store do it, and returns or raises the store's response.
    """

    verb: str
    key: str
    deliver: Callable[[], Any]

    def arrives(self) -> None:
        """Deliver it; nobody hears what the store says."""
        with suppress(CloudCheckpointError):
            self.deliver()


Fault = Callable[[Request], Any]


def reliable(request: Request) -> Any:
    """Nothing goes wrong, this time."""
    return request.deliver()


def lost(request: Request) -> Any:
    """The request does not arrive."""
    raise TransientError(f"{request.verb}: the connection broke", key=request.key)


def unanswered(request: Request) -> Any:
    """The request is done, and its response lost."""
    request.arrives()
    raise TransientError(f"{request.verb}: the connection broke before the response", key=request.key)


def times(count: int) -> Fault:
    """The request is delivered ``count`` times; the client gets the last response."""

    def repeated(request: Request) -> Any:
        for _ in range(count - 1):
            request.arrives()
        return request.deliver()

    return repeated


def denied(request: Request) -> Any:
    """The request is done, and something on the way says 403 instead of its response."""
    request.arrives()
    raise PermissionDeniedError(f"{request.verb}: not allowed", key=request.key)


def forbidden(*, known: bool) -> Fault:
    """The request is not done: the store knows the caller, who lacks a permission, or refuses them."""

    def refuse(request: Request) -> Any:
        raise PermissionDeniedError(f"{request.verb}: not allowed", key=request.key, denied=known)

    return refuse


def page(request: Request) -> Any:
    """The request is done, and something on the way serves a page of its own instead of its response."""
    request.arrives()
    raise UnsupportedError(f"{request.verb}: something on the way changes responses", key=request.key)


def refused(request: Request) -> Any:
    """The request is done, and something on the way says that its condition did not hold."""
    request.arrives()
    raise ConflictError(f"{request.verb}: another writer changed the object first", key=request.key)


def always(fault: Fault) -> Iterator[Fault]:
    """For all requests to come."""
    return itertools.repeat(fault)


def is_record(key: str) -> bool:
    """Whether a commit record is stored at ``key``."""
    return is_metadata_name(key.rpartition("/")[2])


def is_data(key: str) -> bool:
    """Whether a data object is stored at ``key``."""
    return is_data_name(key.rpartition("/")[2])


@dataclass
class Held:
    """Requests that the network keeps; the client hears nothing but that the connection broke."""

    requests: list[Request] = field(default_factory=list)

    def __call__(self, request: Request) -> Any:
        self.requests.append(request)
        raise TransientError(f"{request.verb}: the connection broke", key=request.key)

    def deliver(self) -> int:
        """Let all arrive, in order; returns how many."""
        arriving, self.requests = self.requests, []
        for request in arriving:
            request.arrives()
        return len(arriving)


@dataclass
class _Rule:
    verb: str
    concerns: Callable[[str], bool]
    faults: Iterator[Fault]


class UnreliableStore(ObjectStore):
    """``store`` behind a network in which nothing fails that was not asked to."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.bucket = store.bucket
        self.limits = store.limits
        #: Verb and key of every request that was sent.
        self.sent: list[tuple[str, str]] = []
        self.closed = False
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def fails(
        self, verb: str, *faults: Fault | Iterable[Fault], key: Callable[[str], bool] = lambda key: True
    ) -> None:
        """What happens to the next requests of this kind, one fault to each; :func:`always` for all."""
        found = itertools.chain.from_iterable((one,) if callable(one) else one for one in faults)
        self._rules.append(_Rule(verb, key, found))

    def holds(self, verb: str, *, key: Callable[[str], bool] = lambda key: True) -> Held:
        """Keep all requests of this kind from now on."""
        held = Held()
        self.fails(verb, always(held), key=key)
        return held

    def works_again(self) -> None:
        """From now on all requests get through."""
        self._rules.clear()

    def count(self, verb: str, key: Callable[[str], bool] = lambda key: True) -> int:
        """Requests of this kind that were sent."""
        return sum(one == verb and key(about) for one, about in self.sent)

    def _send(self, verb: str, key: str, deliver: Callable[[], Any]) -> Any:
        request = Request(verb, key, deliver)
        with self._lock:
            self.sent.append((verb, key))
            fault = self._fault(request)
        return deliver() if fault is None else fault(request)

    def _fault(self, request: Request) -> Fault | None:
        for rule in self._rules:
            if rule.verb == request.verb and rule.concerns(request.key):
                fault = next(rule.faults, None)
                if fault is not None:
                    return fault
        return None

    def head(self, key: str) -> ObjectInfo:
        return self._send("head", key, lambda: self.store.head(key))

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        return self._send("get", key, lambda: self.store.get(key))

    def read_range(
        self, key: str, start: int, stop: int, *, version: str | None = None
    ) -> AbstractContextManager[RangeReader]:
        return self._send("read_range", key, lambda: self.store.read_range(key, start, stop, version=version))

    def put(self, key: str, body: Body, condition: Condition | None = None) -> ObjectInfo:
        sent = _copied(body)
        return self._send("put", key, lambda: self.store.put(key, sent, condition))

    def start_upload(self, key: str) -> Upload:
        return self._send("start_upload", key, lambda: self.store.start_upload(key))

    def put_part(self, upload: Upload, number: int, body: Body) -> Part:
        sent = _copied(body)
        return self._send("put_part", upload.key, lambda: self.store.put_part(upload, number, sent))

    def finish_upload(self, upload: Upload, parts: Sequence[Part]) -> ObjectInfo:
        return self._send("finish_upload", upload.key, lambda: self.store.finish_upload(upload, parts))

    def abort_upload(self, upload: Upload) -> None:
        self._send("abort_upload", upload.key, lambda: self.store.abort_upload(upload))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._send("list", prefix, lambda: self.store.list(prefix))

    def list_uploads(self, prefix: str) -> Iterator[UploadInfo]:
        return self._send("list_uploads", prefix, lambda: self.store.list_uploads(prefix))

    def delete(self, keys: Sequence[str]) -> None:
        self._send("delete", "", lambda: self.store.delete(keys))

    def close(self) -> None:
        self.closed = True
        self.store.close()


def _copied(body: Body) -> Body:
    """What leaves the client: a request that arrives late has the bytes that were sent."""
    return Body([body.tobytes()], body.crc32c)
