"""LoRA fine-tuning of one model on one file: swift against ms-swift and TRL, in alternating turns.

Each turn is a fresh process on the same rows, model folder and settings: speed and memory are those of the whole command, loading
included where it says so. Threads are pinned, one process at a time runs. Reported are medians over the turns and their ratios.

    python tools/bench/sft_speed.py --model FOLDER --data ROWS.jsonl --turns 3
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
LOSS = re.compile(r"""['"]?\bloss['"]?[ :=]+['"]?([0-9.]+)""")
RUNTIME = re.compile(r"""train_runtime['"]?[ :=]+['"]?([0-9.]+)""")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one run of one side came to.

    Attributes:
        seconds: of training, as the side itself reports them.
        first_step: seconds from the command to the first logged step.
        peak: peak resident memory in GiB.
        losses: those logged, in order.
    """

    seconds: float
    first_step: float
    peak: float
    losses: list[float]


def run(command: Sequence[str], *, threads: int) -> Turn:
    """Run one side to its end.

    Raises:
        RuntimeError: when it fails, with the end of what it printed.
    """
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
        "OMP_PROC_BIND": "true",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "USE_HF": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None
    first, printed = 0.0, ""
    for line in process.stdout:
        printed += line
        if not first and LOSS.search(line) and "mean loss" not in line:
            first = time.monotonic() - started
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    runtime = RUNTIME.findall(printed)
    if process.returncode or not runtime:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{printed[-3000:]}")
    losses = [float(value) for value in LOSS.findall(re.sub(r"(train|mean)_?\s?loss", "", printed))]
    return Turn(float(runtime[-1]), first, usage.ru_maxrss / 2**20, losses)


def swift_command(args: argparse.Namespace, out: Path) -> list[str]:
    """Return our own run; `swift_run.py` prints `train_runtime` after it."""
    dtype = ["--torch_dtype", args.dtype] if args.dtype else []
    return [sys.executable, str(HERE / "peers" / "swift_sft.py"), str(args.model), str(args.data), str(out), *dtype]


def trl_command(args: argparse.Namespace, out: Path) -> list[str]:
    """Return TRL's run."""
    return [args.trl_python, str(HERE / "peers" / "trl_sft.py"), str(args.model), str(args.data), str(out)]


def ms_swift_command(args: argparse.Namespace, out: Path) -> list[str]:
    """Return ms-swift's run."""
    words = {
        "model": args.model,
        "model_type": "llama",
        "template": "chatml",
        "tuner_type": "lora",
        "dataset": args.data,
        "torch_dtype": "float32",
        "use_cpu": "true",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "learning_rate": 1e-4,
        "lora_rank": 8,
        "lora_alpha": 32,
        "lora_dropout": 0,
        "target_modules": "all-linear",
        "max_length": 1024,
        "logging_steps": 1,
        "output_dir": out,
        "split_dataset_ratio": 0,
        "save_strategy": "no",
        "gradient_checkpointing": "false",
    }
    swift = Path(args.ms_swift_python).with_name("swift")
    return [str(swift), "sft", *(part for key, value in words.items() for part in (f"--{key}", str(value)))]


SIDES = {"swift": swift_command, "ms-swift 4.6": ms_swift_command, "TRL 1.16": trl_command}


def environment_of(python: str | None, packages: Sequence[str], folder: Path) -> str:
    """Return the Python of a peer's environment, made with uv where none is given."""
    if python:
        return python
    subprocess.run(["uv", "venv", "-q", str(folder)], check=True)
    made = folder / "bin" / "python"
    subprocess.run(["uv", "pip", "install", "-q", "--python", str(made), *packages], check=True)
    return str(made)


def report(turns: dict[str, list[Turn]], tokens: int) -> None:
    """Print medians and ratios."""
    ours = turns["swift"]
    print(f"{'':14} {'tokens/s':>10} {'peak GiB':>9} {'to step 1':>10} {'first loss':>11} {'last loss':>10}   turns (s)")
    for name, found in turns.items():
        seconds = statistics.median(turn.seconds for turn in found)
        values = [statistics.median(getattr(turn, key) for turn in found) for key in ("peak", "first_step")]
        each = ", ".join(f"{turn.seconds:.0f}" for turn in found)
        first, last = found[0].losses[0], found[0].losses[-1]
        print(f"{name:14} {tokens / seconds:10.0f} {values[0]:9.2f} {values[1]:9.1f}s {first:11.4f} {last:10.4f}   {each}")
    for name, found in turns.items():
        if name == "swift":
            continue
        speed, peak, start = (
            statistics.median(getattr(turn, key) for turn in found) / statistics.median(getattr(turn, key) for turn in ours)
            for key in ("seconds", "peak", "first_step")
        )
        print(f"swift / {name}: {speed:.2f} x tokens/s, {1 / peak:.2f} x memory, {1 / start:.2f} x time to the first step")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model in safetensors")
    parser.add_argument("--data", type=Path, required=True, help='jsonl file of {"messages": [...]}')
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", help="number type of swift's weights; default: as swift chooses")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--ms-swift-python", help="Python with ms-swift 4.6; default: an environment made with uv")
    parser.add_argument("--trl-python", help="Python with TRL 1.16; default: an environment made with uv")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "ms-swift 4.6" in args.sides:
            packages = ("torch==2.13.0", "ms-swift==4.6.0", "msgspec")
            args.ms_swift_python = environment_of(args.ms_swift_python, packages, folder / "ms-swift")
        if "TRL 1.16" in args.sides:
            args.trl_python = environment_of(args.trl_python, ("torch==2.13.0", "trl==1.16.0", "peft"), folder / "trl")
        turns: dict[str, list[Turn]] = {side: [] for side in args.sides}
        for number in range(args.turns):
            for side in args.sides:
                turns[side].append(run(SIDES[side](args, folder / f"{side[:3]}-{number}"), threads=args.threads))
                print(f"turn {number + 1} of {side}: {turns[side][-1].seconds:.1f} s", file=sys.stderr)
        tokens = json.loads((folder / "swi-0" / "tokens.json").read_text(encoding="utf-8"))
    report(turns, tokens)


if __name__ == "__main__":
    main()
