"""A Llama of one layer that TorchTitan trains on a text of Python's library, in processes without a GPU.

``tiny`` is what ``--config`` names, as a function in any ``config_registry``. What is not as for GPUs is
marked "CPU".
"""

from __future__ import annotations

import argparse
import inspect
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import IterableDataset
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.llama3 import model_registry, parallelize_llama
from torchtitan.trainer import Trainer

from dcp_core.frameworks.torchtitan import CloudCheckpointManager

BATCH = 2
#: The step in which this process is lost, to show what comes then.
KILLED_IN = int(os.environ.get("KILLED_IN", "0"))


def tiny() -> Trainer.Config:
    spec = model_registry("debugmodel")
    spec.model.layers = spec.model.layers[:1]
    spec.model.layers[0].attention.inner_attention = ScaledDotProductAttention.Config()  # CPU
    spec.parallelize_fn = parallelize
    return Trainer.Config(
        model_spec=spec,
        loss=CrossEntropyLoss.Config(global_vocab_size=spec.model.vocab_size),
        tokenizer=ByteTokenizer.Config(),
        dataloader=ByteLoader.Config(),
        optimizer=default_adamw(lr=1e-3),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        training=TrainingConfig(
            local_batch_size=BATCH, seq_len=64, steps=16, disable_cuda_graphs=True
        ),  # CPU
        parallelism=ParallelismConfig(spmd_backend="partial_dtensor"),  # CPU
        activation_checkpoint=None,
        metrics=MetricsProcessor.Config(log_freq=1, disable_color_printing=True),
        debug=DebugConfig(seed=0),
        checkpoint=CloudCheckpointManager.Config(
            enable=True,
            folder=os.environ["RUN"],
            interval=4,
            keep_latest_k=2,
            async_mode="async",
            last_save_in_hf=True,
        ),
    )


def parallelize(model: Any, **how: Any) -> Any:
    """As Llama is, with the one kind of sum that gloo has."""
    model = parallelize_llama(model, **how)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # CPU
    return model


class Text(IterableDataset[Any]):
    """Windows of a text, one after another, every rank its own."""

    def __init__(self, length: int, rank: int, ranks: int) -> None:
        self.tokens = torch.tensor(list(inspect.getsource(argparse).encode()))
        self.length, self.rank, self.ranks = length, rank, ranks
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            if self.position == (KILLED_IN - 1) * BATCH:
                os.kill(os.getpid(), signal.SIGKILL)
            number = self.position * self.ranks + self.rank
            start = number * self.length % (len(self.tokens) - self.length)
            window = self.tokens[start : start + self.length + 1]
            self.position += 1
            yield {"input": window[:-1]}, window[1:]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.position = state_dict["position"]


class ByteLoader(ParallelAwareDataloader):
    @dataclass(kw_only=True, slots=True)
    class Config(ParallelAwareDataloader.Config):
        pass

    def __init__(self, config: Config, *, dp_world_size: int, dp_rank: int, **how: Any) -> None:
        super().__init__(
            Text(how["seq_len"], dp_rank, dp_world_size),
            dp_rank,
            dp_world_size,
            num_workers=config.num_workers,
            batch_size=how["local_batch_size"],
            snapshot_every_n_steps=how["snapshot_every_n_steps"],
        )


class ByteTokenizer(BaseTokenizer):
    """A token a byte."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, **_: Any) -> None:
        super().__init__()
        self.config = config

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode()

    def get_vocab_size(self) -> int:
        return 256
