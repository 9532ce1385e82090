"""One process that saves and loads on several threads, each at a URL of its own and all at a common one."""

from __future__ import annotations

import logging
import random
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from support.ranks import replace_variables
from sweep import cases
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import (
    CheckpointNotFoundError,
    CheckpointReplacedError,
    CloudCheckpointError,
    CloudStorageReader,
    CloudStorageWriter,
    ConflictError,
)
from soak.resources import Holding, holding

__all__ = ["COMMON", "Report", "own", "run"]

#: Names of URLs below the bucket.
COMMON = "common"
#: Seconds between two moments at which nothing is under way and everything is counted.
_ROUND = 5.0
#: How often a save or load gives up soon, rather than ride out what happens.
_IMPATIENT = 0.3
_SEEDS = 1000


def own(number: int) -> str:
    """The URL of one thread, below the bucket."""
    return f"own-{number}"


@dataclass
class Report:
    """What came of it.

    Attributes:
        counts: of what was done, and of errors by class.
        samples: what the process held, round by round.
        there: seeds of which one has to be at the URL, by its name below the bucket.
        violations: what is wrong.
    """

    counts: Counter[str] = field(default_factory=Counter)
    samples: list[Holding] = field(default_factory=list)
    there: dict[str, set[int | None]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


class _Worker:
    """One thread, which makes the same choices for the same seed."""

    def __init__(self, number: int, seed: int, bucket: str, report: Report) -> None:
        self._chance = random.Random(f"{seed} {number}")
        self._bucket, self._report = bucket, report
        self._own = own(number)
        self._seeds = self._cycle(_SEEDS * (number + 1))
        self._actions: list[Callable[[], None]] = [
            *(self._overwrite, self._overwrite, self._load),
            *(self._save_in_common, self._load_in_common),
        ]
        # kept for all of its saves and loads
        self._writer = CloudStorageWriter(f"{bucket}/{self._own}", **cases.SAVE_OPTIONS)
        self._reader = CloudStorageReader(f"{bucket}/{self._own}", **cases.OPTIONS)
        report.there[self._own] = {None}

    @staticmethod
    def _cycle(first: int) -> Iterator[int]:
        while True:
            yield from range(first, first + _SEEDS)

    def act(self) -> None:
        """Do one thing; whatever is not as promised is noted."""
        try:
            self._chance.choice(self._actions)()
        except CheckpointException as error:
            self._count_errors(error)
        # whatever else comes is a violation, and said to be one
        except BaseException as error:  # noqa: BLE001
            self._report.violations.append(f"{self._own}: {error!r}")

    def _count_errors(self, error: CheckpointException) -> None:
        for found, _ in error.failures.values():
            self._report.counts[type(found).__name__] += 1
            if not isinstance(found, CloudCheckpointError):
                self._report.violations.append(f"{self._own}: not an error of the library: {found!r}")

    def _options(self) -> dict[str, Any]:
        return {"max_attempts": 2} if self._chance.random() < _IMPATIENT else {}

    def _overwrite(self) -> None:
        seed, options = next(self._seeds), self._options()
        self._report.counts["saves"] += 1
        self._there.add(seed)
        if options:
            cases.save(f"{self._bucket}/{self._own}", seed, options)
        else:
            dcp.save(cases.state(seed), storage_writer=self._writer)
        self._report.there[self._own] = {seed}

    @property
    def _there(self) -> set[int | None]:
        return self._report.there[self._own]

    def _load(self) -> None:
        self._report.counts["loads"] += 1
        try:
            found: int | None = cases.seed_in(self._reader)
        except CheckpointException as error:
            if not _is(error, CheckpointNotFoundError):
                raise
            found = None
        # of saves that failed, each stays possible: their last request may arrive yet
        if found not in self._there:
            self._report.violations.append(f"{self._own}: seed {found} is there, of {self._there}")

    def _save_in_common(self) -> None:
        seed = next(self._seeds)
        self._report.counts["saves in common"] += 1
        self._report.there[COMMON].add(seed)
        try:
            cases.save(f"{self._bucket}/{COMMON}", seed, self._options())
        except CheckpointException as error:
            if not _is(error, ConflictError):
                raise
            self._report.counts["conflicts"] += 1

    def _load_in_common(self) -> None:
        self._report.counts["loads in common"] += 1
        try:
            found = cases.seed_of(f"{self._bucket}/{COMMON}", self._options())
        except CheckpointException as error:
            if not _is(error, (CheckpointReplacedError, CheckpointNotFoundError)):
                raise
            self._report.counts["replaced during the load, or not there yet"] += 1
            return
        if found not in self._report.there[COMMON]:
            self._report.violations.append(f"{COMMON}: seed {found} is there, which nobody saved")


def _is(error: CheckpointException, kinds: Any) -> bool:
    return all(isinstance(found, kinds) for found, _ in error.failures.values())


def run(
    pipe: Connection, where: tuple[str, Mapping[str, str]], threads: int, seconds: float, seed: int
) -> None:
    """Work for so many seconds on so many threads, and send a :class:`Report`.

    ``where`` is the bucket's URL, and the variables that lead to its server.
    """
    bucket, variables = where
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")
    replace_variables(variables)
    report = Report(there={COMMON: {None}})
    workers = [_Worker(number, seed, bucket, report) for number in range(threads)]
    rounds = _Rounds(threads)
    running = [threading.Thread(target=rounds.work, args=(worker,)) for worker in workers]
    for thread in running:
        thread.start()
    rounds.lead(time.monotonic() + seconds, report)
    for thread in running:
        thread.join()
    pipe.send(report)


class _Rounds:
    """Threads that work for a while, and meet."""

    def __init__(self, threads: int) -> None:
        self._meeting = threading.Barrier(threads + 1)
        self._over = threading.Event()

    def lead(self, until: float, report: Report) -> None:
        """Count what is held whenever all have met, until the time is up."""
        while not self._over.is_set():
            self._meeting.wait()
            report.samples.append(holding())
            if time.monotonic() >= until:
                self._over.set()
            self._meeting.wait()

    def work(self, worker: _Worker) -> None:
        """What each thread does."""
        while not self._over.is_set():
            ends = time.monotonic() + _ROUND
            while time.monotonic() < ends:
                worker.act()
            self._meeting.wait()
            self._meeting.wait()
