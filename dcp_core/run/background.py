"""One thread for what may happen later, and whose failure is nobody's but the log's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Background"]

logger = logging.getLogger("dcp_core")


class Background:
    """Runs one task at a time, and at most one more is waiting: it does what all further ones would."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._executor: ThreadPoolExecutor | None = None
        self._waiting: Future[None] | None = None

    def submit(self, task: Callable[[], None]) -> None:
        """Run ``task`` later; at the end of the interpreter, where no thread can be started, not at all."""
        if self._waiting is not None and not self._waiting.running() and not self._waiting.done():
            return
        try:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
            self._waiting = self._executor.submit(_logged, task)
        except RuntimeError as error:
            logger.info("%s: not done, the interpreter is ending (%s)", self._name, error)

    def close(self) -> None:
        """Wait for what was submitted; a later task starts a new thread."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = self._waiting = None


def _logged(task: Callable[[], None]) -> None:
    try:
        task()
    # a task's failure must not end what it runs beside
    except Exception:
        logger.exception("a task in the background failed")
