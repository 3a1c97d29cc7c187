"""Answers from the model that is being trained, in the same process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from swift_core.scoring.attention import SAMPLEWISE, text_attention
from swift_core.scoring.scorer import Scorer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from swift_rlhf.rollout.decoding import Decoding, decoding_model
from swift_rlhf.rollout.episodes import FinishReason, Generation
from swift_rlhf.rollout.folding import folded
from swift_rlhf.rollout.generate import generated
from swift_rlhf.rollout.play import TurnRequest
from swift_rlhf.rollout.sampling import Sampling, draw

logger = logging.getLogger(__name__)

# Answers that have ended are taken out once they are so large a share of the batch: copying the others' keys costs a pass over them.
ENDED_SHARE = 0.2
_TOLERANCE = {torch.float32: 5e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.08


class TransformersSampler:
    """Writes answers with a causal language model: each prompt is computed once, all answers go on together.

    Models whose layers cannot do that (state carried from token to token, virtual tokens, a way of their own to take media) are asked
    through transformers' `generate`; which it is, is tried out on the first prompt.

    Args:
        model: the model, with its adapters.
        tokenizer: makes texts of answers.
        stop_token_ids: tokens that end an answer.
        max_rows: answers that are written at the same time.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int], *, max_rows: int = 256) -> None:
        self._model = model
        self._scorer = Scorer(model)
        self._tokenizer = tokenizer
        self._stops = list(stop_token_ids)
        self._max_rows = max_rows
        self._decodes: bool | None = None

    def generate(self, requests: Sequence[TurnRequest], sampling: Sampling, *, seed: int, version: int) -> list[Generation]:
        """Return one answer for each request, in order."""
        if not requests:
            return []
        generator = torch.Generator().manual_seed(seed)
        longest = max(request.max_tokens for request in requests)
        # What is drawn for a request depends on its place and the seed alone, not on who else is being answered.
        uniform = torch.rand(len(requests), longest, generator=generator)
        if self._decodes is None:
            self._decodes = self._can_decode(requests[0].prompt_ids)
        if not self._decodes:
            return generated(self._model, self._tokenizer, self._stops, requests, sampling, seed=seed, version=version)
        order = sorted(range(len(requests)), key=lambda number: tuple(requests[number].prompt_ids))
        found: list[Generation | None] = [None] * len(requests)
        with folded(self._model), decoding_model(self._scorer.causal_lm()):
            for start in range(0, len(order), self._max_rows):
                part = order[start : start + self._max_rows]
                answers = self._decode([requests[number] for number in part], sampling, uniform[part])
                for number, (ids, logps, reason) in zip(part, answers, strict=True):
                    found[number] = Generation(ids, self._text(ids, sampling), reason, logps, version)
        return cast(list[Generation], found)

    def update(self, version: int) -> None:
        """Do nothing: the weights are the same."""

    def close(self) -> None:
        """Do nothing: the model belongs to somebody else."""

    # ---- decoding --------------------------------------------------------------------------------------------------

    def _decode(
        self, requests: Sequence[TurnRequest], sampling: Sampling, uniform: Tensor
    ) -> list[tuple[list[int], list[float], FinishReason]]:
        """Return ids, log-probabilities and finish reason for requests that are sorted by prompt."""
        device = next(self._model.parameters()).device
        prompts = list(dict.fromkeys(tuple(request.prompt_ids) for request in requests))
        number_of = {prompt: number for number, prompt in enumerate(prompts)}
        state = Decoding([len(prompt) for prompt in prompts], [number_of[tuple(request.prompt_ids)] for request in requests], device)
        with state.forward():
            ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)[None]
            hidden = self._backbone(ids, torch.tensor(state.layout.positions(), device=device)[None])[0]
        ends = torch.tensor([state.layout.span(number)[1] - 1 for number in range(len(prompts))], device=device)
        logits = self._scorer.head(hidden[ends])[state.prompt_of]
        run = _Answers(requests, sampling, uniform.to(device), self._stops, device)
        if sampling.repetition_penalty != 1:
            run.see(requests, logits.shape[-1])
        while True:
            tokens = run.draw(logits)
            if sampling.stop:
                run.end([self._stopped(answer, sampling) for answer in run.current()])
            rows = run.leave()
            if rows is not None:
                if not len(rows):
                    return run.results()
                state.keep(rows)
                tokens = tokens[rows]
            with state.forward():
                logits = self._scorer.head(self._backbone(tokens[:, None], state.positions)[:, 0])

    def _backbone(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self._scorer.causal_lm().base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state

    def _stopped(self, ids: list[int], sampling: Sampling) -> bool:
        # A stop text may be cut into tokens anywhere, but it ends with the last one.
        tail = self._tokenizer.decode(ids[-4 * max(map(len, sampling.stop)) :], skip_special_tokens=False)
        return any(stop in tail for stop in sampling.stop)

    def _text(self, ids: Sequence[int], sampling: Sampling) -> str:
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        places = [place for stop in sampling.stop if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else text

    # ---- the check -------------------------------------------------------------------------------------------------

    def _can_decode(self, prompt: Sequence[int]) -> bool:
        """Compare decoding the end of a prompt with one pass over all of it."""
        model = self._scorer.causal_lm()
        wrapped = hasattr(model, "media_adapter") or bool(
            getattr(getattr(self._model, "active_peft_config", None), "is_prompt_learning", 0)
        )
        before = text_attention(model)
        if wrapped or (before not in ("sdpa", "eager", "swift_packed") and before in SAMPLEWISE):
            return False
        ids = [*prompt, *prompt][-24:]
        ids = ids if len(ids) > 4 else (ids * 5)[:8]
        device = next(self._model.parameters()).device
        row = torch.tensor(ids, device=device)[None]
        positions = torch.arange(len(ids), device=device)[None]
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                expected = self._backbone(row, positions)[0, -3:]
            with decoding_model(model):
                state = Decoding([len(ids) - 3], [0], device)
                with state.forward():
                    self._backbone(row[:, :-3], positions[:, :-3])
                parts: list[Tensor] = []
                for place in range(3):
                    at = len(ids) - 3 + place
                    with state.forward():
                        parts.append(self._backbone(row[:, at : at + 1], state.positions)[0])
            found = torch.cat(parts)
            share = float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-9))
            reason = None if share < _TOLERANCE.get(expected.dtype, _HALF_TOLERANCE) else f"the results differ by {share:.1%}"
        except (AttributeError, TypeError, ValueError, IndexError, RuntimeError, NotImplementedError) as error:
            reason = f"{type(error).__name__}: {error}"
        finally:
            self._model.train(training)
        if reason is not None:
            logger.warning("decoding with shared prompts does not fit this model, so transformers' generate is used: %s", reason)
        return reason is None


