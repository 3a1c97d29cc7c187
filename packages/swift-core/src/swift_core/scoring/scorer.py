"""Batches to losses: the backbone once, then the head on the rows that carry loss only."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from swift_core.batching.collate import IGNORED, Batch
from swift_core.errors import ModelError
from swift_core.scoring.attention import NAME, SAMPLEWISE, packed, set_text_attention, text_attention
from swift_core.scoring.dense_attention import STEP
from swift_core.scoring.head import chunked_cross_entropy, count_correct
from swift_core.scoring.linear_head import linear_cross_entropy, linear_logps, plain_weight
from swift_core.scoring.predictions import Predictions, as_they_are
from swift_core.scoring.sequence import SequenceShare, share_of
from swift_core.scoring.token_logps import TokenLogps, chunked_logps

logger = logging.getLogger(__name__)

# How far two orders of the same sums may lie apart, as a share of their norm. Rounding grows over layers: in bfloat16 30 of them
# were seen to differ by 2%, and tokens that see another sample by 45%.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3}
HALF_TOLERANCE = 0.08


@dataclass(slots=True)
class Scores:
    """What a batch scored.

    Attributes:
        loss_sum: summed cross-entropy in nats over the trained tokens, scalar with gradient.
        trained_tokens: how many predictions that sum has.
        correct: how many of them were the most likely token; None unless asked for.
        each: loss of each of them, `[trained tokens]` without gradient, sample by sample; None unless asked for.
    """

    loss_sum: torch.Tensor
    trained_tokens: int
    correct: torch.Tensor | None = None
    each: torch.Tensor | None = None


class Scorer:
    """Scores batches with a causal language model.

    Two short cuts are tried out on the first batch, and left alone where they change the result: running the head on the
    trained rows alone (a model may hide steps after its head), and running packed rows (a model may carry state from one
    token to the next). The plain way costs time and memory but is exact.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # A model that takes media through its own code, or virtual tokens in front, has no short way past it.
        plain = hasattr(self._causal_lm(), "media_adapter") or _has_virtual_tokens(model)
        # DeepSpeed ZeRO 3 brings weights together when their module is called, and only for that long.
        fetched = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
        self._split: bool | None = False if plain or fetched else None
        self._packs: bool | None = False if plain else None
        self._share: SequenceShare | None = share_of(self._causal_lm())

    def __call__(self, batch: Batch, *, with_correct: bool = False, with_each: bool = False) -> Scores:
        """Score a batch; tokens labelled -100 are left out.

        Raises:
            ModelError: when the model yields no logits, or its rows cannot be shared by processes that are to share them.
        """
        batch = self._laid_out(batch)
        # What each token predicts; where processes share a row, what each token of this one's part predicts.
        targets = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
        scale = None if batch.loss_scale is None else F.pad(batch.loss_scale[:, 1:], (0, 1))
        if self._share is not None:
            targets, scale = self._share.part(targets, IGNORED), None if scale is None else self._share.part(scale)
        rows = targets != IGNORED
        wanted, weights = targets[rows], None if scale is None else scale[rows]
        correct = None
        each = torch.empty(len(wanted), device=wanted.device) if with_each else None
        if self._split:
            hidden = self._hidden(batch)[rows]
            # No row: the sum is 0 with a gradient of 0 to every parameter, which ranks need to stay in step with one another.
            loss = self._cross_entropy(hidden, wanted, weights, each)
            if with_correct:
                correct = count_correct(hidden, wanted, self._logits)
        else:
            logits = self._own_logits(batch)[rows].float()
            losses = F.cross_entropy(logits, wanted, reduction="none")
            losses = losses if weights is None else losses * weights
            loss = losses.sum() if len(wanted) else logits.sum() * 0
            each = losses.detach() if with_each else None
            if with_correct:
                correct = (logits.argmax(-1) == wanted).sum()
        if self._share is not None:
            loss, correct = self._share.total(loss), None if correct is None else self._share.total(correct)
        return Scores(loss, batch.trained_tokens, correct, each)

    def logps(self, batch: Batch, *, temperature: float = 1.0, entropy: bool = False) -> TokenLogps:
        """Return the log-probability of each labelled token, row by row or segment by segment.

        A segment may continue another: its first token is predicted by the last token of what it continues. Where the model cannot
        run such rows, the batch's `samples` are run as padded rows; they must have the same labelled tokens in the same order.

        Args:
            batch: tokens labelled -100 are left out; `loss_scale` is not looked at.
            temperature: divides the logits.
            entropy: whether to return the entropy of each distribution as well, without gradient.

        Raises:
            ModelError: when the model yields no logits, or its rows cannot be shared by processes that are to share them.
        """
        batch = self._laid_out(batch)
        rows, before, targets = _places(batch)
        if self._share is None:
            return self.logps_of(self._predictions(batch, rows, before, targets), temperature=temperature, entropy=entropy)
        mine, there = self._share.own(before, batch.input_ids.shape[1])
        part = self._predictions(batch, rows[mine], there, targets[mine])
        found = self.logps_of(part, temperature=temperature, entropy=entropy)
        entropies = None if found.entropies is None else self._share.spread(found.entropies, mine)
        return TokenLogps(self._share.spread(found.logps, mine), entropies)

    def predictions(self, batch: Batch) -> Predictions:
        """Return what each labelled token is predicted from, in the order of `logps`, for losses that use it more than once.

        Raises:
            ModelError: when the model yields no logits, or processes share its rows.
        """
        batch = self._laid_out(batch)
        if self._share is not None:
            raise ModelError("--sequence_parallel_size: this loss looks at whole rows", fix="remove it")
        return self._predictions(batch, *_places(batch))

    def logps_of(self, found: Predictions, *, temperature: float = 1.0, entropy: bool = False) -> TokenLogps:
        """Return the log-probability of each token from its predictions; the arguments are those of `logps`."""
        weight = self._plain_weight(found.states) if found.hidden else None
        if weight is not None and not entropy:
            return TokenLogps(linear_logps(found.states if temperature == 1 else found.states / temperature, found.targets, weight))
        return chunked_logps(found.states, found.targets, found.head, temperature=temperature, entropy=entropy)

    def states(self, batch: Batch) -> torch.Tensor:
        """Return the last hidden state before each labelled token, `[tokens, dim]`, of a model with any head or none.

        Raises:
            ModelError: when the model does not show its hidden states.
        """
        if _has_virtual_tokens(self.model) or hasattr(self._causal_lm(), "media_adapter"):
            raise ModelError(f"{type(self._causal_lm()).__name__} does not show its hidden states", fix="use a model of plain text")
        self._choose_layout(batch)
        batch = batch if self._packs or batch.segments is None else batch.padded()
        rows, before, _ = _places(batch)
        return self._hidden(batch)[rows, before]

    def _predictions(self, batch: Batch, rows: torch.Tensor, before: torch.Tensor, targets: torch.Tensor) -> Predictions:
        if not self._split:
            return Predictions(self._own_logits(batch)[rows, before], targets, as_they_are)
        return Predictions(self._hidden(batch)[rows, before], targets, self._logits, self._head_parameters(), hidden=True)

    def causal_lm(self) -> Any:
        """Return the language model inside the wrappers of adapters, whose layers stay in it."""
        return self._causal_lm()

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits `[..., vocab]` of last hidden states `[..., dim]`."""
        return self._logits(hidden)

    # ---- choosing the path -----------------------------------------------------------------------------------------

    def _laid_out(self, batch: Batch) -> Batch:
        """Return a batch as the model can run it."""
        self._choose(batch)
        packs = batch.segments is not None and self._packs
        if self._share is not None and (not packs or batch.model_inputs):
            what = "it has media" if batch.model_inputs else "samples cannot run side by side in it without padding"
            raise ModelError(f"--sequence_parallel_size: processes cannot share a row of this model: {what}", fix="remove it")
        if not packs:
            return batch if batch.segments is None else batch.padded()
        return self._rounded(batch) if self._share is None else batch

    def _rounded(self, batch: Batch) -> Batch:
        """Return a packed batch of a round number of tokens where each new number costs more than the tokens that fill it up."""
        builds = batch.input_ids.device.type == "cpu" and next(self.model.parameters()).dtype.itemsize < 4
        return batch.filled(math.ceil(batch.input_ids.shape[1] / STEP) * STEP) if builds and not batch.model_inputs else batch

    def _choose(self, batch: Batch) -> None:
        if self._split is None:
            self._split = self._holds("running the head on trained rows alone", self._split_differs, _first_row(batch))
        self._choose_layout(batch)

    def _choose_layout(self, batch: Batch) -> None:
        if batch.segments is not None and self._packs is None:
            self._packs = self._holds("running samples side by side without padding", self._packing_differs, batch)

    def _holds(self, what: str, differs: Any, batch: Batch) -> bool:
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                reason = differs(batch)
        except (AttributeError, TypeError, ValueError, NotImplementedError) as error:
            reason = f"{type(error).__name__}: {error}"
        finally:
            self.model.train(training)
        if reason is not None:
            logger.warning("%s does not fit this model, so the slower exact way is used: %s", what, reason)
        return reason is None

    def _split_differs(self, batch: Batch) -> str | None:
        return _difference(self._logits(self._hidden(batch)), self._own_logits(batch))

    def _packing_differs(self, batch: Batch) -> str | None:
        model = self._causal_lm()
        before = text_attention(model)
        own = before in SAMPLEWISE
        if not own and before not in ("sdpa", "eager"):
            return f"--attn_impl {before} was asked for"
        # Trained tokens: answers hold no placeholders of media.
        trained = batch.labels[batch.labels != IGNORED]
        tokens = (trained if len(trained) else batch.input_ids[0]).repeat(12)[:12]
        one, two = tokens[:7], tokens[7:]
        alone = [self._hidden(_row(part)) for part in (one, two)]
        if not own:
            set_text_attention(model, NAME)
        together = self._hidden(_row(torch.cat([one, two]), (len(one), len(two))))
        if self._share is not None:
            together = self._share.whole(together, len(tokens))
        reason = _difference(together, torch.cat(alone, dim=1))
        if reason is not None:
            set_text_attention(model, before)
        return reason

    # ---- the model in parts ----------------------------------------------------------------------------------------

    def _causal_lm(self) -> Any:
        # PEFT wraps the model; its layers are inside the same modules, so the inner model runs them.
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model  # pyright: ignore[reportCallIssue]

    def _shared(self, batch: Batch) -> Batch:
        """Return what of a batch this process puts through the model: all of it, or its part of a packed row."""
        return batch if self._share is None or batch.segments is None else self._share.batch(batch)

    def _hidden(self, batch: Batch) -> torch.Tensor:
        batch = self._shared(batch)
        with packed(batch.layout, batch.labels):
            return self._causal_lm().base_model(**_inputs(batch), use_cache=False).last_hidden_state

    def _cross_entropy(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, each: torch.Tensor | None
    ) -> torch.Tensor:
        weight = self._plain_weight(hidden)
        if weight is not None:
            return linear_cross_entropy(hidden, targets, weight, weights=weights, each=each)
        return chunked_cross_entropy(hidden, targets, self._logits, self._head_parameters(), weights=weights, each=each)

    def _plain_weight(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Return the weight of a head that is nothing but one matrix product."""
        config = self._text_config()
        if any(getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping")):
            return None
        return plain_weight(self._causal_lm().get_output_embeddings(), hidden)

    def _text_config(self) -> Any:
        config = self._causal_lm().config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        model = self._causal_lm()
        logits = model.get_output_embeddings()(hidden)
        config = self._text_config()
        if getattr(config, "logit_scale", None):  # Cohere
            logits = logits * config.logit_scale
        if getattr(config, "logits_scaling", None):  # Granite
            logits = logits / config.logits_scaling
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and later
        return torch.tanh(logits / cap) * cap if cap else logits

    def _head_parameters(self) -> list[torch.Tensor]:
        return list(self._causal_lm().get_output_embeddings().parameters())

    def _own_logits(self, batch: Batch) -> torch.Tensor:
        batch = self._shared(batch)
        with packed(batch.layout, batch.labels):
            output = self.model(**_inputs(batch), use_cache=False)
        if getattr(output, "logits", None) is None:
            raise ModelError(f"{type(self.model).__name__} yields no logits", fix="use a causal language model")
        # Virtual tokens of an adapter stand in front.
        return output.logits[:, -batch.input_ids.shape[1] :]


def _has_virtual_tokens(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def _inputs(batch: Batch) -> dict[str, Any]:
    if batch.segments is not None:
        return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, **(batch.model_inputs or {})}
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **(batch.model_inputs or {})}


def _places(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return row, place of the token before, and the token itself, of each labelled token."""
    rows, at = (batch.labels != IGNORED).nonzero(as_tuple=True)
    layout = batch.layout
    before = at - 1 if layout is None else torch.tensor(layout.predecessors(), device=at.device)[at]
    return rows, before, batch.labels[rows, at]


def _row(tokens: torch.Tensor, segments: tuple[int, ...] | None = None) -> Batch:
    ids = tokens[None]
    return Batch(ids, torch.ones_like(ids), torch.full_like(ids, IGNORED), [], segments=segments)


def _first_row(batch: Batch) -> Batch:
    if batch.model_inputs:
        return batch
    length = batch.segments[0] if batch.segments is not None else int(batch.attention_mask[0].sum())
    return _row(batch.input_ids[0, : min(length, 64)])


def _difference(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    if found.shape != expected.shape:
        return f"the shapes are {tuple(found.shape)} and {tuple(expected.shape)}"
    share = float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-9))
    return None if share < TOLERANCE.get(expected.dtype, HALF_TOLERANCE) else f"the results differ by {share:.1%}"
