"""Going on from a checkpoint, which may have been saved by another number of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerState, set_seed

from swift_core.batching.plan import PlanShape
from swift_core.errors import TrainingError
from swift_core.train.state import load_tensors, load_trainer_state, restore_rng, rng_file

PROGRESS = "progress.json"
_COUNTERS = ("global_step", "epoch", "log_history", "best_metric", "best_global_step", "num_input_tokens_seen")


def write_progress(folder: Path, values: dict[str, Any], shape: PlanShape, *, ranks: int) -> None:
    """Write the sums of a run, and by how many it was made."""
    text = json.dumps({**values, "world_size": ranks, "samples_per_step": shape.samples_per_step})
    (folder / PROGRESS).write_text(text, encoding="utf-8")


def read_progress(folder: Path, shape: PlanShape, *, ranks: int) -> dict[str, Any]:
    """Return the sums of a run.

    The samples of each step are the same for any number of processes, as long as a step has as many of them.

    Raises:
        TrainingError: when a step has another number of samples now, so that their order would differ.
    """
    values = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    before = values.pop("world_size")
    samples = values.pop("samples_per_step", shape.samples_per_step if before == ranks else None)
    if samples == shape.samples_per_step:
        return values
    if samples is None:
        raise TrainingError(
            f"{folder} was saved by {before} process(es), and there are {ranks} now: the order of the samples would differ",
            fix=f"start with NPROC_PER_NODE={before}, or start a new run from its weights with --adapters",
        )
    alone = shape.batch_size * shape.world_size
    fix = (
        f"--gradient_accumulation_steps {samples // alone}"
        if samples % alone == 0
        else f"choose --per_device_train_batch_size x --gradient_accumulation_steps x {shape.world_size} devices = {samples}"
    )
    raise TrainingError(
        f"{folder} was saved with {samples} samples a step, by {before} process(es); now a step has {shape.samples_per_step} "
        f"({shape.batch_size} x {shape.accumulation} accumulated x {shape.world_size} devices), so the order of the samples would differ",
        fix=fix,
    )


def restore_counters(state: TrainerState, folder: Path, *, total_steps: int) -> None:
    """Set the counters and the log history to those of a checkpoint.

    Raises:
        TrainingError: when the checkpoint is at the end of the run already.
    """
    saved = load_trainer_state(folder)
    if saved.global_step >= total_steps:
        raise TrainingError(
            f"{folder} is at step {saved.global_step}, and the run ends at step {total_steps}",
            fix="raise --num_train_epochs or --max_steps to train on",
        )
    for name in _COUNTERS:
        setattr(state, name, getattr(saved, name))
    if saved.best_model_checkpoint:
        # The run folder may have been moved since: the name stays, the place is here.
        state.best_model_checkpoint = str(folder.parent / Path(saved.best_model_checkpoint).name)


def restore_generators(folder: Path, *, rank: int, seed: int, step: int) -> None:
    """Set the random generators to where this rank's were; a rank that was not there gets new ones, the same in every try."""
    path = folder / rng_file(rank)
    if path.is_file():
        restore_rng(load_tensors(path))
    else:
        set_seed(seed + rank + 1_000_003 * step)
