"""Cross-entropy over the vocabulary in chunks of rows, so that the logits of a batch never exist at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import FunctionCtx

Head = Callable[[torch.Tensor], torch.Tensor]

# Rows of logits alive at a time: 256 x 49,152 x 4 bytes = 48 MiB for a small vocabulary, 150 MiB for a large one.
CHUNK_ROWS = 256


def wide(tensor: torch.Tensor) -> torch.dtype:
    """Return the number type that losses are summed in: float32 or better."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunk_losses(hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, head: Head) -> torch.Tensor:
    losses = F.cross_entropy(head(hidden).to(wide(hidden)), targets, reduction="none")
    return losses if weights is None else losses * weights


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Forms the gradient while a chunk's logits are at hand; the backward pass only scales it."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor | None,
        head: Head,
        chunk_rows: int,
        each: torch.Tensor | None,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        hidden_gradient = torch.empty_like(hidden)
        gradients = [torch.zeros_like(parameter) for parameter in wanted]
        total = torch.zeros((), dtype=wide(hidden), device=hidden.device)
        for start in range(0, len(targets), chunk_rows):
            rows = slice(start, start + chunk_rows)
            with torch.enable_grad():
                part = hidden[rows].detach().requires_grad_()
                losses = _chunk_losses(part, targets[rows], None if weights is None else weights[rows], head)
                loss = losses.sum()
                found = torch.autograd.grad(loss, [part, *wanted], allow_unused=True)
            total += loss.detach()
            if each is not None:
                each[rows] = losses.detach()
            hidden_gradient[rows] = found[0] if found[0] is not None else 0
            for gradient, new in zip(gradients, found[1:], strict=True):
                if new is not None:
                    gradient += new
        ctx.save_for_backward(hidden_gradient, *gradients)  # type: ignore[attr-defined]
        ctx.wanted = [parameter.requires_grad for parameter in parameters]  # type: ignore[attr-defined]
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale = outputs[0]
        hidden_gradient, *gradients = ctx.saved_tensors
        found = iter(gradients)
        of_parameters = [_scaled(next(found), scale) if wanted else None for wanted in ctx.wanted]
        return (_scaled(hidden_gradient, scale), None, None, None, None, None, *of_parameters)


def _scaled(gradient: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    # Multiplied in float32: the scale is 1/tokens, and a half-precision product would round twice.
    return (gradient * scale).to(gradient.dtype)


def chunked_cross_entropy(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    head: Head,
    parameters: list[torch.Tensor],
    *,
    weights: torch.Tensor | None = None,
    each: torch.Tensor | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> torch.Tensor:
    """Sum the cross-entropy of `head(hidden)` against `targets`.

    Args:
        hidden: `[rows, dim]`, last hidden states of the rows that carry loss.
        targets: `[rows]`, token ids.
        head: maps `[n, dim]` to logits `[n, vocab]`.
        parameters: the parameters `head` uses; those that require a gradient get one.
        weights: `[rows]`, factor of each row's loss.
        each: `[rows]`, filled with each row's loss where it is given.
        chunk_rows: rows whose logits are alive at a time.

    Returns:
        scalar with gradient, float32 or better.
    """
    if not torch.is_grad_enabled() or not (hidden.requires_grad or any(parameter.requires_grad for parameter in parameters)):
        total = torch.zeros((), dtype=wide(hidden), device=hidden.device)
        for start in range(0, len(targets), chunk_rows):
            rows = slice(start, start + chunk_rows)
            losses = _chunk_losses(hidden[rows], targets[rows], None if weights is None else weights[rows], head)
            total += losses.sum()
            if each is not None:
                each[rows] = losses
        return total
    return _ChunkedCrossEntropy.apply(hidden, targets, weights, head, chunk_rows, each, *parameters)  # pyright: ignore[reportReturnType]


def count_correct(hidden: torch.Tensor, targets: torch.Tensor, head: Head, *, chunk_rows: int = CHUNK_ROWS) -> torch.Tensor:
    """Count the rows whose most likely token is the target; `[rows, dim]` and `[rows]` to a scalar."""
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    with torch.no_grad():
        for start in range(0, len(targets), chunk_rows):
            rows = slice(start, start + chunk_rows)
            total += (head(hidden[rows]).argmax(-1) == targets[rows]).sum()
    return total
