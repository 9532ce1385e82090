"""When the client of a store is opened, and when another one is tried."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from dcp_core.transport import clients
from dcp_core.transport.clients import PATIENCE, Clients


@dataclass(eq=False)
class Client:
    """Signs with ``credentials``."""

    credentials: object
    closed: bool = False

    def close(self) -> None:
        self.closed = True


class Opening:
    """Opens clients with the credentials that there are; ``None`` is a failure to look for some."""

    def __init__(self, *credentials: object) -> None:
        self.credentials: Iterator[object] = iter(credentials)
        self.opened: list[Client] = []

    def __call__(self) -> Client:
        found = next(self.credentials)
        if found is None:
            raise OSError("the metadata service does not respond")
        self.opened.append(Client(found))
        return self.opened[-1]


def test_one_is_opened_for_all() -> None:
    """Not before it is needed; all threads wait for the one that opens it, and it is closed at the end."""
    opening = Opening(1, 2)
    held: Clients[Client] = Clients(opening)
    assert not opening.opened
    together = threading.Barrier(8, timeout=20)

    def get(_: int) -> Client:
        together.wait()
        return held.get()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(get, range(8))) == set(opening.opened)
    assert len(opening.opened) == 1
    held.close()
    held.close()
    assert opening.opened[0].closed
    assert held.get() is opening.opened[1]


def test_a_failure_to_open_is_not_kept() -> None:
    held: Clients[Client] = Clients(Opening(None, 1))
    with pytest.raises(OSError, match="metadata service"):
        held.get()
    assert held.get().credentials == 1


def test_a_refused_client_is_replaced_once() -> None:
    """The second refusal in a row is final, until a later request looks for credentials again."""
    opening = Opening(1, 2, 3)
    held: Clients[Client] = Clients(opening)
    assert held.refused(held.get())
    second = held.get()
    assert second.credentials == 2
    assert not held.refused(second)
    assert held.get().credentials == 3


def test_success_ends_the_trial() -> None:
    """Credentials expire more than once in a long save."""
    opening = Opening(*range(10))
    held: Clients[Client] = Clients(opening)
    for number in range(9):
        client = held.get()
        assert client.credentials == number
        held.succeeded(client)
        assert held.refused(client)
    # what an older client still brought to an end says nothing about the present one
    held.succeeded(opening.opened[0])
    assert not held.refused(held.get())


def test_many_threads_that_are_refused_replace_it_once() -> None:
    """All of them were sent with the first one's credentials."""
    opening = Opening(1, 2, 3, 4)
    held: Clients[Client] = Clients(opening)
    client = held.get()
    together = threading.Barrier(8, timeout=20)

    def refused(_: int) -> bool:
        together.wait()
        return held.refused(client)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(refused, range(8)))
    assert held.get().credentials == 2
    assert len(opening.opened) == 2
    # who failed before there was one at all tries again too
    assert held.refused(None)


def test_the_same_credentials_again_are_final() -> None:
    opening = Opening(1, 1)
    held: Clients[Client] = Clients(opening)
    assert not held.refused(held.get())


def test_credentials_that_cannot_be_looked_for_are_looked_for_again() -> None:
    """In the next request, which says what is wrong."""
    held: Clients[Client] = Clients(Opening(1, None, None, 2))
    assert held.refused(held.get())
    with pytest.raises(OSError, match="metadata service"):
        held.get()
    assert held.get().credentials == 2


def test_a_provider_that_fails_is_asked_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured one may be restarting; one that is not there at all should not hold a job up for long."""
    now = [100.0]
    monkeypatch.setattr(clients.time, "monotonic", lambda: now[0])
    held: Clients[Client] = Clients(Opening(1))
    assert held.unavailable()
    now[0] += PATIENCE - 1
    assert held.unavailable()
    now[0] += 1
    assert not held.unavailable()
    # that is over; the next time counts from its own beginning
    assert held.unavailable()
    held.succeeded(held.get())
    now[0] += PATIENCE
    assert held.unavailable()
