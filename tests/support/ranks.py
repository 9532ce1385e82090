"""A world of real processes with a gloo group, kept for many tests: starting one takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from support import processes

_LIMIT = 240.0
#: Variables that lead the SDKs to a server; the ranks get those of the test.
_PREFIXES = ("AWS_", "GOOGLE_", "STORAGE_", "AZURE_")


class RankError(AssertionError):
    """A rank failed where it should not have."""


class Ranks:
    """``world_size`` processes that run functions together, each as one rank."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(self.world_size):
            ours, theirs = multiprocessing.Pipe()
            process = processes.start(_serve, theirs, rank, self.world_size, port)
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def outcomes(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run ``function(*arguments)`` on every rank; each result is a value or the exception."""
        if not self._pipes:
            self._start()
        variables = {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
        for pipe in self._pipes:
            pipe.send((function, arguments, variables))
        found = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(_LIMIT):
                self.close()
                raise RankError(f"rank {rank} hung in {function.__name__}")
            found.append(pipe.recv())
        for _, value, trace in found:
            if isinstance(value, BaseException):
                value.__dict__["trace"] = trace
        return [value for _, value, _ in found]

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The same, where every rank must succeed."""
        outcomes = self.outcomes(function, *arguments)
        for rank, outcome in enumerate(outcomes):
            if isinstance(outcome, BaseException):
                raise RankError(f"rank {rank}: {outcome!r}\n{outcome.__dict__.get('trace')}") from outcome
        return outcomes

    def close(self) -> None:
        """End the processes. Others start if there is more to run."""
        for pipe in self._pipes:
            try:
                pipe.send(None)
            except OSError:
                continue
        for process in self._processes:
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        for pipe in self._pipes:
            pipe.close()
        self._pipes, self._processes = [], []


def _serve(pipe: Connection, rank: int, world_size: int, port: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    # a process of its own has none of pytest's filters: what we warn of is an error there too
    warnings.filterwarnings("error", module=r"dcp_(core|s3|gcs|azure|http)(\..*)?$")
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    while True:
        job = pipe.recv()
        if job is None:
            break
        function, arguments, variables = job
        replace_variables(variables)
        pipe.send(outcome_of(function, arguments))
    dist.destroy_process_group()


def replace_variables(variables: Mapping[str, str]) -> None:
    """Give this process the variables that lead the SDKs to a server, and no others."""
    for name in [name for name in os.environ if name.startswith(_PREFIXES)]:
        del os.environ[name]
    os.environ.update(variables)


def outcome_of(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any, str]:
    """Whether the call succeeded, its result or its exception, and the exception's trace."""
    try:
        return True, function(*arguments), ""
    # CheckpointException is a BaseException; the parent decides what is an error
    except BaseException as error:  # noqa: BLE001
        return False, error, traceback.format_exc()
