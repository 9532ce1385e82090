"""HuggingFace checkpoints in buckets: safetensors files, loaded by ranges and written in parts.

::

    from dcp_core.huggingface import HuggingFaceStorageReader, HuggingFaceStorageWriter

    dcp.load(model_state, storage_reader=HuggingFaceStorageReader("s3://bucket/models/llama"))
    dcp.save(model_state, storage_writer=HuggingFaceStorageWriter("s3://bucket/models/mine"))

The classes have the names and parameters of torch's in ``torch.distributed.checkpoint``, which work on local
folders only.
"""

from dcp_core.huggingface.quantized import QuantizedHuggingFaceStorageReader
from dcp_core.huggingface.reader import HuggingFaceStorageReader
from dcp_core.huggingface.writer import HuggingFaceStorageWriter

__all__ = ["HuggingFaceStorageReader", "HuggingFaceStorageWriter", "QuantizedHuggingFaceStorageReader"]
