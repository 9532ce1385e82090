"""PyTorch Distributed Checkpoint on cloud object stores: the shared core.

::

    import torch.distributed.checkpoint as dcp
    from dcp_core import CloudStorageReader, CloudStorageWriter

    dcp.save(state, storage_writer=CloudStorageWriter("s3://bucket/run/step-1000"))
    dcp.load(state, storage_reader=CloudStorageReader("s3://bucket/run/step-1000"))
"""

from dcp_core.config import LoadOptions, SaveOptions
from dcp_core.errors import (
    AmbiguousSchemeError,
    BucketNotFoundError,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointExistsError,
    CheckpointIncompleteError,
    CheckpointNotFoundError,
    CheckpointReplacedError,
    CloudCheckpointError,
    CommitUncertainError,
    ConfigurationError,
    ConflictError,
    CredentialsError,
    DeadlineExceededError,
    InvalidLocationError,
    MissingExtraError,
    ObjectNotFoundError,
    PeerFailedError,
    PermissionDeniedError,
    RunTakenOverError,
    ThrottledError,
    TransientError,
    UnknownSchemeError,
    UnsupportedError,
    UnsupportedTensorError,
    UntrustedDataError,
)
from dcp_core.integrations.checkpoint_ids import use_url_checkpoint_ids
from dcp_core.run.retention import Best
from dcp_core.run.run import CheckpointRun
from dcp_core.storage.reader import CloudStorageReader
from dcp_core.storage.writer import CloudStorageWriter

__all__ = [
    "AmbiguousSchemeError",
    "Best",
    "BucketNotFoundError",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointExistsError",
    "CheckpointIncompleteError",
    "CheckpointNotFoundError",
    "CheckpointReplacedError",
    "CheckpointRun",
    "CloudCheckpointError",
    "CloudStorageReader",
    "CloudStorageWriter",
    "CommitUncertainError",
    "ConfigurationError",
    "ConflictError",
    "CredentialsError",
    "DeadlineExceededError",
    "InvalidLocationError",
    "LoadOptions",
    "MissingExtraError",
    "ObjectNotFoundError",
    "PeerFailedError",
    "PermissionDeniedError",
    "RunTakenOverError",
    "SaveOptions",
    "ThrottledError",
    "TransientError",
    "UnknownSchemeError",
    "UnsupportedError",
    "UnsupportedTensorError",
    "UntrustedDataError",
    "use_url_checkpoint_ids",
]
