"""Losses over pairs of a better and a worse answer, with a reference model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.losses.divergence import DIVERGENCES, Divergence, divergence_scores
from swift_rlhf.losses.pairs import NEED_LENGTHS, OF_SCORES, SMOOTHED, SORTED, TERMS, Pairs
from swift_rlhf.losses.tokens import wide

DpoLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "sft",
]


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    loss_type: DpoLoss | Sequence[DpoLoss] = "sigmoid",
    loss_weights: Sequence[float] | None = None,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    f_divergence: Divergence = "reverse_kl",
    f_alpha: float = 0.5,
    discopop_tau: float = 0.05,
    bco_delta: Tensor | float = 0.0,
    rpo_alpha: float | None = None,
    chosen_nll: Tensor | None = None,
    tokens_per_answer: Tensor | float | None = None,
    pair_weights: Tensor | None = None,
    population: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the loss of each pair.

    The formulas and sources of the losses stand at their terms in `swift_rlhf.losses.pairs`. Several of them make MPO (Wang et al.
    2024): sigmoid 0.8, bco_pair 0.2, sft 1.

    Args:
        policy_chosen_logps: log-probability of the better answer in nats, summed over its tokens, `[pairs]`.
        policy_rejected_logps: the same of the worse answer, `[pairs]`.
        ref_chosen_logps: the same under the reference model, `[pairs]`.
        ref_rejected_logps: the same under the reference model, `[pairs]`.
        loss_type: one loss, or several that are added up.
        loss_weights: weight of each of several losses; all 1 when left out.
        beta: how strongly the policy is held to the reference; for hinge the inverse of the margin.
        label_smoothing: share of labels that may be the wrong way round, in [0, 0.5).
        chosen_lengths: tokens of the better answers, `[pairs]`; ipo and sigmoid_norm need both lengths.
        rejected_lengths: tokens of the worse answers, `[pairs]`.
        f_divergence: what holds the policy to the reference (f-DPO, Wang et al. 2023).
        f_alpha: order of alpha_divergence.
        discopop_tau: temperature of discopop.
        bco_delta: mean reward for bco_pair, such as a running mean over training; 0 leaves it out.
        rpo_alpha: adds this many times `sft` (RPO, Liu et al. 2024).
        chosen_nll: cost of the better answer for sft in nats, summed, `[pairs]`; `-policy_chosen_logps` when left out.
        tokens_per_answer: mean length of the better answers for sft. Their mean over the whole optimizer step makes the mean over
            pairs a mean over tokens; when left out it is that of these pairs.
        pair_weights: factor of each pair, `[pairs]`, such as the product of both `wpo_weights` (WPO, Zhou et al. 2024).
        population: values of the whole step for aot, without gradient, so that sorting does not depend on micro-batches: policy
            and reference margins (chosen less rejected); for aot_unpaired log-ratios of the chosen and of the rejected answers.

    Returns:
        losses in float32 or wider, `[pairs]`, in the order of the pairs.

    Raises:
        TrainingError: for settings that the loss cannot use.
    """
    given = (loss_type,) if isinstance(loss_type, str) else tuple(loss_type)
    weights = tuple(loss_weights) if loss_weights is not None else (1.0,) * len(given)
    _check(given, weights, beta, label_smoothing, f_divergence, weighted=pair_weights is not None, sorts=population is not None)
    shares = [*zip(given, weights, strict=True), *([] if rpo_alpha is None else [("sft", rpo_alpha)])]
    _check_lengths([kind for kind, _ in shares], chosen_lengths, rejected_lengths, tokens_per_answer)
    policy_chosen, policy_rejected, ref_chosen, ref_rejected = (
        wide(each) for each in (policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps)
    )
    chosen, rejected = policy_chosen - ref_chosen, policy_rejected - ref_rejected
    if tokens_per_answer is None:
        tokens_per_answer = 1.0 if chosen_lengths is None else chosen_lengths.to(chosen.dtype).mean()
    one = torch.ones_like(chosen, dtype=torch.long)
    pairs = Pairs(
        chosen=chosen,
        rejected=rejected,
        chosen_score=divergence_scores(chosen, f_divergence, alpha=f_alpha),
        rejected_score=divergence_scores(rejected, f_divergence, alpha=f_alpha),
        policy_margin=policy_chosen - policy_rejected,
        ref_margin=ref_chosen - ref_rejected,
        chosen_lengths=one if chosen_lengths is None else chosen_lengths,
        rejected_lengths=one if rejected_lengths is None else rejected_lengths,
        chosen_nll=(-policy_chosen if chosen_nll is None else wide(chosen_nll)) / tokens_per_answer,
        beta=beta,
        smoothing=label_smoothing,
        tau=discopop_tau,
        bco_delta=bco_delta,
        population=population,
    )
    losses = torch.stack([share * TERMS[kind](pairs) for kind, share in shares]).sum(0)
    return losses if pair_weights is None else losses * pair_weights.detach()


