"""The policy loss of the GRPO family: one function, the objective by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.losses import objectives
from swift_rlhf.losses.aggregation import aggregate
from swift_rlhf.losses.policy_options import PolicyOptions
from swift_rlhf.losses.ratios import clip_bounds, log_ratios
from swift_rlhf.losses.tokens import LOG_LIMIT, Sum, masked, token_mean, wide


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
    group_ids: Tensor | None = None,
    keep: Tensor | None = None,
    weights: Tensor | None = None,
    kl: Tensor | None = None,
    **options: Any,
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
        group_ids: prompt of each answer, `[answers]`, for real; its groups must be whole.
        keep: tokens that carry loss, `[answers, tokens]` or `[answers, 1]`, bool; the others stay in the weight.
        weights: factor of each token's loss, `[answers, tokens]` or `[answers, 1]`, such as `rollout_weights`; constant.
        kl: estimate of the KL to the reference at each token, `[answers, tokens]`.
        options: the fields of `PolicyOptions`: `loss_type="grpo"`, `epsilon`, `epsilon_high`, `delta` and so on.

    Raises:
        TrainingError: for settings that the objective cannot use.
    """
    chosen = PolicyOptions(**options)
    chosen.check_tensors(weights, kl)
    tokens = _tokens(logps, old_logps, advantages, mask, keep, chosen)
    if chosen.objective.term == "real":
        return PolicyLoss(_real(tokens, group_ids, chosen.real_tau), _movement(tokens))
    losses = _TERMS[chosen.objective.term](tokens, chosen, weights)
    if weights is not None and chosen.objective.term != "vespo":
        losses = losses * weights.detach()
    return PolicyLoss(_summed(tokens, losses, keep, kl, chosen), {**_movement(tokens), **_cut(tokens, chosen)})


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What the terms are made from, all `[answers, tokens]` but where said.

    Attributes:
        logps: log-probabilities, in float32 or wider.
        advantages: `[answers, tokens]` or `[answers, 1]`.
        mask: tokens that count.
        counted: those of them that carry loss.
        own: log-ratio of each token.
        level: log-ratio at the level of the objective, within the limits of `exp`.
        ratios: its exponential.
        bounds: lowest and highest ratio that is not cut.
    """

    logps: Tensor
    advantages: Tensor
    mask: Tensor
    counted: Tensor
    own: Tensor
    level: Tensor
    ratios: Tensor
    bounds: tuple[Tensor | float, Tensor | float]


def _tokens(
    logps: Tensor, old_logps: Tensor | None, advantages: Tensor, mask: Tensor, keep: Tensor | None, options: PolicyOptions
) -> _Tokens:
    logps = wide(logps)
    old = logps.detach() if old_logps is None else wide(old_logps).detach()
    advantages = wide(advantages).detach()
    mask = mask.bool()
    level = log_ratios(logps, old, mask, options.level).clamp(-LOG_LIMIT, LOG_LIMIT)
    low, high = options.widths
    return _Tokens(
        logps=logps,
        advantages=advantages[:, None] if advantages.ndim == 1 else advantages,
        mask=mask,
        counted=mask if keep is None else mask & keep.expand(mask.shape),
        own=log_ratios(logps, old, mask, "token"),
        level=level,
        ratios=level.exp(),
        bounds=clip_bounds(old, low=low, high=high, dynamic=options.dynamic_clip),
    )


def _clip(tokens: _Tokens, options: PolicyOptions, weights: Tensor | None) -> Tensor:
    return objectives.clipped(tokens.ratios, tokens.advantages, *tokens.bounds, delta=options.delta, dual_clip=options.dual_clip)


def _cispo(tokens: _Tokens, options: PolicyOptions, weights: Tensor | None) -> Tensor:
    return objectives.cispo(tokens.ratios, tokens.advantages, tokens.logps, cap=options.cispo_cap)


def _sapo(tokens: _Tokens, options: PolicyOptions, weights: Tensor | None) -> Tensor:
    return objectives.sapo(tokens.ratios, tokens.advantages, tau_pos=options.tau_pos, tau_neg=options.tau_neg)


def _vespo(tokens: _Tokens, options: PolicyOptions, weights: Tensor | None) -> Tensor:
    positive, negative = options.vespo_positive, options.vespo_negative
    return objectives.vespo(tokens.own, tokens.advantages, tokens.logps, tokens.mask, weights, positive=positive, negative=negative)


def _gmpo(tokens: _Tokens, options: PolicyOptions, weights: Tensor | None) -> Tensor:
    low, high = options.widths
    return objectives.gmpo(tokens.own, tokens.advantages, tokens.counted, low=low, high=high)


def _fipo(tokens: _Tokens, options: PolicyOptions, weights: Tensor | None) -> Tensor:
    return _clip(tokens, options, weights) * objectives.fipo_weights(
        tokens.own,
        tokens.advantages,
        tokens.mask,
        half_life=options.fipo_decay_rate,
        clip_range=options.fipo_clip_range,
        high_only=options.fipo_clip_high_only,
        safety=options.fipo_safety_threshold,
    )


_TERMS = {"clip": _clip, "cispo": _cispo, "sapo": _sapo, "vespo": _vespo, "gmpo": _gmpo, "fipo": _fipo}


def _real(tokens: _Tokens, group_ids: Tensor | None, tau: float) -> Sum:
    advantages, counted = tokens.advantages, tokens.counted
    if group_ids is None or advantages.shape[-1] != 1:
        raise TrainingError("real compares whole answers of a group", fix="pass group_ids, and advantages [answers]")
    losses, groups = objectives.real(token_mean(tokens.own, counted), advantages[:, 0], group_ids, counted.any(-1), tau=tau)
    return Sum(losses.sum(), groups.to(losses.dtype))


def _summed(tokens: _Tokens, losses: Tensor, keep: Tensor | None, kl: Tensor | None, options: PolicyOptions) -> Sum:
    rule = options.aggregation or options.objective.aggregation
    assert rule is not None
    # gmpo has left out what is not kept inside its mean already.
    kept = None if options.objective.term == "gmpo" else keep
    loss = aggregate(losses, tokens.mask, rule, max_completion_length=options.max_completion_length, keep=kept)
    if kl is None or not options.kl_coef:
        return loss
    price = wide(kl) * (tokens.ratios if options.kl_weighted else 1.0)
    priced = aggregate(price, tokens.mask, rule, max_completion_length=options.max_completion_length)
    return Sum(loss.total + options.kl_coef * priced.total, loss.weight)


def _movement(tokens: _Tokens) -> dict[str, Sum]:
    own, mask = tokens.own.detach(), tokens.mask
    count = mask.sum().to(own.dtype)
    return {"policy/ratio": Sum(masked(own.clamp(-LOG_LIMIT, LOG_LIMIT).exp(), mask).sum(), count), "policy/kl": Sum(-own.sum(), count)}


def _cut(tokens: _Tokens, options: PolicyOptions) -> dict[str, Sum]:
    ratios, counted, term = tokens.ratios, tokens.counted, options.objective.term
    count = counted.sum().to(ratios.dtype)
    if term in ("sapo", "vespo"):
        return {}
    if term == "cispo":
        return {"clip_ratio/high": Sum(masked((ratios > options.cispo_cap).to(ratios.dtype), counted).sum(), count)}
    if term == "gmpo":
        low, high = options.widths
        below, above = tokens.level < -low, tokens.level > high
    else:
        below, above = ratios < tokens.bounds[0], ratios > tokens.bounds[1]
    below, above = below & (tokens.advantages < 0), above & (tokens.advantages > 0)
    return {
        f"clip_ratio/{name}": Sum((which.expand(counted.shape) & counted).sum().to(ratios.dtype), count)
        for name, which in (("low", below), ("high", above), ("region", below | above))
    }
