"""A model put into the state in which it writes: its attention exchanged for one that keeps keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from swift_core.scoring.attention import set_text_attention, text_attention


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


@contextmanager
def writing(model: Any, name: str, attention: Callable[..., Any]) -> Iterator[None]:
    """Let a model attend with another function inside, in evaluation mode and without gradients.

    Args:
        model: a causal language model of transformers.
        name: under which transformers knows the function.
        attention: of transformers' attention interface; it needs no mask.
    """
    AttentionInterface.register(name, attention)  # pyright: ignore[reportArgumentType]
    AttentionMaskInterface.register(name, _no_mask)  # pyright: ignore[reportArgumentType]
    before, training = text_attention(model), model.training
    set_text_attention(model, name)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        set_text_attention(model, before)
        model.train(training)