def _check_lengths(kinds: Sequence[str], chosen: Tensor | None, rejected: Tensor | None, per_answer: Tensor | float | None) -> None:
    if any(kind in NEED_LENGTHS for kind in kinds) and (chosen is None or rejected is None):
        raise TrainingError(f"{' and '.join(kinds)} need the lengths of both answers", fix="pass chosen_lengths and rejected_lengths")
    if "sft" in kinds and chosen is None and per_answer is None:
        raise TrainingError("sft needs the lengths of the better answers", fix="pass chosen_lengths or tokens_per_answer")


def _check(
    kinds: Sequence[str], shares: Sequence[float], beta: float, smoothing: float, divergence: str, *, weighted: bool, sorts: bool
) -> None:
    unknown = [kind for kind in kinds if kind not in TERMS]
    if unknown or not kinds:
        raise TrainingError(f"unknown loss_type {', '.join(map(repr, unknown)) or 'of no name'}", fix=", ".join(TERMS))
    if len(shares) != len(kinds):
        raise TrainingError(f"{len(shares)} loss_weights for {len(kinds)} losses", fix="one weight for each loss_type")
    if beta <= 0:
        raise TrainingError(f"beta {beta} is not positive", fix="for example 0.1")
    if not 0 <= smoothing < 0.5:
        raise TrainingError(f"label_smoothing {smoothing} is outside [0, 0.5)", fix="for example 0.1")
    if smoothing and not any(kind in SMOOTHED for kind in kinds):
        raise TrainingError(f"label_smoothing has no meaning for {' and '.join(kinds)}", fix=f"0, or one of {', '.join(sorted(SMOOTHED))}")
    if not smoothing and "exo_pair" in kinds:
        raise TrainingError("exo_pair needs a label_smoothing above 0", fix="for example 0.001")
    if divergence not in DIVERGENCES:
        raise TrainingError(f"unknown f_divergence {divergence!r}", fix=", ".join(DIVERGENCES))
    if divergence != "reverse_kl" and not any(kind in OF_SCORES for kind in kinds):
        raise TrainingError(f"f_divergence has no meaning for {' and '.join(kinds)}", fix=f"one of {', '.join(sorted(OF_SCORES))}")
    ordered = [kind for kind in kinds if kind in SORTED]
    if ordered and weighted:
        raise TrainingError(f"{ordered[0]} sorts values away from their pairs, so pairs cannot be weighted", fix="another loss_type")
    if sorts and len(ordered) != 1:
        raise TrainingError("population belongs to aot or to aot_unpaired, one of them", fix="leave it out")


def preference_metrics(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, *, beta: float
) -> dict[str, Tensor]:
    """Return what is logged of pairs as sums over them: divide by the pairs of all ranks.

    `rewards/*` are `beta` times log-ratios, an accuracy is 1 where the better answer has the higher one.

    Args:
        policy_chosen_logps: `[pairs]`, as for `dpo_loss`.
        policy_rejected_logps: `[pairs]`.
        ref_chosen_logps: `[pairs]`.
        ref_rejected_logps: `[pairs]`.
        beta: as for the loss.

    Returns:
        scalars without gradient.
    """
    policy_chosen, policy_rejected = policy_chosen_logps.detach(), policy_rejected_logps.detach()
    chosen = beta * (wide(policy_chosen) - wide(ref_chosen_logps))
    rejected = beta * (wide(policy_rejected) - wide(ref_rejected_logps))
    return {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "rewards/margins": (chosen - rejected).sum(),
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype).sum(),
        "logps/chosen": policy_chosen.sum(),
        "logps/rejected": policy_rejected.sum(),
    }
