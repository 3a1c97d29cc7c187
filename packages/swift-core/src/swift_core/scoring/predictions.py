"""What labelled tokens are predicted from: once for every use that a loss makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from swift_core.scoring.head import Head


@dataclass(frozen=True, slots=True)
class Predictions:
    """What each labelled token of a batch is predicted from.

    Attributes:
        states: last hidden states `[tokens, dim]`, or logits `[tokens, vocab]` of a model whose head cannot be run alone.
        targets: the labelled tokens, `[tokens]`.
        head: maps states to logits.
        parameters: those that the head uses.
        hidden: whether the states are hidden states.
    """

    states: torch.Tensor
    targets: torch.Tensor
    head: Head
    parameters: Sequence[torch.Tensor] = ()
    hidden: bool = False


def as_they_are(logits: torch.Tensor) -> torch.Tensor:
    """Return the states of a model whose head has been run already."""
    return logits
