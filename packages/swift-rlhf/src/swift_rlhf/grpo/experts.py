"""Answers of experts that are imitated beside reinforcement learning (CHORD)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from swift_core.errors import DataError
from swift_core.protocols import EncodedSample

from swift_rlhf.config.chord import ChordSection
from swift_rlhf.grpo.samples import AnswerGroup
from swift_rlhf.losses.chord import chord_mu


class Experts:
    """Deals answers of experts to the samples of each step, and says how much they count there.

    The loss of a step becomes `(1 - mu)` times that of the policy plus `mu` times the mean cross-entropy of the experts' tokens.

    Args:
        samples: conversations with the experts' answers, encoded.
        settings: how much they count.
        per_step: of them in an optimizer step on all devices.
        weigh: returns how much of the step's normaliser a group is.
        seed: of the order.

    Raises:
        DataError: when there are none.
    """

    def __init__(
        self, samples: Sequence[EncodedSample], settings: ChordSection, *, per_step: int, weigh: Callable[[EncodedSample], int], seed: int
    ) -> None:
        if not samples:
            raise DataError("there are no answers of experts", fix="check --chord_sft_dataset and --max_length")
        self._samples, self._settings, self._per_step, self._weigh, self._seed = samples, settings, per_step, weigh, seed
        self._given = 0
        self._epoch, self._order = -1, list[int]()

    def attach(self, groups: Sequence[AnswerGroup], *, step: int) -> list[AnswerGroup]:
        """Return the samples of a step with the experts' answers dealt to them.

        Args:
            groups: all samples of the step.
            step: optimizer steps before it.
        """
        settings = self._settings
        mu = chord_mu(
            step,
            warmup_steps=settings.chord_mu_warmup_steps,
            decay_steps=settings.chord_mu_decay_steps,
            peak=settings.chord_mu_peak,
            valley=settings.chord_mu_valley,
        )
        taken = [self._next() for _ in range(self._per_step)]
        tokens = sum(sample.trained_tokens for sample in taken)
        # The trainer divides the sum of a step by the weight of its groups.
        scale = mu * max(sum(self._weigh(group) for group in groups), 1) / max(tokens, 1)
        return [
            replace(group, experts=taken[place :: len(groups)], expert_scale=scale, policy_scale=1 - mu)
            for place, group in enumerate(groups)
        ]

    def _next(self) -> EncodedSample:
        epoch, place = divmod(self._given, len(self._samples))
        if epoch != self._epoch:
            self._order = list(range(len(self._samples)))
            Random(f"{self._seed}/experts/{epoch}").shuffle(self._order)
            self._epoch = epoch
        self._given += 1
        return self._samples[self._order[place]]

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as plain values."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        self._given, self._epoch = int(state["given"]), -1
