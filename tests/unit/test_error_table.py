"""From what an SDK raises to our errors: the part that all backends share."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any, ClassVar

import pytest

from dcp_core.errors import (
    CheckpointCorruptError,
    CloudCheckpointError,
    ConfigurationError,
    ConflictError,
    ObjectNotFoundError,
    PermissionDeniedError,
    ThrottledError,
    TransientError,
    UnsupportedError,
)
from dcp_core.transport.error_table import ErrorTable, Refusal, causes, retry_after
from dcp_core.transport.verdicts import UNREADABLE_FILE, Verdict


class SdkError(Exception):
    """As SDKs raise it for a response that is no success."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


class Table(ErrorTable):
    service = "The store"
    codes: ClassVar[Mapping[str, Verdict]] = {
        "Gone": Verdict(ObjectNotFoundError, "it is gone"),
        "Expired": Verdict(PermissionDeniedError, "the token has expired", renew=True),
        "Denied": Verdict(PermissionDeniedError, "the caller may not do this", denied=True),
    }
    statuses: ClassVar[Mapping[int, Verdict]] = {403: Verdict(PermissionDeniedError, "not for you")}
    exceptions = ((KeyError, Verdict(ConfigurationError, "look elsewhere")),)
    permissions: ClassVar[Mapping[str, str]] = {"Get": "store:GetObject"}

    def refusal_of(self, error: BaseException) -> Refusal | None:
        return error.refusal if isinstance(error, SdkError) else None


def translated(raised: BaseException, **options: Any) -> CloudCheckpointError:
    """Our error for what the request ``Get`` raises."""
    with pytest.raises(CloudCheckpointError) as caught, Table().translate("Get", "bucket", "key", **options):
        raise raised
    return caught.value


@pytest.mark.parametrize(
    ("refusal", "kind", "message"),
    [
        (Refusal(403, "Gone"), ObjectNotFoundError, "Get: it is gone (The store says Gone)"),
        (Refusal(403, "Unknown", "why"), PermissionDeniedError, "not for you (The store says Unknown: why)"),
        (Refusal(403, "Same", "Same"), PermissionDeniedError, "(The store says Same)"),
        (Refusal(404), ObjectNotFoundError, "(The store says 404)"),
        (Refusal(405), UnsupportedError, "does not allow"),
        (Refusal(412), ConflictError, "another writer"),
        (Refusal(416), CheckpointCorruptError, "ends before"),
        (Refusal(429), ThrottledError, "fewer requests"),
        (Refusal(503), ThrottledError, "overloaded"),
        (Refusal(599), TransientError, "internal error"),
        (Refusal(499), ConfigurationError, "refused"),
        (Refusal(204), UnsupportedError, "changes responses"),
    ],
)
def test_responses_by_code_then_status_then_class(
    refusal: Refusal, kind: type[CloudCheckpointError], message: str
) -> None:
    raised = SdkError(refusal._replace(request_id="4711"))
    error = translated(raised)
    assert type(error) is kind
    assert message in error.message
    assert (error.bucket, error.key, error.request_id) == ("bucket", "key", "4711")
    assert error.__cause__ is raised
    given = Table().for_refusal("Get", refusal, "bucket", "key")
    assert (type(given), given.message, given.key) == (kind, error.message, "key")


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (KeyError("ETag"), ConfigurationError, "look elsewhere (KeyError: 'ETag')"),
        (TypeError("of the SDK's own"), ConfigurationError, "the SDK failed (TypeError: of the SDK's own)"),
        (TimeoutError("timed out"), TransientError, "stall_timeout"),
        (ConnectionResetError("reset"), TransientError, "the connection broke"),
        (http.client.IncompleteRead(b"half"), TransientError, "the connection broke"),
        (ssl.SSLError("bad record"), TransientError, "TLS"),
        (ssl.SSLCertVerificationError("self-signed"), ConfigurationError, "ca_bundle="),
        (FileNotFoundError("/no/token"), ConfigurationError, "a local file"),
    ],
)
def test_exceptions_by_type(raised: Exception, kind: type[CloudCheckpointError], message: str) -> None:
    error = translated(raised)
    assert type(error) is kind
    assert error.message.startswith("Get: ")
    assert message in error.message
    assert error.__cause__ is raised


def test_what_is_no_error_of_a_request_passes() -> None:
    for raised in (KeyboardInterrupt(), SystemExit(3), GeneratorExit()):
        with pytest.raises(type(raised)) as caught, Table().translate("Get", "bucket"):
            raise raised
        assert caught.value is raised


class Wrapping(Exception):
    """Keeps what it wraps under a name, as SDKs do."""

    def __init__(self, *arguments: Any, **fields: Any) -> None:
        super().__init__(*arguments)
        self.__dict__.update(fields)


def chained(link: str) -> Callable[[Exception], Exception]:
    def wrap(error: Exception) -> Exception:
        wrapping = Wrapping("the request failed")
        setattr(wrapping, link, error)
        return wrapping

    return wrap


