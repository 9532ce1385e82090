"""When a request is tried again: for as long as ``retry_timeout`` says, whatever else happens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clocks import DrivenClock

from dcp_core import LoadOptions, ThrottledError, TransientError
from dcp_core.transfer import Transfer
from dcp_core.transfer.retry import FIRST_PAUSE, LONGEST_PAUSE
from dcp_core.transfer.throttle import HOLD, Gate

chances = st.floats(0, 1)
#: Seconds that one attempt takes.
durations = st.floats(0, 30)
waits = st.none() | st.floats(0, 100)


class Requests:
    """Attempts of one request that fail, each after a while, until there are no more to come."""

    def __init__(
        self, clock: DrivenClock, failures: list[tuple[float, float | None]], *, then: float
    ) -> None:
        self._clock = clock
        self._failures = failures
        self._then = then
        #: When each attempt began and failed.
        self.began: list[float] = []
        self.failed: list[float] = []

    def __call__(self) -> None:
        number = len(self.began)
        duration, retry_after = self._failures[number] if number < len(self._failures) else (self._then, None)
        self.began.append(self._clock.time)
        self._clock.time += duration
        self.failed.append(self._clock.time)
        raise TransientError("refused", retry_after=retry_after)


@given(st.floats(0.1, 1000), st.lists(st.tuples(durations, waits), max_size=30), st.floats(0.01, 10), chances)
def test_a_request_ends_once_its_time_is_up_and_never_before(
    timeout: float, failures: list[tuple[float, float | None]], then: float, chance: float
) -> None:
    """The last attempt begins when the time is up, counted from the first failure; pauses stay in bounds."""
    clock = DrivenClock(chance=chance)
    requests = Requests(clock, failures, then=then)
    with pytest.raises(TransientError) as caught:
        Transfer(LoadOptions(retry_timeout=timeout), None, clock=clock).attempt(requests)
    ends = requests.failed[0] + timeout
    assert requests.failed[-1] >= ends - 1e-6
    assert all(failed < ends for failed in requests.failed[:-1])
    assert requests.began[-1] <= ends + 1e-6 or len(requests.began) == 1
    for number, (failed, began) in enumerate(zip(requests.failed, requests.began[1:], strict=False)):
        asked = failures[number][1] if number < len(failures) else None
        bound = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(number, 30))
        assert began - failed <= bound + (asked or 0) + 1e-6
        # not before the store's own time, unless the request's ends first
        assert began - failed >= min(asked or 0, ends - failed) - 1e-6
    if len(requests.began) > 1:
        assert f"{len(requests.began)} attempts failed" in caught.value.message
        assert "see retry_timeout=" in caught.value.message


@given(st.integers(1, 40), chances)
def test_a_number_of_attempts_is_that_many(attempts: int, chance: float) -> None:
    clock = DrivenClock(chance=chance)
    requests = Requests(clock, [], then=0.1)
    options = LoadOptions(retry_timeout=1e6, max_attempts=attempts)
    with pytest.raises(TransientError) as caught:
        Transfer(options, None, clock=clock).attempt(requests)
    assert len(requests.began) == attempts
    assert ("see max_attempts=" in caught.value.message) == (attempts > 1)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(2, 8), chances)
def test_only_failures_without_progress_count(steps: list[int], attempts: int, chance: float) -> None:
    """A request that gets further each time it breaks may break as often as it likes."""
    clock = DrivenClock(chance=chance)
    position, left = 0, list(steps)

    def attempt() -> int:
        nonlocal position
        clock.time += 100
        if not left:
            return position
        if left[0] > 0:
            # so many failures, then a step ahead
            left[0] -= 1
        else:
            left.pop(0)
            position += 1
        raise TransientError("broken")

    options = LoadOptions(retry_timeout=1e6, max_attempts=attempts)
    work: Callable[[], int] = lambda: Transfer(options, None, clock=clock).attempt(attempt, lambda: position)  # noqa: E731
    # the failure with which it came ahead is the first of the next ones
    counts = [steps[0], *(count + 1 for count in steps[1:]), 1]
    if all(count < attempts for count in counts):
        assert work() == len(steps)
    else:
        with pytest.raises(TransientError, match=f"{attempts} attempts failed"):
            work()


@given(st.integers(1, 64), st.lists(st.booleans() | st.floats(0, 3), max_size=200))
def test_the_limit_stays_within_bounds(most: int, events: list[bool | float]) -> None:
    """Halved at most once in ``HOLD`` seconds, raised by one at most for as many successes as it is."""
    gate = Gate(most)
    now, halved = 0.0, -HOLD
    for event in events:
        before = gate.limit
        if isinstance(event, float):
            now += event
        elif event:
            gate.succeeded()
            assert before <= gate.limit <= before + 1
        else:
            gate.throttled(now)
            expected = max(1, before // 2) if now - halved >= HOLD else before
            assert gate.limit == expected
            halved = now if now - halved >= HOLD else halved
        assert 1 <= gate.limit <= most
    for _ in range(sum(range(1, most + 1))):
        gate.succeeded()
    assert gate.limit == most


def test_a_store_that_refuses_for_its_rate_is_left_to_one_request_at_a_time() -> None:
    """Each throttled attempt halves what may be in flight, as long as they are a second apart."""
    clock = DrivenClock()
    transfer = Transfer(LoadOptions(concurrency=8, retry_timeout=60), None, clock=clock)

    def throttled() -> None:
        raise ThrottledError("slow down")

    with pytest.raises(ThrottledError):
        transfer.attempt(throttled)
    assert transfer._gate.limit == 1
