"""Runs of a tiny model by one process and by several on this machine, to compare them: `python -m swift_core.testing.ranks FOLDER`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from swift_core import Seq2SeqTrainer, Seq2SeqTrainingArguments, get_model_tokenizer
from swift_core.errors import SwiftError
from swift_core.protocols import EncodedSample
from swift_core.train.report import read_log

JOBS, DONE = "jobs.json", "done.json"
STEPS = 4
COMMON: dict[str, Any] = {
    "add_version": False, "max_steps": STEPS, "per_device_train_batch_size": 2, "logging_steps": 1, "report_to": ["none"],
    "use_cpu": True, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 1e-2,
    # Adam divides a gradient by its own size: what rounding leaves of a gradient of nearly 0 must not become a whole step.
    "adam_epsilon": 1e-6,
}  # fmt: skip


def make_samples(count: int = 20, *, longest: int = 11) -> list[EncodedSample]:
    """Return samples of made-up tokens; the first token of each is not trained."""
    made: list[EncodedSample] = []
    for index in range(count):
        ids = [(index * 31 + place * 7) % 200 + 10 for place in range(5 + index % (longest - 4))]
        made.append(EncodedSample(ids, [-100, *ids[1:]], f"made:{index}"))
    return made


def train(model_folder: str, out: str, resume: str | None = None, longest: int = 11, **settings: Any) -> Seq2SeqTrainer:
    """Train a model on the samples in this process, which may be one of several, and return the trainer."""
    model, tokenizer = get_model_tokenizer(model_folder)
    assert model is not None
    if settings.pop("lora", False):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))  # pyright: ignore[reportArgumentType]
    arguments = Seq2SeqTrainingArguments(output_dir=out, **{**COMMON, **settings})
    samples = make_samples(longest=longest)
    trainer = Seq2SeqTrainer(model, arguments, samples, samples[:5], tokenizer=tokenizer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def on_ranks(jobs: Sequence[dict[str, Any]], folder: Path, *, ranks: int = 2) -> dict[str, str]:
    """Do jobs one after another on several ranks.

    Args:
        jobs: arguments of `train`, and a `name`; a job whose `resume` is a checkpoint goes on in its own `out` from a copy of it.
        folder: where this is written down.
        ranks: processes.

    Returns:
        name -> classes of what was trained and number of processes, or the error.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (folder / JOBS).write_text(json.dumps(list(jobs)))
    processes: list[subprocess.Popen[str]] = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        env = {**os.environ, **own, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "swift_core.testing.ranks", str(folder)]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
    try:
        errors = [process.communicate(timeout=900)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise AssertionError("\n".join(error[-3000:] for error in errors))
    return json.loads((folder / DONE).read_text())


def copy_checkpoint(source: Path, run_folder: Path) -> Path:
    """Copy a checkpoint into the folder of a run that is to go on from it, and return the copy."""
    target = run_folder / source.name
    shutil.copytree(source, target)
    return target


def losses(folder: Path) -> list[float]:
    """Return the losses of the steps and evaluations of a run, in the order of the log."""
    return [line[name] for line in read_log(folder) for name in ("loss", "eval_loss") if name in line]


def largest_difference(one: Path, other: Path, name: str = "model.safetensors") -> float:
    """Return how far the weights of two checkpoints lie apart.

    Raises:
        ValueError: when they have other weights.
    """
    found, expected = load_file(other / name), load_file(one / name)
    if found.keys() != expected.keys():
        raise ValueError(f"{one} and {other} differ in {sorted(found.keys() ^ expected.keys())}")
    return max(float((found[key] - expected[key]).abs().max()) for key in expected)


def _rank(folder: Path) -> None:
    rank, done = int(os.environ["RANK"]), dict[str, str]()
    for job in json.loads((folder / JOBS).read_text()):
        name, out = job.pop("name"), Path(job["out"])
        if "resume" in job:
            if rank == 0:
                copy_checkpoint(Path(job["resume"]), out)
            job["resume"] = str(out / Path(job["resume"]).name)
            if torch.distributed.is_initialized():
                torch.distributed.barrier()
        try:
            trainer = train(**job)
            done[name] = f"{type(trainer.engine).__name__} {type(trainer.module).__name__} {trainer.world.size}"
        except SwiftError as error:
            done[name] = str(error)
    if rank == 0:
        (folder / DONE).write_text(json.dumps(done))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
