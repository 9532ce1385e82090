"""For ``lightning.pytorch.Trainer``."""

from __future__ import annotations

from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from dcp_core.frameworks.lightning.checkpoint_io import FilesAtURLs
from dcp_core.frameworks.lightning.sharded import TrainerAtURLs

__all__ = ["CloudCheckpointIO", "CloudFSDPStrategy", "CloudModelParallelStrategy"]


class CloudFSDPStrategy(TrainerAtURLs, FSDPStrategy):
    """Lightning's ``FSDPStrategy`` with sharded checkpoints at URLs.

    Args:
        storage_options: of saving, of loading and of the backend.
        asynchronous: go on training while a checkpoint is uploaded.
        *args, **kwargs: of ``FSDPStrategy``; ``state_dict_type`` is ``"sharded"`` by default.
    """

    sharded = ("state_dict_type", "sharded")
    model_key = "model"


class CloudModelParallelStrategy(TrainerAtURLs, ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy`` with sharded checkpoints at URLs.

    Args:
        storage_options: of saving, of loading and of the backend.
        asynchronous: go on training while a checkpoint is uploaded.
        *args, **kwargs: of ``ModelParallelStrategy``.
    """

    sharded = ("save_distributed_checkpoint", True)
    model_key = "state_dict"


class CloudCheckpointIO(FilesAtURLs, TorchCheckpointIO):
    """Lightning's ``CheckpointIO`` for strategies whose checkpoints are one file, at URLs.

    Args:
        asynchronous: go on training while a file is uploaded.
        **options: of saving, of loading and of the backend.
    """
