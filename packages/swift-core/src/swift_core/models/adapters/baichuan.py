"""Baichuan 2: an output head that divides each row of its weight by the row's length."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class NormalizedHead(nn.Module):
    """Logits of rows of length 1.

    The head of the published code replaces its weight by the divided one at the first call outside of training. An optimizer
    then goes on with the old weight, and the head learns nothing more. This one divides at each call and keeps its weight.

    Args:
        weight: `[vocab, hidden]`, as saved.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits `[..., vocab]` of hidden states `[..., hidden]`."""
        return F.linear(hidden, F.normalize(self.weight))


def keep_head_weight(model: Any) -> Any:
    """Return the model with a head that keeps its weight; a plain one, as in Baichuan 1, stays as it is."""
    head = getattr(model, "lm_head", None)
    if type(head).__name__ == "NormHead":
        model.lm_head = NormalizedHead(head.weight)  # pyright: ignore[reportOptionalMemberAccess]
    return model
