"""The settings of the policy loss: which objective, and how it cuts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.losses.aggregation import Aggregation
from swift_rlhf.losses.ratios import RatioLevel

PolicyLossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "gspo_token", "luspo", "cispo", "sapo", "vespo", "fipo", "gmpo", "real"]


class Objective(NamedTuple):
    """What a name stands for.

    Attributes:
        term: what a token adds.
        level: whose ratio it takes.
        aggregation: how tokens become a loss; None for objectives over groups.
        low: how far a ratio may fall below 1 where the user sets nothing (for gmpo on log-ratios).
        high: how far it may rise above 1 where the user sets nothing; None means as `low`.
    """

    term: str
    level: RatioLevel
    aggregation: Aggregation | None
    low: float = 0.2
    high: float | None = None


OBJECTIVES: dict[str, Objective] = {
    "grpo": Objective("clip", "token", "sequence_mean"),
    "bnpo": Objective("clip", "token", "batch_token_mean"),
    "dr_grpo": Objective("clip", "token", "fixed_length"),
    "dapo": Objective("clip", "token", "token_mean"),
    "gspo": Objective("clip", "sequence", "sequence_mean", 3e-4, 4e-4),
    "gspo_token": Objective("clip", "sequence_token", "sequence_mean", 3e-4, 4e-4),
    "luspo": Objective("clip", "sequence", "sequence_sum", 2e-3, 2.5e-3),
    "cispo": Objective("cispo", "token", "token_mean"),
    "sapo": Objective("sapo", "token", "sequence_mean"),
    "vespo": Objective("vespo", "token", "token_mean"),
    "fipo": Objective("fipo", "token", "token_mean"),
    "gmpo": Objective("gmpo", "token", "sequence_mean", 0.4),
    "real": Objective("real", "token", None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOptions:
    """The settings of `policy_loss`, which are its further keyword arguments.

    Attributes:
        loss_type: the objective.
        importance_sampling_level: ratio by token, sequence or sequence_token; as the objective says when left out.
        aggregation: what the sum is divided by; as the objective says when left out.
        max_completion_length: tokens that an answer may have, for dr_grpo.
        epsilon: how far a ratio may fall below 1; 0.2, for gspo 3e-4, for luspo 2e-3, for gmpo 0.4 (on log-ratios).
        epsilon_high: how far it may rise above 1; as `epsilon`, for gspo 4e-4, for luspo 2.5e-3. DAPO has 0.28.
        delta: bound of the free ratio, above `1 + epsilon_high`.
        dual_clip: bound of the loss of negative advantages, above 1; 3 is usual.
        dynamic_clip: bounds that follow the probability of the token (DCPO), for token ratios.
        cispo_cap: largest factor of cispo, an absolute one.
        tau_pos: sharpness of sapo for positive advantages.
        tau_neg: the same for negative ones.
        real_tau: temperature of real.
        fipo_decay_rate: tokens after which the future counts half.
        fipo_clip_range: how far the factor may be from 1.
        fipo_clip_high_only: whether it may only rise.
        fipo_safety_threshold: ratio above which a negative advantage is not made stronger.
        vespo_positive: k and lambda of vespo for advantages that are not negative.
        vespo_negative: the same for negative ones.
        kl_coef: price of a nat.
        kl_weighted: multiply the KL by the ratio (DeepSeek-V3.2), which makes it unbiased off policy.
    """

    loss_type: PolicyLossType = "grpo"
    importance_sampling_level: RatioLevel | None = None
    aggregation: Aggregation | None = None
    max_completion_length: int | None = None
    epsilon: float | None = None
    epsilon_high: float | None = None
    delta: float | None = None
    dual_clip: float | None = None
    dynamic_clip: bool = False
    cispo_cap: float = 5.0
    tau_pos: float = 1.0
    tau_neg: float = 1.05
    real_tau: float = 0.5
    fipo_decay_rate: float = 32.0
    fipo_clip_range: float = 0.2
    fipo_clip_high_only: bool = True
    fipo_safety_threshold: float = 4.0
    vespo_positive: tuple[float, float] = (2.0, 3.0)
    vespo_negative: tuple[float, float] = (3.0, 2.0)
    kl_coef: float = 0.0
    kl_weighted: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that the objective cannot use.

        Raises:
            TrainingError: with the reason.
        """
        if self.loss_type not in OBJECTIVES:
            raise TrainingError(f"unknown loss_type {self.loss_type!r}", fix=", ".join(OBJECTIVES))
        _raise_first([*_of_clipping(self), *_of_objective(self)])

    @property
    def objective(self) -> Objective:
        """Return what the name of the objective stands for."""
        return OBJECTIVES[self.loss_type]

    @property
    def level(self) -> RatioLevel:
        """Return whose ratio is taken."""
        return self.importance_sampling_level or self.objective.level

    @property
    def widths(self) -> tuple[float, float]:
        """Return how far a ratio may fall below 1 and rise above it."""
        objective = self.objective
        low = objective.low if self.epsilon is None else self.epsilon
        if self.epsilon_high is not None:
            return low, self.epsilon_high
        return low, (objective.high or objective.low) if self.epsilon is None else low

    def check_tensors(self, weights: Tensor | None, kl: Tensor | None) -> None:
        """Refuse tensors that the objective has no place for.

        Raises:
            TrainingError: with the reason.
        """
        term = self.objective.term
        _raise_first(
            [
                (term == "real" and weights is not None, "real cannot weigh single answers", "leave rollout correction off"),
                (term == "real" and kl is not None, "real has no place for a KL in the loss", "beta 0, or kl_in_reward"),
                (term == "gmpo" and weights is not None and weights.shape[-1] != 1, "gmpo weighs answers", "weights [answers, 1]"),
                (self.kl_weighted and kl is None, "kl_weighted without a kl", "pass kl"),
            ]
        )


Problem = tuple[bool, str, str]


def _of_clipping(options: PolicyOptions) -> list[Problem]:
    low, high = options.widths
    term, delta, dual = options.objective.term, options.delta, options.dual_clip
    clips = term in ("clip", "fipo")
    return [
        (min(low, high) < 0, f"epsilon {low} or epsilon_high {high} is negative", "for example 0.2"),
        (delta is not None and not clips, f"delta has no meaning for {term}", "leave it out"),
        (delta is not None and delta <= 1 + high, f"delta {delta} is not above 1 + epsilon_high {high}", "for example 4"),
        (dual is not None and not clips, f"dual_clip has no meaning for {term}", "leave it out"),
        (dual is not None and dual <= 1, f"dual_clip {dual} is not above 1", "for example 3"),
        (options.dynamic_clip and not clips, f"dynamic_clip has no meaning for {term}", "leave it out"),
    ]


def _of_objective(options: PolicyOptions) -> list[Problem]:
    term, level, cap = options.objective.term, options.level, options.cispo_cap
    unlike = level != options.objective.level
    dynamic = options.dynamic_clip and level != "token"
    return [
        (dynamic, "dynamic_clip follows the probability of single tokens", "importance_sampling_level token"),
        (cap < 1, f"cispo_cap {cap} is below 1: it is the largest ratio, not a distance from 1", "for example 5"),
        (unlike and term in ("vespo", "gmpo", "real"), f"{term} has a ratio of its own", "leave the level out"),
        (term == "real" and options.aggregation is not None, "real is a mean over groups", "leave aggregation out"),
    ]


def _raise_first(problems: list[Problem]) -> None:
    for wrong, what, fix in problems:
        if wrong:
            raise TrainingError(what, fix=fix)
