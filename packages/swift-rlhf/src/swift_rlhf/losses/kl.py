"""Estimates of the KL divergence from one sampled token each (Schulman 2020)."""

from __future__ import annotations

from typing import Literal

from swift_core.errors import TrainingError
from torch import Tensor
from torch.nn.functional import relu

from swift_rlhf.losses.tokens import LOG_LIMIT, wide

KlEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logps: Tensor, ref_logps: Tensor, *, estimator: KlEstimator = "k3", gradient: KlEstimator | None = None) -> Tensor:
    """Return an estimate of KL(policy || reference) at each token, in nats.

    With `d = log p - log p_ref`: k1 `d` is unbiased and may be negative, k2 `d^2 / 2` is biased with the gradient of the KL,
    k3 `e^-d + d - 1` is unbiased and never negative, with a biased gradient. Nothing is clamped to a constant: where e^-d would
    leave float32, it goes on as a straight line.

    Args:
        logps: log-probability of sampled tokens under the policy, any shape.
        ref_logps: the same under the reference, same shape, without gradient.
        estimator: which one the value comes from.
        gradient: which one the gradient comes from; the same when left out. k3 with gradient k2 is unbiased in both.

    Returns:
        the same shape, float32 or wider.

    Raises:
        TrainingError: for an unknown estimator.
    """
    difference = wide(logps) - wide(ref_logps).detach()
    value = _estimate(difference, estimator)
    if gradient is None or gradient == estimator:
        return value
    slope = _estimate(difference, gradient)
    return value.detach() + slope - slope.detach()


def _estimate(difference: Tensor, estimator: KlEstimator) -> Tensor:
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        # expm1: e^-d - 1 + d for small d would lose all digits.
        exponent = -difference
        return exponent.clamp_max(LOG_LIMIT).expm1() + exponent.detach().clamp_max(LOG_LIMIT).exp() * relu(exponent - LOG_LIMIT) - exponent
    raise TrainingError(f"unknown KL estimator {estimator!r}", fix="k1, k2 or k3")
