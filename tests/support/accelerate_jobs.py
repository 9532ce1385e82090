"""What ranks run with Accelerate and transformers: they take the group that there is."""

from __future__ import annotations

import gc
import os
import random
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, set_seed

from dcp_core.frameworks.accelerate import CloudAccelerator
from dcp_core.frameworks.transformers import CloudTrainer


def fresh() -> None:
    """Forget what Accelerate keeps for a whole process, the kind of training among it."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_"))]:
        del os.environ[name]
    gc.collect()
    warnings.simplefilter("ignore")
    # so that it sees the ranks that there are
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")


def shard_on_cpu() -> None:
    """Accelerate takes FSDP for something that only GPUs do, and trains with DDP on CPUs, without a word."""
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


class Counter:
    """A registered object."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class Job:
    """A training of a few steps."""

    def __init__(self, kind: str, made: type[Accelerator] = CloudAccelerator, **options: Any) -> None:
        fresh()
        plugin = None
        if kind == "fsdp":
            shard_on_cpu()
            plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2, state_dict_type="SHARDED_STATE_DICT", auto_wrap_policy="no_wrap"
            )
        self.accelerator = made(cpu=True, fsdp_plugin=plugin, **options)
        torch.manual_seed(7)
        net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        rows = list(torch.arange(12 * 6).reshape(12, 6) / 10)
        found = self.accelerator.prepare(net, optimizer, schedule, DataLoader(rows, batch_size=2))
        self.net, self.optimizer, self.schedule, self.data = found
        assert self.accelerator.distributed_type == (
            DistributedType.FSDP if kind == "fsdp" else PartialState().distributed_type
        )
        self.counter = Counter()
        self.accelerator.register_for_checkpointing(self.counter)
        # each rank draws its own
        torch.manual_seed(self.accelerator.process_index)
        random.seed(self.accelerator.process_index)

    def train(self, steps: int) -> list[float]:
        """The losses; dropout makes them depend on random numbers."""
        losses = []
        for batch, _ in zip(self.data, range(steps), strict=False):
            loss = self.net(batch * random.random()).square().mean()
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.counter.count += 1
            losses.append(loss.item())
        return losses


def save_and_go_on(kind: str, url: str) -> list[float]:
    """Train, save, and train on: the losses after the save."""
    job = Job(kind)
    job.train(3)
    job.accelerator.save_state(url)
    return job.train(3)


def load_and_go_on(kind: str, url: str) -> tuple[list[float], int, float]:
    job = Job(kind)
    job.train(1)
    job.accelerator.load_state(url)
    count, rate = job.counter.count, job.schedule.get_last_lr()[0]
    return job.train(3), count, rate


def load_only(kind: str, url: str) -> tuple[dict[str, torch.Tensor], int]:
    """On one rank, on which all tensors are whole."""
    job = Job(kind)
    job.train(1)
    job.accelerator.load_state(url)
    net = job.accelerator.unwrap_model(job.net)
    values = {name: getattr(value, "_local_tensor", value) for name, value in net.state_dict().items()}
    return {name: value.clone() for name, value in values.items()}, job.counter.count


def save_to_folder(kind: str, folder: str) -> list[str]:
    job = Job(kind)
    job.train(1)
    job.accelerator.save_state(folder)
    job.accelerator.wait_for_everyone()
    job.accelerator.load_state(folder)
    return sorted(path.name for path in Path(folder).iterdir())


def with_a_hook(url: str) -> None:
    job = Job("plain")
    job.accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.pop())
    job.accelerator.save_state(url)


def trainer(kind: str, folder: str, **options: Any) -> CloudTrainer:
    """A Trainer of a small language model, which saves every second step."""
    fresh()
    url = options.pop("checkpoint_url")
    arguments: dict[str, Any] = {
        "output_dir": folder,
        "use_cpu": True,
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "save_steps": 2,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "learning_rate": 0.01,
        **options,
    }
    if kind == "fsdp":
        arguments |= {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}
    settings = TrainingArguments(**arguments)
    if kind == "fsdp":
        # they look for devices first, and forget what there was
        assert settings.device.type == "cpu"
        shard_on_cpu()
    set_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=32, attention_dropout=0.1, **sizes)
    rows = [
        {"input_ids": (torch.arange(8) + n) % 32, "labels": (torch.arange(8) + n) % 32} for n in range(16)
    ]
    made = CloudTrainer(
        LlamaForCausalLM(config),
        settings,
        train_dataset=rows,
        eval_dataset=rows,
        checkpoint_url=url,
        storage_options={"concurrency": 4},
    )
    assert made.is_fsdp_enabled == (kind == "fsdp")
    return made


def train(kind: str, folder: str, resume: Any = None, **options: Any) -> dict[int, float]:
    """The losses by step that were logged."""
    made = trainer(kind, folder, **options)
    made.train(resume)
    return {entry["step"]: entry["loss"] for entry in made.state.log_history if "loss" in entry}
