"""Answers without end: each round is written, rewarded and compared when training asks for more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from swift_core.protocols import EncodedSample

from swift_rlhf.advantages import combine_rewards, decoupled_advantages, group_advantages, informative, rewards_less_kl
from swift_rlhf.config.grpo import GrpoSection
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.prompts import PromptCursor
from swift_rlhf.grpo.record import Completions
from swift_rlhf.grpo.reference import LogpsPass
from swift_rlhf.grpo.rollouts import Rewarded, Rollouts, reward_tensor
from swift_rlhf.grpo.samples import AnswerGroup
from swift_rlhf.losses import entropy_threshold, padded


@dataclass(frozen=True, slots=True)
class Round:
    """The numbers of a round of answers.

    Attributes:
        prompts: that are answered.
        part: answers of a sample; a group has one sample or several.
        updates: optimizer steps that a round is for.
        samples_per_step: samples of an optimizer step on all devices.
        beta: weight of the distance from the reference.
        kl_in_reward: whether that is taken off the reward.
        weights: of the reward functions.
        max_completion_length: tokens of an answer.
    """

    prompts: int
    part: int
    updates: int
    samples_per_step: int
    beta: float
    kl_in_reward: bool
    weights: torch.Tensor
    max_completion_length: int


class RolloutStream(Iterator[EncodedSample]):
    """The samples of a run; all ranks see the same ones.

    Args:
        rollouts: answers prompts.
        cursor: which prompts come next.
        passes: log-probabilities before the update.
        settings: of the algorithm.
        plan: numbers of a round.
        meter: takes what is logged.
        record: takes the answers.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        cursor: PromptCursor,
        passes: LogpsPass,
        settings: GrpoSection,
        plan: Round,
        meter: Meter,
        record: Completions,
    ) -> None:
        self._rollouts, self._cursor, self._passes = rollouts, cursor, passes
        self._settings, self._plan, self._meter, self._record = settings, plan, meter, record
        self._buffer: list[AnswerGroup] = []
        self._bank: list[Rewarded] = []
        self._given = 0
        self._groups = 0
        self._acceptance = 1.0

    @property
    def samples_per_epoch(self) -> int:
        """Return how many samples every prompt once makes."""
        groups = -(-len(self._cursor) // self._plan.prompts) * self._plan.prompts
        return groups * self._settings.num_generations * self._settings.num_iterations // self._plan.part

    @property
    def version(self) -> int:
        """Return the optimizer steps before the next sample."""
        return self._given // self._plan.samples_per_step

    def __next__(self) -> EncodedSample:
        if not self._buffer:
            self._fill()
        self._given += 1
        return self._buffer.pop(0)

    def _fill(self) -> None:
        started = time.monotonic()
        groups = self._collect()
        rewards = reward_tensor(groups)
        self._log_round(groups, rewards, time.monotonic() - started)
        self._look_back(groups)
        self._compare(groups, rewards)
        if self._settings.overlong_filter:
            for rewarded in groups:
                for answer, truncated in zip(rewarded.group.answers, rewarded.truncated, strict=True):
                    if truncated:
                        answer.mask, answer.sampler_logps = [0] * len(answer.mask), []
                        answer.old_logps = answer.ref_logps = answer.keep = None
        self._record.write(groups, self._rollouts.reward_names, step=self.version + 1)
        parts = [part for rewarded in groups for part in rewarded.group.parts(self._plan.part)]
        self._buffer = parts * self._settings.num_iterations

    # ---- collecting ------------------------------------------------------------------------------------------------

    def _collect(self) -> list[Rewarded]:
        wanted = self._plan.prompts
        if not self._settings.dynamic_sample:
            return self._answer(wanted)
        kept, self._bank = self._bank[:wanted], self._bank[wanted:]
        spare: list[Rewarded] = []
        rounds = asked = 0
        while len(kept) < wanted and rounds <= self._settings.max_resample_times:
            # As many more as the share of useful groups so far lets expect to be needed, at most twice a round.
            count = min(-(-(wanted - len(kept)) // max(self._acceptance, 0.25)), 2 * wanted) if rounds else wanted - len(kept)
            found = self._answer(int(count))
            rounds, asked = rounds + 1, asked + len(found)
            good = [rewarded for rewarded in found if self._teaches(rewarded)]
            spare += [rewarded for rewarded in found if not self._teaches(rewarded)]
            self._acceptance = 0.5 * self._acceptance + 0.5 * len(good) / len(found)
            kept += good
        surplus = kept[wanted:]
        if surplus:
            # They are trained after the update, so what the policy thinks of them now must be kept.
            self._set_old(surplus)
            self._bank += surplus
        unfilled = max(0, wanted - len(kept))
        for name, value in (("resample_rounds", rounds), ("prompts_asked", asked), ("unfilled", unfilled), ("banked", len(self._bank))):
            self._meter.add_value(f"dynamic_sample/{name}", value)
        return [*kept[:wanted], *spare[:unfilled]]

    def _answer(self, count: int) -> list[Rewarded]:
        samples = self._cursor.take(count)
        found = self._rollouts.answer(samples, first_group=self._groups, version=self.version)
        self._groups += count
        return found

    def _teaches(self, rewarded: Rewarded) -> bool:
        total = combine_rewards(torch.tensor(rewarded.rewards), self._plan.weights)
        return bool(informative(total, torch.zeros(len(total), dtype=torch.long)).any())

    # ---- comparing -------------------------------------------------------------------------------------------------

    def _look_back(self, groups: Sequence[Rewarded]) -> None:
        """Note what policy and reference think of the answers before anything is trained on them."""
        plain = [rewarded.group for rewarded in groups]
        if self._plan.beta:
            for group, values in zip(plain, self._passes.of_reference(plain), strict=True):
                for answer, (logps, _) in zip(group.answers, values, strict=True):
                    answer.ref_logps = logps
        if self._plan.updates > 1 or self._plan.kl_in_reward:
            self._set_old([rewarded for rewarded in groups if any(answer.old_logps is None for answer in rewarded.group.answers)])
        if self._settings.top_entropy_quantile < 1:
            self._keep_uncertain(plain)

    def _set_old(self, groups: Sequence[Rewarded]) -> None:
        plain = [rewarded.group for rewarded in groups]
        for group, values in zip(plain, self._passes.of_policy(plain), strict=True):
            for answer, (logps, _) in zip(group.answers, values, strict=True):
                answer.old_logps = logps

    def _keep_uncertain(self, groups: Sequence[AnswerGroup]) -> None:
        found = [entropies or [] for values in self._passes.of_policy(groups, entropy=True) for _, entropies in values]
        answers = [answer for group in groups for answer in group.answers]
        flat = torch.tensor([value for entropies in found for value in entropies])
        threshold = float(entropy_threshold(flat, torch.ones_like(flat), top=self._settings.top_entropy_quantile))
        for answer, entropies in zip(answers, found, strict=True):
            answer.keep = [value >= threshold for value in entropies]

    def _compare(self, groups: Sequence[Rewarded], rewards: torch.Tensor) -> None:
        settings = self._settings
        ids = torch.tensor([rewarded.group.group for rewarded in groups for _ in rewarded.group.answers])
        answers = [answer for rewarded in groups for answer in rewarded.group.answers]
        weights = self._plan.weights
        if settings.scale_rewards == "gdpo":
            advantages = decoupled_advantages(rewards, ids, weights=weights)
        else:
            total = combine_rewards(rewards, weights)
            if self._plan.kl_in_reward:
                lengths = [answer.tokens for answer in answers]
                old, mask = padded(torch.tensor([value for answer in answers for value in answer.old_logps or []]), lengths)
                ref, _ = padded(torch.tensor([value for answer in answers for value in answer.ref_logps or []]), lengths)
                total = rewards_less_kl(total, old - ref, mask, kl_coef=self._plan.beta)
            advantages = group_advantages(total, ids, estimator=settings.advantage_estimator, scale_rewards=settings.scale_rewards)
        for answer, value in zip(answers, advantages.tolist(), strict=True):
            answer.advantage = value
        if self._plan.updates == 1:
            # The forward pass that trains them says the same.
            for rewarded in groups:
                if rewarded.group.version == self.version:
                    for answer in rewarded.group.answers:
                        answer.old_logps = None

    # ---- the log ---------------------------------------------------------------------------------------------------

    def _log_round(self, groups: Sequence[Rewarded], rewards: torch.Tensor, seconds: float) -> None:
        add = self._meter.add_value
        total = combine_rewards(rewards, self._plan.weights)
        for name, column in zip(self._rollouts.reward_names, rewards.unbind(1), strict=True):
            present = column[~column.isnan()]
            if len(present):
                add(f"reward/{name}/mean", float(present.mean()))
                add(f"reward/{name}/std", float(present.std(correction=min(1, len(present) - 1))))
        present = total[~total.isnan()]
        if len(present):
            add("reward", float(present.mean()))
        by_group = total.split([len(rewarded.group.answers) for rewarded in groups])
        deviations = [float(one[~one.isnan()].std()) if (~one.isnan()).sum() > 1 else 0.0 for one in by_group]
        add("reward_std", sum(deviations) / len(deviations))
        dull = [not bool(informative(one, torch.zeros(len(one), dtype=torch.long)).any()) for one in by_group]
        add("frac_reward_zero_std", sum(dull) / len(dull))
        lengths = [answer.tokens for rewarded in groups for answer in rewarded.group.answers]
        cut = [truncated for rewarded in groups for truncated in rewarded.truncated]
        add("completions/mean_length", sum(lengths) / len(lengths))
        add("completions/min_length", min(lengths))
        add("completions/max_length", max(lengths))
        add("completions/clipped_ratio", sum(cut) / len(cut))
        turns = [count for rewarded in groups for count in rewarded.turns]
        if max(turns) > 1:
            add("completions/mean_turns", sum(turns) / len(turns))
        add("rollout_seconds", seconds)

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the answers that wait, the position in the prompts and all counters, as plain values."""
        # With several iterations the buffer holds the same groups again.
        places: dict[int, int] = {}
        groups: list[AnswerGroup] = []
        for group in self._buffer:
            if id(group) not in places:
                places[id(group)] = len(groups)
                groups.append(group)
        return {
            "groups": [group.saved() for group in groups],
            "buffer": [places[id(group)] for group in self._buffer],
            "bank": [rewarded.saved() for rewarded in self._bank],
            "cursor": self._cursor.state_dict(),
            "given": self._given,
            "group_number": self._groups,
            "acceptance": self._acceptance,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where another stream over the same prompts stood."""
        groups = [AnswerGroup.restored(values) for values in state["groups"]]
        self._buffer = [groups[place] for place in state["buffer"]]
        self._bank = [Rewarded.restored(values) for values in state["bank"]]
        self._cursor.load_state_dict(state["cursor"])
        self._given, self._groups, self._acceptance = int(state["given"]), int(state["group_number"]), float(state["acceptance"])
        self._record.resume(self.version)
