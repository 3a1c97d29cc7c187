"""CHORD: imitation of experts mixed into reinforcement learning (Zhang et al. 2025)."""

from __future__ import annotations

import math

from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.losses.tokens import wide


def chord_mu(step: int, *, warmup_steps: int, decay_steps: int, peak: float, valley: float) -> float:
    """Return the weight of imitation at a step: up to `peak` on a straight line, down to `valley` on a cosine, then level.

    The loss is `(1 - mu) * policy loss + mu * expert loss`, each with a normaliser of its own.

    Args:
        step: optimizer step, from 0.
        warmup_steps: steps up to the peak.
        decay_steps: steps from the peak to the valley.
        peak: largest weight, in [0, 1].
        valley: weight in the end, in [0, peak].

    Raises:
        TrainingError: for weights out of order.
    """
    if not 0 <= valley <= peak <= 1:
        raise TrainingError(
            f"chord_mu_valley {valley} and chord_mu_peak {peak} are not in order within [0, 1]", fix="for example 0.05 and 0.9"
        )
    if step < warmup_steps:
        return peak * step / warmup_steps
    gone = (step - warmup_steps) / decay_steps if decay_steps else 1.0
    return valley + (peak - valley) * (1 + math.cos(math.pi * min(gone, 1.0))) / 2


def chord_phi(logps: Tensor) -> Tensor:
    """Return `p (1 - p)` of expert tokens, a constant factor of their cross-entropy: neither what is known nor what is far off.

    Args:
        logps: log-probability of each expert token in nats, any shape.
    """
    probability = wide(logps).detach().exp()
    return probability * (1 - probability)
