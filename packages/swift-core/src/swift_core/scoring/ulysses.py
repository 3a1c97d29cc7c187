"""Attention over a row of which each process holds a part: every process takes some of the heads, and sees the whole row for them.

Published as DeepSpeed-Ulysses: an all-to-all before attention turns parts of the row into parts of the heads, another one turns them back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from swift_core.scoring.attention import current_layout, packed_attention
from swift_core.scoring.sequence import SequenceShare


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return _exchanged(tensor, group)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _exchanged(outputs[0], ctx.group), None


def _exchanged(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    sent = tensor.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received


class UlyssesAttention:
    """Attention function of transformers' interface for rows that a group shares.

    Args:
        share: the group.
    """

    def __init__(self, share: SequenceShare) -> None:
        self._share = share

    def __call__(
        self, module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """Attend inside each sample of the row; `[1, heads, part, width]` in, `[1, part, heads, width]` out.

        Raises:
            TypeError: when the heads cannot be dealt out, or attention has sinks, of which each process would need its own.
        """
        layout = current_layout()
        if layout is None:
            return packed_attention(module, query, key, value, mask, **kwargs)
        self._share.check(layout, query.shape[2])
        heads, size = query.shape[1], self._share.size
        if heads % size:
            raise TypeError(f"{heads} heads cannot be dealt to {size} processes")
        if key.shape[1] % size:  # fewer key heads than processes: each gets those that its query heads look at
            key, value = (one.repeat_interleave(heads // key.shape[1], 1) for one in (key, value))
        query, key, value = (self._to_heads(one) for one in (query, key, value))
        found, _ = packed_attention(module, query, key, value, mask, **kwargs)
        return self._to_tokens(found), None

    def _to_heads(self, part: torch.Tensor) -> torch.Tensor:
        """`[1, heads, part, width]` to `[1, heads / size, tokens, width]`."""
        size = self._share.size
        _, heads, tokens, width = part.shape
        dealt = _Exchange.apply(part[0].reshape(size, heads // size, tokens, width), self._share.group)
        return dealt.transpose(0, 1).reshape(1, heads // size, size * tokens, width)  # pyright: ignore[reportOptionalMemberAccess]

    def _to_tokens(self, found: torch.Tensor) -> torch.Tensor:
        """`[1, tokens, heads / size, width]` to `[1, part, heads, width]`."""
        size = self._share.size
        _, tokens, heads, width = found.shape
        dealt = _Exchange.apply(found[0].reshape(size, tokens // size, heads, width), self._share.group)
        return dealt.transpose(0, 1).reshape(1, tokens // size, size * heads, width)  # pyright: ignore[reportOptionalMemberAccess]
