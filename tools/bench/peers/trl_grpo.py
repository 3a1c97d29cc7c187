"""TRL's side of `grpo_speed.py`: MODEL DATA OUT STEPS."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset
from grpo_reward import first_number
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

model, data, out, steps = sys.argv[1:5]


class Clock(TrainerCallback):
    """Writes down when each step ends."""

    def __init__(self) -> None:
        self.before = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **context: Any) -> None:
        """Write a line for a step."""
        if "reward" not in (logs or {}):
            return
        now = time.monotonic()
        Path(out).mkdir(parents=True, exist_ok=True)
        with Path(out, "steps.jsonl").open("a") as file:
            file.write(json.dumps({"seconds": now - self.before, "reward": float(logs["reward"])}) + "\n")
        self.before = now


rows = load_dataset("json", data_files=data, split="train").map(lambda row: {"prompt": row["messages"]}, remove_columns=["messages"])
settings = GRPOConfig(
    output_dir=out,
    per_device_train_batch_size=32,
    gradient_accumulation_steps=1,
    num_generations=8,
    max_completion_length=64,
    max_steps=int(steps),
    learning_rate=1e-5,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    beta=0.0,
    temperature=1.0,
)
lora = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear")
GRPOTrainer(model=model, args=settings, train_dataset=rows, reward_funcs=first_number, peft_config=lora, callbacks=[Clock()]).train()
