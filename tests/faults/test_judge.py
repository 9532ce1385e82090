"""The judge of the sweep finds what is wrong: one that cannot would prove nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Bucket
from dcp_faults import Seen
from sweep import cases
from sweep.judge import Case, Judge, error_violations
from sweep.requests import requests_in
from torch.distributed.checkpoint.api import CheckpointException

from dcp_core import CloudCheckpointError, PeerFailedError, TransientError

OLD, NEW, OTHER = 1000, 1001, 1002
SUCCESS = [None, None]
DATA = "run/__0_0.0123456789abcdef.distcp"


def failed(**failures: BaseException) -> CheckpointException:
    """What every rank raises where some have failed: ``rank_0=error``."""
    return CheckpointException("save", {int(name[5:]): (error, None) for name, error in failures.items()})  # type: ignore[misc]


def transient(rank: int = 0, key: str = DATA) -> TransientError:
    return TransientError("UploadPart: the connection broke", bucket="bucket", key=key, rank=rank)


#: An error as it should be, on both ranks.
FAILED = [failed(rank_0=transient())] * 2


@pytest.fixture
def judge(seaweedfs_bucket: Bucket) -> Judge:
    return Judge(seaweedfs_bucket, "run")


@contextlib.contextmanager
def finding(judge: Judge, case: Case, *texts: str, **circumstances: Any) -> Iterator[None]:
    """After the body, the judge finds these violations, whose texts are given in part, and no others."""
    yield
    found = judge.judge(case, **circumstances).violations
    assert len(found) == len(texts), found
    for text, wanted in zip(found, texts, strict=True):
        assert wanted in text


def test_the_old_checkpoint_may_be_there_after_an_error(judge: Judge) -> None:
    cases.save(judge.url, OLD, {})
    verdict = judge.judge(Case(OLD, NEW, FAILED))
    assert (verdict.there, verdict.violations) == (OLD, [])
    # and so may the new one: its last response may have been lost
    cases.save(judge.url, NEW, {})
    verdict = judge.judge(Case(OLD, NEW, FAILED))
    assert (verdict.there, verdict.violations) == (NEW, [])
    with finding(judge, Case(OLD, NEW, FAILED, must_succeed=True), "what passes was not ridden out"):
        pass


def test_the_new_checkpoint_must_be_there_after_a_success(judge: Judge) -> None:
    cases.save(judge.url, OLD, {})
    assert judge.judge(Case(None, OLD, SUCCESS, must_succeed=True)).violations == []
    with finding(judge, Case(OLD, NEW, SUCCESS), "success was reported, and the checkpoint of seed 1000"):
        pass
    # that one rank was told is enough
    with finding(judge, Case(OLD, NEW, [None, "dead"], died=True), "success was reported"):
        pass


def test_nothing_else_may_be_there(judge: Judge) -> None:
    cases.save(judge.url, OTHER, {})
    with finding(judge, Case(OLD, NEW, FAILED), "the checkpoint of seed 1002 is there"):
        pass
    # one that was overtaken has lost
    wrong = "the checkpoint of seed 1002 is there"
    with finding(judge, Case(OLD, OTHER, FAILED, may_commit=False), wrong):
        pass


def test_nothing_may_be_there_only_where_nothing_was(judge: Judge) -> None:
    verdict = judge.judge(Case(None, NEW, FAILED))
    assert (verdict.there, verdict.violations) == (None, [])
    with finding(judge, Case(OLD, NEW, FAILED), "no checkpoint is there any more"):
        pass


def data_keys(judge: Judge) -> list[str]:
    return [key for key in judge.bucket.keys("run/") if key.endswith(".distcp")]


def test_a_missing_object(judge: Judge) -> None:
    cases.save(judge.url, NEW, {})
    (key,) = data_keys(judge)
    with finding(judge, Case(OLD, NEW, SUCCESS), "what is there does not load", f"{key} is not there"):
        judge.bucket.delete(key)


def test_one_wrong_byte(judge: Judge) -> None:
    cases.save(judge.url, NEW, {})
    (key,) = data_keys(judge)
    data = judge.bucket.read(key)
    for at in (len(data) // 10, len(data) // 2, len(data) * 9 // 10):
        with finding(judge, Case(OLD, NEW, SUCCESS), "what is there does not load"):
            judge.bucket.write(key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    judge.bucket.write(key, data)
    assert judge.judge(Case(OLD, NEW, SUCCESS)).violations == []


def test_leftovers_are_removed_unless_more_may_come(judge: Judge) -> None:
    cases.save(judge.url, NEW, {})
    kept = set(judge.bucket.keys())
    judge.bucket.write(DATA, b"data")
    judge.bucket.start_upload(DATA)
    case = Case(OLD, NEW, SUCCESS)
    assert judge.judge(case, more_may_come=True).violations == []
    assert set(judge.bucket.keys()) == {*kept, DATA}
    assert judge.bucket.uploads() == [DATA]
    assert judge.judge(case).violations == []
    assert set(judge.bucket.keys()) == kept
    assert judge.bucket.uploads() == []


def test_a_leftover_that_gc_does_not_find(judge: Judge) -> None:
    cases.save(judge.url, NEW, {})
    case = Case(OLD, NEW, SUCCESS)
    stray = "run/__0_0.distcp"
    with finding(judge, case, f"gc does not find the object {stray}", f"{stray} stays behind"):
        judge.bucket.write(stray, b"data")
    judge.bucket.delete(stray)
    with finding(judge, case, f"gc does not find the upload {stray}", f"the upload of {stray} stays"):
        judge.bucket.start_upload(stray)


def violations(*outcomes: Any, **circumstances: Any) -> list[str]:
    return error_violations(Case(OLD, NEW, outcomes, **circumstances))


def test_errors_name_rank_and_object() -> None:
    good = failed(rank_0=transient(0), rank_1=PeerFailedError("stopped", failed_rank=0, rank=1))
    assert violations(good, good) == []
    (found,) = violations(failed(rank_1=transient(0)))
    assert "the error of rank 1 names rank 0" in found
    for nameless in (CloudCheckpointError("it failed", rank=0), transient(0, key="run/")):
        (found,) = violations(failed(rank_0=nameless))
        assert "names no object" in found
    (found,) = violations(failed(rank_0=PeerFailedError("stopped", failed_rank=1, rank=0)))
    assert "no error says what happened" in found
    (found,) = violations(failed(rank_0=KeyError("key")))
    assert "not an error of the library" in found
    (found,) = violations(KeyError("key"))
    assert "raised KeyError" in found
    assert violations("dead", "hung") == ["rank 0: dead", "rank 1: hung"]
    # the death of a rank is torch's to report; what hangs is wrong all the same
    assert violations("dead", RuntimeError("connection closed by peer"), died=True) == []
    assert violations("dead", "hung", died=True) == ["rank 1: hung"]
    # wrong values are never right
    (found,) = violations(cases.WrongValuesError("another seed"), died=True)
    assert "another seed" in found


def seen(method: str, path: str, query: str = "", **headers: str) -> Seen:
    return Seen(method, path, query, headers, bytes_in=7)


def test_requests_have_the_same_names_whatever_their_order() -> None:
    def one_save(token: str) -> list[Seen]:
        key = f"/bucket/run/__1_0.{token * 16}.distcp"
        return [
            seen("GET", "/bucket/run/.metadata", Range="bytes=0-0"),
            seen("POST", key, "uploads="),
            seen("PUT", key, f"partNumber=1&uploadId={token}"),
            seen("PUT", key, f"partNumber=2&uploadId={token}"),
            seen("PUT", f"/bucket/run/__0_0.{token * 16}.distcp"),
            seen("GET", key, Range="bytes=0-9"),
            seen("GET", key, Range="bytes=0-9"),
        ]

    found = requests_in(one_save("a"))
    assert found == requests_in(reversed(one_save("b")))
    assert [str(request) for request in found] == [
        "CreateMultipartUpload __1_0",
        "GetObject .metadata bytes=0-0",
        "GetObject __1_0 bytes=0-9",
        "GetObject __1_0 bytes=0-9 (2)",
        "PutObject __0_0",
        "UploadPart __1_0 part 1",
        "UploadPart __1_0 part 2",
    ]
