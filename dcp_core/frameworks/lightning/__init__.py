"""PyTorch Lightning: strategies and a ``CheckpointIO`` that save and load at URLs.

Lightning goes by two names, and has two front ends, so each class is there four times::

    trainer                      for lightning.pytorch.Trainer
    fabric                       for lightning.fabric.Fabric
    standalone_trainer           for pytorch_lightning.Trainer
    standalone_fabric            for lightning_fabric.Fabric

    sharded.py, checkpoint_io.py what these are made of
"""

from importlib.util import find_spec

from dcp_core.errors import MissingExtraError

if not any(find_spec(name) for name in ("lightning", "pytorch_lightning", "lightning_fabric")):
    raise MissingExtraError("lightning is not installed: pip install lightning")