class _Answers:
    """The answers of one generation: what has been written, and who is still writing."""

    def __init__(self, requests: Sequence[TurnRequest], sampling: Sampling, uniform: Tensor, stops: Sequence[int], device: Any) -> None:
        count, longest = uniform.shape
        self._sampling, self._uniform = sampling, uniform
        self._stops = torch.tensor(stops, device=device, dtype=torch.long)
        self._limits = torch.tensor([request.max_tokens for request in requests], device=device)
        self._tokens = torch.zeros(count, longest, dtype=torch.long, device=device)
        self._logps = torch.zeros(count, longest, device=device)
        self._lengths = torch.zeros(count, dtype=torch.long, device=device)
        self._stopped = torch.zeros(count, dtype=torch.bool, device=device)
        self._done = torch.zeros(count, dtype=torch.bool, device=device)
        self._rows = torch.arange(count, device=device)
        self._seen: Tensor | None = None
        self._step = 0

    def see(self, requests: Sequence[TurnRequest], vocabulary: int) -> None:
        """Remember the tokens of the prompts for the repetition penalty."""
        self._seen = torch.zeros(len(requests), vocabulary, dtype=torch.bool, device=self._rows.device)
        for row, request in enumerate(requests):
            self._seen[row, request.prompt_ids] = True

    def draw(self, logits: Tensor) -> Tensor:
        """Draw the next token of each row and write down those of answers that have not ended."""
        tokens, logps = draw(logits, self._uniform[self._rows, self._step], self._sampling, self._seen)
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        going = ~self._done[self._rows]
        rows = self._rows[going]
        self._tokens[rows, self._step], self._logps[rows, self._step] = tokens[going], logps[going]
        self._step += 1
        self._lengths[rows] = self._step
        stopped = torch.isin(tokens[going], self._stops)
        self._stopped[rows] = stopped
        self._done[rows] = stopped | (self._limits[rows] <= self._step)
        return tokens

    def current(self) -> list[list[int]]:
        """Return the tokens of every row so far."""
        return [self._tokens[row, : self._lengths[row]].tolist() for row in self._rows.tolist()]

    def end(self, stopped: Sequence[bool]) -> None:
        """End the answers of rows at a stop text."""
        rows = self._rows[torch.tensor(stopped, device=self._rows.device) & ~self._done[self._rows]]
        self._stopped[rows] = self._done[rows] = True

    def leave(self) -> Tensor | None:
        """Return which rows go on when others are taken out now: none at the end; None when nobody is taken out."""
        going = (~self._done[self._rows]).nonzero()[:, 0]
        if len(going) > (1 - ENDED_SHARE) * len(self._rows):
            return None
        self._rows = self._rows[going]
        self._seen = None if self._seen is None else self._seen[going]
        return going

    def results(self) -> list[tuple[list[int], list[float], FinishReason]]:
        """Return ids, log-probabilities and finish reason of every answer."""
        return [
            (tokens[:length], logps[:length], "stop" if stopped else "length")
            for tokens, logps, length, stopped in zip(
                self._tokens.tolist(), self._logps.tolist(), self._lengths.tolist(), self._stopped.tolist(), strict=True
            )
        ]


__all__ = ["TransformersSampler"]
