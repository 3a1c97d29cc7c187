"""Judging a run by new answers to prompts that it is not trained on."""

from __future__ import annotations

from collections.abc import Sequence

from swift_core.protocols import Sample
from torch import Tensor

from swift_rlhf.advantages import combine_rewards
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.record import Completions
from swift_rlhf.grpo.rollouts import Rollouts, reward_tensor
from swift_rlhf.grpo.round_log import log_round

_SHOWN = ("reward", "completions/", "episodes/")


class Evaluation:
    """Lets the model answer prompts and rewards the answers; nothing is trained.

    The same random numbers are drawn every time, so that evaluations differ by the weights alone.

    Args:
        rollouts: answers prompts.
        samples: the prompts.
        weights: of the reward functions.
        meter: adds up over answers.
        record: takes the answers.
    """

    def __init__(self, rollouts: Rollouts, samples: Sequence[Sample], weights: Tensor, meter: Meter, record: Completions) -> None:
        self._rollouts, self._samples, self._weights = rollouts, samples, weights
        self._meter, self._record = meter, record

    def __len__(self) -> int:
        return len(self._samples)

    def run(self, step: int) -> dict[str, float]:
        """Return the mean reward, that of each function, lengths and turns after so many optimizer steps; the same on all ranks.

        Raises:
            TrainingError: when a reward fails.
            EngineError: when the engine fails.
        """
        groups = self._rollouts.answer(self._samples, first_group=0, version=step)
        rewards = reward_tensor(groups)
        log_round(self._meter, groups, rewards, self._rollouts.reward_names, self._weights)
        self._record.write(groups, self._rollouts.reward_names, step=step)
        values = {name: value for name, value in self._meter.values().items() if name.startswith(_SHOWN) and name != "reward_wait_seconds"}
        total = combine_rewards(rewards, self._weights)
        return {"reward": float(total.nanmean()), **{name: value for name, value in values.items() if name not in ("reward", "reward_std")}}
