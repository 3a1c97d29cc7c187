"""Losses of a classification or regression head, one value for each sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def single_label(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each sample in nats, `-log softmax(logits)[label]`.

    Args:
        logits: `[batch, classes]`.
        labels: `[batch]`, class numbers.

    Returns:
        `[batch]`.
    """
    return F.cross_entropy(logits, labels, reduction="none")


def multi_label(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of each sample, a mean over the classes.

    Each class is a yes-or-no question of its own: `-y log s(z) - (1 - y) log(1 - s(z))` with the logistic function s.

    Args:
        logits: `[batch, classes]`.
        labels: `[batch, classes]`, 1 where the class applies, 0 elsewhere.

    Returns:
        `[batch]`.
    """
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").mean(-1)


def regression(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the squared error of each sample, a mean over the numbers that it has.

    Args:
        predictions: `[batch, numbers]`.
        targets: `[batch, numbers]`.

    Returns:
        `[batch]`.
    """
    return (predictions - targets.to(predictions.dtype)).square().mean(-1)
