"""Moving bytes under limits: workers, retries, back-off, deadlines, tensor memory."""

from dcp_core.transfer.memory import tensor_bytes
from dcp_core.transfer.session import Transfer

__all__ = ["Transfer", "tensor_bytes"]
