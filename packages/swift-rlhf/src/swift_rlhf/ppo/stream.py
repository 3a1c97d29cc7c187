"""Answers without end: each round is written, rewarded and valued when training asks for more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from swift_core.protocols import EncodedSample
from torch import Tensor

from swift_rlhf.advantages import combine_rewards
from swift_rlhf.config.ppo import PpoSection
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.prompts import PromptCursor
from swift_rlhf.grpo.record import Completions
from swift_rlhf.grpo.reference import LogpsPass
from swift_rlhf.grpo.rewarded import Rewarded
from swift_rlhf.grpo.rollouts import Rollouts, reward_tensor
from swift_rlhf.grpo.samples import Answer, AnswerGroup
from swift_rlhf.losses import adapted_kl_coef, gae, padded, token_rewards, whiten
from swift_rlhf.losses.tokens import masked
from swift_rlhf.ppo.samples import ValuedAnswer

Looked = tuple[list[float], list[float]]
"""Log-probabilities and values of an answer's tokens."""


@dataclass(frozen=True, slots=True)
class Round:
    """The numbers of a round of answers.

    Attributes:
        prompts: that are answered, on all devices.
        samples_per_step: answers of an optimizer step on all devices.
        weights: of the reward functions.
        seed: of the order in which answers are trained on.
    """

    prompts: int
    samples_per_step: int
    weights: Tensor
    seed: int


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The tokens of a round, all `[answers, tokens]`; `scores` `[answers]`, NaN without a reward."""

    scores: Tensor
    logps: Tensor
    kl: Tensor
    values: Tensor
    mask: Tensor


class PpoStream(Iterator[EncodedSample]):
    """The samples of a run; all ranks see the same ones, so whitening is over all of them.

    Args:
        rollouts: answers prompts, one answer each.
        cursor: which prompts come next.
        passes: runs models over answers before the update.
        look: returns log-probabilities and values of groups under the policy and its critic as they are.
        section: settings of the algorithm.
        plan: numbers of a round.
        meter: takes what is logged.
        record: takes the answers.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        cursor: PromptCursor,
        passes: LogpsPass,
        look: Callable[[Sequence[AnswerGroup]], list[Looked]],
        section: PpoSection,
        plan: Round,
        meter: Meter,
        record: Completions,
    ) -> None:
        self._rollouts, self._cursor, self._passes, self._look = rollouts, cursor, passes, look
        self._section, self._plan, self._meter, self._record = section, plan, meter, record
        self._buffer: list[ValuedAnswer] = []
        self._given = 0
        self._asked = 0
        self._kl_coef = section.kl_coef

    @property
    def samples_per_epoch(self) -> int:
        """Return how many samples every prompt once makes."""
        rounds = -(-len(self._cursor) // self._plan.prompts)
        return rounds * self._plan.prompts * self._section.num_ppo_epochs

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
        samples = [self._cursor[place] for place in self._cursor.take(self._plan.prompts)]
        groups = self._rollouts.answer(samples, first_group=self._asked, version=self.version)
        self._meter.add_value("rollout_seconds", time.monotonic() - started)
        answers = self._valued(groups)
        self._record.write(groups, self._rollouts.reward_names, step=self.version + 1)
        for epoch in range(self._section.num_ppo_epochs):
            order = list(range(len(answers)))
            Random(f"{self._plan.seed}/ppo/{self._asked}/{epoch}").shuffle(order)
            self._buffer += [answers[place] for place in order]
        self._asked += len(groups)

    # ---- what tokens are worth -------------------------------------------------------------------------------------

    def _valued(self, groups: Sequence[Rewarded]) -> list[ValuedAnswer]:
        section = self._section
        tokens = self._measured(groups)
        rewards = token_rewards(tokens.scores.nan_to_num(), tokens.kl, tokens.mask, kl_coef=self._kl_coef)
        if section.whiten_rewards:
            rewards = whiten(rewards, tokens.mask, shift_mean=False)
        advantages, returns = gae(rewards, tokens.values, tokens.mask, gamma=section.gamma, lam=section.lam)
        self._log(groups, tokens, returns)
        columns = {"values": tokens.values, "advantages": whiten(advantages, tokens.mask), "returns": returns}
        if section.kl_target is not None:
            kl = float(masked(tokens.kl, tokens.mask).sum() / len(groups))
            self._kl_coef = adapted_kl_coef(self._kl_coef, kl, target=section.kl_target, answers=len(groups), horizon=section.kl_horizon)
        found: list[ValuedAnswer] = []
        for place, rewarded in enumerate(groups):
            answer, kept = rewarded.group.answers[0], tokens.mask[place]
            if not kept.any():
                answer.mask, answer.sampler_logps, answer.old_logps, answer.ref_logps = [0] * len(answer.mask), [], None, None
            mine = {name: column[place][kept].tolist() for name, column in columns.items()}
            answer.advantage = sum(mine["advantages"]) / max(1, len(mine["advantages"]))
            found.append(ValuedAnswer.valued(rewarded.group, mine))
        return found

    def _measured(self, groups: Sequence[Rewarded]) -> _Tokens:
        """Return what policy, critic and reference say of the answers; those without a reward have an empty mask."""
        plain = [rewarded.group for rewarded in groups]
        answers = [group.answers[0] for group in plain]
        scores = combine_rewards(reward_tensor(groups), self._plan.weights)
        if self._section.missing_eos_penalty is not None:
            scores = scores - self._section.missing_eos_penalty * torch.tensor([any(rewarded.truncated) for rewarded in groups]).float()
        looked = self._look(plain)
        for answer, (logps, _) in zip(answers, looked, strict=True):
            answer.old_logps = logps
        if self._section.kl_coef:
            for answer, ((logps, _),) in zip(answers, self._passes.of_reference(plain), strict=True):
                answer.ref_logps = logps
        logps, mask = _rows([values for values, _ in looked], answers)
        reference = _rows([answer.ref_logps or answer.old_logps or [] for answer in answers], answers)[0]
        values = _rows([values for _, values in looked], answers)[0]
        return _Tokens(scores, logps, logps - reference, values, mask & ~scores.isnan()[:, None])

    # ---- the log ---------------------------------------------------------------------------------------------------

    def _log(self, groups: Sequence[Rewarded], tokens: _Tokens, returns: Tensor) -> None:
        add, mask = self._meter.add_value, tokens.mask
        count = float(mask.any(-1).sum())
        kl = float(masked(tokens.kl, mask).sum())
        score = float(tokens.scores.nan_to_num().sum())
        add("objective/kl", kl, count)
        add("objective/entropy", float(-masked(tokens.logps, mask).sum()), count)
        add("objective/non_score_reward", -self._kl_coef * kl, count)
        add("objective/rlhf_reward", score - self._kl_coef * kl, count)
        add("objective/scores", score, count)
        add("objective/kl_coef", self._kl_coef)
        for name, column in zip(self._rollouts.reward_names, reward_tensor(groups).unbind(1), strict=True):
            add(f"reward/{name}/mean", float(column.nansum()), float((~column.isnan()).sum()))
        ended = [not any(rewarded.truncated) for rewarded in groups]
        add("val/num_eos_tokens", sum(ended))
        add("completions/mean_length", float(mask.sum()), count)
        add("completions/clipped_ratio", len(ended) - sum(ended), len(ended))
        wanted, expected = returns[mask], tokens.values[mask]
        if len(wanted) > 1 and float(wanted.var()) > 0:
            add("val/explained_variance", 1 - float((wanted - expected).var() / wanted.var()))

    # ---- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the answers that wait, the position in the prompts and all counters, as plain values."""
        waiting = {sample.group: sample for sample in self._buffer}  # every epoch of a round has the same answers
        return {
            "answers": [sample.saved() for sample in waiting.values()],
            "order": [sample.group for sample in self._buffer],
            "cursor": self._cursor.state_dict(),
            "counts": [self._given, self._asked],
            "kl_coef": self._kl_coef,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where another stream over the same prompts stood."""
        answers = {values["group"]: ValuedAnswer.restored(values) for values in state["answers"]}
        self._buffer = [answers[group] for group in state["order"]]
        self._cursor.load_state_dict(state["cursor"])
        self._given, self._asked = state["counts"]
        self._kl_coef = float(state["kl_coef"])
        self._record.resume(self.version)


def _rows(values: Sequence[Sequence[float]], answers: Sequence[Answer]) -> tuple[Tensor, Tensor]:
    """Return the tokens of answers as rows `[answers, tokens]`, with their mask."""
    return padded(torch.tensor([value for row in values for value in row]), [answer.tokens for answer in answers])
