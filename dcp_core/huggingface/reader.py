"""The reader of HuggingFace checkpoints: headers instead of a commit record, everything else as ever."""

from __future__ import annotations

import os
from typing import Any

from dcp_core.config import LoadOptions
from dcp_core.huggingface.record import read_headers
from dcp_core.load.metadata import Record
from dcp_core.seam.store import ReadableStore
from dcp_core.storage.checkpoint_store import CheckpointStore
from dcp_core.storage.reader import CloudStorageReader
from dcp_core.transfer import Transfer

__all__ = ["HuggingFaceStorageReader"]


class HuggingFaceStorageReader(CloudStorageReader):
    """Loads safetensors files, as HuggingFace models and DCP's own exports have them, from a bucket.

    Tensors load into tensors of any sharding and device, by ranges: no rank receives more of a file than
    what it needs, and its header. Files are those that ``model.safetensors.index.json`` names; without an
    index, all that are in the folder, or ``model.safetensors`` where a store cannot list.

    Safetensors files have no checksums: what is checked are sizes, dtypes and that the files stay as they are
    during the load.

    Args:
        path: ``scheme://bucket/prefix`` of the folder.
        thread_count: as torch's reader has it; ``concurrency`` says here how many requests are in flight.
        **options: as for :class:`~dcp_core.CloudStorageReader`.

    Raises:
        ConfigurationError: the URL or an option is wrong, or the backend is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], thread_count: int = 1, **options: Any) -> None:
        super().__init__(path, **options)
        self.thread_count = thread_count

    def find_record(
        self,
        store: ReadableStore,
        checkpoint: CheckpointStore[LoadOptions],
        transfer: Transfer,
        rank: int | None,
    ) -> Record:
        """What the headers of the files say; ``rank`` makes no difference."""
        del rank
        return read_headers(store, checkpoint.location, transfer, checkpoint.options.concurrency)
