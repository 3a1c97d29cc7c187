"""From settings to the loss of a pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swift_rlhf.config.command import RlhfConfig
from swift_rlhf.losses import cpo_loss, dpo_loss, orpo_loss, preference_metrics
from swift_rlhf.preference.scoring import Scored


@dataclass(frozen=True, slots=True)
class PairValues:
    """What a loss of pairs reads; all `[pairs]`, log-probabilities in nats.

    Attributes:
        chosen, rejected: of the answers under the policy; with LD-DPO the discounted ones.
        ref_chosen, ref_rejected: the same under the reference model; 0 without one.
        chosen_plain: of the better answer under the policy.
        chosen_lengths, rejected_lengths: trained tokens.
        weights: of the pairs; 1 without WPO.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_plain: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What a loss knows of the whole optimizer step on all ranks.

    Attributes:
        tokens_per_answer: mean length of the better answers.
        bco_delta: running mean of the rewards.
        population: values that aot sorts among; None: those of the micro-batch are all.
    """

    tokens_per_answer: float
    bco_delta: float = 0.0
    population: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss of pairs.

    Attributes:
        losses: `[pairs]` from values and facts.
        metrics: sums over the pairs, by name.
        needs_reference: whether there is a reference model.
        sorts: `aot`, `aot_unpaired`, or empty: what of a step must be known before its first micro-batch.
        runs_mean: whether it compares with a running mean of rewards.
        ld_alpha: of LD-DPO.
        beta: scale of logged rewards.
    """

    losses: Callable[[PairValues, StepFacts], Tensor]
    metrics: Callable[[PairValues], dict[str, Tensor]]
    needs_reference: bool
    beta: float
    sorts: str = ""
    runs_mean: bool = False
    ld_alpha: float | None = None


def make_objective(config: RlhfConfig) -> Objective:
    """Return the loss that the settings ask for."""
    return {"dpo": _dpo, "cpo": _cpo, "simpo": _cpo, "orpo": _orpo}[config.task.rlhf_type](config)


def _dpo(config: RlhfConfig) -> Objective:
    section, beta = config.dpo, config.task.beta or 0.1
    kinds: Any = tuple(config.task.loss_type)

    def losses(values: PairValues, facts: StepFacts) -> Tensor:
        found = dpo_loss(
            values.chosen,
            values.rejected,
            values.ref_chosen,
            values.ref_rejected,
            loss_type=kinds,
            loss_weights=section.loss_weights or None,
            beta=beta,
            label_smoothing=config.pairs.label_smoothing,
            chosen_lengths=values.chosen_lengths,
            rejected_lengths=values.rejected_lengths,
            f_divergence=section.f_divergence_type,
            f_alpha=section.f_alpha_divergence_coef,
            discopop_tau=section.discopop_tau,
            bco_delta=facts.bco_delta,
            rpo_alpha=section.rpo_alpha,
            chosen_nll=-values.chosen_plain,
            tokens_per_answer=facts.tokens_per_answer,
            population=facts.population,
        )
        return found * values.weights

    sorts = next((kind for kind in kinds if kind.startswith("aot")), "")
    costs = section.rpo_alpha is not None or "sft" in kinds
    return Objective(losses, _metrics(beta, costs=costs), True, beta, sorts, "bco_pair" in kinds, section.ld_alpha)


def _cpo(config: RlhfConfig) -> Objective:
    simpo = config.task.rlhf_type == "simpo"
    section, beta = config.reference_free, config.task.beta or (2.0 if simpo else 0.1)
    kind: Any = config.task.loss_type[0]
    weight = section.cpo_alpha if section.cpo_alpha is not None else (0.0 if simpo else 1.0)

    def losses(values: PairValues, facts: StepFacts) -> Tensor:
        return cpo_loss(
            values.chosen,
            values.rejected,
            chosen_lengths=values.chosen_lengths,
            rejected_lengths=values.rejected_lengths,
            loss_type=kind,
            beta=beta,
            label_smoothing=config.pairs.label_smoothing,
            cpo_alpha=weight,
            simpo_gamma=section.simpo_gamma,
            alpha=section.alpha_po_alpha,
            tokens_per_answer=facts.tokens_per_answer,
        )

    return Objective(losses, _metrics(beta, per_token=kind in ("ipo", "simpo"), costs=bool(weight)), False, beta)


def _orpo(config: RlhfConfig) -> Objective:
    beta = config.task.beta or 0.1

    def losses(values: PairValues, facts: StepFacts) -> Tensor:
        lengths = {"chosen_lengths": values.chosen_lengths, "rejected_lengths": values.rejected_lengths}
        return orpo_loss(values.chosen, values.rejected, **lengths, beta=beta, tokens_per_answer=facts.tokens_per_answer)

    return Objective(losses, _metrics(beta, per_token=True, costs=True), False, beta)


def _metrics(beta: float, *, per_token: bool = False, costs: bool = False) -> Callable[[PairValues], dict[str, Tensor]]:
    """Return what is logged: rewards per token where the loss compares log-probabilities per token."""

    def metrics(values: PairValues) -> dict[str, Tensor]:
        chosen, rejected = values.chosen.detach(), values.rejected.detach()
        shares = (values.chosen_lengths, values.rejected_lengths) if per_token else (1, 1)
        found = preference_metrics(chosen / shares[0], rejected / shares[1], values.ref_chosen, values.ref_rejected, beta=beta)
        found |= {"logps/chosen": chosen.sum(), "logps/rejected": rejected.sum()}
        return found | ({"nll_per_token": (-values.chosen_plain.detach() / values.chosen_lengths).sum()} if costs else {})

    return metrics


def pair_values(scored: Scored, reference: Tensor | None, lengths: Tensor) -> PairValues:
    """Return the values of pairs that come as better, worse, better, worse, ...; all `[2 * pairs]`."""
    logps = scored.logps
    held = torch.zeros_like(logps) if reference is None else reference.to(logps)
    weights = torch.ones_like(logps) if scored.weights is None else scored.weights
    sides = (logps[0::2], logps[1::2], held[0::2], held[1::2])
    return PairValues(*sides, scored.plain[0::2], lengths[0::2], lengths[1::2], weights[0::2] * weights[1::2])
