"""The training script of the demo, as torchrun starts it.

    torchrun --nproc-per-node 4 train.py --steps 8 --save s3://demo/run --save-at 5 --report out.json
    torchrun --nproc-per-node 2 train.py --steps 8 --load s3://demo/run/step-5 --report out.json

Everything about checkpoints is in :func:`save` and :func:`load`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from corpus import corpus, global_batch
from digests import digests
from model import VOCABULARY, Transformer
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from dcp_core import CloudStorageReader, CloudStorageWriter

GLOBAL_BATCH = 8


class Training(Stateful):
    """Everything that has to come back for training to go on as if nothing had happened."""

    def __init__(self, total_steps: int) -> None:
        torch.manual_seed(0)
        random.seed(0)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        self.model = Transformer()
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = AdamW(self.model.parameters(), lr=3e-4)
        self.schedule = CosineAnnealingLR(self.optimizer, total_steps)
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "python_rng": random.getstate(),
            "step": self.step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )
        self.schedule.load_state_dict(state_dict["schedule"])
        torch.set_rng_state(state_dict["torch_rng"])
        random.setstate(state_dict["python_rng"])
        self.step = state_dict["step"]

    def train_step(self, sources: list[torch.Tensor]) -> float:
        """One step on the same global batch whatever the number of ranks; returns its mean loss."""
        batch = global_batch(sources, GLOBAL_BATCH).chunk(dist.get_world_size())[dist.get_rank()]
        logits = self.model(batch[:, :-1])
        loss = nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.step += 1
        mean = loss.detach().double()
        dist.all_reduce(mean)
        return float(mean) / dist.get_world_size()


def save(training: Training, url: str) -> None:
    dcp.save({"training": training}, storage_writer=CloudStorageWriter(url))


def load(training: Training, url: str) -> None:
    dcp.load({"training": training}, storage_reader=CloudStorageReader(url))


def timed(work: Any, *arguments: Any) -> float:
    """Seconds from the first rank's start to the last one's end."""
    dist.barrier()
    started = time.perf_counter()
    work(*arguments)
    dist.barrier()
    return time.perf_counter() - started


def say(what: str) -> None:
    if dist.get_rank() == 0:
        print(what, flush=True)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, saving or loading on the way; returns what the conductor compares."""
    training = Training(arguments.steps)
    sources = corpus()
    report: dict[str, Any] = {"parameters": sum(p.numel() for p in training.model.parameters()), "losses": {}}
    if arguments.load:
        say(f"load {arguments.load}")
        report["seconds"] = timed(load, training, arguments.load)
        report["digests"] = digests(training.state_dict())
    while training.step < arguments.steps:
        loss = training.train_step(sources)
        report["losses"][training.step] = loss
        say(f"step {training.step} loss {loss:.4f}")
        if training.step == arguments.save_at:
            url = f"{arguments.save}/step-{training.step}"
            say(f"save {url}")
            report["digests"] = digests(training.state_dict())
            report["seconds"] = timed(save, training, url)
    return report


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save", help="URL to save below")
    parser.add_argument("--save-at", type=int, default=0, help="the step after which to save")
    parser.add_argument("--load", help="URL to go on from")
    parser.add_argument("--report", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    report = run(arguments)
    if dist.get_rank() == 0:
        arguments.report.write_text(json.dumps(report))
    dist.destroy_process_group()
    # Gloo's threads outlive the group, and abort the process if they release a tensor while the interpreter
    # shuts down (4 of 25 runs did). All work is done: leave without that shutdown.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
