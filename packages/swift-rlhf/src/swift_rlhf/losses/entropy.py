"""The entropy of a policy, from tokens that it drew."""

from __future__ import annotations

from torch import Tensor


def negative_entropy(logps: Tensor) -> Tensor:
    """Return an estimate of minus the entropy at each token, whose gradient is an unbiased one of minus the entropy.

    With `p` the policy, the gradient of the entropy is `-E[log p(a) * grad log p(a)]` over tokens `a` drawn from it (the mean of
    `grad log p` is 0), so the log-probability itself is the factor of its own gradient. Its mean is minus the entropy.

    Args:
        logps: log-probability of each drawn token in nats, any shape.
    """
    fixed = logps.detach()
    return fixed + fixed * (logps - fixed)
