"""Steps that are being loaded, which no retention takes away.

A lease is a small object. Whoever loads makes it first and then reads the commit record; whoever deletes
takes the commit record away first and then looks for leases. So one of the two sees the other: either the
loader finds no record and chooses another step, or the deleter finds the lease and leaves the data.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from dcp_core.errors import CloudCheckpointError
from dcp_core.format.checksum import crc32c
from dcp_core.run.layout import LEASES, lease_name, step_of_lease
from dcp_core.seam.body import Body
from dcp_core.seam.location import Location
from dcp_core.seam.store import ObjectStore
from dcp_core.transfer.transfer import Transfer

__all__ = ["DEFAULT_TTL", "hold", "is_leased", "leased_steps"]

logger = logging.getLogger("dcp_core")

#: Seconds that a lease counts after it was made or renewed.
DEFAULT_TTL = 3600.0

#: Written before leases are listed: when it was is the present time, by the store's clock.
_CLOCK = "clock"


@contextmanager
def hold(store: ObjectStore, run: Location, step: int, transfer: Transfer, ttl: float) -> Iterator[None]:
    """Keep ``step`` from being deleted. Without permission to write, nothing is held and nothing fails."""
    key = run.key(lease_name(step, secrets.token_hex(8)))
    body = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
    try:
        transfer.attempt(lambda: _put(store, key, body))
    except CloudCheckpointError as error:
        logger.info("step %d is loaded without a lease: %s", step, error)
        yield
        return
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(store, key, body, ttl / 3, ended), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        try:
            transfer.attempt(lambda: store.delete([key]))
        except CloudCheckpointError as error:
            logger.info("the lease %s stays until it expires: %s", key, error)


def _put(store: ObjectStore, key: str, body: bytes) -> None:
    store.put(key, Body([body], crc32c(body)))


def _renew(store: ObjectStore, key: str, body: bytes, seconds: float, ended: threading.Event) -> None:
    while not ended.wait(seconds):
        try:
            _put(store, key, body)
        except CloudCheckpointError as error:
            # the next time is soon enough: a lease lasts for three
            logger.info("the lease %s could not be renewed: %s", key, error)


def leased_steps(store: ObjectStore, run: Location, transfer: Transfer, ttl: float) -> set[int]:
    """Steps with a lease that has not expired, by the store's clock."""
    return transfer.attempt(lambda: _leased(store, run, timedelta(seconds=ttl)))


def is_leased(store: ObjectStore, run: Location, step: int, transfer: Transfer, ttl: float) -> bool:
    """Whether ``step`` has a lease that has not expired; nothing is written where it has none at all."""
    there = transfer.attempt(lambda: next(iter(store.list(run.key(lease_name(step, "")))), None))
    return there is not None and step in leased_steps(store, run, transfer, ttl)


def _leased(store: ObjectStore, run: Location, ttl: timedelta) -> set[int]:
    _put(store, run.key(LEASES + _CLOCK), b"")
    now: datetime | None = None
    written: list[tuple[int, datetime | None]] = []
    start = len(run.key(""))
    for info in store.list(run.key(LEASES)):
        name = info.key[start:]
        step = step_of_lease(name)
        if step is not None:
            written.append((step, info.modified))
        elif name == LEASES + _CLOCK:
            now = info.modified
    # where the store does not say when, a lease counts
    return {step for step, at in written if now is None or at is None or now - at < ttl}
