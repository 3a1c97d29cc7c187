"""How well classes are predicted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def accuracy(predicted: Labels, labels: Labels) -> float:
    """Return the share of samples that are right; of several labels all must be.

    Args:
        predicted: `[samples]` class numbers, or `[samples, classes]` of 0 and 1.
        labels: the same shape.
    """
    same = predicted == labels
    return float(np.mean(same if same.ndim == 1 else same.all(axis=1))) if len(labels) else 0.0


def f1_scores(predicted: Labels, labels: Labels, *, classes: int) -> NDArray[np.float64]:
    """Return `2 TP / (2 TP + FP + FN)` of each class, 0 for a class that is neither predicted nor there.

    Args:
        predicted: `[samples]` class numbers, or `[samples, classes]` of 0 and 1.
        labels: the same shape.
        classes: number of classes.

    Returns:
        `[classes]`.
    """
    ours, theirs = one_hot(predicted, classes), one_hot(labels, classes)
    hits = (ours & theirs).sum(axis=0)
    total = ours.sum(axis=0) + theirs.sum(axis=0)
    return np.divide(2 * hits, total, out=np.zeros(classes), where=total > 0)


def macro_f1(predicted: Labels, labels: Labels, *, classes: int) -> float:
    """Return the mean F1 over the classes that are predicted or there, each counted alike."""
    seen = one_hot(predicted, classes).any(axis=0) | one_hot(labels, classes).any(axis=0)
    return float(f1_scores(predicted, labels, classes=classes)[seen].mean()) if seen.any() else 0.0


def micro_f1(predicted: Labels, labels: Labels, *, classes: int) -> float:
    """Return F1 over all decisions of all classes together; for one class a sample this is the accuracy."""
    ours, theirs = one_hot(predicted, classes), one_hot(labels, classes)
    total = ours.sum() + theirs.sum()
    return float(2 * (ours & theirs).sum() / total) if total else 0.0


def matthews(predicted: Labels, labels: Labels, *, classes: int) -> float:
    """Return Matthews' correlation of class numbers, for any number of classes (Gorodkin, 2004); 0 when one side is constant.

    Args:
        predicted: `[samples]` class numbers.
        labels: `[samples]` class numbers.
        classes: number of classes.
    """
    ours, theirs = one_hot(predicted, classes).astype(np.float64), one_hot(labels, classes).astype(np.float64)
    count = len(labels)
    covariance = (ours * theirs).sum() * count - ours.sum(axis=0) @ theirs.sum(axis=0)
    spread = [count**2 - (side.sum(axis=0) ** 2).sum() for side in (ours, theirs)]
    return float(covariance / np.sqrt(spread[0] * spread[1])) if spread[0] * spread[1] > 0 else 0.0


def one_hot(labels: Labels, classes: int) -> NDArray[np.bool_]:
    """Return labels as `[samples, classes]`, true where a class applies."""
    if labels.ndim == 2:
        return labels.astype(bool)
    return labels[:, None] == np.arange(classes)[None, :]
