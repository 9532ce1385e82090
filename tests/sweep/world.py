"""Two ranks as processes with a gloo group, which may be killed at any moment."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import pickle
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from support import processes
from support.ranks import outcome_of, replace_variables

__all__ = ["DEAD", "HUNG", "World"]

#: Outcomes of a rank whose process ended, and of one that did not in time.
DEAD, HUNG = "dead", "hung"


class World:
    """``size`` ranks that run functions together."""

    def __init__(self, size: int = 2) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = multiprocessing.Pipe()
            process = processes.start(_serve, theirs, rank, size, port, daemon=True)
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    @property
    def size(self) -> int:
        return len(self._processes)

    def begin(self, variables: Mapping[str, str], function: Callable[..., Any], *arguments: Any) -> None:
        """Have every rank call ``function(*arguments)`` with these variables, which lead to a server."""
        for pipe in self._pipes:
            pipe.send((function, arguments, dict(variables)))

    def has_ended(self) -> bool:
        """Whether what was begun has come to an end on every rank."""
        return all(pipe.poll(0) for pipe in self._pipes)

    def end(self, seconds: float) -> list[Any]:
        """What came of it on each rank: ``None``, the exception, ``DEAD``, or ``HUNG`` after so long."""
        until = time.monotonic() + seconds
        return [_outcome(pipe, until - time.monotonic()) for pipe in self._pipes]

    def signal(self, ranks: Iterable[int], number: signal.Signals) -> None:
        """Send a signal to ranks, all at once."""
        for rank in ranks:
            pid = self._processes[rank].pid
            assert pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait_dead(self, ranks: Iterable[int], seconds: float) -> None:
        """Wait until these ranks have ended, so long at most."""
        until = time.monotonic() + seconds
        for rank in ranks:
            self._processes[rank].join(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """Kill what is left of it."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
            process.close()
        for pipe in self._pipes:
            pipe.close()
        self._pipes, self._processes = [], []


def _outcome(pipe: Connection, seconds: float) -> Any:
    try:
        return pipe.recv() if pipe.poll(max(0.0, seconds)) else HUNG
    except (EOFError, ConnectionResetError):
        return DEAD


def _serve(pipe: Connection, rank: int, size: int, port: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    # torch and this library tell of every failure, and each is judged
    logging.disable()
    # what we warn of is an error, as in the tests themselves
    warnings.filterwarnings("error", module=r"dcp_(core|s3|gcs|azure|http)(\..*)?$")
    # as launchers end their processes
    signal.signal(signal.SIGTERM, _exit)
    # where it is ignored, as in the background of a shell, Python leaves it so
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    while True:
        try:
            function, arguments, variables = pipe.recv()
        except EOFError:
            os._exit(0)
        replace_variables(variables)
        _, outcome, _ = outcome_of(function, arguments)
        pipe.send_bytes(_pickled(outcome))
        if isinstance(outcome, (KeyboardInterrupt, SystemExit)):
            os._exit(1)


def _exit(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _pickled(outcome: Any) -> bytes:
    """An outcome, or what it looks like if it cannot be sent."""
    try:
        data = pickle.dumps(outcome)
        pickle.loads(data)
    # whatever a foreign exception makes of it
    except Exception as error:  # noqa: BLE001
        return pickle.dumps(RuntimeError(f"{type(outcome).__name__}: {outcome} ({error})"))
    return data
