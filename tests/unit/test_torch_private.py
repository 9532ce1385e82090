"""What differs between releases of torch, as far as the one that is installed does not show it."""

from __future__ import annotations

import copyreg
import pickle
import traceback
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from dcp_core.errors import ConflictError, UnsupportedError
from dcp_core.runtime.torch_private import current_accelerator, differs, group_rank, on_stream, records


class Stream:
    """A stream as torch 2.6 has it: no context."""

    device = torch.device("cuda", 1)


class Accelerator:
    """The current device and stream of a process, as ``torch.accelerator`` keeps them."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, object] = {0: "default of 0", 1: "default of 1"}

    def current_device_idx(self) -> int:
        return self.device

    def current_stream(self, device: torch.device) -> object:
        return self.streams[device.index]

    def set_stream(self, stream: object) -> None:
        # makes the stream's device the current one as well
        self.device = 1
        self.streams[1] = stream

    def set_device_idx(self, device: int) -> None:
        self.device = device


@pytest.mark.parametrize("fails", [False, True])
def test_streams_that_are_no_contexts_are_set_back(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """And the device with them, also where what was done on the stream failed."""
    accelerator, stream = Accelerator(), Stream()
    for name in ("current_device_idx", "current_stream", "set_stream", "set_device_idx"):
        monkeypatch.setattr(torch.accelerator, name, getattr(accelerator, name), raising=False)

    def work() -> None:
        with on_stream(stream):  # type: ignore[arg-type]
            assert (accelerator.device, accelerator.streams[1]) == (1, stream)
            if fails:
                raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            work()
    else:
        work()
    assert accelerator.device == 0
    assert accelerator.streams == {0: "default of 0", 1: "default of 1"}


def test_errors_travel_with_their_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gathers both by pickle. Newer Pythons keep code objects in frames, which cannot be pickled."""
    try:
        raise ConflictError("no", key="run/object")
    except ConflictError as error:
        wrapped = _wrap_exception(error)
    code = getattr(traceback.FrameSummary, "_code", None)
    for release in ("2.6.0", "2.12.0"):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "__version__", release)
            patch.setattr(copyreg, "dispatch_table", dict(copyreg.dispatch_table))
            patch.setattr(traceback.FrameSummary, "_code", code, raising=False)
            records._let_errors_travel()
            assert (traceback.FrameSummary in copyreg.dispatch_table) == (release == "2.6.0")
        found, frames = pickle.loads(pickle.dumps(wrapped))
        assert str(found) == str(wrapped[0])
        assert [(frame.name, frame.lineno) for frame in frames] == [
            (frame.name, frame.lineno) for frame in wrapped[1]
        ]
    assert "ConflictError" in str(CheckpointException("save", {0: wrapped}))


def test_a_frame_says_the_same_after_its_journey() -> None:
    frame = traceback.extract_stack()[-1]
    make, arguments = records._reduced(frame)
    again = make(*arguments)
    assert (again.filename, again.lineno, again.name, again.line) == (
        frame.filename,
        frame.lineno,
        frame.name,
        frame.line,
    )


def test_no_accelerator_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.6 raises where later ones return None."""

    def raises() -> Any:
        raise RuntimeError("Cannot access accelerator device when none is available.")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", raises)
    assert current_accelerator() is None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert current_accelerator() == torch.device("cuda")


def test_a_rank_of_torch_goes_before_the_own_one() -> None:
    """torch passes the rank in the group of the save, where it passes one."""
    assert group_rank({}) == 0
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert group_rank({"rank": 3}) == 3
        assert group_rank({"rank": None}) == 0
    finally:
        dist.destroy_process_group()


def test_a_torch_that_writes_otherwise_is_named() -> None:
    error = differs("torch.save", "writes something else")
    assert isinstance(error, UnsupportedError)
    assert error.message.startswith(f"torch.save of torch {torch.__version__} writes something else. ")
    assert "docs/compatibility.md" in error.message
