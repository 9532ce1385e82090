"""Workers, retries, deadlines, what the log says, and the gate."""

from __future__ import annotations

import contextvars
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.clocks import DrivenClock

from dcp_core.config import SaveOptions
from dcp_core.errors import (
    CloudCheckpointError,
    ConfigurationError,
    ConflictError,
    DeadlineExceededError,
    PermissionDeniedError,
    ThrottledError,
    TransientError,
)
from dcp_core.transfer import Transfer, throttle
from dcp_core.transfer.clock import SYSTEM_CLOCK
from dcp_core.transfer.throttle import Gate
from dcp_core.transfer.transfer import CLEANUP_SECONDS


@pytest.fixture
def clock() -> DrivenClock:
    return DrivenClock()


def transfer(clock: DrivenClock | None = None, **options: Any) -> Transfer:
    return Transfer(SaveOptions(**options), 7, clock=clock or SYSTEM_CLOCK)


def broken(**where: Any) -> TransientError:
    return TransientError("the connection broke", bucket="bucket", key="run/object", **where)


class Request:
    """Fails with what ``errors`` makes as long as ``fails`` says so."""

    def __init__(self, fails: Callable[[], bool], errors: Callable[[], Exception] = broken) -> None:
        self.fails = fails
        self.errors = errors
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.fails():
            raise self.errors()
        return "done"


def failing(error: Callable[[], Exception] = broken) -> Request:
    return Request(lambda: True, error)


def threads_of_ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("dcp-cloud-")]


def test_results_come_in_order_and_tasks_are_pulled() -> None:
    alive, most = 0, 0
    lock = threading.Lock()

    def tasks() -> Iterator[int]:
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
    assert len(done) < 500
    assert not threads_of_ours()


def test_an_error_while_making_tasks_is_raised() -> None:
    def tasks() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        transfer().run(tasks(), lambda task: task, 3)


def test_the_calling_thread_is_one_of_the_workers() -> None:
    """So three workers are two new threads, which end with the work."""
    together = threading.Barrier(3, timeout=20)

    def work(number: int) -> threading.Thread:
        together.wait()
        return threading.current_thread()

    workers = transfer().run(range(3), work, 3)
    assert len(set(workers)) == 3
    assert threading.current_thread() in workers
    assert not threads_of_ours()
    assert transfer().run([None], lambda _: threading.current_thread(), 1) == [threading.current_thread()]


@pytest.mark.parametrize("allowed", [0, 1])
def test_where_no_more_threads_start_those_that_run_do_everything(
    monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """As at the end of an interpreter, or at the system's limit of threads."""
    start, left = threading.Thread.start, [allowed]

    def limited(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert transfer().run(range(50), lambda number: number + 1, 8) == list(range(1, 51))
    assert not left[0]


def test_workers_have_the_callers_context_variables() -> None:
    variable = contextvars.ContextVar[str]("variable")
    variable.set("the caller's")
    together = threading.Barrier(3, timeout=20)

    def work(number: int) -> str:
        together.wait()
        found = variable.get()
        variable.set("a worker's")
        return found

    assert transfer().run(range(3), work, 3) == ["the caller's"] * 3


def test_an_interrupt_of_the_caller_stops_the_others() -> None:
    """Ctrl-C in the middle of its own task. Nothing goes on behind the caller's back."""
    others, done = threading.Event(), list[int]()

    def work(number: int) -> None:
        if threading.current_thread() is threading.main_thread():
            assert others.wait(20)
            raise KeyboardInterrupt
        others.set()
        time.sleep(0.01)
        done.append(number)

    with pytest.raises(KeyboardInterrupt):
        transfer().run(range(10_000), work, 4)
    assert len(done) < 5000
    assert not threads_of_ours()


def test_an_interrupt_is_not_lost_behind_another_error() -> None:
    one, together = transfer(), threading.Barrier(2, timeout=20)

    def work(number: int) -> None:
        together.wait()
        if threading.current_thread() is threading.main_thread():
            assert one._stop.event.wait(20)
            raise KeyboardInterrupt
        raise ConflictError("no")

    with pytest.raises(KeyboardInterrupt):
        one.run(range(10), work, 2)
    assert isinstance(one._stop.reason, ConflictError)


def test_an_error_of_a_thread_that_is_no_exception_is_raised_in_the_caller() -> None:
    class Ends(BaseException):
        pass

    together = threading.Barrier(2, timeout=20)

    def work(number: int) -> None:
        together.wait()
        if threading.current_thread() is not threading.main_thread():
            raise Ends

    with pytest.raises(Ends):
        transfer().run(range(2), work, 2)


def test_transient_errors_are_tried_again(clock: DrivenClock) -> None:
    """After pauses whose bound doubles."""
    request = Request(lambda: request.calls < 6)
    assert transfer(clock).attempt(request) == "done"
    assert request.calls == 6
    assert clock.waits == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2])


