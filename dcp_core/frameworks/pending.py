"""Saves that go on while training does, and deletions that must wait for them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

__all__ = ["Pending"]

logger = logging.getLogger("dcp_core")


class Pending:
    """At most one save under way, and what is to be deleted once it is committed.

    Trainers delete the checkpoint before as soon as they have asked for a new one. If that one fails, or the
    job dies, the one before must still be there.
    """

    def __init__(self) -> None:
        self._save: Future[Any] | None = None
        self._deletions: list[Future[None]] = []

    def begin(self, save: Future[Any]) -> None:
        """Note a save that was started, after :meth:`settle`."""
        self._save = save

    def settle(self) -> None:
        """Wait for the save that is under way, and for deletions that waited for it.

        Raises:
            BaseException: what the save failed with; once.
        """
        save, self._save = self._save, None
        deletions, self._deletions = self._deletions, []
        try:
            if save is not None:
                save.result()
        finally:
            for deletion in deletions:
                deletion.result()

    def delete(self, what: str, deletion: Callable[[], None]) -> None:
        """Delete ``what``, once the save under way is committed; not at all if it fails.

        A deletion's error is the log's: what trains must not end because something old is still there.
        """
        if self._save is None:
            _logged(what, deletion)
            return
        done: Future[None] = Future()
        self._deletions.append(done)

        def after(save: Future[Any]) -> None:
            if save.cancelled() or save.exception() is not None:
                logger.warning("%s stays: the save that was to replace it failed", what)
            else:
                _logged(what, deletion)
            done.set_result(None)

        self._save.add_done_callback(after)


def _logged(what: str, deletion: Callable[[], None]) -> None:
    try:
        deletion()
    except Exception:
        logger.exception("%s could not be deleted", what)
