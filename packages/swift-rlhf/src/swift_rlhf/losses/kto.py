"""KTO: answers that are good or bad on their own, without pairs (Ethayarajh et al. 2024)."""

from __future__ import annotations

from typing import Literal

import torch
from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.losses.tokens import Sum, wide

KtoLoss = Literal["kto", "apo_zero_unpaired"]


def kto_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    *,
    kl: Tensor | float | None = None,
    loss_type: KtoLoss = "kto",
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Return the loss of each answer.

    With `r = log p_policy - log p_ref`: kto is `w_d s(beta (kl - r))` for a desirable answer and `w_u s(beta (r - kl))` for one
    that is not; apo_zero_unpaired (D'Oosterlinck et al. 2024) is the same with kl 0.

    Args:
        policy_logps: log-probability of each answer in nats, summed over its tokens, `[answers]`.
        ref_logps: the same under the reference model, `[answers]`.
        desirable: whether each answer is good, `[answers]`, bool.
        kl: how far the policy is from the reference, scalar, see `kto_kl`; needed by kto.
        loss_type: kto or apo_zero_unpaired.
        beta: how strongly the policy is held to the reference.
        desirable_weight: factor for desirable answers.
        undesirable_weight: factor for the others; the paper wants weights times counts of both within a factor of 4/3.

    Returns:
        losses in float32 or wider, `[answers]`.

    Raises:
        TrainingError: for settings that the loss cannot use.
    """
    if loss_type not in ("kto", "apo_zero_unpaired"):
        raise TrainingError(f"unknown loss_type {loss_type!r}", fix="kto or apo_zero_unpaired")
    if beta <= 0:
        raise TrainingError(f"beta {beta} is not positive", fix="for example 0.1")
    if (kl is None) == (loss_type == "kto"):
        raise TrainingError("kl belongs to kto, and kto needs it", fix="pass kto_kl(...) with kto and nothing else")
    ratios = wide(policy_logps) - wide(ref_logps)
    distance = beta * (ratios - (0.0 if kl is None else kl))
    good = desirable.bool()
    weights = torch.where(good, desirable_weight, undesirable_weight).to(ratios.dtype)
    return weights * torch.where(good, -distance, distance).sigmoid()


def kto_kl(policy_logps: Tensor, ref_logps: Tensor) -> Sum:
    """Return the log-ratios of answers set to prompts they do not belong to, as a sum and a count without gradient.

    The kl of `kto_loss` is `max(0, total / weight)` over the whole optimizer step and all ranks. Mismatch prompt i with answer
    i - 1 of the step, not of a micro-batch.

    Args:
        policy_logps: log-probability of each mismatched answer in nats, summed over its tokens, `[answers]`.
        ref_logps: the same under the reference model, `[answers]`.
    """
    ratios = wide(policy_logps.detach()) - wide(ref_logps.detach())
    return Sum(ratios.sum(), torch.tensor(float(ratios.numel()), dtype=ratios.dtype, device=ratios.device))
