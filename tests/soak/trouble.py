"""Random faults at random requests, one after the other, for as long as it takes."""

from __future__ import annotations

import random
import threading
from collections import Counter

from dcp_fault_proxy import FaultProxy
from dcp_faults import Fault
from sweep.cases import STALL_TIMEOUT

__all__ = ["Trouble", "random_fault"]

#: Seconds between two faults, and faults until all is made good.
_PAUSE, _TOGETHER = 0.3, 8
_OPERATIONS = [
    *("GetObject", "PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"),
    *("DeleteObjects", "AbortMultipartUpload", "HeadObject", None),
]
_KINDS = [
    *("error", "error", "page", "refuse", "reset_request", "lose_response", "reset_response"),
    *("truncate_response", "shorten_response", "flip_response", "flip_request"),
    *("delay", "late", "stall", "stall_request"),
    *("twice", "twice_together", "again", "postpone", "overtake"),
]
_ERRORS = [(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests"), (403, "AccessDenied")]


def random_fault(chance: random.Random) -> Fault:
    """Any fault, at any request."""
    kind = chance.choice(_KINDS)
    status, code = (502, "") if kind == "page" else chance.choice(_ERRORS)
    return Fault(
        kind,  # type: ignore[arg-type]
        operation=chance.choice(_OPERATIONS),
        skip=chance.randrange(4),
        times=chance.randrange(1, 4),
        after=int(2 ** chance.uniform(0, 22)),
        seconds=chance.choice((0.1, 0.5, STALL_TIMEOUT + 1)) if kind != "refuse" else 0.3,
        **{"status": status, "code": code},
    )


class Trouble:
    """Makes trouble while its context lasts.

    Attributes:
        requests: how many came by.
        faults: how many were broken, by kind.
    """

    def __init__(self, proxy: FaultProxy, seed: int) -> None:
        self.requests = 0
        self.faults: Counter[str] = Counter()
        self._proxy = proxy
        self._chance = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trouble")

    def _run(self) -> None:
        while not self._over.is_set():
            for _ in range(_TOGETHER):
                self._proxy.add(random_fault(self._chance))
                self._over.wait(_PAUSE)
            self._make_good()

    def _make_good(self) -> None:
        """Count, break nothing for the moment, and deliver what was kept."""
        seen = self._proxy.requests
        self._proxy.clear()
        self.requests += len(seen)
        self.faults.update(one.fault for one in seen if one.fault is not None)
        self._proxy.deliver()

    def __enter__(self) -> Trouble:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._over.set()
        self._thread.join()
        self._make_good()
        self._proxy.settle()
