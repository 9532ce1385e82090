"""Moving bytes under limits: workers, retries, back-off, deadlines, tensor memory.

::

    transfer.py   the limits of one save or load
    workers.py    threads that do one thing to many tasks
    throttle.py   how many requests may be in flight
    retry.py      whether to try again, and when
    outage.py     what the log says meanwhile
    stop.py       the end before its time
    watch.py      threads for the deadline and the other ranks
    peers.py      the other ranks
"""

from dcp_core.runtime.tensor_memory import tensor_bytes
from dcp_core.transfer.peers import Peers, forget_failures, with_channel
from dcp_core.transfer.transfer import Transfer

__all__ = ["Peers", "Transfer", "forget_failures", "tensor_bytes", "with_channel"]
