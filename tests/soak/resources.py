"""What this process holds, and whether it comes to hold more and more."""

from __future__ import annotations

import gc
import os
import statistics
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

__all__ = ["Holding", "growth", "holding"]

_MIB = 1 << 20


@dataclass(frozen=True)
class Holding:
    """What a process holds when nothing is under way.

    Attributes:
        memory: resident, in MiB.
        threads, sockets, descriptors: how many; sockets are descriptors too.
    """

    memory: float
    threads: int
    sockets: int
    descriptors: int


#: By how much each may differ between the start and the end: by chance, not by what is left behind each time.
_CHANCE = Holding(memory=32.0, threads=4, sockets=8, descriptors=8)


def holding() -> Holding:
    """What this process holds now."""
    gc.collect()
    links = list(_links())
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return Holding(
        memory=pages * os.sysconf("SC_PAGE_SIZE") / _MIB,
        threads=threading.active_count(),
        sockets=sum(link.startswith("socket:") for link in links),
        descriptors=len(links),
    )


def _links() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{name}")
        # that of the listing itself
        except FileNotFoundError:
            continue


def growth(samples: Sequence[Holding]) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Medians of the second quarter and of the last one, and what grew by more than chance."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    medians, grown = {}, []
    for name, chance in asdict(_CHANCE).items():
        first, last = (statistics.median(getattr(one, name) for one in part) for part in (early, late))
        medians[name] = (round(first, 1), round(last, 1))
        if last - first > chance:
            grown.append(f"{name} grew from {first:.0f} to {last:.0f}")
    return medians, grown
