"""The policy loss of the GRPO family: one function, the objective by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.losses import objectives
from swift_rlhf.losses.aggregation import Aggregation, aggregate
from swift_rlhf.losses.ratios import RatioLevel, clip_bounds, log_ratios
from swift_rlhf.losses.tokens import LOG_LIMIT, Sum, masked, token_mean, wide

PolicyLossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "gspo_token", "luspo", "cispo", "sapo", "vespo", "fipo", "gmpo", "real"]


class Objective(NamedTuple):
    """What a name stands for.

    Attributes:
        term: what a token adds.
        level: whose ratio it takes.
        aggregation: how tokens become a loss; None for objectives over groups.
        low: how far a ratio may fall below 1 where the user sets nothing (for gmpo on log-ratios).
        high: how far it may rise above 1 where the user sets nothing; None means as `low`.
    """

    term: str
    level: RatioLevel
    aggregation: Aggregation | None
    low: float = 0.2
    high: float | None = None


OBJECTIVES: dict[str, Objective] = {
    "grpo": Objective("clip", "token", "sequence_mean"),
    "bnpo": Objective("clip", "token", "batch_token_mean"),
    "dr_grpo": Objective("clip", "token", "fixed_length"),
    "dapo": Objective("clip", "token", "token_mean"),
    "gspo": Objective("clip", "sequence", "sequence_mean", 3e-4, 4e-4),
    "gspo_token": Objective("clip", "sequence_token", "sequence_mean", 3e-4, 4e-4),
    "luspo": Objective("clip", "sequence", "sequence_sum", 2e-3, 2.5e-3),
    "cispo": Objective("cispo", "token", "token_mean"),
    "sapo": Objective("sapo", "token", "sequence_mean"),
    "vespo": Objective("vespo", "token", "token_mean"),
    "fipo": Objective("fipo", "token", "token_mean"),
    "gmpo": Objective("gmpo", "token", "sequence_mean", 0.4),
    "real": Objective("real", "token", None),
}


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The loss of one call, to be added up over the step.

    Attributes:
        loss: sum with gradient, and what it is divided by over the whole step.
        metrics: further sums and weights without gradient, for the log.
    """

    loss: Sum
    metrics: dict[str, Sum] = field(default_factory=dict[str, Sum])


