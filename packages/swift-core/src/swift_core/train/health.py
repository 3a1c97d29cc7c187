"""Warnings about a run that goes wrong, with the likely cause and the setting to change."""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any, NoReturn

from transformers import TrainerCallback, TrainerControl, TrainerState

from swift_core.errors import TrainingError
from swift_core.train.parallel import World

logger = logging.getLogger(__name__)

# Steps looked back on for what is usual, and how often that a gradient counts as exploding.
_USUAL = 20
_EXPLODES = 20.0


def complaint(values: dict[str, Any], usual_norm: float | None) -> tuple[str, str] | None:
    """Return the kind of trouble that a log line shows and what to do about it, or None.

    Args:
        values: the line.
        usual_norm: median of the gradient norms before it; None while there are too few.
    """
    loss, norm = values.get("loss"), values.get("grad_norm")
    if norm == 0 and values.get("frac_reward_zero_std") == 1:
        return "nothing to compare", (
            "all answers to a prompt got the same reward: look at completions.jsonl in the run folder; easier prompts, a reward with more "
            "shades, more --num_generations or --dynamic_sample true help"
        )
    if loss == 0 and norm == 0:
        return "nothing is learned", (
            "loss and gradient are 0: no token of these steps is trained. Look at the mask with `swift data preview`; often "
            "--max_length cuts the answers off, or --loss_scale masks them"
        )
    if norm == 0:
        return "no gradient", (
            "the gradient is 0 while the loss is not: what is trained does not take part in the result. Check --target_modules, "
            "the freeze settings and --learning_rate"
        )
    if norm is not None and usual_norm and norm > _EXPLODES * usual_norm:
        return "exploding gradient", (
            f"the gradient norm is {norm:.3g}, usual here is {usual_norm:.3g}: lower --learning_rate, lengthen --warmup_ratio or "
            "lower --max_grad_norm; a single jump may come from an odd sample"
        )
    return None


def refuse_step(what: str, step: int, losses: Sequence[float], batches: Sequence[Any], world: World) -> NoReturn:
    """Say on all ranks which samples made a step useless, instead of taking it.

    Args:
        what: what is not finite.
        step: number of the step.
        losses: those of this rank's micro-batches.
        batches: the micro-batches.
        world: the processes of the run.

    Raises:
        TrainingError: always.
    """
    bad = [origin for value, batch in zip(losses, batches, strict=True) if not math.isfinite(value) for origin in batch.origins]
    found = [text for text in world.gather(", ".join(bad[:8])) if text]
    where = f"; samples: {'; '.join(found)}" if found else ""
    raise TrainingError(
        f"the {what} of step {step} is not finite, and the step was not taken{where}",
        fix="look at these samples, lower --learning_rate, or use --torch_dtype float32; earlier checkpoints are intact",
    )


class HealthWatch(TrainerCallback):
    """Says each kind of trouble when it first shows."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=_USUAL)
        self._said: set[str] = set()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **context: Any) -> None:
        """Look at a line of the training log."""
        values = context.get("logs") or {}
        if "grad_norm" not in values or not state.is_world_process_zero:
            return
        usual = statistics.median(self._norms) if len(self._norms) >= 5 else None
        found = complaint(values, usual)
        if found is not None and found[0] not in self._said:
            self._said.add(found[0])
            logger.warning("step %s: %s: %s", state.global_step, *found)
        self._norms.append(values["grad_norm"])
