"""How much likelier the policy makes what was sampled: by token or by answer, and how far that may go."""

from __future__ import annotations

from typing import Literal

from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.losses.tokens import LOG_LIMIT, masked, token_mean

RatioLevel = Literal["token", "sequence", "sequence_token"]
LEVELS: tuple[RatioLevel, ...] = ("token", "sequence", "sequence_token")


def log_ratios(logps: Tensor, old_logps: Tensor, mask: Tensor, level: RatioLevel) -> Tensor:
    """Return the logarithm of the importance ratio that each token carries, `[answers, tokens]`.

    token: its own ratio. sequence (GSPO, Zheng et al. 2025): the geometric mean of the answer, for every token of it.
    sequence_token: the same value, while the gradient is that of the token's own log-probability.

    Args:
        logps: `[answers, tokens]`.
        old_logps: when the answers were sampled, `[answers, tokens]`.
        mask: tokens that count, `[answers, tokens]`.
        level: whose ratio it is.

    Raises:
        TrainingError: for an unknown level.
    """
    if level not in LEVELS:
        raise TrainingError(f"unknown importance_sampling_level {level!r}", fix=", ".join(LEVELS))
    own = masked(logps - old_logps.detach(), mask)
    if level == "token":
        return own
    mean = token_mean(own, mask)[:, None].expand(mask.shape)
    return mean if level == "sequence" else mean.detach() + own - own.detach()


def clip_bounds(old_logps: Tensor, *, low: float, high: float, dynamic: bool, cap: float = 10.0) -> tuple[Tensor | float, Tensor | float]:
    """Return the smallest and the largest ratio that still has a gradient.

    Fixed: `1 - low` and `1 + high`. Dynamic (DCPO, Yang et al. 2025): unlikely tokens may move further, by bounding
    `|rho - 1| rho p_old` instead of `|rho - 1|`: `1/2 + sqrt(max(1 - 4 low / p_old, 0)) / 2` and
    `min(1/2 + sqrt(1 + 4 high / p_old) / 2, cap)`.

    Args:
        old_logps: log-probability when sampled, any shape.
        low: bound on the way down.
        high: bound on the way up.
        dynamic: whether the bounds follow the probability.
        cap: largest ratio of all, for dynamic bounds.
    """
    if not dynamic:
        return 1 - low, 1 + high
    inverse = (-old_logps.detach()).clamp(0, LOG_LIMIT).exp()
    return 0.5 + 0.5 * (1 - 4 * low * inverse).clamp_min(0).sqrt(), (0.5 + 0.5 * (1 + 4 * high * inverse).sqrt()).clamp_max(cap)
