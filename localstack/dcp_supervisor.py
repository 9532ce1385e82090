"""Runs one server, and removes every trace of it however the process that wanted it ends.

::

    python -I -S dcp_supervisor.py '{"folder": ..., "remove": [...], "command": [...]}'

Standard input is the lifeline: a byte means stop, and its end means that the other side is gone, SIGKILL
included. Then the server's process group is killed, and ``remove`` and ``folder`` are deleted. In between,
``folder`` holds ``pid`` (of the server) and, once the server has ended by itself, ``ended`` (its status).

The server is started from this process's only long-lived thread and not from the user's: Linux ties the
parent-death signal, which covers the death of this process, to the *thread* that started the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Linux: have the kernel end this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _write(path: str, text: str) -> None:
    """Write a file that appears whole."""
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


def _record_end(pid: int, path: str) -> None:
    # WNOWAIT: until it is reaped, its id names no other process, and killing the group is safe
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(FileNotFoundError):
        _write(path, str(status.si_status if status is not None else -1))


def main() -> None:
    order = json.loads(sys.argv[1])
    folder: str = order["folder"]
    server = subprocess.Popen(
        order["command"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509  # no other thread runs yet
    )
    _write(f"{folder}/pid", str(server.pid))
    end = threading.Thread(target=_record_end, args=(server.pid, f"{folder}/ended"), daemon=True)
    end.start()
    os.read(0, 1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    end.join()
    server.wait()
    for path in order["remove"]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
