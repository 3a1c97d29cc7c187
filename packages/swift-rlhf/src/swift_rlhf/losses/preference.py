"""Losses over pairs of a better and a worse answer."""

from __future__ import annotations

from typing import Literal

from swift_core.errors import TrainingError
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

DpoLoss = Literal["sigmoid", "hinge", "ipo"]


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    loss_type: DpoLoss = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> Tensor:
    """Return the loss of each pair.

    With `r = log p_policy(answer) - log p_ref(answer)` and `z = beta * (r_chosen - r_rejected)`:
    sigmoid is `-(1 - e) log s(z) - e log s(-z)` with smoothing `e`, hinge is `max(0, 1 - z)`, ipo is
    `(r_chosen / n_chosen - r_rejected / n_rejected - 1 / (2 beta))^2` with lengths `n`.

    Args:
        policy_chosen_logps: log-probability of the better answer, summed over its tokens, `[pairs]`.
        policy_rejected_logps: the same of the worse answer, `[pairs]`.
        ref_chosen_logps: the same under the reference model, `[pairs]`.
        ref_rejected_logps: the same under the reference model, `[pairs]`.
        loss_type: sigmoid (Rafailov et al. 2023), hinge (Zhao et al. 2023) or ipo (Azar et al. 2023).
        beta: how strongly the policy is held to the reference; for hinge the inverse of the margin.
        label_smoothing: share of labels that may be the wrong way round, in [0, 0.5); only sigmoid uses it.
        chosen_lengths: tokens of the better answer, `[pairs]`; needed by ipo, else not allowed.
        rejected_lengths: tokens of the worse answer, `[pairs]`; needed by ipo, else not allowed.

    Returns:
        losses in float32 or wider, `[pairs]`.

    Raises:
        TrainingError: for settings that the loss cannot use.
    """
    _check(loss_type, beta, label_smoothing, lengths=(chosen_lengths, rejected_lengths))
    chosen = _wide(policy_chosen_logps) - _wide(ref_chosen_logps)
    rejected = _wide(policy_rejected_logps) - _wide(ref_rejected_logps)
    if loss_type == "ipo" and chosen_lengths is not None and rejected_lengths is not None:
        return (chosen / chosen_lengths - rejected / rejected_lengths - 1 / (2 * beta)).square()
    z = beta * (chosen - rejected)
    if loss_type == "hinge":
        return relu(1 - z)
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def _wide(values: Tensor) -> Tensor:
    # Differences of sums of hundreds of log-probabilities: half precision would leave no digits.
    return values if values.element_size() >= 4 else values.float()


def _check(loss_type: str, beta: float, label_smoothing: float, *, lengths: tuple[Tensor | None, Tensor | None]) -> None:
    if loss_type not in ("sigmoid", "hinge", "ipo"):
        raise TrainingError(f"unknown loss_type {loss_type!r}", fix="sigmoid, hinge or ipo")
    if beta <= 0:
        raise TrainingError(f"beta {beta} is not positive", fix="for example 0.1")
    if not 0 <= label_smoothing < 0.5:
        raise TrainingError(f"label_smoothing {label_smoothing} is outside [0, 0.5)", fix="for example 0.1")
    if label_smoothing and loss_type != "sigmoid":
        raise TrainingError(f"label_smoothing has no meaning for {loss_type}", fix="leave it at 0 or choose sigmoid")
    if any((given is not None) != (loss_type == "ipo") for given in lengths):
        raise TrainingError("answer lengths belong to ipo, and ipo needs both", fix="pass both lengths with ipo and none else")
