"""Comparing what two forms of one model answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

PROMPTS = (
    "Who are you, and who made you?",
    "The capital of France is Paris. The capital of Japan is",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 40))  # prints",
    "请用一句话介绍你自己。",
)
MAX_TOKENS = 64

# Root mean square of the differences as a share of that of the logits. Folding an update into a weight rounds it once to
# the weight's number type, and each layer hands its rounding on: float32 keeps 24 bits, float16 11, bfloat16 8.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near two sets of logits are.

    Attributes:
        max_difference: largest absolute difference of two logits.
        largest_logit: largest absolute logit of the first set.
        relative: root mean square of the differences as a share of that of the first set.
        top1: share of positions at which both choose the same token.
        positions: positions compared.
    """

    max_difference: float
    largest_logit: float
    relative: float
    top1: float
    positions: int

    def within(self, dtype: torch.dtype) -> bool:
        """Say whether the difference is no more than rounding in this number type explains."""
        return self.relative <= TOLERANCE[dtype]

    def __str__(self) -> str:
        return (
            f"max difference {self.max_difference:.3g} (logits up to {self.largest_logit:.3g}), {self.relative:.2%} on average, "
            f"top-1 agreement {self.top1:.1%} of {self.positions} positions"
        )


def prompt_ids(tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Return the token ids `[1, seq]` of each prompt, as a chat where the tokenizer has a chat template."""
    rows: list[Tensor] = []
    for text in PROMPTS:
        if tokenizer.chat_template:
            text = cast(str, tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True))
        ids = cast(list[int], tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"])[:MAX_TOKENS]
        rows.append(torch.tensor([ids]))
    return [row for row in rows if row.numel() > 0]


@torch.inference_mode()
def logits_of(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the logits `[seq, vocab]` of each prompt as float32 on the CPU, with dropout off."""
    model.eval()
    device = next(model.parameters()).device
    found: list[Tensor] = []
    for ids in inputs:
        output: Any = model(input_ids=ids.to(device), use_cache=False)
        found.append(output.logits[0].float().cpu())
    return found


def compare(first: Sequence[Tensor], second: Sequence[Tensor]) -> Agreement:
    """Return how near two lists of logits `[seq, vocab]` are; a value that is not finite in one of them differs infinitely."""
    a, b = torch.cat(list(first)), torch.cat(list(second))
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return Agreement(math.inf, math.inf, math.inf, 0.0, a.shape[0])
    relative = (a - b).square().mean().sqrt() / a.square().mean().sqrt().clamp_min(1e-12)
    same = (a.argmax(-1) == b.argmax(-1)).float().mean()
    return Agreement(float((a - b).abs().max()), float(a.abs().max()), float(relative), float(same), a.shape[0])
