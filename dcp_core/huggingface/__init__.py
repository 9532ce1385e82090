"""HuggingFace checkpoints in buckets: safetensors files, loaded by ranges and written in parts.

::

    from dcp_core.huggingface import HuggingFaceStorageReader

    dcp.load(model_state, storage_reader=HuggingFaceStorageReader("s3://bucket/models/llama"))
"""

from dcp_core.huggingface.reader import HuggingFaceStorageReader

__all__ = ["HuggingFaceStorageReader"]
