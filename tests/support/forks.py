"""Forked children of the process that runs the tests."""

from __future__ import annotations

import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable

__all__ = ["holds_in_a_child"]

#: Seconds that a child gets before it counts as hanging.
_LIMIT = 30.0


def holds_in_a_child(work: Callable[[], object]) -> bool:
    """Whether ``work``, called in a forked child of this process, returns something true."""
    with warnings.catch_warnings():
        # Python warns of forks beside threads, which is what these tests are about
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _work_and_exit(work)
    return _exit_code(child) == 0


def _work_and_exit(work: Callable[[], object]) -> None:
    code = 1
    try:
        code = 0 if work() else 1
    # whatever it is: nothing of pytest goes on in the child
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(code)


def _exit_code(child: int) -> int:
    end = time.monotonic() + _LIMIT
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the forked child hangs")
