"""Writing tokens with a model: prompts come in at any time, all rows take a step together, rows leave when they like.

No model code is touched and no cache of transformers is used: the attention function keeps the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from swift_core.batching.layout import Layout
from swift_core.decoding.attending import writing
from swift_core.decoding.pages import Step, attend
from swift_core.decoding.rows import Prefill, Rows
from swift_core.scoring.attention import NAME as PACKED
from swift_core.scoring.attention import SAMPLEWISE, packed, packed_attention, text_attention
from swift_core.scoring.scorer import HALF_TOLERANCE, TOLERANCE, Scorer

NAME = "swift_paged"


class _Pass:
    """One forward pass: what it does with keys, and the layer that comes next."""

    def __init__(self, work: Prefill | Step) -> None:
        self.work = work
        self.layer = -1


_running: ContextVar[_Pass | None] = ContextVar("pass", default=None)


class Decoder:
    """Rows of tokens that a causal language model goes on with.

    Forward passes run inside `decoding_model(model)`, in which other passes of the model go as always.

    Args:
        model: the model, with its adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._scorer = Scorer(model)
        self._rows = Rows(next(model.parameters()).device)

    def __len__(self) -> int:
        return len(self._rows)

    def use(self, model: nn.Module) -> None:
        """Go on with a model that is the same one with other adapters around it."""
        if model is not self._model:
            self._model, self._scorer = model, Scorer(model)

    @property
    def model(self) -> Any:
        """Return the language model without what is wrapped around it."""
        return self._scorer.causal_lm()

    @property
    def tokens(self) -> int:
        """Return for how many tokens keys are held."""
        return self._rows.tokens

    def add(
        self, prompts: Sequence[Sequence[int]], copies: Sequence[int] | None = None, *, every: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Compute prompts and put rows that continue them behind the others.

        Args:
            prompts: token ids of each.
            copies: how many rows continue each prompt; one by default.
            every: also return what the model predicts at every token of the prompts.

        Returns:
            logits of the next token of each new row, `[rows, vocab]`, and those at all tokens, `[tokens of all prompts, vocab]`, or None.
        """
        counts = list(copies) if copies is not None else [1] * len(prompts)
        layout = Layout(tuple(map(len, prompts)))
        prefill = self._rows.add(layout.lengths, counts)
        device = next(self._model.parameters()).device
        ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)[None]
        with packed(layout):
            hidden = self._run(prefill, ids, torch.tensor(layout.positions(), device=device)[None])[0]
        ends = torch.tensor([layout.span(number)[1] - 1 for number in range(len(prompts))], device=device)
        last = self._scorer.head(hidden[ends]).repeat_interleave(torch.tensor(counts, device=device), 0)
        return last, self._scorer.head(hidden) if every else None

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each row `[rows]` and return logits of the next one, `[rows, vocab]`."""
        step = self._rows.step()
        with packed(None):
            hidden = self._run(step, tokens[:, None], step.positions[:, None])
        return self._scorer.head(hidden[:, 0])

    def keep(self, numbers: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        self._rows.keep(numbers)

    def _run(self, work: Prefill | Step, ids: Tensor, positions: Tensor) -> Tensor:
        token = _running.set(_Pass(work))
        try:
            return self.model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        finally:
            _running.reset(token)


def obstacle(model: nn.Module, prompt: Sequence[int]) -> str | None:
    """Return why a model cannot be decoded here, or None: the end of a prompt, token by token, is compared with one pass over all of it."""
    decoder = Decoder(model)
    causal = decoder.model
    if hasattr(causal, "media_adapter") or getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "it takes media or virtual tokens in a way of its own"
    before = text_attention(causal)
    if before not in ("sdpa", "eager", PACKED) and before in SAMPLEWISE:
        return f"its attention is {before!r}"
    ids = [*prompt, *prompt][-24:]
    ids = ids if len(ids) > 4 else (ids * 5)[:8]
    device = next(model.parameters()).device
    row, positions = torch.tensor(ids, device=device)[None], torch.arange(len(ids), device=device)[None]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            hidden = causal.base_model(input_ids=row, position_ids=positions, use_cache=False).last_hidden_state[0, -4:]
            expected = decoder._scorer.head(hidden)
        with decoding_model(causal):
            # Another prompt beside it, and two rows that share one: whatever lies side by side must not be seen.
            found = [decoder.add([ids[:-3], ids[:3], ids[:-3]], [1, 1, 2])[0]]
            for token in ids[-3:]:
                found.append(decoder.step(torch.full((4,), token, device=device)))
        pairs = torch.stack([torch.stack([one[0], one[3]]) for one in found], 1)
        share = float((pairs.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-9) / 2**0.5)
        return None if share < TOLERANCE.get(expected.dtype, HALF_TOLERANCE) else f"the results differ by {share:.1%}"
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError, NotImplementedError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        model.train(training)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend in a pass of a `Decoder`; shapes are those of transformers' attention interface.

    Raises:
        TypeError: for attention with sinks, which this function does not have.
    """
    running = _running.get()
    if running is None:
        return packed_attention(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    running.layer += 1
    if isinstance(running.work, Prefill):
        running.work.store(running.layer, key, value)
        return packed_attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if kwargs.get("s_aux") is not None:
        raise TypeError("attention with sinks cannot be decoded here")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
    return attend(running.work, running.layer, query, key, value, scale=scale, window=window, softcap=softcap), None


def decoding_model(model: Any) -> AbstractContextManager[None]:
    """Let a model decode inside, in evaluation mode, without gradients."""
    return writing(model, NAME, paged_attention)
