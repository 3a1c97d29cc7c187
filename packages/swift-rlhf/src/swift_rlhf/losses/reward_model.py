"""Reward models learn from pairs of scores (Bradley and Terry; margins as in Llama 2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from swift_rlhf.losses.tokens import wide


def reward_model_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    *,
    margin: Tensor | None = None,
    center_coefficient: float | None = None,
) -> Tensor:
    """Return `-log s(score_w - score_l - margin) + center (score_w + score_l)^2` of each pair.

    Args:
        chosen_scores: score of the better answers, `[pairs]`.
        rejected_scores: score of the worse answers, `[pairs]`.
        margin: by how much the scores should differ at least, `[pairs]`; Llama 2 has 1, 2/3, 1/3 and 0.
        center_coefficient: keeps scores around 0 (Eisenstein et al. 2023), for example 0.01.

    Returns:
        losses in float32 or wider, `[pairs]`.
    """
    chosen, rejected = wide(chosen_scores), wide(rejected_scores)
    difference = chosen - rejected
    losses = -logsigmoid(difference if margin is None else difference - margin)
    return losses + center_coefficient * (chosen + rejected).square() if center_coefficient else losses
