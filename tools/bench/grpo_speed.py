"""GRPO with LoRA: swift against ms-swift and TRL, in alternating turns, with rollouts in the training process.

Each turn is a fresh process on the same prompts, model folder and settings: 4 prompts x 8 answers of at most 64 tokens a step. Speed
is answers a second over all steps but the first, which builds what later ones keep. Reported are medians over the turns and their ratios.

    python tools/bench/grpo_speed.py --model FOLDER --data PROMPTS.jsonl --turns 3

PROMPTS.jsonl has `{"messages": [...], "solution": "..."}` rows; `--prompt-tokens 512` fills up the prompts to about that many tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sft_speed import environment_of

PEERS = Path(__file__).parent / "peers"
ANSWERS = 32


@dataclass(frozen=True, slots=True)
class Turn:
    """What one run of one side came to.

    Attributes:
        rate: answers a second.
        rollout: seconds of writing and rewarding answers in a step, where the side reports them, else 0.
        peak: peak resident memory in GiB.
        rewards: mean reward of each step.
    """

    rate: float
    rollout: float
    peak: float
    rewards: list[float]


def run(command: Sequence[str], out: Path, *, threads: int) -> Turn:
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
    printed_to = out.with_suffix(".txt")
    with printed_to.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{printed_to.read_text(errors='replace')[-3000:]}")
    steps = [json.loads(line) for line in next(out.rglob("steps.jsonl")).read_text(encoding="utf-8").splitlines()]
    seconds = [step["seconds"] for step in steps][1:]
    rollout = [step.get("rollout_seconds", 0.0) for step in steps][1:]
    return Turn(
        ANSWERS * len(seconds) / sum(seconds),
        statistics.mean(rollout),
        usage.ru_maxrss / 2**20,
        [step["reward"] for step in steps if step.get("reward") is not None],
    )


def swift_command(args: argparse.Namespace, data: Path, out: Path) -> list[str]:
    """Return our own run."""
    more = [part for word in args.swift_flags for part in word.split("=", 1)]
    return [sys.executable, str(PEERS / "swift_grpo.py"), str(args.model), str(data), str(out), str(args.steps), *more]


def trl_command(args: argparse.Namespace, data: Path, out: Path) -> list[str]:
    """Return TRL's run."""
    return [args.trl_python, str(PEERS / "trl_grpo.py"), str(args.model), str(data), str(out), str(args.steps)]


def ms_swift_command(args: argparse.Namespace, data: Path, out: Path) -> list[str]:
    """Return ms-swift's run."""
    return [args.ms_swift_python, str(PEERS / "ms_swift_grpo.py"), str(args.model), str(data), str(out), str(args.steps)]


SIDES = {"swift": swift_command, "ms-swift 4.6": ms_swift_command, "TRL 1.16": trl_command}


def prompts(source: Path, target: Path, tokens: int | None) -> Path:
    """Return the prompts, with a text before each question that fills it up to about so many tokens."""
    if tokens is None:
        return source
    words = "The following question comes from a long list of questions that have all been asked before. "
    lines: list[str] = []
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        turn = row["messages"][-1]
        turn["content"] = words * max(0, round((tokens - 40) / 17)) + turn["content"]
        lines.append(json.dumps(row, ensure_ascii=False))
    target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return target


def report(turns: dict[str, list[Turn]]) -> None:
    """Print medians and ratios."""
    print(f"{'':14} {'answers/s':>10} {'rollout s':>10} {'peak GiB':>9} {'last reward':>12}   turns (answers/s)")
    for name, found in turns.items():
        rate, rollout, peak = (statistics.median(getattr(turn, key) for turn in found) for key in ("rate", "rollout", "peak"))
        each = ", ".join(f"{turn.rate:.2f}" for turn in found)
        print(f"{name:14} {rate:10.2f} {rollout:10.2f} {peak:9.2f} {found[0].rewards[-1]:12.3f}   {each}")
    if "swift" not in turns:
        return
    for name, found in turns.items():
        if name != "swift":
            rate, peak = (
                statistics.median(getattr(turn, key) for turn in turns["swift"]) / statistics.median(getattr(turn, key) for turn in found)
                for key in ("rate", "peak")
            )
            print(f"swift / {name}: {rate:.2f} x answers/s, {peak:.2f} x memory")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model in safetensors")
    parser.add_argument("--data", type=Path, required=True, help='jsonl file of {"messages": [...], "solution": "..."}')
    parser.add_argument("--prompt-tokens", type=int, help="fill prompts up to about so many tokens")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--swift-flags", nargs="*", default=[], help="further settings of swift, as --name=value")
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
        data = prompts(args.data, folder / "prompts.jsonl", args.prompt_tokens)
        turns: dict[str, list[Turn]] = {side: [] for side in args.sides}
        for number in range(args.turns):
            for side in args.sides:
                out = folder / f"{side[:3]}-{number}"
                turns[side].append(run(SIDES[side](args, data.resolve(), out), out, threads=args.threads))
                print(f"turn {number + 1} of {side}: {turns[side][-1].rate:.2f} answers/s", file=sys.stderr)
    report(turns)


if __name__ == "__main__":
    main()
