"""Scores that f-divergences give to log-ratios (f-DPO, Wang et al. 2023)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from swift_core.errors import TrainingError
from torch import Tensor
from torch.nn.functional import logsigmoid

from swift_rlhf.losses.tokens import LOG_LIMIT

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
DIVERGENCES: tuple[Divergence, ...] = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


def divergence_scores(log_ratios: Tensor, kind: Divergence, *, alpha: float = 0.5) -> Tensor:
    """Return `f'(t)` for `t = exp(log_ratios)`, 0 where policy and reference agree.

    reverse_kl is `r`, forward_kl `1 - e^-r`, js_divergence `log 2 + log s(r)`, alpha_divergence `(e^((a-1) r) - 1) / (a - 1)`,
    which at alpha 1 is reverse_kl and at alpha 0 forward_kl. Exponents are cut at 80.

    Args:
        log_ratios: `log p_policy - log p_reference` in nats, any shape.
        kind: the divergence that holds the policy to the reference.
        alpha: order of alpha_divergence.

    Returns:
        the same shape.

    Raises:
        TrainingError: for an unknown kind.
    """
    if kind == "reverse_kl":
        return log_ratios
    if kind == "forward_kl":
        return -torch.expm1((-log_ratios).clamp_max(LOG_LIMIT))
    if kind == "js_divergence":
        return math.log(2) + logsigmoid(log_ratios)
    if kind == "alpha_divergence":
        order = alpha - 1
        return log_ratios if abs(order) < 1e-6 else torch.expm1((order * log_ratios).clamp_max(LOG_LIMIT)) / order
    raise TrainingError(f"unknown f_divergence {kind!r}", fix=", ".join(DIVERGENCES))