def policy_loss(
    logps: Tensor,
    old_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss_type: PolicyLossType = "grpo",
    importance_sampling_level: RatioLevel | None = None,
    aggregation: Aggregation | None = None,
    max_completion_length: int | None = None,
    epsilon: float | None = None,
    epsilon_high: float | None = None,
    delta: float | None = None,
    dual_clip: float | None = None,
    dynamic_clip: bool = False,
    cispo_cap: float = 5.0,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    real_tau: float = 0.5,
    fipo_decay_rate: float = 32.0,
    fipo_clip_range: float = 0.2,
    fipo_clip_high_only: bool = True,
    fipo_safety_threshold: float = 4.0,
    vespo_positive: tuple[float, float] = (2.0, 3.0),
    vespo_negative: tuple[float, float] = (3.0, 2.0),
    group_ids: Tensor | None = None,
    keep: Tensor | None = None,
    weights: Tensor | None = None,
    kl: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_weighted: bool = False,
) -> PolicyLoss:
    """Return the policy loss as a sum and its weight, and how often ratios were cut.

    Objectives (their formulas stand in `objectives`, their sums in `aggregation`): grpo (Shao et al. 2024), bnpo, dr_grpo (Liu et
    al. 2025) and dapo (Yu et al. 2025) clip the ratio of tokens and differ in what they divide by; gspo, gspo_token and luspo clip
    that of answers; cispo, sapo, vespo, fipo, gmpo and real weigh in other ways.

    A token's loss is `objective * weights + kl_coef * kl`: the correction for how answers were sampled does not touch the KL.

    Args:
        logps: log-probability of each token in nats at the sampling temperature, `[answers, tokens]`.
        old_logps: the same under the policy that sampled, `[answers, tokens]`; None means that this is the same policy.
        advantages: of each answer `[answers]`, or of each token `[answers, tokens]`.
        mask: tokens that the policy wrote and that count, `[answers, tokens]`.
        loss_type: the objective.
        importance_sampling_level: ratio by token, sequence or sequence_token; as the objective says when left out.
        aggregation: what the sum is divided by; as the objective says when left out.
        max_completion_length: tokens that an answer may have, for dr_grpo.
        epsilon: how far a ratio may fall below 1; 0.2, for gspo 3e-4, for luspo 2e-3, for gmpo 0.4 (on log-ratios).
        epsilon_high: how far it may rise above 1; as `epsilon`, for gspo 4e-4, for luspo 2.5e-3. DAPO has 0.28.
        delta: bound of the free ratio, above `1 + epsilon_high`.
        dual_clip: bound of the loss of negative advantages, above 1; 3 is usual.
        dynamic_clip: bounds that follow the probability of the token (DCPO), for token ratios.
        cispo_cap: largest factor of cispo, an absolute one.
        tau_pos: sharpness of sapo for positive advantages.
        tau_neg: the same for negative ones.
        real_tau: temperature of real.
        fipo_decay_rate: tokens after which the future counts half.
        fipo_clip_range: how far the factor may be from 1.
        fipo_clip_high_only: whether it may only rise.
        fipo_safety_threshold: ratio above which a negative advantage is not made stronger.
        vespo_positive: k and lambda of vespo for advantages that are not negative.
        vespo_negative: the same for negative ones.
        group_ids: prompt of each answer, `[answers]`, for real; its groups must be whole.
        keep: tokens that carry loss, `[answers, tokens]` or `[answers, 1]`, bool; the others stay in the weight.
        weights: factor of each token's loss, `[answers, tokens]` or `[answers, 1]`, such as `rollout_weights`; constant.
        kl: estimate of the KL to the reference at each token, `[answers, tokens]`.
        kl_coef: price of a nat.
        kl_weighted: multiply the KL by the ratio (DeepSeek-V3.2), which makes it unbiased off policy.

    Raises:
        TrainingError: for settings that the objective cannot use.
    """
    objective = OBJECTIVES.get(loss_type)
    if objective is None:
        raise TrainingError(f"unknown loss_type {loss_type!r}", fix=", ".join(OBJECTIVES))
    low = objective.low if epsilon is None else epsilon
    high = epsilon_high if epsilon_high is not None else (objective.high or objective.low) if epsilon is None else epsilon
    level = importance_sampling_level or objective.level
    _check(objective, level, (low, high), delta, dual_clip, dynamic_clip, cispo_cap, aggregation, weights, kl, kl_weighted)
    logps = wide(logps)
    old = logps.detach() if old_logps is None else wide(old_logps).detach()
    advantages = wide(advantages).detach()
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    mask = mask.bool()
    counted = mask if keep is None else mask & keep.expand(mask.shape)
    own = log_ratios(logps, old, mask, "token")
    if objective.term == "real":
        loss = _real(own, advantages, counted, group_ids, real_tau)
        return PolicyLoss(loss, _movement(own, mask))
    chosen = log_ratios(logps, old, mask, level).clamp(-LOG_LIMIT, LOG_LIMIT)
    ratios = chosen.exp()
    bounds = clip_bounds(old, low=low, high=high, dynamic=dynamic_clip)
    if objective.term == "cispo":
        losses = objectives.cispo(ratios, advantages, logps, cap=cispo_cap)
    elif objective.term == "sapo":
        losses = objectives.sapo(ratios, advantages, tau_pos=tau_pos, tau_neg=tau_neg)
    elif objective.term == "vespo":
        losses = objectives.vespo(own, advantages, logps, mask, weights, positive=vespo_positive, negative=vespo_negative)
    elif objective.term == "gmpo":
        losses = objectives.gmpo(own, advantages, counted, low=low, high=high)
    else:
        losses = objectives.clipped(ratios, advantages, *bounds, delta=delta, dual_clip=dual_clip)
        if objective.term == "fipo":
            losses = losses * objectives.fipo_weights(
                own,
                advantages,
                mask,
                half_life=fipo_decay_rate,
                clip_range=fipo_clip_range,
                high_only=fipo_clip_high_only,
                safety=fipo_safety_threshold,
            )
    if weights is not None and objective.term != "vespo":
        losses = losses * weights.detach()
    rule = aggregation or objective.aggregation
    assert rule is not None
    # gmpo has left out what is not kept inside its mean already.
    loss = aggregate(losses, mask, rule, max_completion_length=max_completion_length, keep=None if objective.term == "gmpo" else keep)
    if kl is not None and kl_coef:
        priced = aggregate(wide(kl) * (ratios if kl_weighted else 1.0), mask, rule, max_completion_length=max_completion_length)
        loss = Sum(loss.total + kl_coef * priced.total, loss.weight)
    return PolicyLoss(
        loss, {**_movement(own, mask), **_cut(objective, chosen, ratios, advantages, counted, bounds, (low, high), cispo_cap)}
    )


