"""What GRPO teaches: answers with a positive advantage become likelier, others less likely."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from swift_core.batching.collate import Batch
from swift_core.errors import TrainingError
from swift_core.protocols import EncodedSample
from swift_core.scoring.scorer import Scorer
from torch import Tensor, nn

from swift_rlhf.config.grpo import GrpoSection
from swift_rlhf.grpo.following import FollowingReference
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.samples import AnswerBatch, AnswerGroup, collate_answers
from swift_rlhf.losses import (
    OBJECTIVES,
    Aggregation,
    Sum,
    aggregate,
    kl_estimate,
    off_policy_sequence_mask,
    padded,
    policy_loss,
    rollout_diagnostics,
    rollout_weights,
    sample_weights,
)
from swift_rlhf.losses.chord import chord_phi
from swift_rlhf.losses.entropy import negative_entropy
from swift_rlhf.losses.policy_options import PolicyOptions
from swift_rlhf.losses.rollout_correction import CorrectionLevel, CorrectionMode
from swift_rlhf.losses.tokens import masked


@dataclass(frozen=True, slots=True)
class Objective:
    """What is optimised.

    Attributes:
        grpo: settings of the objective.
        loss_type: its name.
        beta: weight of the distance from the reference in the loss; 0 where it is none, or in the reward.
        temperature: that answers are sampled with.
        max_completion_length: tokens that an answer may have.
    """

    grpo: GrpoSection
    loss_type: str
    beta: float
    temperature: float
    max_completion_length: int

    @property
    def skips(self) -> bool:
        """Say whether answers with an advantage of 0 can be left out: they would change nothing but the weight."""
        return self.beta == 0 and self.grpo.entropy_coef == 0 and self.loss_type != "bnpo"


class GrpoTask:
    """The task of a GRPO run.

    Args:
        objective: what is optimised.
        meter: takes what is logged.
        answers: answers that a sample holds.
        shared: whether a prompt is computed once for its answers.
        phi: whether tokens of experts are weighed by how sure the model is of them.
        following: a reference that follows the trained model, or None.
    """

    def __init__(
        self,
        objective: Objective,
        meter: Meter,
        *,
        answers: int,
        shared: bool = True,
        phi: bool = False,
        following: FollowingReference | None = None,
    ) -> None:
        self._following = following
        self._phi = phi
        self.objective = objective
        self.answers = answers
        self.packs = shared
        aggregation = OBJECTIVES[objective.loss_type].aggregation
        self.unit = {"token_mean": "tokens", None: "groups"}.get(aggregation, "answers")
        self._aggregation: Aggregation | None = aggregation
        self._meter = meter
        self._scorer: Scorer | None = None
        shared_names = {option.name for option in fields(PolicyOptions)} & set(GrpoSection.model_fields)
        self._options = {
            **{name: getattr(objective.grpo, name) for name in shared_names},
            "loss_type": objective.loss_type,
            "max_completion_length": objective.max_completion_length,
            "kl_coef": objective.beta,
        }

    def weight(self, sample: EncodedSample) -> int:
        """Return how much of the normaliser a group is, answers that are left out included."""
        counts = torch.tensor([answer.tokens for answer in cast(AnswerGroup, sample).answers])
        aggregation = self._aggregation
        if aggregation is None:
            return int(bool(counts.any()))
        mask = torch.arange(int(counts.max())) < counts[:, None]
        return int(sample_weights(mask, aggregation, max_completion_length=self.objective.max_completion_length).sum())

    def length(self, sample: EncodedSample) -> int:
        """Return the tokens that go through the model: 0 where nothing is to be learned."""
        group = cast(AnswerGroup, sample)
        active = [len(answer.ids) for answer in group.answers if self._active(answer)]
        imitated = sum(len(expert) for expert in group.experts)
        if not active:
            return imitated
        prompt = len(sample.input_ids)
        return imitated + (prompt + sum(active) if self.packs else sum(prompt + tokens for tokens in active))

    def _active(self, answer: Any) -> bool:
        return answer.tokens > 0 and (answer.advantage != 0 or not self.objective.skips)

    def collate(self, samples: Sequence[EncodedSample], *, pad_token_id: int) -> AnswerBatch:
        """Lay prompts out once, with their answers as branches."""
        groups = cast(Sequence[AnswerGroup], samples)
        return collate_answers(groups, pad_token_id=pad_token_id, shared=self.packs, inert=not self.objective.skips)

    def loss(self, model: nn.Module, batch: AnswerBatch) -> Tensor:
        """Return the summed policy loss of a batch, with that of experts beside it."""
        losses: list[Tensor] = []
        if batch.lengths:
            losses.append(self._policy_loss(model, batch) * batch.policy_scale)
        if batch.experts is not None and batch.expert_scale:
            losses.append(self._expert_loss(model, batch.experts) * batch.expert_scale)
        return sum(losses[1:], losses[0]) if losses else no_loss(model)

    def _expert_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the summed cross-entropy of the experts' tokens in nats."""
        logps = self.scored_by(model).logps(batch).logps
        self._meter.add({"chord/sft_loss": Sum(-logps.detach().sum(), torch.tensor(float(len(logps))))})
        return -(logps * chord_phi(logps)).sum() if self._phi else -logps.sum()

    def _policy_loss(self, model: nn.Module, batch: AnswerBatch) -> Tensor:
        objective, settings = self.objective, self.objective.grpo
        found = self.scored_by(model).logps(batch.rows, temperature=objective.temperature, entropy=settings.log_entropy)
        logps, mask = padded(found.logps, batch.lengths)
        old = torch.where(batch.old_logps.isnan(), logps.detach(), batch.old_logps)
        weights = self._correction(old, batch, mask)
        kl = kl_estimate(logps, torch.nan_to_num(batch.ref_logps), estimator=settings.kl_estimator) if objective.beta else None
        keep = batch.keep
        if settings.off_policy_sequence_mask_delta is not None:
            sampler = torch.where(batch.sampler_logps.isnan(), old, batch.sampler_logps)
            stays = off_policy_sequence_mask(logps, sampler, batch.advantages, mask, delta=settings.off_policy_sequence_mask_delta)
            keep = stays.expand(mask.shape) if keep is None else keep & stays
        result = policy_loss(
            logps,
            old,
            batch.advantages,
            mask,
            group_ids=batch.group_ids,
            keep=keep,
            weights=weights,
            kl=kl,
            **self._options,
        )
        self._log(batch, logps.detach(), old, mask, kl, weights, found.entropies)
        self._meter.add(result.metrics)
        return result.loss.total + self._entropy_loss(logps, mask, keep)

    def _entropy_loss(self, logps: Tensor, mask: Tensor, keep: Tensor | None) -> Tensor | float:
        coef, aggregation = self.objective.grpo.entropy_coef, self._aggregation
        if not coef or aggregation is None:
            return 0.0
        length = self.objective.max_completion_length
        return coef * aggregate(negative_entropy(logps), mask, aggregation, max_completion_length=length, keep=keep).total

    def _correction(self, old: Tensor, batch: AnswerBatch, mask: Tensor) -> Tensor | None:
        mode = self.objective.grpo.rollout_importance_sampling_mode
        if mode is None:
            return None
        level, _, how = mode.partition("_")
        upper = self.objective.grpo.rollout_importance_sampling_threshold
        return rollout_weights(
            old, batch.sampler_logps, mask, level=cast(CorrectionLevel, level), mode=cast(CorrectionMode, how), upper=upper
        )

    def _log(
        self,
        batch: AnswerBatch,
        logps: Tensor,
        old: Tensor,
        mask: Tensor,
        kl: Tensor | None,
        weights: Tensor | None,
        entropies: Tensor | None,
    ) -> None:
        count = mask.sum()
        self._meter.add_value("entropy_estimate", float(-masked(logps, mask).sum()), float(count))
        if entropies is not None:
            self._meter.add_value("entropy", float(entropies.sum()), float(count))
        if kl is not None:
            self._meter.add({"kl": Sum(masked(kl.detach(), mask).sum(), count)})
        if not batch.sampler_logps.isnan().all():
            self._meter.add_rollout(rollout_diagnostics(old, batch.sampler_logps, mask, weights))

    def scored_by(self, model: nn.Module) -> Scorer:
        """Return the scorer of a model."""
        if self._scorer is None or self._scorer.model is not model:
            self._scorer = Scorer(model)
        return self._scorer

    def log_values(self) -> dict[str, float]:
        """Return what has been logged since the last call."""
        return self._meter.values()

    def begin_step(self, model: nn.Module, batches: Sequence[Any]) -> None:
        """Do nothing: answers are compared before they are dealt to steps."""

    def end_step(self, model: nn.Module, step: int) -> None:
        """Let the reference follow."""
        if self._following is not None:
            self._following.after(model, step)

    def save_state(self, folder: Path) -> None:
        """Write a reference that has moved."""
        if self._following is not None:
            self._following.save(folder)

    def load_state(self, folder: Path) -> None:
        """Take it back."""
        if self._following is not None:
            self._following.load(folder)

    def measure(self, model: nn.Module, batch: Any) -> Any:
        """Refuse: a batch of answers says nothing about how good new ones are.

        Raises:
            TrainingError: always.
        """
        raise TrainingError("GRPO is judged by the rewards of new answers", fix="GRPOTrainer(...).evaluate()")

    def metrics(self, parts: Iterable[Any]) -> dict[str, float]:
        """Return no metrics, see `measure`."""
        return {}

    def save(self, folder: Path) -> None:
        """Write nothing: weights and tokenizer say everything."""


def no_loss(model: nn.Module) -> Tensor:
    """Return 0 with a gradient of 0 to every trained parameter, so that ranks stay in step."""
    return sum((weight.sum() * 0 for weight in model.parameters() if weight.requires_grad), torch.zeros(()))


__all__ = ["GrpoTask", "Objective"]
