"""Answers without end: each round is written, rewarded and compared when training asks for more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from swift_core.protocols import EncodedSample

from swift_rlhf.config.grpo import GrpoSection
from swift_rlhf.grpo.asking import Asking
from swift_rlhf.grpo.comparing import set_advantages, teaches
from swift_rlhf.grpo.experts import Experts
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.prompts import PromptCursor
from swift_rlhf.grpo.record import Completions
from swift_rlhf.grpo.reference import LogpsPass
from swift_rlhf.grpo.rewarded import Rewarded
from swift_rlhf.grpo.rollouts import Rollouts, reward_tensor
from swift_rlhf.grpo.round_log import log_round
from swift_rlhf.grpo.samples import AnswerGroup
from swift_rlhf.losses import entropy_threshold


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
        ahead: rounds that are written while one is trained.
    """

    prompts: int
    part: int
    updates: int
    samples_per_step: int
    beta: float
    kl_in_reward: bool
    weights: torch.Tensor
    max_completion_length: int
    ahead: int = 0


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
        experts: answers of experts that are imitated beside it, or None.
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
        experts: Experts | None = None,
    ) -> None:
        self._asking = Asking(rollouts, cursor, ahead=plan.ahead)
        self._passes, self._experts = passes, experts
        self._settings, self._plan, self._meter, self._record = settings, plan, meter, record
        self._buffer: list[AnswerGroup] = []
        self._bank: list[Rewarded] = []
        self._given = 0
        self._acceptance = 1.0

    @property
    def samples_per_epoch(self) -> int:
        """Return how many samples every prompt once makes."""
        groups = -(-self._asking.prompts // self._plan.prompts) * self._plan.prompts
        return groups * self._settings.num_generations * self._settings.num_iterations // self._plan.part

    @property
    def version(self) -> int:
        """Return the optimizer steps before the next sample."""
        return self._given // self._plan.samples_per_step

    def __next__(self) -> EncodedSample:
        if not self._buffer:
            before = self.state_dict()
            try:
                self._fill()
            except BaseException:
                self._take(before)  # a checkpoint that is written now asks for this round again
                raise
        if self._experts is not None and self._given % self._plan.samples_per_step == 0:
            step = self._plan.samples_per_step
            self._buffer[:step] = self._experts.attach(self._buffer[:step], step=self.version)
        self._given += 1
        return self._buffer.pop(0)

    def _fill(self) -> None:
        started = time.monotonic()
        groups = self._collect()
        rewards = reward_tensor(groups)
        seconds = time.monotonic() - started
        self._meter.add_value("rollout_seconds", seconds)
        if not self._plan.ahead:
            self._meter.add_value("rollout_tokens_per_second", sum(sum(rewarded.lengths) for rewarded in groups) / max(seconds, 1e-9))
        log_round(self._meter, groups, rewards, self._asking.reward_names, self._plan.weights)
        if self._plan.ahead:
            self._meter.add_value("staleness", sum(self.version - rewarded.group.version for rewarded in groups) / len(groups))
        self._look_back(groups)
        self._compare(groups, rewards)
        if self._settings.overlong_filter:
            self._leave_out_truncated(groups)
        self._record.write(groups, self._asking.reward_names, step=self.version + 1)
        parts = [part for rewarded in groups for part in rewarded.group.parts(self._plan.part)]
        self._buffer = parts * self._settings.num_iterations

    # ---- collecting ------------------------------------------------------------------------------------------------

    def _collect(self) -> list[Rewarded]:
        wanted = self._plan.prompts
        if not self._settings.dynamic_sample:
            return self._asking.round(wanted, version=self.version)
        kept, self._bank = self._bank[:wanted], self._bank[wanted:]
        spare: list[Rewarded] = []
        rounds = asked = 0
        while len(kept) < wanted and rounds <= self._settings.max_resample_times:
            found = self._asked(wanted, wanted - len(kept), first=not rounds)
            rounds, asked = rounds + 1, asked + len(found)
            good = [rewarded for rewarded in found if teaches(rewarded, self._plan.weights)]
            spare += [rewarded for rewarded in found if not teaches(rewarded, self._plan.weights)]
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

    def _asked(self, wanted: int, missing: int, *, first: bool) -> list[Rewarded]:
        if not first:
            # As many more as the share of useful groups so far lets expect to be needed, at most twice a round.
            return self._asking.now(int(min(-(-missing // max(self._acceptance, 0.25)), 2 * wanted)), version=self.version)
        return self._asking.round(wanted if self._plan.ahead else missing, version=self.version)

    # ---- comparing -------------------------------------------------------------------------------------------------

    def _look_back(self, groups: Sequence[Rewarded]) -> None:
        """Note what policy and reference think of the answers before anything is trained on them."""
        plain = [rewarded.group for rewarded in groups]
        if self._plan.beta:
            for group, values in zip(plain, self._passes.of_reference(plain), strict=True):
                for answer, (logps, _) in zip(group.answers, values, strict=True):
                    answer.ref_logps = logps
        if self._settings.rollout_importance_sampling_mode is None and not self._plan.kl_in_reward:
            self._hold_to_what_wrote(groups)
        if self._plan.updates > 1 or self._plan.kl_in_reward:
            self._set_old([rewarded for rewarded in groups if any(answer.old_logps is None for answer in rewarded.group.answers)])
        if self._settings.top_entropy_quantile < 1:
            self._keep_uncertain(plain)

    def _hold_to_what_wrote(self, groups: Sequence[Rewarded]) -> None:
        """Let the update of answers of older weights be bounded by the distance from the weights that wrote them."""
        for rewarded in groups:
            for answer in rewarded.group.answers if rewarded.group.version != self.version else ():
                if answer.old_logps is None:
                    answer.old_logps = list(answer.sampler_logps)

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
        plan = self._plan
        set_advantages(groups, rewards, self._settings, plan.weights, kl_coef=plan.beta if plan.kl_in_reward else 0.0)
        for rewarded in groups:
            fresh = rewarded.group.version == self.version
            for answer in rewarded.group.answers:
                if fresh and plan.updates == 1:
                    answer.old_logps = None  # the forward pass that trains them says the same

    def _leave_out_truncated(self, groups: Sequence[Rewarded]) -> None:
        for rewarded in groups:
            truncated = rewarded.truncated
            for answer in rewarded.group.answers:
                if truncated[answer.episode]:
                    answer.mask, answer.sampler_logps = [0] * len(answer.mask), []
                    answer.old_logps = answer.ref_logps = answer.keep = None

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
            **self._asking.state_dict(),
            "given": self._given,
            "acceptance": self._acceptance,
            **({"experts": self._experts.state_dict()} if self._experts is not None else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where another stream over the same prompts stood."""
        self._take(state)
        self._record.resume(self.version)

    def _take(self, state: dict[str, Any]) -> None:
        groups = [AnswerGroup.restored(values) for values in state["groups"]]
        self._buffer = [groups[place] for place in state["buffer"]]
        self._bank = [Rewarded.restored(values) for values in state["bank"]]
        self._given, self._acceptance = int(state["given"]), float(state["acceptance"])
        self._asking.load_state_dict(state)
        if self._experts is not None:
            self._experts.load_state_dict(state["experts"])
