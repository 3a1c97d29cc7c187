"""What resuming needs besides weights: counters, random number generators, optimizer and schedule."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerState

from swift_core.errors import CheckpointError

OPTIMIZER = "optimizer.pt"
SCHEDULER = "scheduler.pt"
STATE = "trainer_state.json"
TOTALS = "totals"


def capture_rng() -> dict[str, Any]:
    """Return the state of every random number generator of this process, as tensors and plain values."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": {"key": torch.from_numpy(numpy_state["state"]["key"].astype("int64")), "pos": int(numpy_state["state"]["pos"])},
        "numpy_gauss": [int(numpy_state["has_gauss"]), float(numpy_state["gauss"])],
        "torch": torch.get_rng_state(),
    }
    if torch.accelerator.is_available():
        state["accelerator"] = _accelerator().get_rng_state()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Put captured generator states back."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    has_gauss, value = state["numpy_gauss"]
    key = state["numpy"]["key"].numpy().astype("uint32")
    np.random.set_state(
        {"bit_generator": "MT19937", "state": {"key": key, "pos": state["numpy"]["pos"]}, "has_gauss": has_gauss, "gauss": value}
    )
    torch.set_rng_state(state["torch"])
    if "accelerator" in state and torch.accelerator.is_available():
        _accelerator().set_rng_state(state["accelerator"])


def _accelerator() -> Any:
    current = torch.accelerator.current_accelerator()
    return getattr(torch, current.type if current is not None else "cuda")


def rng_file(rank: int) -> str:
    """Return the name of a rank's generator file."""
    return f"rng_state_{rank}.pth"


def save_optimization(folder: Path, optimizer_state: dict[str, Any], scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
    """Write the optimizer's state, as one process would have it, and the schedule."""
    torch.save(optimizer_state, folder / OPTIMIZER)
    torch.save(scheduler.state_dict(), folder / SCHEDULER)


def load_optimization(folder: Path, take: Callable[[dict[str, Any]], None], scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
    """Read optimizer and schedule back.

    Args:
        folder: the checkpoint.
        take: gives the optimizer its state.
        scheduler: takes its own.

    Raises:
        CheckpointError: when they are absent or do not fit the parameters that are trained now.
    """
    missing = [name for name in (OPTIMIZER, SCHEDULER, STATE) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} has no {', '.join(missing)}: it was saved with --save_only_model",
            fix="start a new run from its weights with --adapters (or --model) instead",
        )
    try:
        take(load_tensors(folder / OPTIMIZER))
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the optimizer state of {folder} does not fit the parameters trained now: {error}",
            fix="resume with the settings the run was started with",
        ) from error
    scheduler.load_state_dict(load_tensors(folder / SCHEDULER))


def load_tensors(path: Path) -> Any:
    """Read a file of tensors and plain values; anything else in it is refused.

    Raises:
        CheckpointError: when the file is damaged or holds objects that would run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip, runtime and end-of-file errors for damaged files
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}", fix="resume from an older checkpoint") from error


def load_trainer_state(folder: Path) -> TrainerState:
    """Read the counters and the log history of a checkpoint."""
    return TrainerState.load_from_json(str(folder / STATE))
