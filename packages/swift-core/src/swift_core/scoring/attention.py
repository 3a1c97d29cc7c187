"""Attention over packed samples, through transformers' attention interface: no model code is touched.

A packed row holds several samples one after another. Each attends to itself alone, so attention runs sample by sample:
nothing is computed for pairs that do not see each other, and there is no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from swift_core.batching.layout import Layout
from swift_core.scoring.dense_attention import causal_bias, dense_causal

NAME = "swift_packed"
# Attention implementations that look at `current_segments`, so that rows of several samples can stay as they are.
SAMPLEWISE = {NAME}

# On CPUs plain matrix products beat the fused kernel for samples up to about this many tokens.
DENSE_UP_TO = {torch.bfloat16: 1024}
DENSE_ELSE = 512

_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)
_labels: ContextVar[torch.Tensor | None] = ContextVar("labels", default=None)


@contextmanager
def packed(layout: Layout | None, labels: torch.Tensor | None = None) -> Iterator[None]:
    """Tell the layers of the forward pass inside that its row is made of these samples, and what is trained of them."""
    token, other = _layout.set(layout), _labels.set(labels)
    try:
        yield
    finally:
        _layout.reset(token)
        _labels.reset(other)


def current_layout() -> Layout | None:
    """Return which tokens of the row of the running forward pass see which, None where rows are not packed."""
    return _layout.get()


def current_segments() -> tuple[int, ...] | None:
    """Return the lengths of the samples in the row of the running forward pass, None where rows are not packed."""
    layout = _layout.get()
    return None if layout is None else layout.lengths


def current_labels() -> torch.Tensor | None:
    """Return the labels `[batch, seq]` of the running forward pass, -100 where nothing is trained; None where nothing is scored."""
    return _labels.get()


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a checkpointed layer: what is recomputed in the backward pass sees the same samples."""
    return nullcontext(), packed(_layout.get(), _labels.get())


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
        key: `[1, key heads, keys, width]`; the last query sees the last key.
        value: `[1, key heads, keys, width]`.
        scale: factor of the scores.
        window: how far back a token looks, itself included; None: to the start.
        softcap: scores pass through `cap * tanh(score / cap)`.
        dropout: share of the probabilities dropped.

    Returns:
        `[1, heads, length, width]`.
    """
    length, keys = query.shape[2], key.shape[2]
    near = window if window is not None and window < keys else None
    groups = query.shape[1] // key.shape[1]
    if softcap is not None:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = torch.tanh(query @ key.transpose(2, 3) * (scale / softcap)) * softcap
        scores = scores + causal_bias(1, length, length, keys, keys, near, query.dtype).to(query.device)
        return F.dropout(scores.float().softmax(-1), dropout).to(query.dtype) @ value
    if query.device.type == "cpu" and length == keys and length <= DENSE_UP_TO.get(query.dtype, DENSE_ELSE) and not dropout:
        return dense_causal(query, key, value, scale=scale, layout=Layout((length,)), window=near).transpose(1, 2)
    plain = near is None and length == keys
    mask = None if plain else causal_bias(1, length, length, keys, keys, near, query.dtype).to(query.device)[None]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=plain, scale=scale, enable_gqa=groups != 1
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
    layout = _layout.get()
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    if kwargs.get("s_aux") is not None:
        raise TypeError("attention with sinks cannot be packed")
    settings: dict[str, Any] = {
        "scale": scaling if scaling is not None else query.shape[-1] ** -0.5,
        "window": kwargs.get("sliding_window"),
    }
    softcap, dropped = kwargs.get("softcap"), dropout if module.training else 0.0
    if query.device.type == "cpu" and softcap is None and not dropped and _dense_pays(layout, query.dtype):
        return dense_causal(query, key, value, layout=layout, **settings), None
    found: list[torch.Tensor] = []
    for number in range(len(layout.lengths)):
        start, stop = layout.span(number)
        spans = [*layout.before(number), (start, stop)]
        keys, values = (torch.cat([one[:, :, slice(*span)] for span in spans], dim=2) for one in (key, value))
        found.append(attend(query[:, :, start:stop], keys, values, softcap=softcap, dropout=dropped, **settings))
    return torch.cat(found, dim=2).transpose(1, 2).contiguous(), None


def _dense_pays(layout: Layout, dtype: torch.dtype) -> bool:
    return layout.branches or max(layout.lengths) <= DENSE_UP_TO.get(dtype, DENSE_ELSE)


def packed_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Return no mask for packed rows, which need none, and sdpa's mask otherwise."""
    return None if _layout.get() is not None else sdpa_mask(*args, **kwargs)


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