def _real(own: Tensor, advantages: Tensor, counted: Tensor, group_ids: Tensor | None, tau: float) -> Sum:
    if group_ids is None or advantages.shape[-1] != 1:
        raise TrainingError("real compares whole answers of a group", fix="pass group_ids, and advantages [answers]")
    losses, groups = objectives.real(token_mean(own, counted), advantages[:, 0], group_ids, counted.any(-1), tau=tau)
    return Sum(losses.sum(), groups.to(losses.dtype))


def _movement(own: Tensor, mask: Tensor) -> dict[str, Sum]:
    count = mask.sum().to(own.dtype)
    own = own.detach()
    return {"policy/ratio": Sum(masked(own.clamp(-LOG_LIMIT, LOG_LIMIT).exp(), mask).sum(), count), "policy/kl": Sum(-own.sum(), count)}


def _cut(
    objective: Objective,
    chosen: Tensor,
    ratios: Tensor,
    advantages: Tensor,
    counted: Tensor,
    bounds: tuple[Tensor | float, Tensor | float],
    widths: tuple[float, float],
    cap: float,
) -> dict[str, Sum]:
    count = counted.sum().to(ratios.dtype)
    if objective.term in ("sapo", "vespo"):
        return {}
    if objective.term == "cispo":
        return {"clip_ratio/high": Sum(masked((ratios > cap).to(ratios.dtype), counted).sum(), count)}
    if objective.term == "gmpo":
        below, above = chosen < -widths[0], chosen > widths[1]
    else:
        below, above = ratios < bounds[0], ratios > bounds[1]
    below, above = below & (advantages < 0), above & (advantages > 0)
    return {
        f"clip_ratio/{name}": Sum((which.expand(counted.shape) & counted).sum().to(ratios.dtype), count)
        for name, which in (("low", below), ("high", above), ("region", below | above))
    }


def _check(
    objective: Objective,
    level: str,
    widths: tuple[float, float],
    delta: float | None,
    dual_clip: float | None,
    dynamic: bool,
    cap: float,
    aggregation: str | None,
    weights: Tensor | None,
    kl: Tensor | None,
    kl_weighted: bool,
) -> None:
    term = objective.term
    clips = term in ("clip", "fipo")
    problems = [
        (min(widths) < 0, f"epsilon {widths[0]} or epsilon_high {widths[1]} is negative", "for example 0.2"),
        (delta is not None and not clips, f"delta has no meaning for {term}", "leave it out"),
        (delta is not None and delta <= 1 + widths[1], f"delta {delta} is not above 1 + epsilon_high {widths[1]}", "for example 4"),
        (dual_clip is not None and not clips, f"dual_clip has no meaning for {term}", "leave it out"),
        (dual_clip is not None and dual_clip <= 1, f"dual_clip {dual_clip} is not above 1", "for example 3"),
        (dynamic and not clips, f"dynamic_clip has no meaning for {term}", "leave it out"),
        (dynamic and level != "token", "dynamic_clip follows the probability of single tokens", "importance_sampling_level token"),
        (cap < 1, f"cispo_cap {cap} is below 1: it is the largest ratio, not a distance from 1", "for example 5"),
        (level != objective.level and term in ("vespo", "gmpo", "real"), f"{term} has a ratio of its own", "leave the level out"),
        (term == "real" and aggregation is not None, "real is a mean over groups", "leave aggregation out"),
        (term == "real" and weights is not None, "real cannot weigh single answers", "leave rollout correction off"),
        (term == "real" and kl is not None, "real has no place for a KL in the loss", "beta 0, or kl_in_reward"),
        (term == "gmpo" and weights is not None and weights.shape[-1] != 1, "gmpo weighs answers", "weights [answers, 1]"),
        (kl_weighted and kl is None, "kl_weighted without a kl", "pass kl"),
    ]
    for wrong, what, fix in problems:
        if wrong:
            raise TrainingError(what, fix=fix)
