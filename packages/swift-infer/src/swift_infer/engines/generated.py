"""Running requests with transformers' `generate`, for media and for models that swift's own decoding does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from swift_core.batching.media import merge_model_inputs
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from swift_infer.engines.lines import Job, choose
from swift_infer.engines.paged import Loaded, told_of_memory
from swift_infer.engines.scheduler import Work


class GenerateRunner:
    """Writes answers batch by batch, each to its end.

    Args:
        loaded: model and adapters.
        pad_id: token that fills short rows.
        max_rows: most rows of a batch.
    """

    def __init__(self, loaded: Loaded, *, pad_id: int | None, max_rows: int) -> None:
        self._loaded, self._pad_id, self._max_rows = loaded, pad_id, max_rows

    def begin(self, jobs: Sequence[Job]) -> None:
        """Answer requests to their end."""
        for batch in self._batches([(job, line) for job in jobs for line in job.lines]):
            with told_of_memory([job for job, _ in batch]):
                self._generate([pair for pair in batch if not pair[0].aborted])
        for job in jobs:
            job.close()

    def _batches(self, work: Work) -> Iterator[Work]:
        """Yield rows of like length together; rows of different adapters too, where the adapters allow it."""
        groups = [work]
        if not self._loaded.named.mixes(self._loaded.model):
            groups = [[one for one in work if one[0].adapter == name] for name in dict.fromkeys(job.adapter for job, _ in work)]
        for group in groups:
            order = sorted(group, key=lambda one: len(one[0].prompt))
            yield from (order[start : start + self._max_rows] for start in range(0, len(order), self._max_rows))

    @torch.inference_mode()
    def _generate(self, batch: Work) -> None:
        if not batch:
            return
        model = self._loaded.model
        device = model.device
        prompts = [job.prompt.input_ids for job, _ in batch]
        width = max(map(len, prompts))
        # Left padding: every row's last prompt token stands in the last column, where generation goes on.
        ids = torch.tensor([[self._pad_id or 0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        media = merge_model_inputs([job.prompt for job, _ in batch], pad_left=True, dtype=model.dtype)
        with self._loaded.named.using(model, [job.adapter for job, _ in batch]):
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                **{name: value.to(device) for name, value in media.items()},
                generation_config=self._settings(max(line.answer.limit for _, line in batch)),
                logits_processor=LogitsProcessorList([_Choice(batch, self._loaded)]),
                stopping_criteria=StoppingCriteriaList([_Progress(batch, self._loaded)]),
            )

    def _settings(self, max_new_tokens: int) -> GenerationConfig:
        # Sampling, penalties and stops are ours; all else, such as suppressed tokens, stays as the model's own file says.
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            use_cache=True,
            return_dict_in_generate=False,
            eos_token_id=None,
            pad_token_id=self._pad_id,
        )


class _Choice(LogitsProcessor):
    """Chooses tokens as everywhere in the engine, and leaves generate no other choice."""

    def __init__(self, batch: Work, loaded: Loaded) -> None:
        self._batch, self._loaded = batch, loaded

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        """Return scores `[rows, vocabulary]` in which one token of each row is left."""
        going = [row for row, (_, line) in enumerate(self._batch) if line.answer.finish_reason is None]
        only = torch.full_like(scores, -torch.inf)
        only[:, 0] = 0
        if going:
            tokens = choose([self._batch[row] for row in going], scores[going], self._loaded.logprobs)
            only[going, 0] = -torch.inf
            only[going, torch.tensor(tokens, device=scores.device)] = 0
        return only


class _Progress(StoppingCriteria):
    """Sees every step of a batch: collects tokens, ends rows and aborted requests."""

    def __init__(self, batch: Work, loaded: Loaded) -> None:
        self._batch, self._loaded = batch, loaded

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Return which rows are complete, `[rows]`."""
        for (job, line), token in zip(self._batch, input_ids[:, -1].tolist(), strict=True):
            if line.answer.finish_reason is None:
                job.push(line, token, self._loaded.version)
            if job.aborted:
                job.close()
        done = [line.answer.finish_reason is not None for _, line in self._batch]
        return torch.tensor(done, device=input_ids.device, dtype=torch.bool)
