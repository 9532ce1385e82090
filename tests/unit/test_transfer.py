"""Workers, retries and the gate."""

from __future__ import annotations

import threading
import time

import pytest

from dcp_core.config import SaveOptions
from dcp_core.errors import (
    ConflictError,
    DeadlineExceededError,
    PermissionDeniedError,
    ThrottledError,
    TransientError,
)
from dcp_core.transfer import Transfer, gate
from dcp_core.transfer.gate import Gate


def transfer(**options: object) -> Transfer:
    return Transfer(SaveOptions(**options), 7)  # type: ignore[arg-type]


def test_results_come_in_order_and_tasks_are_pulled() -> None:
    alive, most = 0, 0
    lock = threading.Lock()

    def tasks():  # type: ignore[no-untyped-def]
        nonlocal alive, most
        for number in range(40):
            with lock:
                alive += 1
                most = max(most, alive)
            yield number

    def work(number: int) -> int:
        nonlocal alive
        time.sleep(0.001 * (number % 3))
        with lock:
            alive -= 1
        return number * 2

    assert transfer().run(tasks(), work, 4) == [number * 2 for number in range(40)]
    assert most <= 4


def test_the_first_error_stops_the_rest() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 3:
            raise ConflictError("no")
        time.sleep(0.01)
        done.append(number)

    with pytest.raises(ConflictError) as caught:
        transfer().run(range(1000), work, 4)
    assert caught.value.rank == 7
    assert len(done) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dcp-cloud-")]


def test_an_error_while_making_tasks_is_raised() -> None:
    def tasks():  # type: ignore[no-untyped-def]
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        transfer().run(tasks(), lambda task: task, 3)


def test_transient_errors_are_tried_again() -> None:
    calls = []

    def call() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise TransientError("once more")
        return "done"

    assert transfer().attempt(call) == "done"
    assert len(calls) == 3


@pytest.mark.parametrize(("error", "times"), [(TransientError("x"), 2), (PermissionDeniedError("x"), 1)])
def test_final_errors(error: Exception, times: int) -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        transfer(attempts=2).attempt(call)
    assert len(calls) == times


def test_deadline_ends_retries() -> None:
    def call() -> None:
        raise TransientError("always")

    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        transfer(attempts=1000, deadline=0.5).attempt(call)
    assert time.monotonic() - started < 2


def test_the_gate_halves_once_a_while_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(gate.time, "monotonic", lambda: now[0])
    limited = Gate(8)
    for _ in range(5):
        limited.throttled()  # one burst
    assert limited.limit == 4
    now[0] += gate.HOLD
    limited.throttled()
    assert limited.limit == 2
    for _ in range(20):
        now[0] += gate.HOLD
        limited.throttled()
    assert limited.limit == 1
    for _ in range(100):
        limited.succeeded()
    assert limited.limit == 8


def test_the_gate_holds_back() -> None:
    limited = Gate(2)
    inside, most = 0, 0
    lock = threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most
        with limited.enter():
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.005)
            with lock:
                inside -= 1

    transfer().run(range(30), work, 6)
    assert most == 2


def test_throttling_reaches_the_gate() -> None:
    calls = []
    one = transfer(concurrency=8)

    def call() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ThrottledError("slow down")

    one.attempt(call)
    assert one._gate.limit == 4
