"""What a run came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TrainOutput:
    """What a run came to.

    Attributes:
        run_dir: folder of the run.
        last_checkpoint: newest checkpoint, or None when none was saved.
        best_checkpoint: checkpoint with the best evaluation, or None without evaluation.
        global_step: optimizer steps done.
        metrics: `train_loss`, `train_runtime`, `tokens_per_second` and the like.
    """

    run_dir: Path
    last_checkpoint: Path | None
    best_checkpoint: Path | None
    global_step: int
    metrics: dict[str, float] = field(default_factory=dict[str, float])
