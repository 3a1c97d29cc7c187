"""Batches to losses: the backbone once, then the head on the rows that carry loss only."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from swift_core.batching.collate import IGNORED, Batch
from swift_core.errors import ModelError
from swift_core.scoring.head import chunked_cross_entropy, count_correct

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Scores:
    """What a batch scored.

    Attributes:
        loss_sum: summed cross-entropy in nats over the trained tokens, scalar with gradient.
        trained_tokens: how many predictions that sum has.
        correct: how many of them were the most likely token; None unless asked for.
    """

    loss_sum: torch.Tensor
    trained_tokens: int
    correct: torch.Tensor | None = None


class Scorer:
    """Scores batches with a causal language model.

    The head of a transformers model can hide steps after the linear layer (soft-caps, scales). `check` compares this path with
    the model's own logits once; a model it does not fit is scored through its own logits, which costs memory but is exact.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._checked = False
        self._split = True

    def __call__(self, batch: Batch, *, with_correct: bool = False) -> Scores:
        """Score a batch; tokens labelled -100 are left out.

        Raises:
            ModelError: when the model yields no logits.
        """
        if not self._checked:
            self.check(batch)
        targets = batch.labels[:, 1:]
        rows = targets != IGNORED
        count = int(rows.sum())
        if self._split:
            hidden = self._hidden(batch)[:, :-1][rows]
            # No row: the sum is 0 with a gradient of 0 to every parameter, which ranks need to stay in step with one another.
            loss = chunked_cross_entropy(hidden, targets[rows], self._logits, self._head_parameters())
            correct = count_correct(hidden, targets[rows], self._logits) if with_correct else None
            return Scores(loss, count, correct)
        logits = self._own_logits(batch)[:, :-1][rows].float()
        loss = F.cross_entropy(logits, targets[rows], reduction="sum") if count else logits.sum() * 0
        return Scores(loss, count, (logits.argmax(-1) == targets[rows]).sum() if with_correct else None)

    def check(self, batch: Batch) -> None:
        """Compare the split path with the model's own logits on the first row of a batch, and choose the path."""
        self._checked = True
        training = self.model.training
        self.model.eval()
        first = Batch(batch.input_ids[:1, :64], batch.attention_mask[:1, :64], batch.labels[:1, :64], [])
        try:
            with torch.no_grad():
                own = self._own_logits(first).float()
                reason = self._disagreement(first, own)
        finally:
            self.model.train(training)
        self._split = reason is None
        if reason is not None:
            logger.warning("scoring through the model's own logits, which takes more memory: %s", reason)

    def _disagreement(self, batch: Batch, own: torch.Tensor) -> str | None:
        try:
            split = self._logits(self._hidden(batch)).float()
        except (AttributeError, TypeError) as error:
            return f"the model does not come apart into backbone and head ({error})"
        if split.shape != own.shape:
            return f"head and model give different shapes, {tuple(split.shape)} and {tuple(own.shape)}"
        # bfloat16 keeps 8 bits: equal paths differ by less than 1% of the largest logit.
        difference = (split - own).abs().max() / own.abs().max().clamp_min(1e-6)
        return None if difference < 0.02 else f"head and model logits differ by {difference:.1%}"

    def _causal_lm(self) -> Any:
        # PEFT wraps the model; its layers are inside the same modules, so the inner model runs them.
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model  # pyright: ignore[reportCallIssue]

    def _hidden(self, batch: Batch) -> torch.Tensor:
        output = self._causal_lm().base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        return output.last_hidden_state

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        model = self._causal_lm()
        logits = model.get_output_embeddings()(hidden)
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        if getattr(config, "logit_scale", None):  # Cohere
            logits = logits * config.logit_scale
        if getattr(config, "logits_scaling", None):  # Granite
            logits = logits / config.logits_scaling
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and later
        return torch.tanh(logits / cap) * cap if cap else logits

    def _head_parameters(self) -> list[torch.Tensor]:
        return list(self._causal_lm().get_output_embeddings().parameters())

    def _own_logits(self, batch: Batch) -> torch.Tensor:
        output = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        if getattr(output, "logits", None) is None:
            raise ModelError(f"{type(self.model).__name__} yields no logits", fix="use a causal language model")
        return output.logits
