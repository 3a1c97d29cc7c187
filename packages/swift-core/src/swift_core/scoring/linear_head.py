"""Cross-entropy and log-probabilities of a plain linear head, with as few passes over the logits as there can be.

A chunk of logits is made, turned into probabilities and into the gradient in one buffer that is small enough to stay in the
processor's cache; nothing of the size of the logits is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from swift_core.fusions.product import product

# Rows of logits alive at a time: as many as keep the products busy, fewer for a large vocabulary. A trained weight wants many of
# them: its gradient is passed over once for each chunk.
CHUNK_ROWS = 512
CHUNK_ROWS_LEAST = 128
CHUNK_LOGITS = 2**25
CHUNK_ROWS_GPU = 2048

# A probability below this has lost digits or become 0; the logarithm is then taken from the logits.
_LEAST = 1e-30


def plain_weight(head: Any, hidden: torch.Tensor) -> torch.Tensor | None:
    """Return the weight `[vocab, dim]` of a head that is one matrix product, or None where it is more than that.

    Args:
        head: the model's output embeddings.
        hidden: a tensor `[..., dim]` that it would be given.
    """
    if type(head) is not nn.Linear or head.bias is not None or torch.is_autocast_enabled(hidden.device.type):
        return None
    weight = head.weight
    # Weights that are spread over devices, or gathered by hooks when the module is called, are not at hand here.
    whole = type(weight) in (nn.Parameter, torch.Tensor) and weight.ndim == 2 and weight.shape[1] == hidden.shape[-1]
    alike = weight.dtype == hidden.dtype and weight.device == hidden.device
    return weight if whole and alike and not _hooked(head) else None


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _chunks(rows: int, weight: torch.Tensor, *, trained: bool) -> Iterator[slice]:
    if weight.device.type != "cpu":
        most = CHUNK_ROWS_GPU
    else:
        most = CHUNK_ROWS if trained else min(CHUNK_ROWS, max(CHUNK_ROWS_LEAST, CHUNK_LOGITS // weight.shape[0]))
    # Equal chunks: a short last one would be slow for its size.
    size = math.ceil(rows / math.ceil(rows / most)) if rows else 1
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


class _Probabilities:
    """Makes the probabilities of chunk after chunk in one buffer."""

    def __init__(self, hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> None:
        self.hidden, self.targets, self.weight = hidden, targets, weight
        self._buffer: torch.Tensor | None = None

    def of(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return probabilities `[chunk, vocab]`, overwritten by the next call, and the logarithms `[chunk]` of the targets'."""
        hidden, targets = self.hidden[rows], self.targets[rows, None]
        if self._buffer is None:
            self._buffer = hidden.new_empty(len(hidden), self.weight.shape[0])
        made = self._buffer[: len(hidden)]
        torch.mm(hidden, self.weight.t(), out=made)
        wide = torch.promote_types(made.dtype, torch.float32)
        if made.device.type != "cpu":  # looking for small probabilities would make a GPU wait
            logps = made.gather(1, targets)[:, 0].to(wide) - made.to(wide).logsumexp(-1)
            return torch.softmax(made, -1, out=made), logps
        torch.softmax(made, -1, out=made)
        found = made.gather(1, targets)[:, 0].to(wide)
        logps = found.log()
        small = (found < _LEAST).nonzero()[:, 0]
        if len(small):
            logits = (hidden[small] @ self.weight.t()).to(logps.dtype)
            logps[small] = logits.gather(1, targets[small])[:, 0] - logits.logsumexp(-1)
        return made, logps


def _take_one(probabilities: torch.Tensor, targets: torch.Tensor) -> None:
    # Not scatter_add_, which passes over the whole buffer.
    probabilities[torch.arange(len(targets), device=targets.device), targets] -= 1


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
        weights: torch.Tensor | None,
        each: torch.Tensor | None,
    ) -> torch.Tensor:
        of_hidden_wanted, _, of_weight_wanted, *_ = ctx.needs_input_grad
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if of_hidden_wanted else None
        of_weight = torch.zeros_like(weight, dtype=wide) if of_weight_wanted else None
        source = _Probabilities(hidden, targets, weight)
        for rows in _chunks(len(targets), weight, trained=of_weight_wanted):
            made, logps = source.of(rows)
            scale = None if weights is None else weights[rows, None].to(made.dtype)
            weighted = logps if weights is None else logps * weights[rows]
            total -= weighted.sum()
            if each is not None:
                each[rows] = -weighted
            if of_hidden is None and of_weight is None:
                continue
            _take_one(made, targets[rows])
            if of_hidden is not None:
                product(made, weight, out=of_hidden[rows])
                if scale is not None:
                    of_hidden[rows] *= scale
            if of_weight is not None:
                scaled = hidden[rows] if scale is None else hidden[rows] * scale
                of_weight += torch.mm(made.t(), scaled)
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_hidden, of_weight = ctx.saved_tensors
        scale = outputs[0]
        # Multiplied in float32: the scale is 1/tokens, and a half-precision product would round twice.
        return (
            None if of_hidden is None else (of_hidden * scale).to(of_hidden.dtype),
            None,
            None if of_weight is None else (of_weight * scale).to(ctx.dtype),
            None,
            None,
        )


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        of_hidden_wanted, _, of_weight_wanted = ctx.needs_input_grad
        logps = torch.empty(len(targets), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        # The gradient of a row's log-probability is scaled by one number in the backward pass, so it can be formed here.
        of_hidden = torch.empty_like(hidden) if of_hidden_wanted else None
        source = _Probabilities(hidden, targets, weight)
        for rows in _chunks(len(targets), weight, trained=of_weight_wanted):
            made, logps[rows] = source.of(rows)
            if of_hidden is not None:
                _take_one(made, targets[rows])
                product(made, weight, out=of_hidden[rows])
        ctx.save_for_backward(of_hidden, *((hidden, targets, weight) if of_weight_wanted else ()))
        return logps

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_hidden, *rest = ctx.saved_tensors
        gradient = outputs[0]
        of_weight = None
        if rest:
            hidden, targets, weight = rest
            of_weight = torch.zeros_like(weight, dtype=gradient.dtype)
            source = _Probabilities(hidden, targets, weight)
            for rows in _chunks(len(targets), weight, trained=True):
                made, _ = source.of(rows)
                _take_one(made, targets[rows])
                of_weight -= torch.mm(made.t(), (hidden[rows] * gradient[rows, None]).to(hidden.dtype))
            of_weight = of_weight.to(weight.dtype)
        return None if of_hidden is None else (of_hidden * -gradient[:, None]).to(of_hidden.dtype), None, of_weight


def linear_cross_entropy(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weight: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    each: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum the cross-entropy of `hidden @ weight.T` against `targets`.

    Args:
        hidden: `[rows, dim]`, last hidden states of the rows that carry loss.
        targets: `[rows]`, token ids.
        weight: `[vocab, dim]`.
        weights: `[rows]`, factor of each row's loss.
        each: `[rows]`, filled with each row's loss where it is given.

    Returns:
        scalar with gradient, float32 or better.
    """
    return _LinearCrossEntropy.apply(hidden, targets, weight, weights, each)  # pyright: ignore[reportReturnType]


def linear_logps(hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each target under `softmax(hidden @ weight.T)`.

    Args:
        hidden: `[rows, dim]`.
        targets: `[rows]`, token ids.
        weight: `[vocab, dim]`.

    Returns:
        `[rows]` with gradient, float32 or better.
    """
    return _LinearLogps.apply(hidden, targets, weight)  # pyright: ignore[reportReturnType]
