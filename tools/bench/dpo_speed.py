"""DPO with LoRA on one file of pairs: swift against ms-swift and TRL, in alternating turns.

Each turn is a fresh process on the same rows, model folder and settings; threads are pinned, one process at a time runs. Rows whose
answers are longer than 512 tokens with their prompt are left out beforehand, so that no side cuts or drops any. Reported are
medians over the turns and their ratios.

    python tools/bench/dpo_speed.py --model FOLDER --data PAIRS.json --rows 64 --turns 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

from sft_speed import HERE, Turn, environment_of, run

LIMIT = 512


def short_pairs(source: Path, model: Path, target: Path, count: int) -> int:
    """Write the first pairs that are short enough as `{"messages", "rejected_response"}` rows and return how many there are."""
    import transformers

    tokenizer = cast(Any, transformers).AutoTokenizer.from_pretrained(model)
    text = source.read_text(encoding="utf-8")
    values: list[dict[str, Any]] = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    kept: list[dict[str, Any]] = []
    for value in values:
        if "conversations" in value:  # LLaMA-Factory's ShareGPT pairs
            roles = {"human": "user", "gpt": "assistant", "system": "system"}
            prompt = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in value["conversations"]]
            chosen, rejected = value["chosen"]["value"], value["rejected"]["value"]
        else:
            prompt, chosen, rejected = value["messages"][:-1], value["messages"][-1]["content"], value["rejected_response"]
        if not chosen.strip() or not rejected.strip() or chosen == rejected:
            continue
        both = [[*prompt, {"role": "assistant", "content": answer}] for answer in (chosen, rejected)]
        if max(len(tokenizer.apply_chat_template(one, return_dict=True)["input_ids"]) for one in both) <= LIMIT:
            kept.append({"messages": both[0], "rejected_response": rejected})
    target.write_text("".join(json.dumps(row) + "\n" for row in kept[:count]), encoding="utf-8")
    return len(kept[:count])


def swift_command(args: argparse.Namespace, rows: Path, out: Path) -> list[str]:
    """Return our own run."""
    dtype = ["--torch_dtype", args.dtype] if args.dtype else []
    return [sys.executable, str(HERE / "peers" / "swift_dpo.py"), str(args.model), str(rows), str(out), *dtype]


def trl_command(args: argparse.Namespace, rows: Path, out: Path) -> list[str]:
    """Return TRL's run."""
    return [args.trl_python, str(HERE / "peers" / "trl_dpo.py"), str(args.model), str(rows), str(out)]


def ms_swift_command(args: argparse.Namespace, rows: Path, out: Path) -> list[str]:
    """Return ms-swift's run."""
    words = {
        "rlhf_type": "dpo",
        "model": args.model,
        "model_type": "llama",
        "template": "chatml",
        "tuner_type": "lora",
        "dataset": rows,
        "torch_dtype": "float32",
        "use_cpu": "true",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "learning_rate": 1e-5,
        "beta": 0.1,
        "lora_rank": 8,
        "lora_alpha": 32,
        "lora_dropout": 0,
        "target_modules": "all-linear",
        "max_length": LIMIT,
        "logging_steps": 1,
        "output_dir": out,
        "split_dataset_ratio": 0,
        "save_strategy": "no",
        "gradient_checkpointing": "false",
    }
    swift = Path(args.ms_swift_python).with_name("swift")
    return [str(swift), "rlhf", *(part for key, value in words.items() for part in (f"--{key}", str(value)))]


SIDES = {"swift": swift_command, "ms-swift 4.6": ms_swift_command, "TRL 1.16": trl_command}


def report(turns: dict[str, list[Turn]], pairs: int) -> None:
    """Print medians and ratios."""

    def median(found: list[Turn], name: str) -> float:
        return statistics.median(getattr(turn, name) for turn in found)

    print(f"{'':14} {'pairs/s':>8} {'peak GiB':>9} {'to step 1':>10} {'first loss':>11} {'last loss':>10}   turns (s)")
    for name, found in turns.items():
        first, last = found[0].losses[0], found[0].losses[-1]
        each = ", ".join(f"{turn.seconds:.0f}" for turn in found)
        speed = pairs / median(found, "seconds")
        print(
            f"{name:14} {speed:8.2f} {median(found, 'peak'):9.2f} {median(found, 'first_step'):9.1f}s {first:11.4f} {last:10.4f}   {each}"
        )
    for name, found in turns.items():
        if name != "swift":
            speed, peak = (median(found, key) / median(turns["swift"], key) for key in ("seconds", "peak"))
            print(f"swift / {name}: {speed:.2f} x pairs/s, {1 / peak:.2f} x memory")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model in safetensors")
    parser.add_argument(
        "--data", type=Path, required=True, help="pairs: ShareGPT with chosen and rejected, or messages and rejected_response"
    )
    parser.add_argument("--rows", type=int, default=64, help="pairs to train on")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", help="number type of swift's weights; default: as swift chooses")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--ms-swift-python", help="Python with ms-swift 4.6; default: an environment made with uv")
    parser.add_argument("--trl-python", help="Python with TRL 1.16; default: an environment made with uv")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "pairs.jsonl"
        pairs = short_pairs(args.data, args.model, rows, args.rows)
        if "ms-swift 4.6" in args.sides:
            packages = ("torch==2.13.0", "ms-swift==4.6.0", "trl", "msgspec")
            args.ms_swift_python = environment_of(args.ms_swift_python, packages, folder / "ms-swift")
        if "TRL 1.16" in args.sides:
            args.trl_python = environment_of(args.trl_python, ("torch==2.13.0", "trl==1.16.0", "peft"), folder / "trl")
        turns: dict[str, list[Turn]] = {side: [] for side in args.sides}
        for number in range(args.turns):
            for side in args.sides:
                turns[side].append(run(SIDES[side](args, rows, folder / f"{side[:3]}-{number}"), threads=args.threads))
                print(f"turn {number + 1} of {side}: {turns[side][-1].seconds:.1f} s", file=sys.stderr)
    report(turns, pairs)


if __name__ == "__main__":
    main()
