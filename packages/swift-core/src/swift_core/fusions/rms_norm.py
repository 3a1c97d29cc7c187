"""Root-mean-square norm, `x / sqrt(mean(x^2) + eps) * weight` (arXiv:1910.07467), in one function."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from swift_core.fusions.install import Forward


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        wide = flat.to(torch.promote_types(flat.dtype, torch.float32), copy=True)
        inverse = (torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / wide.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(flat, inverse, weight)
        ctx.offset = offset
        scaled = wide.mul_(inverse)
        # Gemma multiplies by 1 + weight before it rounds, the others by the weight after.
        found = scaled.mul_(weight + offset).to(flat.dtype) if offset else scaled.to(flat.dtype).mul_(weight)
        return found.view(rows.shape)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, inverse, weight = ctx.saved_tensors
        above = outputs[0].reshape(flat.shape).to(inverse.dtype, copy=True)
        normed = flat.to(inverse.dtype, copy=True).mul_(inverse)
        of_weight = (above * normed).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        above.mul_(weight + ctx.offset)
        inner = (above * normed).mean(-1, keepdim=True)
        of_rows = above.sub_(normed.mul_(inner)).mul_(inverse).to(flat.dtype)
        return of_rows.view(outputs[0].shape), of_weight, None, None


def rms_norm(rows: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """Return the normed rows.

    Args:
        rows: `[..., dim]`.
        weight: `[dim]`.
        eps: added to the mean square.
        offset: added to the weight; 1 in the Gemma family.
    """
    return _RmsNorm.apply(rows, weight, eps, offset)  # pyright: ignore[reportReturnType]


class RmsNormFusion:
    """Knows the norms whose class is called `...RMSNorm`."""

    def forwards(self, module: nn.Module) -> Iterable[Forward]:
        """Return the norm with the weight as it is, and with 1 added to it."""
        if not type(module).__name__.endswith("RMSNorm") or [name for name, _ in module.named_parameters()] != ["weight"]:
            return []
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not isinstance(eps, float):
            return []
        return [partial(_norm_of, module, eps, offset) for offset in (0.0, 1.0)]


def _norm_of(module: Any, eps: float, offset: float, rows: torch.Tensor) -> torch.Tensor:
    return rms_norm(rows, module.weight, eps, offset)
