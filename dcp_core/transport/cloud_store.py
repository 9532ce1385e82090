"""What the stores of all clouds do alike, on top of one request each."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from dcp_core.seam.store import Condition, CreateOnly, ObjectInfo, ObjectStore, ReplaceVersion
from dcp_core.transport.clients import Client, Clients
from dcp_core.transport.error_table import ErrorTable
from dcp_core.transport.range_reader import Urllib3RangeReader
from dcp_core.transport.ranges import range_header
from dcp_core.transport.responses import StoreResponse

__all__ = ["CloudStore", "condition_headers", "only_given"]

_T = TypeVar("_T")
_Client = TypeVar("_Client", bound=Client)


class CloudStore(ObjectStore, Generic[_Client]):
    """An :class:`~dcp_core.seam.store.ObjectStore` on an SDK that uses urllib3.

    Args:
        bucket: its name.
        opens: opens the SDK's client; called in the first request, and again when credentials are stale.
    """

    #: Whose API the store speaks, for errors.
    api: ClassVar[str]
    errors: ClassVar[ErrorTable]
    #: The request for a range, for errors.
    get_operation: ClassVar[str] = "GetObject"
    #: Headers with the version of an object and with the id of a request, in lower case.
    version_header: ClassVar[str] = "etag"
    request_id_header: ClassVar[str]

    def __init__(self, bucket: str, opens: Callable[[], _Client]) -> None:
        self.bucket = bucket
        self.clients = Clients(opens)

    def translated(self, operation: str, key: str | None = None) -> AbstractContextManager[None]:
        """The context in which errors become ours."""
        return self.errors.translate(operation, self.bucket, key)

    @contextmanager
    def client(self, operation: str, key: str | None = None) -> Iterator[_Client]:
        """The client for one request, whose errors become ours; stale credentials are looked for again."""
        used: _Client | None = None

        def renew(refused: bool) -> bool:
            return self.clients.refused(used) if refused else self.clients.unavailable()

        with self.errors.translate(operation, self.bucket, key, renew):
            used = self.clients.get()
            yield used
        self.clients.succeeded(used)

    def close(self) -> None:
        self.clients.close()

    def response(
        self, operation: str, key: str | None, headers: Mapping[str, str], raw: Any = None
    ) -> StoreResponse:
        """A response, with what errors about it name."""
        return StoreResponse(self.api, operation, self.bucket, key, headers, raw)

    def info(self, response: StoreResponse, size: int) -> ObjectInfo:
        """The facts about an object that come with a response about it."""
        assert response.key is not None
        return ObjectInfo(response.key, size, self.version(response), response.modified)

    def version(self, response: StoreResponse) -> str:
        """The version of the object that a response is about."""
        # an object may have that type, but then the store tells the request's id
        is_page = "text/html" in response.headers.get("content-type", "")
        if is_page and not response.headers.get(self.request_id_header):
            raise response.unexpected("is a web page")
        return response.header(self.version_header)

    @abc.abstractmethod
    def open_range(self, key: str, wanted: str, version: str | None) -> StoreResponse:
        """Ask for the range of the header ``wanted``, of ``version`` only; the body is a urllib3 response."""

    @contextmanager
    def read_range(
        self, key: str, start: int, stop: int, *, version: str | None = None
    ) -> Iterator[Urllib3RangeReader]:
        response = self.open_range(key, range_header(start, stop), version)
        try:
            # first: it tells whether an object came at all
            self.version(response)
            reader = Urllib3RangeReader(
                self.info(response, response.object_size(start, stop)),
                response.raw,
                response.length,
                operation=self.get_operation,
                bucket=self.bucket,
                translated=partial(self.translated, self.get_operation, key),
            )
        except BaseException:
            response.raw.close()
            raise
        try:
            yield reader
        finally:
            reader.close()


def condition_headers(
    condition: Condition | None, create: Mapping[str, str], replace: str, quoted: str = "{}"
) -> Mapping[str, str]:
    """A condition as a store takes it: the headers ``create``, or ``replace`` with the version."""
    if isinstance(condition, CreateOnly):
        return create
    if isinstance(condition, ReplaceVersion):
        return {replace: quoted.format(condition.version)}
    return {}


def only_given(options: Mapping[str, _T | None]) -> dict[str, _T]:
    """Without those that are ``None``: what is not said is the store's to choose."""
    return {name: value for name, value in options.items() if value is not None}
