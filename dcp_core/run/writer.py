"""The writer of one step: it belongs to the job that owns the run, and notes facts in the commit record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from dcp_core.errors import CloudCheckpointError
from dcp_core.run.owner import Owner
from dcp_core.run.ranks import is_first_rank
from dcp_core.storage.writer import CloudStorageWriter
from dcp_core.transfer.transfer import Transfer

__all__ = ["RunWriter"]


class RunWriter(CloudStorageWriter):
    """Saves one step of a run.

    Whether the job may save is found out when the writer is made, on the first rank; torch carries the error
    to all ranks from where the save is set up.
    """

    def __init__(self, url: str, owner: Owner, facts: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        super().__init__(url, **options)
        self.facts = dict(facts)
        self._owner = owner
        self._refusal: CloudCheckpointError | None = None
        if is_first_rank():
            try:
                self._require_ownership()
            except CloudCheckpointError as error:
                self._refusal = error.at_rank(0)

    def _require_ownership(self) -> None:
        store = self.checkpoint.writable_store()
        self._owner.require(store, Transfer(self.checkpoint.options, 0))

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if self._refusal is not None:
            raise self._refusal
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._require_ownership()
        super().finish(metadata, results)
