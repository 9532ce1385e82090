"""What may happen to one request.

Times are those of the ranks' options (``cases.OPTIONS``): they cut a request in which nothing moves for
``STALL_TIMEOUT`` seconds. What lasts is tried twice and is then final, so that nothing depends on speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweep.cases import STALL_TIMEOUT
from sweep.requests import AtRequest, Request

__all__ = ["BREAKS", "Break"]

_EVER = 1_000_000
#: Seconds for which an outage lasts that passes.
_A_TIME = 0.4
_TOO_LONG = STALL_TIMEOUT + 1.0
_NOT_LONG = 0.3
_CODES = {503: "SlowDown", 500: "InternalError", 429: "TooManyRequests", 403: "AccessDenied"}
#: Two attempts in all of what never works.
_GIVE_UP = {"max_attempts": 2}


@dataclass(frozen=True)
class Break:
    """One way to break a request.

    Attributes:
        title: what it is called in the tables.
        details: which of several under that title.
        fault: arguments of the proxy's fault.
        passes: whether it must be ridden out: the save or load has to succeed.
        options: of the ranks' writers and readers.
        body: the body that is broken, if one is; a request without that body is not broken in this way.
        at: where in the body: the first byte, the middle one or the last one.
    """

    title: str
    details: str
    fault: Mapping[str, Any]
    passes: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    body: str = ""
    at: str = "first"

    def __str__(self) -> str:
        return f"{self.title}, {self.details}" if self.details else self.title

    @property
    def comes_later(self) -> bool:
        """Whether the proxy keeps requests, to be delivered when all is over."""
        return self.fault["kind"] in ("again", "postpone", "overtake")

    def breaks(self, request: Request) -> bool:
        """Whether there is anything to break."""
        return self._size(request) > 0 if self.body else True

    def _size(self, request: Request) -> int:
        return request.bytes_in if self.body == "request" else request.bytes_out

    def at_request(self, request: Request) -> AtRequest:
        """The fault for the proxy."""
        size = self._size(request) if self.body else 0
        place = {"first": 0, "middle": size // 2, "last": max(0, size - 1)}[self.at]
        return AtRequest(name=request.name, skip=request.earlier, **{"after": place, **self.fault})


def _errors() -> Iterator[Break]:
    for status in (503, 500, 429):
        fault = {"kind": "error", "status": status, "code": _CODES[status]}
        title = "an error 503, 500 or 429"
        yield Break(f"{title}, once", str(status), fault, passes=True)
        yield Break(f"{title}, for a time", str(status), {**fault, "lasts": _A_TIME}, passes=True)
        yield Break(f"{title}, for ever", str(status), {**fault, "times": _EVER}, options=_GIVE_UP)
    denied = {"kind": "error", "status": 403, "code": _CODES[403]}
    yield Break("403", "once", denied)
    yield Break("403 from then on", "", {**denied, "spreads": True}, options=_GIVE_UP)
    page = {"kind": "page", "status": 502}
    yield Break("a page of a proxy on the way", "502 once", page, passes=True)
    yield Break("a page of a proxy on the way", "502 once, though done", {**page, "done": True}, passes=True)
    yield Break("a page of a proxy on the way", "502 for ever", {**page, "times": _EVER}, options=_GIVE_UP)
    yield Break("a page of a proxy on the way", "200 once", {**page, "status": 200})


def _connections() -> Iterator[Break]:
    yield Break("refused for a time", "", {"kind": "refuse", "seconds": _A_TIME}, passes=True)
    yield Break("refused for ever", "", {"kind": "refuse"}, options=_GIVE_UP)
    for way, kind in (("request", "reset_request"), ("response", "reset_response")):
        for at in ("first", "middle", "last"):
            title = f"reset in the {way}"
            # what has no body is reset before it, once
            yield Break(title, at, {"kind": kind}, passes=True, body="" if at == "first" else way, at=at)
    yield Break(
        *("reset in the request", "for ever", {"kind": "reset_request", "times": _EVER}),
        options=_GIVE_UP,
    )
    for at in ("first", "middle", "last"):
        fault = {"kind": "truncate_response"}
        yield Break("truncated response", at, fault, passes=True, body="response", at=at)
    yield Break("done, without a response", "once", {"kind": "lose_response"}, passes=True)
    yield Break(
        *("done, without a response", "for ever", {"kind": "lose_response", "times": _EVER}),
        options=_GIVE_UP,
    )


def _bodies() -> Iterator[Break]:
    for at in ("first", "middle", "last"):
        yield Break("a byte flipped in the request", at, {"kind": "flip_request"}, body="request", at=at)
        yield Break("a byte flipped in the response", at, {"kind": "flip_response"}, body="response", at=at)
    for at in ("first", "middle"):
        fault = {"kind": "shorten_response"}
        yield Break("a response that is too short", at, fault, body="response", at=at)


def _times() -> Iterator[Break]:
    yield Break("stalled", "request", {"kind": "stall_request", "seconds": _TOO_LONG}, passes=True)
    for at in ("first", "middle"):
        fault = {"kind": "stall", "seconds": _TOO_LONG}
        body = "" if at == "first" else "response"
        yield Break("stalled", f"response, {at}", fault, passes=True, body=body, at=at)
    yield Break("late", "before it is done", {"kind": "delay", "seconds": _NOT_LONG}, passes=True)
    yield Break("late", "before it is done, too late", {"kind": "delay", "seconds": _TOO_LONG}, passes=True)
    yield Break("late", "when it is done", {"kind": "late", "seconds": _NOT_LONG}, passes=True)
    yield Break("late", "when it is done, too late", {"kind": "late", "seconds": _TOO_LONG}, passes=True)


def _deliveries() -> Iterator[Break]:
    yield Break("delivered twice", "one after the other", {"kind": "twice"}, passes=True)
    yield Break("delivered twice", "at once", {"kind": "twice_together"}, passes=True)
    yield Break("delivered twice", "and again when all is over", {"kind": "again"}, passes=True)
    yield Break("delivered when all is over", "once", {"kind": "postpone"}, passes=True)
    yield Break(
        *("delivered when all is over", "for ever", {"kind": "postpone", "times": _EVER}),
        options=_GIVE_UP,
    )
    yield Break("delivered in the wrong order", "", {"kind": "overtake"}, passes=True)


#: Every way to break a request.
BREAKS = [*_errors(), *_connections(), *_bodies(), *_times(), *_deliveries()]
