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
from swift_core.fusions.install import is_plain
from swift_core.fusions.product import product
from torch import nn

Weight = Callable[[], torch.Tensor]


class _LoraProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: Weight,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        seen = flat if dropped is None else dropped.reshape(flat.shape)
        a, b = down.to(flat.dtype), (up * scale).to(flat.dtype)
        found = product(flat, weight().t()) if bias is None else torch.addmm(bias.to(flat.dtype), flat, weight().t())
        low = torch.mm(seen, a.t())
        found.addmm_(low, b.t())
        ctx.save_for_backward(seen, low, a, b)
        ctx.weight, ctx.scale, ctx.dtypes, ctx.dropped = weight, scale, (down.dtype, up.dtype), dropped is not None
        return found.view(*rows.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        seen, low, a, b = ctx.saved_tensors
        above = outputs[0].reshape(-1, outputs[0].shape[-1])
        shape = (*outputs[0].shape[:-1], seen.shape[-1])
        of_low = torch.mm(above, b)
        of_rows = of_dropped = None
        if ctx.needs_input_grad[0]:
            of_rows = product(above, ctx.weight())
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
    weight: Weight,
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
        weight: returns W, `[out, in]`, frozen, in the number type of the rows; called in the forward and in the backward pass, so
            that weights that are unpacked for it need not be kept.
        bias: `[out]`, frozen, or None.
        down: A, `[rank, in]`.
        up: B, `[out, rank]`.
        scale: factor of the update.
        dropped: the rows after dropout; None: the rows themselves.
    """
    return _LoraProduct.apply(rows, dropped, weight, bias, down, up, scale)  # pyright: ignore[reportReturnType]


class LoraLinearFusion:
    """Knows PEFT's LoRA over a plain linear layer, and over one of bitsandbytes with 4 bits on a CPU."""

    def forwards(self, module: nn.Module) -> Iterable[Callable[..., torch.Tensor]]:
        """Return the layer with base and update in one function."""
        if type(module) is LoraLinear and type(module.get_base_layer()) is nn.Linear:
            return [partial(_forward, module, LoraLinear.forward, _as_it_is)]
        kind: Any = type(module)
        # Named, not imported: bitsandbytes is there only where its layers are.
        if f"{kind.__module__}.{kind.__name__}" == "peft.tuners.lora.bnb.Linear4bit" and next(module.parameters()).device.type == "cpu":
            return [partial(_forward, module, kind.forward, _unpacked)]
        return []


def _forward(
    module: Any, own: Callable[..., torch.Tensor], dense: Callable[..., Weight | None], rows: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    names = module.active_adapters
    name = names[0] if len(names) == 1 else None
    base = module.get_base_layer()
    weight = None if args or kwargs or name is None or not _plain(module, base, name, rows) else dense(base, rows)
    if weight is None:
        return own(module, rows, *args, **kwargs)
    dropout = module.lora_dropout[name]
    dropped = dropout(rows) if module.training and isinstance(dropout, nn.Dropout) and dropout.p else None
    return lora_product(
        rows, weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name], dropped=dropped
    )


def _plain(module: Any, base: nn.Module, name: str, rows: torch.Tensor) -> bool:
    """Say whether the layer does nothing more than the formula just now."""
    return (
        name in module.lora_A
        and not module.disable_adapters
        and not module.merged
        and name not in module.lora_variant
        and module.lora_B[name].bias is None
        and type(module.lora_A[name]) is nn.Linear
        and not any(parameter.requires_grad for parameter in base.parameters())
        and not (base._forward_hooks or base._forward_pre_hooks)
        and not torch.is_autocast_enabled(rows.device.type)
    )


def _as_it_is(base: nn.Linear, rows: torch.Tensor) -> Weight | None:
    weight = base.weight
    return (lambda: weight) if is_plain(weight) and weight.dtype == rows.dtype else None


def _unpacked(base: Any, rows: torch.Tensor) -> Weight | None:
    """Return what unpacks 4-bit weights, unless they are rearranged for answering or the layer computes in another number type."""
    from bitsandbytes.functional import dequantize_4bit

    state = base.weight.quant_state
    if getattr(state, "packing_format_for_cpu", False) or base.compute_dtype not in (None, rows.dtype):
        return None
    return lambda: dequantize_4bit(base.weight.data, state).to(rows.dtype)
