"""Attention of a decode step, with the keys of a prompt held once for all answers to it.

A forward pass over prompts, side by side in one row, fills the keys and values of each prompt. Every further pass has one token for
each answer. No model code is touched and no cache of transformers is used: the attention function keeps what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from swift_core.batching.layout import Layout
from swift_core.decoding.attending import writing
from swift_core.scoring.attention import packed, packed_attention
from torch import Tensor, nn

NAME = "swift_decoding"
_running: ContextVar[Decoding | None] = ContextVar("decoding", default=None)


class _Layer:
    """Keys and values of one layer: of prompts `[prompts, heads, longest, width]`, of answers `[answers, heads, room, width]`."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.prompt = (keys, values)
        self.answer: tuple[Tensor, Tensor] | None = None

    def append(self, at: int, room: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put a token behind each answer and return keys and values so far."""
        if self.answer is None or self.answer[0].shape[2] <= at:
            grown = tuple(new.new_empty(*new.shape[:2], room, new.shape[3]) for new in (key, value))
            for old, large in zip(self.answer or (), grown, strict=False):
                large[:, :, :at] = old[:, :, :at]
            self.answer = (grown[0], grown[1])
        for store, new in zip(self.answer, (key, value), strict=True):
            store[:, :, at] = new[:, :, 0]
        return self.answer[0][:, :, : at + 1], self.answer[1][:, :, : at + 1]

    def keep(self, rows: Tensor) -> None:
        """Forget all answers but these."""
        if self.answer is not None:
            self.answer = (self.answer[0][rows], self.answer[1][rows])


class Decoding:
    """The keys and values of a running generation.

    Args:
        lengths: tokens of each prompt.
        prompt_of: number of the prompt of each answer, in ascending order.
        device: where the model is.
    """

    def __init__(self, lengths: Sequence[int], prompt_of: Sequence[int], device: torch.device) -> None:
        self.layout = Layout(tuple(lengths))
        self._lengths = torch.tensor(lengths, device=device)
        self._layers: list[_Layer] = []
        self._next = 0
        self._tokens = 0
        self.prefilling = True
        self.prompt_of = torch.tensor(prompt_of, device=device)
        self._arrange()

    def _arrange(self) -> None:
        prompts, count = len(self.layout.lengths), torch.bincount(self.prompt_of, minlength=len(self.layout.lengths))
        self._width = int(count.max())
        within = torch.arange(len(self.prompt_of), device=self.prompt_of.device) - (count.cumsum(0) - count)[self.prompt_of]
        slots = self.prompt_of * self._width + within
        # None: every prompt has the same number of answers, so that their queries lie side by side already.
        self._slots = None if len(slots) == prompts * self._width else slots
        self._prompt_bias: Tensor | None = None
        if len(set(self.layout.lengths)) > 1:
            outside = torch.arange(int(self._lengths.max()), device=slots.device) >= self._lengths[:, None]
            self._prompt_bias = torch.zeros(outside.shape, device=slots.device).masked_fill_(outside, -torch.inf)[:, None, None]

    @property
    def positions(self) -> Tensor:
        """Return the position of the next token of each answer, `[answers, 1]`."""
        return (self._lengths[self.prompt_of] + self._tokens)[:, None]

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the answers only."""
        self.prompt_of = self.prompt_of[rows]
        for layer in self._layers:
            layer.keep(rows)
        self._arrange()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Surround one forward pass of the model: the first is that of the prompts."""
        token = _running.set(self)
        self._next = 0
        try:
            with packed(self.layout if self.prefilling else None):
                yield
        finally:
            _running.reset(token)
        if not self.prefilling:
            self._tokens += 1
        self.prefilling = False

    def prefill(self, key: Tensor, value: Tensor) -> None:
        """Take over keys and values of the prompts in one layer, `[1, heads, tokens, width]`."""
        longest = max(self.layout.lengths)
        stores = tuple(new.new_zeros(len(self.layout.lengths), new.shape[1], longest, new.shape[3]) for new in (key, value))
        for number, length in enumerate(self.layout.lengths):
            start, stop = self.layout.span(number)
            for store, new in zip(stores, (key, value), strict=True):
                store[number, :, :length] = new[0, :, start:stop]
        self._layers.append(_Layer(stores[0], stores[1]))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, softcap: float | None) -> Tensor:
        """Return attention of one new token for each answer, `[answers, 1, heads, width]`."""
        layer = self._layers[self._next]
        self._next += 1
        rows, heads, _, width = query.shape
        pairs = key.shape[1]
        keys, values = layer.append(self._tokens, _room(self._tokens), key, value)
        query = query.view(rows, pairs, heads // pairs, width)
        over_prompt = self._per_answer(self._per_prompt(query) @ layer.prompt[0].transpose(2, 3))
        over_answer = query @ keys.transpose(2, 3)
        scores = torch.cat([over_prompt, over_answer], -1).float() * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        longest = over_prompt.shape[-1]
        if self._prompt_bias is not None:
            scores[..., :longest] += self._prompt_bias[self.prompt_of]
        if window is not None:
            scores = scores.masked_fill_(self._too_far(longest, window)[:, None, None], -torch.inf)
        shares = scores.softmax(-1).to(value.dtype)
        found = shares[..., longest:] @ values
        found = found + self._per_answer(self._per_prompt(shares[..., :longest]) @ layer.prompt[1])
        return found.reshape(rows, 1, heads, -1)

    def _per_prompt(self, tensor: Tensor) -> Tensor:
        """Return `[prompts, pairs, answers of a prompt * group, n]` of `[answers, pairs, group, n]`."""
        prompts = len(self.layout.lengths)
        if self._slots is not None:
            filled = tensor.new_zeros(prompts * self._width, *tensor.shape[1:])
            filled[self._slots] = tensor
            tensor = filled
        _, pairs, group, size = tensor.shape
        return tensor.view(prompts, self._width, pairs, group, size).transpose(1, 2).reshape(prompts, pairs, self._width * group, size)

    def _per_answer(self, tensor: Tensor) -> Tensor:
        """Return `[answers, pairs, group, n]`, the way back."""
        prompts, pairs, queries, size = tensor.shape
        group = queries // self._width
        tensor = tensor.view(prompts, pairs, self._width, group, size).transpose(1, 2).reshape(prompts * self._width, pairs, group, size)
        return tensor if self._slots is None else tensor[self._slots]

    def _too_far(self, longest: int, window: int) -> Tensor:
        """Return which keys lie outside the window of the new token, `[answers, keys]`, bool."""
        device = self.prompt_of.device
        of_prompt = torch.arange(longest, device=device)[None].expand(len(self.prompt_of), -1)
        of_answer = self._lengths[self.prompt_of][:, None] + torch.arange(self._tokens + 1, device=device)
        return torch.cat([of_prompt, of_answer], 1) <= self.positions - window


def _room(tokens: int) -> int:
    """Return for how many tokens there is to be room when one more comes: twice as many each time."""
    return max(32, 1 << tokens.bit_length())


def decoding_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend in a decode step; shapes are those of transformers' attention interface.

    Raises:
        TypeError: for attention with sinks, which this function does not have.
    """
    running = _running.get()
    if running is None or running.prefilling:
        if running is not None:
            running.prefill(key, value)
        return packed_attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if kwargs.get("s_aux") is not None:
        raise TypeError("attention with sinks cannot be decoded here")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return running.attend(query, key, value, scale=scale, window=kwargs.get("sliding_window"), softcap=kwargs.get("softcap")), None


def decoding_model(model: Any) -> AbstractContextManager[None]:
    """Let a model decode inside, in evaluation mode, without gradients."""
    return writing(model, NAME, decoding_attention)
