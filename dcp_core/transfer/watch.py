"""Threads that watch while others work. Where none can be started, the work goes on unwatched."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["alarm", "start_thread"]

logger = logging.getLogger("dcp_core")


def start_thread(name: str, work: Callable[[], None]) -> threading.Thread | None:
    """Run ``work`` in a thread; ``None`` where no thread can be started."""
    thread = threading.Thread(target=work, name=f"dcp-cloud-{name}", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        logger.debug("goes on without a thread for %s: %s", name, error)
        return None
    return thread


@contextmanager
def alarm(seconds: float | None, ring: Callable[[], None]) -> Iterator[None]:
    """Call ``ring`` once ``seconds`` have passed, if this still lasts by then; ``None`` is never."""
    if seconds is None:
        yield
        return
    over = threading.Event()
    longest = min(max(0.0, seconds), threading.TIMEOUT_MAX)
    thread = start_thread("deadline", lambda: None if over.wait(longest) else ring())
    try:
        yield
    finally:
        over.set()
        if thread is not None:
            thread.join()
