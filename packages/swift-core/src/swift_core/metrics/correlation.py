"""How well numbers are predicted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def mean_squared_error(predicted: Numbers, targets: Numbers) -> float:
    """Return the mean of the squared differences over all numbers."""
    return float(np.mean((predicted - targets) ** 2)) if predicted.size else 0.0


def pearson(predicted: Numbers, targets: Numbers) -> float:
    """Return the linear correlation of two series `[samples]`; 0 when one of them is constant."""
    ours, theirs = predicted - predicted.mean(), targets - targets.mean()
    scale = np.sqrt((ours**2).sum() * (theirs**2).sum())
    # What is left of a constant series after the subtraction is rounding.
    floor = 1e-12 * max(1.0, float(np.abs(predicted).max() * np.abs(targets).max())) * len(predicted)
    return float((ours * theirs).sum() / scale) if scale > floor else 0.0


def spearman(predicted: Numbers, targets: Numbers) -> float:
    """Return the correlation of the ranks of two series `[samples]`; equal values share their mean rank."""
    return pearson(ranks(predicted), ranks(targets))


def ranks(values: Numbers) -> Numbers:
    """Return ranks from 1 on, smallest first; equal values get the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse].astype(np.float64)
