"""The errors: one tree, stable codes, and every field on every rank."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest

import dcp_core
from dcp_core import errors
from dcp_core.errors import (
    BucketNotFoundError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CloudCheckpointError,
    ConfigurationError,
    ConflictError,
    DeadlineExceededError,
    MissingExtraError,
    ObjectNotFoundError,
    PeerFailedError,
    PermissionDeniedError,
    TransientError,
)

ALL: list[type[CloudCheckpointError]] = sorted(
    (
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, CloudCheckpointError)
    ),
    key=lambda kind: kind.__name__,
)
#: What programs may compare with: these do not change between releases.
CODES = {
    "AmbiguousSchemeError": "ambiguous_scheme",
    "BucketNotFoundError": "bucket_not_found",
    "CheckpointCorruptError": "checkpoint_corrupt",
    "CheckpointError": "checkpoint",
    "CheckpointExistsError": "checkpoint_exists",
    "CheckpointIncompleteError": "checkpoint_incomplete",
    "CheckpointNotFoundError": "checkpoint_not_found",
    "CheckpointReplacedError": "checkpoint_replaced",
    "CloudCheckpointError": "cloud_checkpoint",
    "CommitUncertainError": "commit_uncertain",
    "ConfigurationError": "configuration",
    "ConflictError": "conflict",
    "CredentialsError": "credentials",
    "DeadlineExceededError": "deadline_exceeded",
    "InvalidLocationError": "invalid_location",
    "MissingExtraError": "missing_extra",
    "ObjectNotFoundError": "object_not_found",
    "PeerFailedError": "peer_failed",
    "PermissionDeniedError": "permission_denied",
    "RunTakenOverError": "run_taken_over",
    "ThrottledError": "throttled",
    "TransientError": "transient",
    "UnknownSchemeError": "unknown_scheme",
    "UnsupportedError": "unsupported",
    "UnsupportedTensorError": "unsupported_tensor",
    "UntrustedDataError": "untrusted_data",
}


def ids(kind: type[Any]) -> str:
    return kind.__name__


def test_codes_are_stable() -> None:
    assert {kind.__name__: kind.code for kind in ALL} == CODES
    assert len(set(CODES.values())) == len(CODES)


def test_all_are_public() -> None:
    assert sorted(errors.__all__) == sorted(CODES)
    assert set(CODES) <= set(dcp_core.__all__)
    assert all(getattr(dcp_core, name) is getattr(errors, name) for name in CODES)
    assert all(kind.__doc__ for kind in ALL)


def test_the_tree_that_is_drawn_is_the_one_that_is_there() -> None:
    """Each error is drawn below its first base."""
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([ │├└─]*)(\w+Error)\b", line)
        if found:
            depth, name = len(found[1]), found[2]
            above = [one for one in above if one[0] < depth]
            drawn[name] = above[-1][1] if above else "Exception"
            above.append((depth, name))
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in ALL}


@pytest.mark.parametrize(
    ("builtin", "kinds"),
    [
        (FileNotFoundError, {BucketNotFoundError, CheckpointNotFoundError, ObjectNotFoundError}),
        (FileExistsError, {CheckpointExistsError}),
        (PermissionError, {PermissionDeniedError}),
        (TimeoutError, {DeadlineExceededError}),
        (ImportError, {MissingExtraError}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_errors_are_the_builtin_ones_too(builtin: type[Exception], kinds: set[type[Exception]]) -> None:
    """Code that handles those of Python works, and none more are caught than are meant."""
    assert {kind for kind in ALL if issubclass(kind, builtin)} == kinds
    for kind in kinds:
        with pytest.raises(builtin, match="the message"):
            raise kind("the message")


def test_errors_of_configuration_are_value_errors() -> None:
    assert {kind for kind in ALL if issubclass(kind, ValueError)} == {
        kind for kind in ALL if issubclass(kind, ConfigurationError)
    }


@pytest.mark.parametrize("kind", ALL, ids=ids)
def test_errors_travel_between_ranks(kind: type[CloudCheckpointError]) -> None:
    """With every field, the message that was changed since, and nothing that only its process has."""
    error = kind("what happened", bucket="bucket", key="run/object", rank=3, request_id="4711")
    error.message += " and more"
    for name, value in (("retry_after", 2.5), ("failed_rank", 5), ("denied", True)):
        if hasattr(error, name):
            setattr(error, name, value)
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is kind
        assert vars(again) == vars(error)
        assert (str(again), again.code) == (str(error), kind.code)
    assert str(error) == (
        "what happened and more [bucket 'bucket', key 'run/object', rank 3, request id '4711']"
    )


def test_fields_that_are_not_known_are_not_shown() -> None:
    assert str(ConflictError("what happened")) == "what happened"
    assert str(ConflictError("what happened", key="k", rank=0)) == "what happened [key 'k', rank 0]"


def test_fields_of_their_own() -> None:
    assert TransientError("x", retry_after=3.0).retry_after == 3.0
    assert TransientError("x").retry_after is None
    assert PeerFailedError("x", failed_rank=2).failed_rank == 2
    assert PermissionDeniedError("x", denied=True).denied
    assert not PermissionDeniedError("x").denied


def test_the_inner_rank_is_kept() -> None:
    """It is the rank that failed; outer layers know only their own."""
    error = ConflictError("what happened")
    assert error.at_rank(3) is error
    assert error.at_rank(5).rank == 3
    assert ConflictError("what happened", rank=0).at_rank(5).rank == 0
