"""Our side of `grpo_speed.py`: MODEL DATA OUT STEPS [FLAG VALUE ...]."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

model, data, out, steps, *more = sys.argv[1:]
words = {
    "model": model,
    "dataset": data,
    "reward_funcs": f"{Path(__file__).with_name('grpo_reward.py')}:first_number",
    "max_steps": steps,
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "num_generations": 8,
    "max_completion_length": 64,
    "learning_rate": 1e-5,
    "lora_rank": 8,
    "lora_alpha": 32,
    "lora_dropout": 0,
    "target_modules": "all-linear",
    "beta": 0,
    "temperature": 1.0,
    "logging_steps": 1,
    "output_dir": out,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": "true",
}
flags = [part for key, value in words.items() for part in (f"--{key}", str(value))]
subprocess.run([sys.executable, "-m", "swift_core", "rlhf", "--rlhf_type", "grpo", *flags, *more], check=True)
log = next(Path(out).glob("*/logging.jsonl"))
lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
ends = [0.0, *(line["elapsed_seconds"] for line in lines)]
with log.with_name("steps.jsonl").open("w") as file:
    for line, before, after in zip(lines, ends, ends[1:], strict=False):
        file.write(json.dumps({"seconds": after - before, "rollout_seconds": line["rollout_seconds"], "reward": line["reward"]}) + "\n")
