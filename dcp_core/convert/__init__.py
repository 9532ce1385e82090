"""Checkpoints from one format into another, a tensor at a time, on a disk or in a bucket.

::

    convert ─ what is there, what is wanted
    ├── CheckpointSource    DCP checkpoints, HuggingFace folders   ┐ a state dict whose tensors have no memory
    ├── TorchFileSource     torch.save files                       ┘ yet, and their values when asked for
    ├── save_checkpoint     DCP checkpoints, HuggingFace folders
    └── save_torch_file     torch.save files

    from dcp_core.convert import dcp_to_torch_save, torch_save_to_dcp
"""

from dcp_core.convert.formats import Format, convert, dcp_to_torch_save, torch_save_to_dcp
from dcp_core.convert.reader import TorchSaveReader

__all__ = ["Format", "TorchSaveReader", "convert", "dcp_to_torch_save", "torch_save_to_dcp"]
