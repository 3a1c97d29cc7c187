"""NEFTune: noise on the embeddings of training samples (arXiv:2310.05914)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from swift_core.errors import ModelError
from swift_core.scoring.attention import current_segments


def add_embedding_noise(model: nn.Module, alpha: float) -> RemovableHandle:
    """Add uniform noise to what the input embedding returns while the model trains; `remove()` of the handle ends it.

    Each number gets noise from `[-alpha, alpha] / sqrt(length * width)`, with the length of its own sample.

    Raises:
        ModelError: when the model has no input embedding.
    """
    get = getattr(model, "get_input_embeddings", None)
    try:
        embedding = get() if get is not None else None
    except NotImplementedError:
        embedding = None
    if not isinstance(embedding, nn.Module):
        raise ModelError("--neftune_noise_alpha: this model has no input embedding", fix="remove it")

    def disturb(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        if not module.training:
            return None
        bound = (alpha / (_lengths(output) * output.shape[-1]).sqrt()).to(output.dtype)
        return output + torch.empty_like(output).uniform_(-1, 1) * bound

    return embedding.register_forward_hook(disturb)


def _lengths(output: torch.Tensor) -> torch.Tensor:
    """Return `[tokens, 1]` with the length of each token's sample, or one number where every row is a sample."""
    segments = current_segments()
    if segments is None or output.ndim != 3 or output.shape[0] != 1 or sum(segments) != output.shape[1]:
        return torch.tensor(float(output.shape[-2]), device=output.device)
    counts = torch.tensor(segments, device=output.device)
    return counts.repeat_interleave(counts).float()[:, None]
