"""How well a model predicts the answers of rows it was not calibrated with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from swift_core.errors import ModelError
from swift_core.protocols import EncodedSample
from torch import nn
from torch.nn.functional import cross_entropy


@torch.inference_mode()
def perplexity(model: nn.Module, rows: Sequence[EncodedSample]) -> float:
    """Return exp of the mean negative log-likelihood of the answer tokens.

    Raises:
        ModelError: when it is not a finite number.
    """
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    for row in rows:
        labels = torch.tensor(row.labels[1:], device=device)
        count = int((labels != -100).sum())
        if not count:
            continue
        output: Any = model(input_ids=torch.tensor([row.input_ids], device=device), use_cache=False)
        total += float(cross_entropy(output.logits[0, :-1].float(), labels, reduction="sum"))
        tokens += count
    value = math.exp(min(total / max(tokens, 1), 700.0)) if math.isfinite(total) else math.nan
    if not math.isfinite(value):
        raise ModelError("the model's predictions are not finite numbers", fix="quantise with --torch_dtype float32, or another method")
    return value
