"""From the errors of an SDK to ours: the engine of every backend's table.

::

    translate(operation, bucket, key)     around each request
      ├─ the SDK's error holds a response  → Refusal → its code, else its status, else its class → ours
      └─ the request got none              → what lies at its bottom, else its own type          → ours

A backend subclasses :class:`ErrorTable` with its codes, the exceptions of its SDK, and the lines that take
code, status and message out of them. Nothing here imports an SDK. What an SDK raises that nobody expects, a
``KeyError`` in its parser, becomes an error of ours too.
"""

from __future__ import annotations

import http.client
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import ClassVar, NamedTuple

from dcp_core.errors import CloudCheckpointError, PermissionDeniedError, TransientError
from dcp_core.transport import verdicts
from dcp_core.transport.verdicts import Verdict

__all__ = ["ErrorTable", "ExceptionVerdicts", "Refusal", "causes", "retry_after"]

#: Exception types → verdict, most specific first.
ExceptionVerdicts = tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Verdict], ...]

_STATUSES: Mapping[int, Verdict] = {
    401: verdicts.WANTS_CREDENTIALS,
    404: verdicts.GONE,
    405: verdicts.NOT_ALLOWED,
    408: verdicts.WAITED,
    412: verdicts.CHANGED,
    413: verdicts.TOO_LARGE,
    416: verdicts.OUT_OF_RANGE,
    429: verdicts.SLOW_DOWN,
    501: verdicts.NO_CONDITIONS,
    503: verdicts.OVERLOADED,
}
_CAUSES: ExceptionVerdicts = ((ssl.SSLCertVerificationError, verdicts.UNTRUSTED),)
#: Of a local file, such as one with a token.
_FILE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError)
_EXCEPTIONS: ExceptionVerdicts = (
    (ssl.SSLError, verdicts.TLS_FAILED),
    (TimeoutError, verdicts.STALLED),
    (_FILE_ERRORS, verdicts.UNREADABLE_FILE),
    ((http.client.HTTPException, OSError), verdicts.BROKEN),
)


class Refusal(NamedTuple):
    """A response that is no success; ``headers`` find names in lower case."""

    status: int
    code: str = ""
    message: str = ""
    request_id: str | None = None
    headers: Mapping[str, str] = {}


