"""Answers through transformers' `generate`, for models that the sampler's own decoding does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from swift_rlhf.rollout.episodes import Generation
from swift_rlhf.rollout.play import TurnRequest
from swift_rlhf.rollout.sampling import Sampling


def generated(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Sequence[int],
    requests: Sequence[TurnRequest],
    sampling: Sampling,
    *,
    seed: int,
    version: int,
) -> list[Generation]:
    """Return one answer for each request; log-probabilities are those of the distributions that were drawn from."""
    device = next(model.parameters()).device
    pad: Any = tokenizer.pad_token_id
    pad = pad if isinstance(pad, int) else stop_token_ids[0] if stop_token_ids else 0
    longest = max(len(request.prompt_ids) for request in requests)
    ids = torch.full((len(requests), longest), pad)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        ids[row, longest - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
        mask[row, longest - len(request.prompt_ids) :] = 1
    training = model.training
    model.eval()
    try:
        # The run's own random numbers must not depend on how many were drawn here.
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            output: Any = model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max(request.max_tokens for request in requests),
                eos_token_id=list(stop_token_ids) or None,
                pad_token_id=pad,
                tokenizer=tokenizer if sampling.stop else None,
                use_cache=True,
                return_dict_in_generate=True,
                output_scores=True,
                **_settings(sampling),
            )
    finally:
        model.train(training)
    tokens = output.sequences[:, -len(output.scores) :]
    logps = torch.stack(
        [
            scores.float().log_softmax(-1).gather(1, column[:, None])[:, 0]
            for scores, column in zip(output.scores, tokens.unbind(1), strict=True)
        ],
        1,
    )
    return [
        _answer(tokens[row].tolist(), logps[row].tolist(), request, tokenizer, stop_token_ids, sampling, version)
        for row, request in enumerate(requests)
    ]


def _settings(sampling: Sampling) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"do_sample": False, "repetition_penalty": sampling.repetition_penalty, "stop_strings": list(sampling.stop) or None}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": max(sampling.top_k, 0),
        "top_p": sampling.top_p,
        "min_p": sampling.min_p or None,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_strings": list(sampling.stop) or None,
    }


def _answer(
    ids: list[int],
    logps: list[float],
    request: TurnRequest,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Sequence[int],
    sampling: Sampling,
    version: int,
) -> Generation:
    ids = ids[: request.max_tokens]
    ends = [place for place, token in enumerate(ids) if token in stop_token_ids]
    length = ends[0] + 1 if ends else len(ids)
    for stop in sampling.stop:
        # The first tokens that hold the text are the answer; what follows is padding.
        for place in range(1, length + 1):
            if stop in str(tokenizer.decode(ids[:place])):
                length, ends = place, [place]
                break
    text = str(tokenizer.decode(ids[:length], skip_special_tokens=True))
    places = [place for stop in sampling.stop if (place := text.find(stop)) >= 0]
    return Generation(ids[:length], text[: min(places)] if places else text, "stop" if ends else "length", logps[:length], version)
