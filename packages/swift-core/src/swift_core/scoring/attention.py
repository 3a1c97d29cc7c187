"""Attention over packed samples, through transformers' attention interface: no model code is touched.

A packed row holds several samples one after another. Each attends to itself alone, so attention runs sample by sample:
nothing is computed for pairs that do not see each other, and there is no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "swift_packed"
# Attention implementations that look at `current_segments`, so that rows of several samples can stay as they are.
SAMPLEWISE = {NAME}

# On CPUs plain matrix products beat the fused kernel for samples up to about this many tokens.
DENSE_UP_TO = 512

_segments: ContextVar[tuple[int, ...] | None] = ContextVar("segments", default=None)
_labels: ContextVar[torch.Tensor | None] = ContextVar("labels", default=None)


@contextmanager
def packed(segments: tuple[int, ...] | None, labels: torch.Tensor | None = None) -> Iterator[None]:
    """Tell the layers of the forward pass inside that its row is made of these samples, and what is trained of them."""
    token, other = _segments.set(segments), _labels.set(labels)
    try:
        yield
    finally:
        _segments.reset(token)
        _labels.reset(other)


def current_segments() -> tuple[int, ...] | None:
    """Return the lengths of the samples in the row of the running forward pass, None where rows are not packed."""
    return _segments.get()


def current_labels() -> torch.Tensor | None:
    """Return the labels `[batch, seq]` of the running forward pass, -100 where nothing is trained; None where nothing is scored."""
    return _labels.get()


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a checkpointed layer: what is recomputed in the backward pass sees the same samples."""
    return nullcontext(), packed(_segments.get())


class _DenseCausal(torch.autograd.Function):
    """Causal attention of one sample by matrix products, with the query heads of a key head side by side.

    The backward pass is written out: it reuses the probabilities in place, which autograd would copy.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, bias: torch.Tensor) -> torch.Tensor:
        heads, length, width = query.shape[1:]
        pairs = key.shape[1]
        rows = query.reshape(pairs, heads // pairs * length, width)
        keys, values = key[0].contiguous(), value[0].contiguous()
        probabilities = torch.baddbmm(bias.repeat(1, heads // pairs, 1), rows, keys.transpose(1, 2), alpha=scale).softmax(-1)
        ctx.save_for_backward(rows, keys, values, probabilities)
        ctx.scale = scale
        return torch.bmm(probabilities, values).view(1, heads, length, width)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, keys, values, probabilities = ctx.saved_tensors
        gradient = outputs[0]
        shape = gradient.shape
        gradient = gradient.reshape(rows.shape)
        of_value = torch.bmm(probabilities.transpose(1, 2), gradient)
        of_probabilities = torch.bmm(gradient, values.transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(of_probabilities, probabilities, -1, probabilities.dtype)
        of_query = torch.bmm(of_scores, keys).mul_(ctx.scale).view(shape)
        of_key = torch.bmm(of_scores.transpose(1, 2), rows).mul_(ctx.scale)
        return of_query, of_key[None], of_value[None], None, None


@lru_cache(maxsize=256)
def _causal_bias(length: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Return `[1, length, length]`: 0 where a token may look, -inf elsewhere."""
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    if window is not None:
        allowed &= torch.ones(length, length, dtype=torch.bool).triu(1 - window)
    return torch.zeros(1, length, length, dtype=dtype).masked_fill_(~allowed, float("-inf"))


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return causal attention of one sample.

    Args:
        query: `[1, heads, length, width]`.
        key: `[1, key heads, length, width]`.
        value: `[1, key heads, length, width]`.
        scale: factor of the scores.
        window: how far back a token looks, itself included; None: to the start.
        softcap: scores pass through `cap * tanh(score / cap)`.
        dropout: share of the probabilities dropped.

    Returns:
        `[1, heads, length, width]`.
    """
    length = query.shape[2]
    near = window if window is not None and window < length else None
    if softcap is not None:
        groups = query.shape[1] // key.shape[1]
        keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = torch.tanh(query @ keys.transpose(2, 3) * (scale / softcap)) * softcap
        scores = scores + _causal_bias(length, near, query.dtype).to(query.device)
        return F.dropout(scores.float().softmax(-1), dropout).to(query.dtype) @ values
    if query.device.type == "cpu" and length <= DENSE_UP_TO and not dropout:
        return _DenseCausal.apply(query, key, value, scale, _causal_bias(length, near, query.dtype))  # pyright: ignore[reportReturnType]
    mask = None if near is None else _causal_bias(length, near, query.dtype).to(query.device)[None]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend inside each sample of a packed row; without `packed(...)` around it, as transformers' sdpa.

    Shapes are those of transformers' attention interface: `[batch, heads, length, width]` in, `[batch, length, heads, width]` out.

    Raises:
        TypeError: for attention with sinks, which this function does not have; the caller then uses padded rows.
    """
    segments = _segments.get()
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    if kwargs.get("s_aux") is not None:
        raise TypeError("attention with sinks cannot be packed")
    lengths = list(segments)
    settings: dict[str, Any] = {
        "scale": scaling if scaling is not None else query.shape[-1] ** -0.5,
        "window": kwargs.get("sliding_window"),
        "softcap": kwargs.get("softcap"),
        "dropout": dropout if module.training else 0.0,
    }
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    return torch.cat([attend(*part, **settings) for part in parts], dim=2).transpose(1, 2).contiguous(), None


def packed_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Return no mask for packed rows, which need none, and sdpa's mask otherwise."""
    return None if _segments.get() is not None else sdpa_mask(*args, **kwargs)


def text_attention(model: Any) -> str:
    """Return the attention implementation of a model's language part."""
    return model.config.get_text_config()._attn_implementation


def register_samplewise(name: str, function: Callable[..., tuple[torch.Tensor, None]]) -> None:
    """Make an attention implementation known that looks at `current_segments`; it gets no mask for packed rows."""
    AttentionInterface.register(name, function)  # pyright: ignore[reportArgumentType]
    AttentionMaskInterface.register(name, packed_mask)  # pyright: ignore[reportArgumentType]
    SAMPLEWISE.add(name)


def set_text_attention(model: Any, name: str) -> None:
    """Choose the attention implementation of a model's language part; towers that see and hear keep theirs."""
    AttentionInterface.register(NAME, packed_attention)  # pyright: ignore[reportArgumentType]
    AttentionMaskInterface.register(NAME, packed_mask)  # pyright: ignore[reportArgumentType]
    text = model.config.get_text_config()
    inside = [key for key in getattr(model.config, "sub_configs", {}) if getattr(model.config, key, None) is text]
    model.set_attn_implementation({inside[0]: name} if inside else name)
