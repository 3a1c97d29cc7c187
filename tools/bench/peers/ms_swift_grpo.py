"""ms-swift's side of `grpo_speed.py`: MODEL DATA OUT STEPS."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

PLUGIN = """
import sys
sys.path.insert(0, {folder!r})
from grpo_reward import first_number
from swift.rewards import ORM, orms


class FirstNumber(ORM):
    def __call__(self, completions, solution, **columns):
        return first_number(completions, solution)


orms["first_number"] = FirstNumber
"""

model, data, out, steps = sys.argv[1:5]
Path(out).mkdir(parents=True, exist_ok=True)
plugin = Path(out, "reward_plugin.py")
plugin.write_text(PLUGIN.format(folder=str(Path(__file__).parent.resolve())), encoding="utf-8")
words = {
    "model": model,
    "model_type": "llama",
    "template": "chatml",
    "tuner_type": "lora",
    "dataset": data,
    "torch_dtype": "float32",
    "use_cpu": "true",
    "max_steps": steps,
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-5,
    "lora_rank": 8,
    "lora_alpha": 32,
    "lora_dropout": 0,
    "target_modules": "all-linear",
    "max_length": 1024,
    "max_completion_length": 64,
    "num_generations": 8,
    "beta": 0,
    "temperature": 1.0,
    "external_plugins": plugin,
    "reward_funcs": "first_number",
    "logging_steps": 1,
    "output_dir": out,
    "split_dataset_ratio": 0,
    "save_strategy": "no",
    "gradient_checkpointing": "false",
}
swift = Path(sys.executable).with_name("swift")
command = [str(swift), "rlhf", "--rlhf_type", "grpo", *(part for key, value in words.items() for part in (f"--{key}", str(value)))]
process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
assert process.stdout is not None
before = time.monotonic()
done: list[dict[str, float]] = []
for line in process.stdout:
    print(line, end="", flush=True)
    # One line for each step, as a dictionary whose numbers may be texts.
    found = re.search(r"""['"]reward['"]: ['"]?([-0-9.e]+)""", line)
    if found:
        now = time.monotonic()
        done.append({"seconds": now - before, "reward": float(found[1])})
        before = now
if process.wait():
    sys.exit(process.returncode)
Path(out, "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in done), encoding="utf-8")
