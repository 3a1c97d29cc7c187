"""Losses over pairs that need no reference model: CPO, SimPO, AlphaPO, ORPO."""

from __future__ import annotations

import math
from typing import Literal

import torch
from swift_core.errors import TrainingError
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from swift_rlhf.losses.pairs import smoothed
from swift_rlhf.losses.tokens import LOG_LIMIT, wide

CpoLoss = Literal["sigmoid", "hinge", "ipo", "simpo"]


def cpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    loss_type: CpoLoss = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    cpo_alpha: float = 1.0,
    simpo_gamma: float = 1.0,
    alpha: float = 0.0,
    tokens_per_answer: Tensor | float | None = None,
) -> Tensor:
    """Return the loss of each pair (CPO, Xu et al. 2024), the cost of the better answer included.

    With log-probabilities `p` and the same per token `l = p / n`: sigmoid is `-log s(beta (p_w - p_l))` (smoothed), hinge
    `max(0, 1 - beta (p_w - p_l))`, ipo `(l_w - l_l - 1 / (2 beta))^2`, simpo `-log s(beta (l_w - l_l) - gamma)` (smoothed).
    Added to it is `cpo_alpha * nll_w / tokens_per_answer`. An `alpha` other than 0 puts AlphaPO's `(1 - e^(-alpha l)) / alpha` in
    the place of log-probabilities (Gupta et al. 2025).

    Args:
        policy_chosen_logps: log-probability of the better answer in nats, summed over its tokens, `[pairs]`.
        policy_rejected_logps: the same of the worse answer, `[pairs]`.
        chosen_lengths: tokens of the better answers, `[pairs]`.
        rejected_lengths: tokens of the worse answers, `[pairs]`.
        loss_type: the term that compares both answers.
        beta: scale of the difference.
        label_smoothing: share of labels that may be the wrong way round, in [0, 0.5); for sigmoid and simpo.
        cpo_alpha: weight of the cost of the better answer; SimPO as published has 0.
        simpo_gamma: margin that simpo asks for, after scaling by beta.
        alpha: order of AlphaPO's reward; 0 is off.
        tokens_per_answer: as for `dpo_loss`.

    Returns:
        losses in float32 or wider, `[pairs]`.

    Raises:
        TrainingError: for settings that the loss cannot use.
    """
    if loss_type not in ("sigmoid", "hinge", "ipo", "simpo"):
        raise TrainingError(f"unknown loss_type {loss_type!r}", fix="sigmoid, hinge, ipo or simpo")
    if beta <= 0:
        raise TrainingError(f"beta {beta} is not positive", fix="for example 0.1; 2 for simpo")
    if not 0 <= label_smoothing < 0.5 or (label_smoothing and loss_type not in ("sigmoid", "simpo")):
        raise TrainingError(f"label_smoothing {label_smoothing} does not fit {loss_type}", fix="0, or less than 0.5 with sigmoid or simpo")
    chosen, rejected = wide(policy_chosen_logps), wide(policy_rejected_logps)
    nll = -chosen / _per_answer(tokens_per_answer, chosen_lengths, chosen)
    if alpha or loss_type in ("ipo", "simpo"):
        chosen, rejected = _alpha_reward(chosen / chosen_lengths, alpha), _alpha_reward(rejected / rejected_lengths, alpha)
    difference = chosen - rejected
    if loss_type == "hinge":
        losses = relu(1 - beta * difference)
    elif loss_type == "ipo":
        losses = (difference - 1 / (2 * beta)).square()
    else:
        losses = smoothed(beta * difference - (simpo_gamma if loss_type == "simpo" else 0.0), label_smoothing)
    return losses + cpo_alpha * nll if cpo_alpha else losses


def simpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float = 2.0,
    gamma: float = 1.0,
    label_smoothing: float = 0.0,
    cpo_alpha: float = 0.0,
    tokens_per_answer: Tensor | float | None = None,
) -> Tensor:
    """Return `-log s(beta (l_w - l_l) - gamma)` of each pair with log-probabilities per token `l` (SimPO, Meng et al. 2024).

    Args are those of `cpo_loss`; with `cpo_alpha` 0, as published, nothing is added for the cost of the better answer.

    Returns:
        losses in float32 or wider, `[pairs]`.
    """
    return cpo_loss(
        policy_chosen_logps,
        policy_rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        loss_type="simpo",
        beta=beta,
        label_smoothing=label_smoothing,
        cpo_alpha=cpo_alpha,
        simpo_gamma=gamma,
        tokens_per_answer=tokens_per_answer,
    )


def orpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float = 0.1,
    nll: Tensor | None = None,
    tokens_per_answer: Tensor | float | None = None,
) -> Tensor:
    """Return `nll_w / tokens_per_answer - beta log s(log_odds)` of each pair (ORPO, Hong et al. 2024).

    `log_odds` is the logit of the better answer's geometric mean probability less that of the worse one.

    Args:
        policy_chosen_logps: log-probability of the better answer in nats, summed over its tokens, `[pairs]`.
        policy_rejected_logps: the same of the worse answer, `[pairs]`.
        chosen_lengths: tokens of the better answers, `[pairs]`.
        rejected_lengths: tokens of the worse answers, `[pairs]`.
        beta: weight of the odds ratio, lambda in the paper.
        nll: summed cost in nats to train on instead of that of the better answer, `[pairs]`, such as prompt and answer together;
            `tokens_per_answer` then counts those tokens.
        tokens_per_answer: as for `dpo_loss`.

    Returns:
        losses in float32 or wider, `[pairs]`.
    """
    chosen, rejected = wide(policy_chosen_logps), wide(policy_rejected_logps)
    cost = (-chosen if nll is None else wide(nll)) / _per_answer(tokens_per_answer, chosen_lengths, chosen)
    return cost - beta * logsigmoid(log_odds_ratio(chosen / chosen_lengths, rejected / rejected_lengths))


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return `logit(e^chosen) - logit(e^rejected)` of log-probabilities per token in nats, `[pairs]`."""
    return (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))


def log1mexp(values: Tensor) -> Tensor:
    """Return `log(1 - e^x)` for x below 0 without loss of digits at either end; x is cut just below 0."""
    below = values.clamp_max(-torch.finfo(values.dtype).eps)
    near = below > -math.log(2)
    # Each branch gets arguments that are safe for it: where() still runs the gradient of the other one.
    high = torch.log(-torch.expm1(torch.where(near, below, -1.0)))
    low = torch.log1p(-torch.exp(torch.where(near, -1.0, below)))
    return torch.where(near, high, low)


def _alpha_reward(logps: Tensor, alpha: float) -> Tensor:
    return -torch.expm1((-alpha * logps).clamp_max(LOG_LIMIT)) / alpha if alpha else logps


def _per_answer(given: Tensor | float | None, lengths: Tensor, like: Tensor) -> Tensor | float:
    return lengths.to(like.dtype).mean() if given is None else given
