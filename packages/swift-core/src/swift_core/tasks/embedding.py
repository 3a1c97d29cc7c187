"""Text embeddings: texts that belong together get vectors that point the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from swift_core.config.tasks import TaskSection
from swift_core.errors import ModelError
from swift_core.losses.contrastive import contrastive, cosine_similarity, info_nce, online_contrastive
from swift_core.metrics.correlation import pearson, spearman
from swift_core.metrics.ranking import ranking_metrics
from swift_core.protocols import EncodedSample
from swift_core.tasks.gathering import gather_rows, row_counts
from swift_core.tasks.pooling import Pooling, pool, write_sentence_transformer
from swift_core.tasks.texts import GroupBatch, Texts, collate_groups, companions, group_length

EVAL_TEXTS = 64
"""Texts that go through the model at once in an evaluation: rows may have many negatives."""
QUERY_ROWS = 256
"""Queries that are compared with all documents at once in an evaluation."""


@dataclass(slots=True)
class Vectors:
    """The vectors of groups of texts.

    Attributes:
        queries: `[q, dim]`, one for each group.
        documents: `[d, dim]`.
        owners: `[d]`, number of the group.
        targets: `[d]`, 1 for a text that belongs to the query, 0 for another; or a similarity.
        query_keys, document_keys: `[q]`, `[d]`: equal for equal texts.
        live: `[q]`, false for groups that are only there to keep ranks in step.
    """

    queries: torch.Tensor
    documents: torch.Tensor
    owners: torch.Tensor
    targets: torch.Tensor
    query_keys: torch.Tensor
    document_keys: torch.Tensor
    live: torch.Tensor

    def cut(self, dim: int) -> Vectors:
        """Return the first `dim` numbers of every vector, normalised."""
        queries, documents = F.normalize(self.queries[:, :dim], dim=-1), F.normalize(self.documents[:, :dim], dim=-1)
        return replace(self, queries=queries, documents=documents)


def joined(parts: Sequence[Vectors]) -> Vectors:
    """Return the groups of several batches as those of one."""
    starts = np.cumsum([0, *(len(part.queries) for part in parts)])
    owners = torch.cat([part.owners + int(start) for part, start in zip(parts, starts, strict=False)])
    names = ("queries", "documents", "targets", "query_keys", "document_keys", "live")
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Vectors(owners=owners, **columns)


def gathered(own: Vectors) -> tuple[Vectors, int]:
    """Return the groups of all ranks, with gradients, and the number of the first group of this rank."""
    groups, texts = row_counts(own.queries), row_counts(own.documents)
    if len(groups) == 1:
        return own, 0
    rank = torch.distributed.get_rank()
    first = sum(groups[:rank])
    found = Vectors(
        gather_rows(own.queries, groups),
        gather_rows(own.documents, texts),
        gather_rows(own.owners + first, texts),
        gather_rows(own.targets, texts),
        gather_rows(own.query_keys, groups),
        gather_rows(own.document_keys, texts),
        gather_rows(own.live.long(), groups).bool(),
    )
    return found, first


class Embedding:
    """Embeddings, L2-normalised.

    InfoNCE takes negatives from the whole micro-batch on all ranks, so its value depends on the batch size; a text that equals
    the positive, and the positives of equal queries, are never negatives.

    Args:
        section: loss and its options.
        pooling: which token's vector stands for a text.
        dim: length of the model's vectors.
        max_length: longest text in tokens, for the files of sentence-transformers.

    Raises:
        ModelError: when a Matryoshka size exceeds the model's vectors.
    """

    packs = False

    def __init__(self, section: TaskSection, *, pooling: Pooling, dim: int, max_length: int | None = None) -> None:
        too_large = [size for size in section.mrl_dims if size > dim]
        if too_large:
            raise ModelError(f"--mrl_dims {too_large[0]}: the vectors of this model have {dim} numbers", fix=f"give sizes up to {dim}")
        self.section = section
        self.pooling: Pooling = pooling
        self.dim = dim
        self.max_length = max_length
        self.unit = "queries" if section.loss == "infonce" else "pairs"
        self._sizes: Mapping[int, float] = section.mrl_dims or {dim: 1.0}

    def weight(self, sample: EncodedSample) -> int:
        """Return 1 for infonce, else the pairs of a sample."""
        return 1 if self.section.loss == "infonce" else len(companions(sample))

    def length(self, sample: EncodedSample) -> int:
        """Return the tokens of all texts of a sample."""
        return group_length(sample)

    def collate(self, samples: Sequence[EncodedSample], *, pad_token_id: int) -> GroupBatch:
        """Return the texts of the samples as one padded block."""
        return collate_groups(samples, pad_token_id=pad_token_id)

    def embed(self, model: nn.Module, texts: Texts) -> torch.Tensor:
        """Return one vector for each text, `[texts, dim]`, not normalised, float32."""
        output = model(**texts.inputs(model))
        pooled = pool(output.last_hidden_state, texts.attention_mask, self.pooling).float()
        extra = getattr(output, "pooler_output", None)
        # Some encoders carry a pooler that embeddings do not use. Ranks must give every parameter a gradient all the same.
        return pooled if extra is None or not extra.requires_grad else pooled + extra.sum() * 0

    def loss(self, model: nn.Module, batch: GroupBatch) -> torch.Tensor:
        """Return the summed loss over the queries or pairs of a batch."""
        own = self._vectors(self.embed(model, batch.texts), batch)
        if self.section.loss != "infonce":
            summed = self._weighted(own, lambda vectors: self._pair_losses(vectors).sum())
            return summed if batch.live else summed * 0
        everyone, first = gathered(own) if self.section.infonce_use_batch else (own, 0)
        rows = torch.arange(first, first + len(own.queries), device=own.queries.device)
        summed = self._weighted(everyone, lambda vectors: self._info_nce(vectors, rows).sum())
        return summed if batch.live else summed * 0

    def _vectors(self, embedded: torch.Tensor, batch: GroupBatch) -> Vectors:
        count = batch.queries
        live = torch.full((count,), batch.live, dtype=torch.bool, device=embedded.device)
        keys = batch.keys.to(embedded.device)
        owners, targets = batch.owners.to(embedded.device), batch.targets.to(embedded.device)
        return Vectors(embedded[:count], embedded[count:], owners, targets, keys[:count], keys[count:], live)

    def _weighted(self, vectors: Vectors, loss: Callable[[Vectors], torch.Tensor]) -> torch.Tensor:
        terms = [weight * loss(vectors.cut(size)) for size, weight in self._sizes.items()]
        return torch.stack(terms).sum()

    def _pair_losses(self, vectors: Vectors) -> torch.Tensor:
        """Return the loss of each pair, `[documents]`."""
        anchors, others, wanted = vectors.queries[vectors.owners], vectors.documents, vectors.targets
        if self.section.loss == "cosine_similarity":
            return cosine_similarity(anchors, others, wanted)
        if self.section.loss == "contrastive":
            return contrastive(anchors, others, wanted, margin=self.section.contrastive_margin)
        return online_contrastive(anchors, others, wanted, margin=self.section.contrastive_margin)

    def _info_nce(self, vectors: Vectors, rows: torch.Tensor) -> torch.Tensor:
        """Return the loss of the queries `rows`, `[rows]`, with the documents of all groups as candidates."""
        section = self.section
        positive = vectors.targets > 0.5
        # A group's positive is its first document.
        firsts = torch.searchsorted(vectors.owners, rows)
        mine = vectors.owners[None, :] == rows[:, None]
        same_query = vectors.query_keys[rows][:, None] == vectors.query_keys[vectors.owners][None, :]
        same_text = vectors.document_keys[firsts][:, None] == vectors.document_keys[None, :]
        usable = vectors.live[vectors.owners][None, :] & ~same_text
        others = usable & ~(same_query & positive[None, :])
        together = section.infonce_use_batch
        alike = vectors.query_keys[rows][:, None] == vectors.query_keys[None, :]
        return info_nce(
            vectors.queries[rows],
            vectors.documents,
            firsts,
            allowed=others if together else mine & ~positive[None, :] & ~same_text,
            temperature=section.infonce_temperature,
            fake_margin=section.infonce_fake_neg_margin if section.infonce_mask_fake_negative else None,
            other_queries=vectors.queries if section.infonce_include_qq else None,
            queries_allowed=vectors.live[None, :] & ~alike,
            documents_allowed=others & ~mine if section.infonce_include_dd else None,
        )

    def measure(self, model: nn.Module, batch: GroupBatch) -> Vectors:
        """Return the vectors of a batch."""
        embedded = torch.cat([self.embed(model, part) for part in batch.texts.split(EVAL_TEXTS)])
        return self._vectors(embedded.cpu(), batch)

    def metrics(self, parts: Iterable[Vectors]) -> dict[str, float]:
        """Return `loss`, and how well the cosines order texts.

        Pairs with different targets give `pearson` and `spearman` of cosine and target. Infonce also gives `mrr`, `ndcg` (of the
        first 10) and `hit` (first place right) of finding each query's documents among all documents of the evaluation, and its
        loss has all of them as candidates. Matryoshka sizes add the same metrics as `..._<size>`.
        """
        everyone = joined(list(parts))
        found = self._measures(everyone.cut(self.dim))
        for size in self._sizes:
            if size != self.dim:
                found.update({f"{name}_{size}": value for name, value in self._measures(everyone.cut(size)).items()})
        return {"loss": self._evaluation_loss(everyone), **found}

    def _evaluation_loss(self, everyone: Vectors) -> float:
        if self.section.loss != "infonce":
            return float(self._weighted(everyone, lambda vectors: self._pair_losses(vectors).mean()))
        blocks = torch.arange(len(everyone.queries)).split(QUERY_ROWS)
        summed = sum(float(self._weighted(everyone, lambda vectors, rows=rows: self._info_nce(vectors, rows).sum())) for rows in blocks)
        return summed / len(everyone.queries)

    def _measures(self, vectors: Vectors) -> dict[str, float]:
        cosines = (vectors.queries[vectors.owners] * vectors.documents).sum(-1).double().numpy()
        wanted = vectors.targets.double().numpy()
        found: dict[str, float] = {}
        if len(np.unique(wanted)) > 1:
            found = {"pearson": pearson(cosines, wanted), "spearman": spearman(cosines, wanted)}
        return {**found, **_retrieval(vectors)} if self.section.loss == "infonce" else found

    def save(self, folder: Path) -> None:
        """Write the files with which sentence-transformers loads the folder, and which say how vectors are pooled."""
        write_sentence_transformer(folder, pooling=self.pooling, dim=self.dim, max_length=self.max_length)


def _retrieval(vectors: Vectors) -> dict[str, float]:
    """Return mean ranking metrics of finding each query's positives among all different documents."""
    keys = vectors.document_keys.numpy()
    _, kept, numbers = np.unique(keys, return_index=True, return_inverse=True)
    documents = vectors.documents[torch.from_numpy(kept)]
    wanted: dict[int, set[int]] = {}
    queries: dict[int, int] = {}
    for owner, target, number in zip(vectors.owners.tolist(), vectors.targets.tolist(), numbers.tolist(), strict=True):
        key = int(vectors.query_keys[owner])
        queries.setdefault(key, owner)
        if target > 0.5:
            wanted.setdefault(key, set()).add(number)
    found: list[dict[str, float]] = []
    for block in torch.tensor([queries[key] for key in wanted], dtype=torch.long).split(QUERY_ROWS):
        for row, scores in zip(block.tolist(), (vectors.queries[block] @ documents.T).double().numpy(), strict=True):
            relevance = np.zeros(len(documents))
            relevance[list(wanted[int(vectors.query_keys[row])])] = 1
            found.append(ranking_metrics(scores, relevance))
    return {name: float(np.mean([values[name] for values in found])) for name in ("mrr", "ndcg", "hit")}