@pytest.mark.parametrize("error", [TransientError, ThrottledError])
@pytest.mark.parametrize("chance", [0.1, 0.5, 1.0])
def test_minutes_of_failure_are_ridden_out_by_default(error: type[TransientError], chance: float) -> None:
    clock = DrivenClock(chance=chance)
    works_at = clock.time + 290
    request = Request(lambda: clock.time < works_at, lambda: error("not now"))
    assert transfer(clock).attempt(request) == "done"
    assert works_at <= clock.time <= works_at + 21
    assert request.calls < 200


def test_a_request_that_always_fails_ends_after_the_time_given(clock: DrivenClock) -> None:
    """The last attempt comes when the time is up, neither before nor after."""
    started, request = clock.time, failing()
    with pytest.raises(TransientError, match=r"attempts failed within 60\.0 s; see retry_timeout=") as caught:
        transfer(clock, retry_timeout=60).attempt(request)
    assert clock.time - started == pytest.approx(60)
    assert f"final: {request.calls} attempts" in caught.value.message
    assert caught.value.rank == 7


def test_the_time_of_a_request_counts_from_its_first_failure(clock: DrivenClock) -> None:
    """An attempt may take longer than all retries together."""

    def slow() -> bool:
        clock.time += 1000 if request.calls == 1 else 0
        return request.calls < 4

    request = Request(slow)
    assert transfer(clock, retry_timeout=10).attempt(request) == "done"


def test_progress_starts_the_time_again(clock: DrivenClock) -> None:
    """A body that comes in pieces may break as often as it likes, as long as it gets further."""
    position = 0

    def moves() -> bool:
        nonlocal position
        clock.time += 9
        position += 1
        return position < 100

    assert transfer(clock, retry_timeout=10).attempt(Request(moves), lambda: position) == "done"
    stuck = Request(lambda: True)
    started = clock.time
    with pytest.raises(TransientError):
        transfer(clock, retry_timeout=10).attempt(stuck, lambda: position)
    assert clock.time - started == pytest.approx(10)


@pytest.mark.parametrize(("error", "times"), [(broken(), 2), (PermissionDeniedError("x"), 1)])
def test_a_number_of_attempts_bounds_them_too(
    clock: DrivenClock, error: CloudCheckpointError, times: int
) -> None:
    request = failing(lambda: error)
    with pytest.raises(type(error)) as caught:
        transfer(clock, max_attempts=2).attempt(request)
    assert request.calls == times
    assert ("see max_attempts=" in caught.value.message) == (times > 1)


def test_the_stores_own_time_is_honoured(clock: DrivenClock) -> None:
    """And a pause on top: not all come back at that moment."""
    request = Request(lambda: request.calls < 2, lambda: broken(retry_after=7.0))
    transfer(clock).attempt(request)
    assert sum(clock.waits) == pytest.approx(7.2)


def test_a_time_of_the_store_beyond_the_users_gets_one_last_attempt(clock: DrivenClock) -> None:
    started, request = clock.time, failing(lambda: broken(retry_after=1000.0))
    with pytest.raises(TransientError):
        transfer(clock, retry_timeout=60).attempt(request)
    assert request.calls == 2
    assert clock.time - started == pytest.approx(60)


def test_the_deadline_ends_retries_and_names_the_object(clock: DrivenClock) -> None:
    started = clock.time
    with pytest.raises(DeadlineExceededError, match="the last error was: the connection broke") as caught:
        transfer(clock, deadline=50).attempt(failing())
    assert clock.time - started == pytest.approx(50)
    assert (caught.value.bucket, caught.value.key) == ("bucket", "run/object")
    assert isinstance(caught.value.__cause__, TransientError)
    assert caught.value.rank == 7


def test_the_deadline_is_one_for_all_requests(clock: DrivenClock) -> None:
    started, one = clock.time, transfer(clock, deadline=50)
    one.attempt(Request(lambda: clock.time < started + 40))
    with pytest.raises(DeadlineExceededError):
        one.attempt(failing())
    assert clock.time - started == pytest.approx(50)
    unasked = failing()
    with pytest.raises(DeadlineExceededError):
        one.attempt(unasked)
    assert unasked.calls == 0


def test_the_deadline_of_workers_is_raised_with_the_object(clock: DrivenClock) -> None:
    one = transfer(clock, deadline=50)
    with pytest.raises(DeadlineExceededError) as caught:
        one.run(range(8), lambda number: one.attempt(failing()), 4)
    assert caught.value.key == "run/object"
    assert not threads_of_ours()


