"""Peak memory and speed of tuners and optimizers, each in a process of its own over the same data.

    python tools/bench/tuner_memory.py --model DIR --dataset rows.json [--cases 'full; lora; galore'] [--rounds 2] [--output table.md]

Memory is what the process holds at its peak while it trains, above what it held before the model was loaded: its own memory,
looked at every few milliseconds, without pages of files. Weights are copied out of their file first, and large blocks go back to
the system at once, so that it is the memory of tensors and not of page cache and allocator. `state` is the size of the
optimizer's tensors after the last step. Speed leaves the first step out. With several rounds the cases take turns and the
median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, checkpointing": {"gradient_checkpointing": True},
    "full, every_2": {"gradient_checkpointing": True, "gradient_checkpointing_policy": "every_2"},
    "full, adamw_8bit": {"optim": "adamw_8bit"},
    "full, adafactor": {"optim": "adafactor"},
    "full, lion": {"optim": "lion"},
    "full, muon": {"optim": "muon"},
    "full, sgd": {"optim": "sgd"},
    "full, schedule_free_adamw": {"optim": "schedule_free_adamw"},
    "galore": {"optim": "galore_adamw"},
    "galore, per parameter": {"optim": "galore_adamw", "galore_optim_per_parameter": True},
    "q-galore, per parameter": {"optim": "galore_adamw_8bit", "galore_quantization": True, "galore_optim_per_parameter": True},
    "apollo": {"optim": "apollo_adamw"},
    "apollo_mini": {"optim": "apollo_mini"},
    "lisa, 2 layers": {"lisa_activated_layers": 2},
    "lora": {"tuner_type": "lora"},
    "lora, checkpointing": {"tuner_type": "lora", "gradient_checkpointing": True},
    "qlora, bnb 4 bits": {"tuner_type": "lora", "quant_method": "bnb", "quant_bits": "4"},
    "qlora, bnb 8 bits": {"tuner_type": "lora", "quant_method": "bnb", "quant_bits": "8"},
}
# (less, more): what the papers say of memory.
DIRECTIONS = (
    ("full, checkpointing", "full"),
    ("full, every_2", "full"),
    ("full, adamw_8bit", "full"),
    ("full, adafactor", "full"),
    ("galore", "full"),
    ("galore, per parameter", "galore"),
    ("q-galore, per parameter", "galore, per parameter"),
    ("apollo", "full"),
    ("apollo_mini", "apollo"),
    ("lisa, 2 layers", "full"),
    ("lora", "full"),
    ("lora, checkpointing", "lora"),
    ("qlora, bnb 4 bits", "lora"),
    ("qlora, bnb 4 bits", "qlora, bnb 8 bits"),
)
MIB = 2**20


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description="Peak memory and speed of tuners and optimizers.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--cases", default="", help="names of the cases to run, separated by semicolons")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--output", default="")
    options = parser.parse_args()
    if "MALLOC_ARENA_MAX" not in os.environ:
        # Blocks from 64 KiB on come from the system and go back to it at once; the allocator reads this at its start only.
        limits = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **limits})
    import_libraries()
    names = [name.strip() for name in options.cases.split(";") if name.strip()] or list(CASES)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            result = in_child(name, options)
            print(f"{name}: {result}", file=sys.stderr, flush=True)
            if result is not None:
                found[name].append(result)
            text = table(found)
            if options.output:
                Path(options.output).write_text(text, encoding="utf-8")
    print(table(found))


def import_libraries() -> None:
    """Import what every case needs, once: a case is a fork of this process."""
    import importlib

    for name in ("swift_core.tasks.sft", "swift_core.train.trainer", "swift_tuners.methods.lora", "swift_tuners.optimizers.galore"):
        importlib.import_module(name)


def in_child(name: str, options: argparse.Namespace) -> dict[str, float] | None:
    """Run one case in a process of its own; None when it fails."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                Path(answer.name).write_text(json.dumps(measure(options, CASES[name])), encoding="utf-8")
                status = 0
            except BaseException:  # noqa: BLE001  a child must not go on as its parent
                traceback.print_exc()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        return json.loads(Path(answer.name).read_text(encoding="utf-8")) if status == 0 else None


def measure(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, float]:
    """Train a few steps and return MiB and samples a second."""
    from swift_core.config.training import SftConfig
    from swift_core.tasks.sft import build_model, prepare
    from swift_core.train.trainer import Trainer
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        times: list[float]

        def on_train_begin(self, *args: Any, **context: Any) -> None:
            self.times = []

        def on_step_end(self, *args: Any, **context: Any) -> None:
            self.times.append(time.monotonic())

    with tempfile.TemporaryDirectory() as folder:
        values: dict[str, Any] = {
            "model": options.model,
            "dataset": [options.dataset],
            "tuner_type": "full",
            "max_length": options.max_length,
            "max_steps": options.steps,
            "per_device_train_batch_size": options.batch,
            "gradient_accumulation_steps": 1,
            "save_strategy": "no",
            "report_to": ["none"],
            "disable_tqdm": True,
            "use_cpu": True,
            "output_dir": folder,
            **settings,
        }
        config = SftConfig(**values)
        prepared = prepare(config)
        before = held("RssAnon")
        model, tuner = build_model(config, prepared.folder)
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.clone()
        clock, watch = Clock(), Watch()
        watch.start()
        trainer = Trainer(model, config, prepared.train, tokenizer=prepared.tokenizer, tuner=tuner, callbacks=[clock])
        trainer.train()
        between = [after - earlier for earlier, after in zip(clock.times, clock.times[1:], strict=False)]
        return {
            "peak": round(watch.finish() - before, 1),
            "state": round(tensor_bytes(trainer.optimizer.state_dict()) / MIB, 1),
            "samples_per_second": round(options.batch / statistics.median(between), 3),
        }


class Watch(threading.Thread):
    """Looks at the process's own memory every few milliseconds and remembers the most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self._most = 0.0

    def run(self) -> None:
        """Look until told to stop."""
        while not self._over.wait(0.003):
            self._most = max(self._most, held("RssAnon"))

    def finish(self) -> float:
        """Stop and return the most that was seen, in MiB."""
        self._over.set()
        self.join()
        return self._most


def held(field: str) -> float:
    """Return a field of this process's memory in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the system does not say {field}")


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested dicts and lists."""
    if hasattr(value, "element_size"):
        return int(value.numel() * value.element_size())
    inside = cast(Iterable[Any], value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ())
    return sum(tensor_bytes(one) for one in inside)


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return the results as a Markdown table, with the directions below it."""
    medians = {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items() if runs}
    lines = ["| case | peak MiB | optimizer state MiB | samples/s |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {row['peak']:.0f} | {row['state']:.1f} | {row['samples_per_second']:.2f} |" for name, row in medians.items()]
    lines.append("")
    for less, more in DIRECTIONS:
        if less in medians and more in medians:
            low, high = medians[less]["peak"], medians[more]["peak"]
            lines.append(f"- {less} below {more}: {'yes' if low < high else 'NO'} ({low:.0f} and {high:.0f} MiB)")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
