"""Train with the Trainer of transformers, save at a URL, and go on from the newest whole checkpoint.

::

    torchrun --nproc-per-node=2 trainer.py s3://bucket/run

Kill it at any time, also while it saves, and start it again: it goes on where the last whole checkpoint was
made. The last checkpoints are kept. With GPUs the model is sharded over all of them (FSDP2).
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments, set_seed

from dcp_core.frameworks.newest import newest_checkpoint
from dcp_core.frameworks.transformers import CloudTrainer


class Shown(TrainerCallback):
    """Prints the loss of each step."""

    def on_log(self, *given: Any, logs: dict[str, Any], **_: Any) -> None:
        _, state, _ = given
        if state.is_world_process_zero and "loss" in logs:
            print(f"step {state.global_step}: loss {logs['loss']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train at a URL.")
    parser.add_argument("url", help="the folder of the run, such as s3://bucket/run")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--keep", type=int, default=2, help="how many checkpoints to keep")
    given = parser.parse_args()
    given.url = given.url.rstrip("/")

    gpus = torch.cuda.is_available()
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, attention_dropout=0.1, **sizes))
    rows = [torch.arange(start, start + 16) % 64 for start in range(64)]
    trainer = CloudTrainer(
        model,
        TrainingArguments(
            # for logs: no checkpoint is written there
            output_dir=tempfile.mkdtemp(),
            use_cpu=not gpus,
            fsdp=gpus or None,
            fsdp_config={"state_dict_type": "SHARDED_STATE_DICT"} if gpus else None,
            max_steps=given.steps,
            per_device_train_batch_size=4,
            learning_rate=0.01,
            logging_steps=1,
            save_steps=2,
            save_total_limit=given.keep,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[Shown()],
        checkpoint_url=given.url,
    )
    newest = newest_checkpoint(given.url)
    if trainer.is_world_process_zero():
        print(f"going on from {newest}", flush=True)
    trainer.train(resume_from_checkpoint=newest)


if __name__ == "__main__":
    main()
