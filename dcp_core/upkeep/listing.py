"""Listings that go on after a page could not be had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from dcp_core.transfer import Transfer

__all__ = ["listed"]

_T = TypeVar("_T")


def listed(
    transfer: Transfer, start: Callable[[], Iterator[_T]], key_of: Callable[[_T], str]
) -> Iterator[_T]:
    """Everything that ``start`` lists, each page tried again as any other request is.

    A listing that broke begins anew, and what it yielded before is passed over, up to the last key, or to a
    later one if that has been deleted since. A store that does not list by the bytes of its keys may then
    repeat some.
    """
    last: str | None = None
    entries: Iterator[_T] | None = None

    def following() -> _T | None:
        nonlocal entries
        if entries is None:
            entries = _behind(start(), key_of, last)
        try:
            return next(entries, None)
        except BaseException:
            entries = None
            raise

    while (entry := transfer.attempt(following)) is not None:
        last = key_of(entry)
        yield entry


def _behind(entries: Iterator[_T], key_of: Callable[[_T], str], last: str | None) -> Iterator[_T]:
    passing = last is not None
    for entry in entries:
        if passing and last is not None:
            key = key_of(entry)
            passing = key != last and key.encode() < last.encode()
            if passing or key == last:
                continue
        yield entry
