"""``python -m torchtitan.train`` for a machine without an accelerator, to try things out on.

TorchTitan's trainer asks for an accelerator in all it does, and imports triton, of which PyTorch for CPUs has
none. Nothing of the trainer, its loop or its checkpoints is changed here.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout


class _Accelerator:
    """``torch.cpu``, and what TorchTitan's metrics want to know of an accelerator."""

    current_device = staticmethod(lambda: 0)
    get_device_name = staticmethod(lambda *_: "CPU")
    get_device_properties = staticmethod(lambda *_: SimpleNamespace(total_memory=1 << 40))
    memory_stats = staticmethod(lambda *_: {})
    reset_peak_memory_stats = staticmethod(lambda *_: None)
    empty_cache = staticmethod(lambda: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)


class _Triton(ModuleType):
    """Lets modules with kernels be imported; none runs on a CPU."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Triton(name)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self


def main() -> None:
    """Train, as the command line says."""
    from torchtitan.tools import utils

    utils.device_type, utils.device_module = "cpu", _Accelerator()
    # torch looks for triton as well, and must not find what stands in for it
    torch.compile(torch.sin)
    if not hasattr(dist, "set_timeout"):
        # TorchTitan 0.3.0 takes the name that it has after PyTorch 2.13
        dist.set_timeout = _set_pg_timeout
    stand_ins = {name: _Triton(name) for name in ("triton", "triton.language")}
    sys.modules.update(stand_ins)
    from torchtitan.train import main as train

    for name in stand_ins:
        del sys.modules[name]
    train()


if __name__ == "__main__":
    main()
