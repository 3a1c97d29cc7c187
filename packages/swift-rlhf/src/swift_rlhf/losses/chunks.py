"""Sums over rows whose logits never exist all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 256


def chunked_sum(
    function: Callable[..., Tensor], hidden: Tensor, *constants: Tensor, parameters: Sequence[Tensor] = (), size: int = CHUNK_ROWS
) -> Tensor:
    """Return `function(hidden, *constants).sum()`, computed piece by piece with the gradient formed on the way.

    Nothing is computed twice, and at most `size` rows of what the function makes in between, such as logits, are in memory.

    Args:
        function: maps rows to one number each, `[n, dim], [n, ...], ... -> [n]`, every row on its own.
        hidden: `[rows, dim]`, with gradient.
        constants: further rows without gradient, such as the teacher's logits, weights or masks, `[rows, ...]`.
        parameters: those that the function uses, such as the weights of the head; they get a gradient.
        size: rows at a time.

    Returns:
        scalar with gradient.
    """
    if not torch.is_grad_enabled() or not (hidden.requires_grad or any(each.requires_grad for each in parameters)):
        pieces = zip(*(each.split(size) for each in (hidden, *constants)), strict=True)
        return torch.stack([function(*piece).sum() for piece in pieces]).sum() if len(hidden) else hidden.sum() * 0
    return _ChunkedSum.apply(function, size, len(constants), hidden, *constants, *parameters)  # pyright: ignore[reportReturnType]


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], size: int, constant_count: int, hidden: Tensor, *others: Tensor) -> Tensor:
        constants, parameters = others[:constant_count], others[constant_count:]
        wanted = [each for each in parameters if each.requires_grad]
        hidden_gradient = torch.zeros_like(hidden)
        gradients = [torch.zeros_like(each) for each in wanted]
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            with torch.enable_grad():
                part = hidden[rows].detach().requires_grad_()
                loss = function(part, *(each[rows] for each in constants)).sum()
                found = torch.autograd.grad(loss, [part, *wanted], allow_unused=True)
            total += loss.detach()
            if found[0] is not None:
                hidden_gradient[rows] = found[0]
            for gradient, new in zip(gradients, found[1:], strict=True):
                if new is not None:
                    gradient += new
        ctx.save_for_backward(hidden_gradient, *gradients)
        ctx.wanted = [each.requires_grad for each in parameters]
        ctx.constant_count = constant_count
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, *gradients = ctx.saved_tensors
        found = iter(gradients)
        of_parameters = [_scaled(next(found), outputs[0]) if wanted else None for wanted in ctx.wanted]
        return (None, None, None, _scaled(hidden_gradient, outputs[0]), *[None] * ctx.constant_count, *of_parameters)


def _scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    # Multiplied in float32: a half-precision product with 1/tokens would round twice.
    return (gradient * scale).to(gradient.dtype)