WRAPPED: dict[str, Callable[[Exception], Exception]] = {
    "cause": chained("__cause__"),
    "context": chained("__context__"),
    "argument": lambda error: Wrapping("the request failed", error),
    "keyword": lambda error: Wrapping(kwargs={"error": error}),
    "reason": lambda error: Wrapping(reason=error),
    "inner": lambda error: Wrapping(inner_exception=error),
}


@pytest.mark.parametrize("way", WRAPPED)
def test_an_untrusted_certificate_is_found_however_it_is_wrapped(way: str) -> None:
    """It is not tried again for minutes, as other errors of a connection are."""
    inner = ssl.SSLCertVerificationError("self-signed certificate")
    raised = WRAPPED[way](Wrapping("in between", reason=inner))
    error = translated(raised)
    assert type(error) is ConfigurationError
    assert "ca_bundle=" in error.message
    assert error.__cause__ is raised


def test_what_is_being_handled_meanwhile_is_no_cause() -> None:
    """A request made because another one failed has a context that says nothing about it."""
    try:
        raise ssl.SSLCertVerificationError("self-signed certificate")
    except ssl.SSLCertVerificationError:
        error = translated(ConnectionResetError("reset"))
    assert type(error) is TransientError
    assert isinstance(error.__cause__.__context__ if error.__cause__ else None, ssl.SSLCertVerificationError)


def test_causes_that_go_round_end() -> None:
    first, second = Wrapping("first"), Wrapping("second")
    first.__cause__, second.__cause__ = second, first
    third = Wrapping("third", first, second, reason=first)
    assert list(causes(third)) == [third, first, second]
    assert type(translated(third)) is ConfigurationError


def test_our_own_errors_pass_and_learn_where() -> None:
    ours = ConflictError("no")
    assert translated(ours) is ours
    assert (ours.bucket, ours.key) == ("bucket", "key")
    assert ours.__cause__ is None
    elsewhere = ConflictError("no", bucket="other", key="another")
    assert translated(elsewhere) is elsewhere
    assert (elsewhere.bucket, elsewhere.key) == ("other", "another")


def test_a_permission_is_named() -> None:
    """Where one is missing, and known for the request; not where the credentials as such are refused."""
    error = translated(SdkError(Refusal(403, "Denied")))
    assert isinstance(error, PermissionDeniedError)
    assert error.denied
    assert "the caller may not do this with store:GetObject (The store says Denied)" in error.message
    other = Table().for_refusal("Put", Refusal(403, "Denied"), "bucket")
    assert "the caller may not do this (The store says Denied)" in other.message
    as_such = translated(SdkError(Refusal(403, "Unknown")))
    assert isinstance(as_such, PermissionDeniedError)
    assert not as_such.denied
    assert "store:GetObject" not in as_such.message


def test_credentials_that_may_be_renewed_are_tried_again() -> None:
    """As long as there is hope; it is told whether the store refused some, or there were none to send."""
    asked: list[bool] = []

    def hopeful(refused: bool) -> bool:
        asked.append(refused)
        return True

    refused = SdkError(Refusal(403, "Expired"))
    unreadable = FileNotFoundError("/no/token")
    assert UNREADABLE_FILE.renew
    for raised in (refused, unreadable):
        error = translated(raised, renew=hopeful)
        assert type(error) is TransientError
        assert error.message.endswith("; looking for credentials again")
        assert (error.bucket, error.key) == ("bucket", "key")
    assert asked == [True, False]
    assert type(translated(refused, renew=lambda refused: False)) is PermissionDeniedError
    assert type(translated(refused)) is PermissionDeniedError
    # other credentials would not help
    assert type(translated(SdkError(Refusal(403, "Denied")), renew=hopeful)) is PermissionDeniedError
    assert len(asked) == 2


def test_how_long_a_store_wants_to_be_left_alone() -> None:
    """In seconds, as a date, in Azure's milliseconds; anything else is not said."""
    assert retry_after({"retry-after": " 7 "}) == 7.0
    assert retry_after({"x-ms-retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    for nothing in ("", "-3", "soon", "1.5", "Wed, 99 Nov 2026 25:00:00 GMT"):
        assert retry_after({"retry-after": nothing}) is None
    assert retry_after({}) is None
    now = datetime.now(timezone.utc)
    found = retry_after({"retry-after": format_datetime(now + timedelta(hours=1), usegmt=True)})
    assert found is not None
    assert 3500 < found <= 3600
    assert retry_after({"retry-after": format_datetime(now - timedelta(hours=1), usegmt=True)}) == 0.0
    assert retry_after({"retry-after": "Wed, 25 Nov 2026 12:00:00 -0000"}) is None
    error = translated(SdkError(Refusal(503, headers={"retry-after": "3"})))
    assert isinstance(error, TransientError)
    assert error.retry_after == 3.0