def test_a_deadline_that_never_comes() -> None:
    """It may be further away than a thread can wait."""
    for deadline in (threading.TIMEOUT_MAX * 2, float("inf")):
        one = transfer(deadline=deadline)
        with one.watched():
            assert one.attempt(lambda: "done") == "done"
    assert not threads_of_ours()


def test_the_deadline_passes_while_nothing_is_asked() -> None:
    """Work of another kind is told of it where it looks."""
    one = transfer(deadline=0.05)
    with one.watched():
        assert one._stop.event.wait(20)
        with pytest.raises(DeadlineExceededError, match="raise deadline="):
            one.check()
    assert not threads_of_ours()


def test_cleaning_up_is_possible_after_the_end_but_does_not_take_long(clock: DrivenClock) -> None:
    one = transfer(clock, deadline=50)
    with pytest.raises(DeadlineExceededError):
        one.attempt(failing())
    assert one.cleanup(lambda: "done") == "done"
    started = clock.time
    with pytest.raises(DeadlineExceededError, match="could not be done within 10 s"):
        one.cleanup(failing())
    assert clock.time - started == pytest.approx(CLEANUP_SECONDS)


def test_cleaning_up_keeps_the_users_limits(clock: DrivenClock) -> None:
    """The narrower ones."""
    request = failing()
    with pytest.raises(TransientError):
        transfer(clock, max_attempts=2).cleanup(request)
    assert request.calls == 2
    started = clock.time
    with pytest.raises(TransientError, match="see retry_timeout="):
        transfer(clock, retry_timeout=3).cleanup(failing())
    assert clock.time - started == pytest.approx(3)


class Log(logging.Handler):
    """Warnings, and the clock's time at each."""

    def __init__(self, clock: DrivenClock) -> None:
        super().__init__(logging.WARNING)
        self.clock = clock
        self.lines: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((self.clock.time, record.getMessage()))


@pytest.fixture
def log(clock: DrivenClock) -> Iterator[Log]:
    handler = Log(clock)
    logging.getLogger("dcp_core").addHandler(handler)
    yield handler
    logging.getLogger("dcp_core").removeHandler(handler)


@pytest.mark.parametrize(
    ("error", "says"),
    [(broken, "every request has failed"), (lambda: ThrottledError("slow"), "refused every")],
)
def test_the_log_says_that_nothing_succeeds_and_when_it_does(
    clock: DrivenClock, log: Log, error: Callable[[], Exception], says: str
) -> None:
    started = clock.time
    transfer(clock).attempt(Request(lambda: clock.time < started + 100, error))
    *outage, (_, over) = log.lines
    assert 4 <= len(outage) <= 10
    for at, line in outage:
        found = re.match(rf"rank 7: .*{says}.* for (\d+) s; will keep trying for another (\d+) s: ", line)
        assert found
        assert [int(text) for text in found.groups()] == pytest.approx(
            [at - started, 300 - (at - started)], abs=1
        )
    found = re.fullmatch(r"rank 7: the store works again after (\d+) s", over)
    assert found
    assert int(found[1]) == pytest.approx(clock.time - started, abs=1)


def test_the_log_does_not_wait_for_a_long_pause(clock: DrivenClock, log: Log) -> None:
    started = clock.time
    request = Request(lambda: request.calls < 2, lambda: broken(retry_after=120.0))
    transfer(clock).attempt(request)
    assert log.lines[0][0] - started <= 15
    assert len(log.lines) >= 8


def test_the_log_is_quiet_while_others_succeed(
    monkeypatch: pytest.MonkeyPatch, clock: DrivenClock, log: Log
) -> None:
    """One object that is slow to come is no outage."""
    started, one, wait = clock.time, transfer(clock), clock.wait

    def meanwhile(event: threading.Event, seconds: float) -> None:
        wait(event, seconds)
        one.attempt(lambda: "done")

    monkeypatch.setattr(clock, "wait", meanwhile)
    one.attempt(Request(lambda: clock.time < started + 100))
    assert not log.lines


def test_chance_is_not_the_trainings() -> None:
    """Neither what it drew, which all ranks may have in common, nor what it is about to draw."""
    draws = []
    for _ in range(2):
        random.seed(1)
        draws.append([SYSTEM_CLOCK.uniform(0, 1) for _ in range(5)])
        assert random.random() == random.Random(1).random()
    assert draws[0] != draws[1]


def test_a_stopped_transfer_starts_no_request() -> None:
    one, request = transfer(), failing()
    one._stop.set(ConflictError("no"))
    with pytest.raises(ConflictError):
        one.attempt(request)
    with pytest.raises(ConflictError):
        one.run(range(3), lambda number: one.attempt(request), 2)
    assert request.calls == 0


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": "8"},
        {"retry_timeout": 0.0},
        {"retry_timeout": None},
        {"deadline": 0},
        {"deadline": -1.0},
        {"part_size": 0},
    ],
)
def test_limits_that_are_none_are_refused(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigurationError, match=f"{name} must be a positive number, got {value!r}"):
        SaveOptions(**options)


