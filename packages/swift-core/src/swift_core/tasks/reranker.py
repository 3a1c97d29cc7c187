"""Rerankers: a score for how relevant a document is to a query, read together."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from swift_core.config.tasks import TaskSection
from swift_core.errors import ModelError
from swift_core.losses.ranking import listwise, pointwise, yes_no_scores
from swift_core.metrics.ranking import mean_ranking
from swift_core.protocols import EncodedSample
from swift_core.tasks.embedding import EVAL_TEXTS
from swift_core.tasks.texts import GroupBatch, Texts, collate_groups, companions, group_length

Part = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


class Reranker:
    """Scores from a head with one output.

    Args:
        section: loss and its options.
    """

    packs = False

    def __init__(self, section: TaskSection) -> None:
        self.section = section
        self.unit = "lists" if section.loss == "listwise_reranker" else "pairs"

    def weight(self, sample: EncodedSample) -> int:
        """Return the pairs of a sample; for listwise_reranker its relevant documents, each of which is found in a list."""
        return len(sample.positives) if self.section.loss == "listwise_reranker" else len(companions(sample))

    def length(self, sample: EncodedSample) -> int:
        """Return the tokens of all pairs of a sample."""
        return group_length(sample)

    def collate(self, samples: Sequence[EncodedSample], *, pad_token_id: int) -> GroupBatch:
        """Return the pairs of the samples as one padded block."""
        return collate_groups(samples, pad_token_id=pad_token_id)

    def score(self, model: nn.Module, texts: Texts) -> torch.Tensor:
        """Return the logit of relevance of each pair, `[pairs]`, float32."""
        return model(**texts.inputs(model)).logits[:, 0].float()

    def loss(self, model: nn.Module, batch: GroupBatch) -> torch.Tensor:
        """Return the summed loss over the pairs or lists of a batch."""
        summed = self._losses(self.score(model, batch.texts), batch.targets, batch.owners).sum()
        return summed if batch.live else summed * 0

    def _losses(self, scores: torch.Tensor, targets: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        if self.section.loss == "listwise_reranker":
            return listwise(scores, targets, groups, temperature=self.section.listwise_temperature)
        return pointwise(scores, targets)

    def measure(self, model: nn.Module, batch: GroupBatch) -> Part:
        """Return scores, targets and group numbers of the pairs."""
        scores = torch.cat([self.score(model, part) for part in batch.texts.split(EVAL_TEXTS)])
        return scores.cpu().numpy(), batch.targets.cpu().numpy(), batch.owners.cpu().numpy()

    def metrics(self, parts: Iterable[Part]) -> dict[str, float]:
        """Return `loss`, and `mrr`, `map`, `ndcg` (of the first 10) and `hit`, means over queries with a relevant document."""
        found = list(parts)
        scores, targets = np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])
        starts = np.cumsum([0, *(int(part[2].max()) + 1 for part in found)])
        groups = np.concatenate([part[2] + start for part, start in zip(found, starts, strict=False)])
        losses = [self._losses(*(torch.from_numpy(column) for column in part)) for part in found]
        ranked = mean_ranking(scores.astype(np.float64), targets.astype(np.float64), groups)
        return {"loss": float(torch.cat(losses).double().mean()), **ranked}

    def save(self, folder: Path) -> None:
        """Write nothing: the head is in the model, the prompt in the settings."""


class GenerativeReranker(Reranker):
    """Scores from a causal language model: the logit of the answer yes over that of no.

    Args:
        section: loss and its options.
        tokenizer: knows the two answers.

    Raises:
        ModelError: when an answer is not one token.
    """

    def __init__(self, section: TaskSection, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(section)
        self.positive_id = single_token(tokenizer, section.positive_token, "--positive_token")
        self.negative_id = single_token(tokenizer, section.negative_token, "--negative_token")
        if self.positive_id == self.negative_id:
            raise ModelError("--positive_token and --negative_token are the same token", fix="choose two answers that differ")
        self._takes_rows: bool | None = None

    def score(self, model: nn.Module, texts: Texts) -> torch.Tensor:
        """Return log P(yes) - log P(no) after each pair, `[pairs]`, float32."""
        last = texts.attention_mask.sum(1) - 1
        # Only the positions where some text ends: the logits of all others would fill the memory.
        ends, row = torch.unique(last, return_inverse=True)
        if self._takes_rows is None:
            inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
            self._takes_rows = "logits_to_keep" in inspect.signature(inner.forward).parameters
        extra = {"logits_to_keep": ends} if self._takes_rows else {}
        logits = model(**texts.inputs(model), **extra, use_cache=False).logits
        chosen = logits[torch.arange(len(texts), device=logits.device), row if self._takes_rows else last]
        return yes_no_scores(chosen.float(), positive_id=self.positive_id, negative_id=self.negative_id)


def single_token(tokenizer: PreTrainedTokenizerBase, word: str, setting: str) -> int:
    """Return the token of an answer.

    Raises:
        ModelError: when the word is several tokens.
    """
    ids: Any = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ModelError(
            f"{setting} {word!r} is {len(ids)} tokens for this tokenizer, and the answer must be one",
            fix=f"choose a shorter word for {setting}, in the tokenizer's spelling",
        )
    return int(ids[0])