class ErrorTable:
    """What a backend knows of its store's errors; the rest is the same for all."""

    #: The store, as errors name it.
    service: ClassVar[str]
    #: Verdicts by the store's own codes, which tell more than the status.
    codes: ClassVar[Mapping[str, Verdict]] = {}
    #: By status, before those that all stores share.
    statuses: ClassVar[Mapping[int, Verdict]] = {}
    #: By what lies at the bottom of an exception, however it is wrapped.
    causes: ClassVar[ExceptionVerdicts] = ()
    #: By the type of an exception raised before or instead of a response.
    exceptions: ClassVar[ExceptionVerdicts] = ()
    #: The permission that an operation needs, by its name, for errors.
    permissions: ClassVar[Mapping[str, str]] = {}

    @contextmanager
    def translate(
        self,
        operation: str,
        bucket: str,
        key: str | None = None,
        renew: Callable[[bool], bool] | None = None,
    ) -> Iterator[None]:
        """Turn the errors of one request into ours, chained to the original.

        Where other credentials may help, ``renew`` is asked whether another attempt is worth while: it is
        told whether the store refused those that were sent, or none could be obtained.
        """
        handled = sys.exc_info()[1]
        try:
            yield
        except CloudCheckpointError as error:
            error.bucket, error.key = error.bucket or bucket, error.key or key
            raise
        except Exception as error:
            refusal = self.refusal_of(error)
            found, verdict = self._judged(operation, error, refusal, list(causes(error, handled)))
            if verdict.renew and renew is not None and renew(refusal is not None):
                found = TransientError(f"{found.message}; looking for credentials again")
            found.bucket, found.key = bucket, key
            raise found from error

    def _judged(
        self, operation: str, error: Exception, refusal: Refusal | None, found: list[BaseException]
    ) -> tuple[CloudCheckpointError, Verdict]:
        if refusal is not None:
            verdict = self.verdict_on(operation, refusal)
            return self._for_refusal(operation, refusal, verdict), verdict
        verdict = self.verdict_on_exception(error, found)
        return verdict.kind(f"{operation}: {verdict.advice} ({self.shown(error)})"), verdict

    def refusal_of(self, error: BaseException) -> Refusal | None:
        """The response that ``error`` stands for; ``None`` if there was none."""
        del error
        return None

    def for_refusal(
        self, operation: str, refusal: Refusal, bucket: str, key: str | None = None
    ) -> CloudCheckpointError:
        """Our error for a response."""
        error = self._for_refusal(operation, refusal, self.verdict_on(operation, refusal))
        error.bucket, error.key = bucket, key
        return error

    def _for_refusal(self, operation: str, refusal: Refusal, verdict: Verdict) -> CloudCheckpointError:
        said = refusal.code or str(refusal.status)
        if refusal.message not in ("", said):
            said += f": {refusal.message}"
        advice = verdict.advice
        if verdict.denied and operation in self.permissions:
            advice = f"{advice} with {self.permissions[operation]}"
        message = f"{operation}: {advice} ({self.service} says {said})"
        error = verdict.kind(message, request_id=refusal.request_id)
        if isinstance(error, TransientError):
            error.retry_after = retry_after(refusal.headers)
        elif isinstance(error, PermissionDeniedError):
            error.denied = verdict.denied
        return error

    def verdict_on(self, operation: str, refusal: Refusal) -> Verdict:
        """The verdict on a response; subclasses look at more than code and status first."""
        del operation
        known = self.codes.get(refusal.code) or self.statuses.get(refusal.status)
        if known is not None or refusal.status in _STATUSES:
            return known or _STATUSES[refusal.status]
        if 200 <= refusal.status < 300:
            return verdicts.UNEXPECTED
        return verdicts.INTERNAL if refusal.status >= 500 else verdicts.REFUSED

    def verdict_on_exception(self, error: BaseException, found: list[BaseException]) -> Verdict:
        """The verdict on a request without a response."""
        for cause in found:
            for kinds, verdict in (*self.causes, *_CAUSES):
                if isinstance(cause, kinds):
                    return verdict
        for kinds, verdict in (*self.exceptions, *_EXCEPTIONS):
            if isinstance(error, kinds):
                return verdict
        return verdicts.SDK_FAILED

    def shown(self, error: BaseException) -> str:
        """What a user may read of ``error``, which is chained to ours: secrets are taken out of it here."""
        return f"{type(error).__name__}: {error}"


def causes(error: BaseException, handled: BaseException | None = None) -> Iterator[BaseException]:
    """``error`` and what it wraps, each once: chained, as an argument, or as botocore and azure-core keep it.

    What was ``handled`` already when the request was made is no cause of its failure.
    """
    seen: list[BaseException | None] = [handled]
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        named = getattr(one, "kwargs", None)
        inner = (
            *(one.__cause__, one.__context__, *one.args),
            *(getattr(one, "reason", None), getattr(one, "inner_exception", None)),
            *(named.values() if isinstance(named, dict) else ()),
        )
        waiting += [other for other in inner if isinstance(other, BaseException)]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds after which a response asks to be tried again, if it says so.

    ``headers`` find names in lower case. https://www.rfc-editor.org/rfc/rfc9110#name-retry-after
    """
    milliseconds = headers.get("x-ms-retry-after-ms", "")
    if milliseconds.isdecimal():
        return int(milliseconds) / 1000
    said = headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        there = parsedate_to_datetime(said)
    except (ValueError, TypeError):
        return None
    if there.tzinfo is None:
        return None
    return max(0.0, (there - datetime.now(timezone.utc)).total_seconds())
