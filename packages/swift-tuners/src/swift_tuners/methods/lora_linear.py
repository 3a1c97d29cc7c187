"""A linear layer and its low-rank update in one function, `x W^T + b + s (x A^T) B^T`, with the backward pass written out.

PEFT's layer makes, keeps and adds up several tensors of the size of its output, in float32 where the matrices are. Here the
update is added in place, in the number type of the rows, and only the rows and their `rank` projections are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn


class _LoraProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        seen = flat if dropped is None else dropped.reshape(flat.shape)
        a, b = down.to(flat.dtype), (up * scale).to(flat.dtype)
        found = torch.mm(flat, weight.t()) if bias is None else torch.addmm(bias, flat, weight.t())
        low = torch.mm(seen, a.t())
        found.addmm_(low, b.t())
        ctx.save_for_backward(seen, low, weight, a, b)
        ctx.scale, ctx.dtypes, ctx.dropped = scale, (down.dtype, up.dtype), dropped is not None
        return found.view(*rows.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        seen, low, weight, a, b = ctx.saved_tensors
        above = outputs[0].reshape(-1, outputs[0].shape[-1])
        shape = (*outputs[0].shape[:-1], seen.shape[-1])
        of_low = torch.mm(above, b)
        of_rows = of_dropped = None
        if ctx.needs_input_grad[0]:
            of_rows = torch.mm(above, weight)
            if not ctx.dropped:
                of_rows.addmm_(of_low, a)
            of_rows = of_rows.view(shape)
        if ctx.dropped and ctx.needs_input_grad[1]:
            of_dropped = torch.mm(of_low, a).view(shape)
        of_down = torch.mm(of_low.t(), seen).to(ctx.dtypes[0])
        of_up = torch.mm(above.t(), low).to(ctx.dtypes[1]).mul_(ctx.scale)
        return of_rows, of_dropped, None, None, of_down, of_up, None


def lora_product(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    down: torch.Tensor,
    up: torch.Tensor,
    scale: float,
    *,
    dropped: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `rows W^T + bias + scale (dropped A^T) B^T`.

    Args:
        rows: `[..., in]`.
        weight: `[out, in]`, frozen, in the number type of the rows.
        bias: `[out]`, frozen, or None.
        down: A, `[rank, in]`.
        up: B, `[out, rank]`.
        scale: factor of the update.
        dropped: the rows after dropout; None: the rows themselves.
    """
    return _LoraProduct.apply(rows, dropped, weight, bias, down, up, scale)  # pyright: ignore[reportReturnType]


class LoraLinearFusion:
    """Knows PEFT's LoRA over a plain linear layer."""

    def forwards(self, module: nn.Module) -> Iterable[Callable[..., torch.Tensor]]:
        """Return the layer with base and update in one function."""
        if type(module) is not LoraLinear or type(module.get_base_layer()) is not nn.Linear:
            return []
        return [partial(_forward, module)]


def _forward(module: Any, rows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    names = module.active_adapters
    name = names[0] if len(names) == 1 else None
    base = module.get_base_layer()
    if args or kwargs or name is None or not _plain(module, base, name, rows):
        return LoraLinear.forward(module, rows, *args, **kwargs)
    dropout = module.lora_dropout[name]
    dropped = dropout(rows) if module.training and isinstance(dropout, nn.Dropout) and dropout.p else None
    return lora_product(
        rows, base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name], dropped=dropped
    )


def _plain(module: Any, base: nn.Linear, name: str, rows: torch.Tensor) -> bool:
    """Say whether the layer does nothing more than the formula just now."""
    return (
        name in module.lora_A
        and not module.disable_adapters
        and not module.merged
        and name not in module.lora_variant
        and module.lora_B[name].bias is None
        and type(module.lora_A[name]) is nn.Linear
        and not any(parameter.requires_grad for parameter in base.parameters())
        and type(base.weight) is nn.Parameter
        and base.weight.dtype == rows.dtype
        and not (base._forward_hooks or base._forward_pre_hooks)
        and not torch.is_autocast_enabled(rows.device.type)
    )