def test_the_gate_halves_once_a_while_and_recovers() -> None:
    now, limited = 100.0, Gate(8)
    for _ in range(5):
        limited.throttled(now)  # one burst
    assert limited.limit == 4
    now += throttle.HOLD
    limited.throttled(now)
    assert limited.limit == 2
    for _ in range(20):
        now += throttle.HOLD
        limited.throttled(now)
    assert limited.limit == 1
    raised = 0
    while limited.limit < 8:
        raised += 1
        limited.succeeded()
    assert raised == sum(range(1, 8)), "as many successes as the limit raise it by one"


def test_the_gate_holds_back() -> None:
    limited = Gate(2)
    inside, most = 0, 0
    lock = threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most
        with limited.enter(lambda: None):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.005)
            with lock:
                inside -= 1

    transfer().run(range(30), work, 6)
    assert most == 2


def test_the_gate_serves_in_turn() -> None:
    """Who came first goes first, whatever threads the system prefers."""
    limited, order = Gate(1), list[int]()

    def work(number: int) -> None:
        with limited.enter(lambda: None):
            order.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    with limited.enter(lambda: None):
        for queued, thread in enumerate(threads, 1):
            thread.start()
            while len(limited._queue) < queued:
                time.sleep(0.001)
    for thread in threads:
        thread.join(20)
    assert order == list(range(10))


def test_waiting_at_the_gate_ends_with_the_transfer() -> None:
    """And leaves no ticket behind that would hold up those who come later."""
    one = transfer(concurrency=1)
    ended: list[BaseException] = []

    def waits() -> None:
        try:
            one.attempt(lambda: None)
        except CloudCheckpointError as error:
            ended.append(error)

    with one._gate.enter(lambda: None):
        thread = threading.Thread(target=waits)
        thread.start()
        while not one._gate._queue:
            time.sleep(0.001)
        one._stop.set(ConflictError("no"))
        thread.join(20)
        assert [type(error) for error in ended] == [ConflictError]
    with one._gate.enter(lambda: None):
        pass


def test_who_gives_up_in_the_queue_holds_nobody_up() -> None:
    """Behind one that waits on, and before one that comes later."""
    limited, order, gives_up = Gate(1), list[str](), threading.Event()

    def check_second() -> None:
        if gives_up.is_set():
            raise ConflictError("no")

    def work(name: str, check: Callable[[], None]) -> None:
        try:
            with limited.enter(check):
                order.append(name)
        except ConflictError:
            order.append(f"not {name}")

    checks = {"first": lambda: None, "second": check_second, "third": lambda: None}
    threads = [threading.Thread(target=work, args=named) for named in checks.items()]
    with limited.enter(lambda: None):
        for queued, thread in enumerate(threads, 1):
            thread.start()
            while len(limited._queue) < queued:
                time.sleep(0.001)
        gives_up.set()
        threads[1].join(20)
        assert order == ["not second"]
    for thread in threads:
        thread.join(20)
    assert order == ["not second", "first", "third"]


def test_throttling_reaches_the_gate(clock: DrivenClock) -> None:
    one = transfer(clock, concurrency=8)
    request = Request(lambda: request.calls == 1, lambda: ThrottledError("slow down"))
    one.attempt(request)
    assert one._gate.limit == 4
    transient = Request(lambda: transient.calls == 1)
    one.attempt(transient)
    assert one._gate.limit == 4


def test_a_store_that_refuses_everything_is_asked_by_one_request_at_a_time(
    monkeypatch: pytest.MonkeyPatch, clock: DrivenClock
) -> None:
    """A request keeps its place while it pauses: the others wait for it."""
    wait, one = clock.wait, transfer(clock, concurrency=8)
    works_at = clock.time + 250
    asked: list[tuple[int, int]] = []

    def waits_a_moment(event: threading.Event, seconds: float) -> None:
        time.sleep(0.002)
        wait(event, seconds)

    def refused() -> bool:
        if clock.time >= works_at:
            return False
        asked.append((one._gate.limit, one._gate._busy))
        return True

    monkeypatch.setattr(clock, "wait", waits_a_moment)
    requests = [Request(refused, lambda: ThrottledError("slow down")) for _ in range(8)]
    assert one.run(requests, one.attempt, 8) == ["done"] * 8
    assert asked[0][0] == 8
    alone = asked[asked.index((1, 1)) :]
    assert len(alone) > 8
    assert set(alone) == {(1, 1)}
