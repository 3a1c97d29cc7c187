"""What PPO teaches: tokens that were better than expected become likelier, and the critic what it should have expected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from swift_core.protocols import EncodedSample
from swift_core.scoring.scorer import Scorer
from torch import Tensor, nn

from swift_rlhf.config.ppo import PpoSection
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.losses import Sum, padded, ppo_policy_loss, ppo_value_loss
from swift_rlhf.losses.tokens import masked
from swift_rlhf.ppo.critic import Critic
from swift_rlhf.ppo.samples import ValuedAnswer, ValuedBatch, collate_valued


class PpoTask:
    """The task of a PPO run; its loss is a mean over the tokens that the model wrote.

    Args:
        section: settings of the algorithm.
        critic: what expects rewards.
        meter: takes what is logged.
        temperature: that answers are sampled with.
        shared: lay answers side by side without padding.
    """

    unit = "tokens"

    def __init__(self, section: PpoSection, critic: Critic, meter: Meter, *, temperature: float, shared: bool) -> None:
        self.packs = shared
        self._section, self._critic, self._meter = section, critic, meter
        self._temperature = temperature
        self._scorer: Scorer | None = None

    def weight(self, sample: EncodedSample) -> int:
        """Return the tokens that an answer trains."""
        return cast(ValuedAnswer, sample).tokens

    def length(self, sample: EncodedSample) -> int:
        """Return the tokens that a sample puts through the model: 0 where nothing is to be learned."""
        answer = cast(ValuedAnswer, sample)
        return len(answer) + len(answer.answers[0].ids) if answer.tokens else 0

    def collate(self, samples: Sequence[EncodedSample], *, pad_token_id: int) -> ValuedBatch:
        """Lay answers out."""
        return collate_valued(cast(Sequence[ValuedAnswer], samples), pad_token_id=pad_token_id, shared=self.packs)

    def loss(self, model: nn.Module, batch: ValuedBatch) -> Tensor:
        """Return the summed loss of policy and critic over the tokens of a batch."""
        answers = batch.answers
        if not answers.lengths:
            return sum((weight.sum() * 0 for weight in model.parameters() if weight.requires_grad), torch.zeros(()))
        section = self._section
        scorer = self.scored_by(model)
        found = scorer.predictions(answers.rows)
        logps, mask = padded(scorer.logps_of(found, temperature=self._temperature).logps, answers.lengths)
        values, _ = padded(self._critic.values(answers.rows, found), answers.lengths)
        policy = ppo_policy_loss(logps, answers.old_logps, batch.advantages, mask, epsilon=section.cliprange).loss
        value = ppo_value_loss(values, batch.values, batch.returns, mask, epsilon=section.cliprange_value or None)
        self._meter.add({"loss/policy_avg": detached(policy), "loss/value_avg": detached(value)})
        self._log(logps.detach(), values.detach(), batch, mask)
        return policy.total + section.vf_coef * value.total

    def _log(self, logps: Tensor, values: Tensor, batch: ValuedBatch, mask: Tensor) -> None:
        moved = masked(logps - torch.nan_to_num(batch.answers.old_logps), mask)
        ratio, count, section = moved.exp(), mask.sum(), self._section
        sums = {
            "policy/approxkl_avg": masked(moved.square() / 2, mask),
            "policy/clipfrac_avg": masked(((ratio - 1).abs() > section.cliprange).float(), mask),
            "policy/entropy_estimate": masked(-logps, mask),
            "val/ratio": masked(ratio, mask),
        }
        if section.cliprange_value:
            sums["val/clipfrac_avg"] = masked(((values - batch.values).abs() > section.cliprange_value).float(), mask)
        self._meter.add({name: Sum(each.sum(), count) for name, each in sums.items()})

    def scored_by(self, model: nn.Module) -> Scorer:
        """Return the scorer of a model."""
        if self._scorer is None or self._scorer.model is not model:
            self._scorer = Scorer(model)
        return self._scorer

    def log_values(self) -> dict[str, float]:
        """Return what has been logged since the last call."""
        return self._meter.values()

    def measure(self, model: nn.Module, batch: Any) -> Any:
        """Refuse: a run has no evaluation data."""
        raise NotImplementedError("PPO has no evaluation data")

    def metrics(self, parts: Iterable[Any]) -> dict[str, float]:
        """Return no metrics: a run has no evaluation data."""
        return {}

    def save(self, folder: Path) -> None:
        """Write the critic."""
        self._critic.save(folder)

    def save_state(self, folder: Path) -> None:
        """Write nothing more: `save` has written the critic."""

    def load_state(self, folder: Path) -> None:
        """Take the critic back."""
        self._critic.load(folder)


def detached(value: Sum) -> Sum:
    """Return a sum for the log."""
    return Sum(value.total.detach(), value.weight)
