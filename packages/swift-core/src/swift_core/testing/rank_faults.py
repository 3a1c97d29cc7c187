"""Faults of jobs of several processes, each tried on a tiny model: a rank that dies, hangs, is stopped or computes nonsense."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerCallback

from swift_core import Seq2SeqTrainer
from swift_core.errors import TrainingError
from swift_core.testing.children import Ended, in_ranks
from swift_core.testing.faults import STEPS, AtStep, Trial, small_trainer
from swift_core.testing.ranks import largest_difference
from swift_core.train.checkpoint import list_checkpoints, why_invalid

ONE_SAMPLE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
LIMIT = 30.0


def train_on_ranks(
    model: Path, out: Path, *, resume: bool = False, act: Callable[[int], TrainerCallback] | None = None, **settings: Any
) -> list[Ended]:
    """Train on two ranks to the end, or to the one that a callback of a rank brings about."""

    def work(rank: int) -> int:
        callbacks = [act(rank)] if act is not None else []
        trainer = small_trainer(model, out, callbacks=callbacks, **{**ONE_SAMPLE, **settings})
        return trainer.train(resume_from_checkpoint=str(out) if resume else None).global_step

    return in_ranks(work, timeout=300)


def stopped_rank(model: Path, folder: Path, rank: int, number: signal.Signals) -> Trial:
    """Send a signal to one rank during step 3, resume on two ranks, and compare with a run that nothing disturbed."""
    act = _only(rank, lambda: os.kill(os.getpid(), number))
    ended = train_on_ranks(model, folder / "stopped", act=act, save_steps=STEPS)
    codes, kept = [each.code for each in ended], _valid(folder / "stopped")
    whole = folder / "whole"
    if not whole.exists():
        train_on_ranks(model, whole, save_steps=STEPS)
    train_on_ranks(model, folder / "stopped", resume=True, save_steps=STEPS)
    last = f"checkpoint-{STEPS}"
    equal = largest_difference(folder / "stopped" / last, whole / last) == 0
    good = codes == [128 + number] * 2 and kept == ["checkpoint-3"] and equal
    seen = f"exit codes {codes}, saved {', '.join(kept)}, resumed bit for bit: {equal}"
    return Trial(f"{number.name} to rank {rank}", good, seen if good else seen + _tails(ended))


def nonsense_of_a_rank(model: Path, folder: Path) -> Trial:
    """Make the loss of rank 1 NaN in step 3: all ranks must stop with the weights of step 2."""

    def work(rank: int) -> dict[str, Any]:
        kept: list[torch.Tensor] = []

        def keep() -> None:
            kept.extend(parameter.detach().clone() for parameter in trainer.model.parameters())
            if rank == 1:
                usual = trainer.task.loss
                cast(Any, trainer.task).loss = lambda model, batch: usual(model, batch) * math.nan

        trainer: Seq2SeqTrainer = small_trainer(model, folder, callbacks=[AtStep(2, keep)], **ONE_SAMPLE)
        try:
            trainer.train()
        except TrainingError as error:
            same = all(torch.equal(now, then) for now, then in zip(trainer.model.parameters(), kept, strict=True))
            return {"error": str(error), "same": same}
        return {"error": "", "same": False}

    ended = in_ranks(work, timeout=300)
    found = [each.value or {"error": "", "same": False} for each in ended]
    good = all(each["same"] and "loss of step 3 is not finite" in each["error"] and "samples: made:" in each["error"] for each in found)
    return Trial("NaN on rank 1 of 2", good, found[0]["error"] if good else _tails(ended))


def hung_rank(model: Path, folder: Path, *, seconds: float = 2.0, holding: bool = False) -> Trial:
    """Let rank 1 stand still in step 3; the job must end in time, with where it stands.

    Args:
        model: the tiny model.
        folder: of the run.
        seconds: `--hang_timeout`.
        holding: it keeps the interpreter to itself, as a library may.
    """
    began = folder.with_name(f"{folder.name}-began")

    def act() -> None:
        began.write_text(str(time.monotonic()), encoding="ascii")
        (stands_still_with_the_interpreter if holding else stands_still)()

    ended = train_on_ranks(model, folder, act=_only(1, act), hang_timeout=seconds)
    took = time.monotonic() - float(began.read_text(encoding="ascii"))
    shown = ended[1].output
    name = stands_still_with_the_interpreter.__name__ if holding else stands_still.__name__
    named = "Timeout" in shown if holding else "rank 1 of 2" in shown and "has made no progress" in shown
    good = [each.code for each in ended] == [1, 1] and named and f"in {name}" in shown and took < LIMIT
    kind = "holding the interpreter" if holding else "waiting"
    return Trial(f"rank 1 hangs, {kind}", good, f"both gone {took:.1f} s later" + ("" if good else _tails(ended)))


def killed_rank(model: Path, folder: Path) -> Trial:
    """Kill rank 1 in step 3; the other one must end by itself."""
    before = time.monotonic()
    ended = train_on_ranks(model, folder, act=_only(1, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    took = time.monotonic() - before
    good = [each.code for each in ended] == [1, -signal.SIGKILL] and "another process of the job has gone" in ended[0].output
    good = good and _valid(folder) == ["checkpoint-2"]
    return Trial("kill -9 of rank 1", good, f"ended after {took:.1f} s from the start" if good else _tails(ended))


def stands_still() -> None:
    """Wait for what never comes."""
    threading.Event().wait(300)


def stands_still_with_the_interpreter() -> None:
    """Wait without letting another thread run."""
    ctypes.PyDLL(None).sleep(300)


def _only(rank: int, act: Callable[[], object]) -> Callable[[int], TrainerCallback]:
    return lambda this: AtStep(3, act, begin=True) if this == rank else TrainerCallback()


def _valid(run_dir: Path) -> list[str]:
    return [folder.name for folder in list_checkpoints(run_dir) if why_invalid(folder) is None]


def _tails(ended: list[Ended]) -> str:
    return "".join(f"\n--- rank {rank}, code {each.code}:\n{each.output[-2600:]}" for rank, each in enumerate(ended))
