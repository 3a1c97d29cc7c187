"""Gated feed-forward layer, `down(silu(gate(x)) * up(x))` (arXiv:2002.05202): activation and product in one function."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from swift_core.fusions.install import Forward


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        # The activation is computed anew: cheaper than keeping it.
        return torch.ops.aten.silu_backward(outputs[0] * up, gate), F.silu(gate).mul_(outputs[0])


def silu_product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up`, all of one shape."""
    return _SiluProduct.apply(gate, up)  # pyright: ignore[reportReturnType]


class GatedMlpFusion:
    """Knows layers made of `gate_proj`, `up_proj`, `down_proj` and a SiLU."""

    def forwards(self, module: nn.Module) -> Iterable[Forward]:
        """Return the layer with one function between its three products."""
        names = {name for name, _ in module.named_children()}
        if (
            not {"gate_proj", "up_proj", "down_proj", "act_fn"} <= names
            or "silu" not in type(module.get_submodule("act_fn")).__name__.lower()
        ):
            return []
        return [partial(_mlp_of, module)]


def _mlp_of(module: Any, rows: torch.Tensor) -> torch.Tensor:
    return module.down_proj(silu_product(module.gate_proj(rows), module.up_proj(rows)))
