"""For ``lightning.fabric.Fabric``."""

from __future__ import annotations

from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.strategies import FSDPStrategy, ModelParallelStrategy

from dcp_core.frameworks.lightning.checkpoint_io import FilesAtURLs
from dcp_core.frameworks.lightning.sharded import FabricAtURLs

__all__ = ["CloudCheckpointIO", "CloudFSDPStrategy", "CloudModelParallelStrategy"]


class CloudFSDPStrategy(FabricAtURLs, FSDPStrategy):
    """Lightning's ``FSDPStrategy`` with sharded checkpoints at URLs.

    Args:
        storage_options: of saving, of loading and of the backend.
        asynchronous: go on training while a checkpoint is uploaded.
        *args, **kwargs: of ``FSDPStrategy``; ``state_dict_type`` is ``"sharded"`` by default.
    """

    sharded = ("state_dict_type", "sharded")


class CloudModelParallelStrategy(FabricAtURLs, ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy`` with sharded checkpoints at URLs.

    Args:
        storage_options: of saving, of loading and of the backend.
        asynchronous: go on training while a checkpoint is uploaded.
        *args, **kwargs: of ``ModelParallelStrategy``.
    """

    sharded = ("save_distributed_checkpoint", True)


class CloudCheckpointIO(FilesAtURLs, TorchCheckpointIO):
    """Lightning's ``CheckpointIO`` for strategies whose checkpoints are one file, at URLs.

    Args:
        asynchronous: go on training while a file is uploaded.
        **options: of saving, of loading and of the backend.
    """
