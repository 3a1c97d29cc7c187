"""Our side of `dpo_speed.py`: MODEL DATA OUT [FLAG VALUE ...]. Runs the command line, then says how long training took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

model, data, out, *more = sys.argv[1:]
words = {
    "rlhf_type": "dpo",
    "model": model,
    "dataset": data,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": 1e-5,
    "beta": 0.1,
    "lora_rank": 8,
    "lora_alpha": 32,
    "target_modules": "all-linear",
    "max_length": 512,
    "logging_steps": 1,
    "output_dir": out,
    "save_strategy": "no",
    "use_cpu": "true",
}
command = [sys.executable, "-m", "swift_core", "rlhf", *(part for key, value in words.items() for part in (f"--{key}", str(value))), *more]
process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
assert process.stdout is not None
for line in process.stdout:
    print(line, end="", flush=True)
if process.wait():
    sys.exit(process.returncode)
log = next(Path(out).glob("*/logging.jsonl")).read_text(encoding="utf-8").splitlines()
print("train_runtime:", [json.loads(line) for line in log if "elapsed_seconds" in line][-1]["elapsed_seconds"])
