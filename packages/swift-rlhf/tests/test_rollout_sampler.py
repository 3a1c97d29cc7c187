"""The sampler writes what `generate` would, and draws from the distribution it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.testing.tiny import make_tiny_model, make_tiny_tokenizer
from swift_rlhf.rollout.play import TurnRequest
from swift_rlhf.rollout.sampling import Sampling, cut, draw
from swift_rlhf.rollout.transformers_sampler import TransformersSampler
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, Qwen3Config

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "head_dim": 8,
}
PROMPTS = [[5, 6, 7, 8, 9], [11, 12], [5, 6, 7, 8, 9], [20, 30, 40, 50, 60, 70, 80]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_tiny_model(Path(tmp_path_factory.mktemp("model")))
    return AutoModelForCausalLM.from_pretrained(folder)


def reference(model: Any, prompt: list[int], count: int, **settings: Any) -> list[int]:
    ids = torch.tensor([prompt])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0, **settings)
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    "config",
    [Qwen3Config(**SMALL), Gemma2Config(**SMALL, sliding_window=6), MistralConfig(**SMALL, sliding_window=4)],
    ids=lambda config: config.model_type,
)
def test_greedy_answers_are_those_of_generate(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    expected = [reference(model, prompt, 40, eos_token_id=None) for prompt in PROMPTS]
    sampler = TransformersSampler(model, make_tiny_tokenizer(), [])
    answers = sampler.generate([TurnRequest(prompt, 40) for prompt in PROMPTS], Sampling(temperature=0), seed=0, version=3)
    assert sampler._decodes is True  # pyright: ignore[reportPrivateUsage]
    assert [answer.token_ids for answer in answers] == expected
    assert {answer.finish_reason for answer in answers} == {"length"} and answers[0].version == 3


def test_answers_that_end_early_leave_the_others_alone(llama: Any) -> None:
    whole = [reference(llama, prompt, 24, eos_token_id=None) for prompt in PROMPTS]
    stop = whole[1][5]
    expected = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in whole]
    limits = [24, 24, 9, 24]
    sampler = TransformersSampler(llama, make_tiny_tokenizer(), [stop])
    requests = [TurnRequest(prompt, limit) for prompt, limit in zip(PROMPTS, limits, strict=True)]
    answers = sampler.generate(requests, Sampling(temperature=0), seed=0, version=0)
    assert [answer.token_ids for answer in answers] == [ids[:limit] for ids, limit in zip(expected, limits, strict=True)]
    assert [answer.finish_reason for answer in answers] == ["stop" if answer.token_ids[-1] == stop else "length" for answer in answers]


def test_log_probabilities_are_those_of_a_plain_forward_pass(llama: Any) -> None:
    sampler = TransformersSampler(llama, make_tiny_tokenizer(), [2])
    answers = sampler.generate(
        [TurnRequest(PROMPTS[0], 12)] * 3 + [TurnRequest(PROMPTS[1], 12)], Sampling(temperature=0.7), seed=1, version=0
    )
    for prompt, answer in zip([PROMPTS[0]] * 3 + [PROMPTS[1]], answers, strict=True):
        ids = torch.tensor([prompt + answer.token_ids])
        with torch.no_grad():
            logps = (llama(ids).logits[0, len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
        expected = logps.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=1e-4)


def test_the_same_seed_draws_the_same_whoever_else_is_answered(llama: Any) -> None:
    sampler = TransformersSampler(llama, make_tiny_tokenizer(), [2])
    alone = TransformersSampler(llama, make_tiny_tokenizer(), [2], max_rows=1)
    requests = [TurnRequest(prompt, 10) for prompt in PROMPTS]
    first, again, other = (
        [answer.token_ids for answer in each.generate(requests, Sampling(), seed=seed, version=0)]
        for each, seed in ((sampler, 5), (alone, 5), (sampler, 6))
    )
    assert first == again != other
    assert first[0] != first[2]  # the same prompt, another draw
    assert llama.config._attn_implementation != "swift_decoding"


def test_the_fallback_to_generate_gives_the_same_greedy_answers(llama: Any) -> None:
    requests = [TurnRequest(prompt, 8) for prompt in PROMPTS]
    sampler, fallback = (TransformersSampler(llama, make_tiny_tokenizer(), [2]) for _ in range(2))
    fallback._decodes = False  # pyright: ignore[reportPrivateUsage]
    found, expected = (each.generate(requests, Sampling(temperature=0), seed=0, version=0) for each in (sampler, fallback))
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    assert [answer.finish_reason for answer in found] == [answer.finish_reason for answer in expected]
    before = torch.get_rng_state()
    drawn = fallback.generate(requests[:2], Sampling(temperature=1.0), seed=0, version=0)
    assert torch.equal(before, torch.get_rng_state())
    for request, answer in zip(requests[:2], drawn, strict=True):
        ids = torch.tensor([request.prompt_ids + answer.token_ids])
        with torch.no_grad():
            logps = llama(ids).logits[0, len(request.prompt_ids) - 1 : -1].log_softmax(-1)
        expected_logps = logps.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected_logps, atol=1e-4, rtol=1e-4)


def test_a_stop_text_ends_an_answer_and_is_no_part_of_its_text(llama: Any) -> None:
    tokenizer = make_tiny_tokenizer()
    sampler = TransformersSampler(llama, tokenizer, [])
    whole = sampler.generate([TurnRequest(PROMPTS[0], 24)], Sampling(temperature=0), seed=0, version=0)[0]
    stop = str(tokenizer.decode(whole.token_ids[6:8]))
    cut_off = sampler.generate([TurnRequest(PROMPTS[0], 24)], Sampling(temperature=0, stop=(stop,)), seed=0, version=0)[0]
    assert cut_off.token_ids == whole.token_ids[: len(cut_off.token_ids)] and len(cut_off.token_ids) <= 8
    assert stop not in cut_off.text and cut_off.finish_reason == "stop"


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.3}, {"temperature": 0.5}])
def test_tokens_come_as_often_as_their_probability_says(settings: dict[str, Any]) -> None:
    sampling = Sampling(**settings)
    # More than one block of the sum, and a size that no block divides.
    logits = torch.full((1, 700), -20.0)
    logits[0, [3, 255, 256, 511, 699]] = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0])
    uniform = (torch.arange(4000) + 0.5) / 4000
    tokens, logps = draw(logits.expand(4000, -1), uniform, sampling)
    expected = cut(logits / sampling.temperature, sampling).log_softmax(-1)[0]
    counts = torch.bincount(tokens, minlength=700) / 4000
    torch.testing.assert_close(counts, expected.exp(), atol=6e-4, rtol=0)
    torch.testing.assert_close(logps, expected[tokens])


def test_seen_tokens_become_less_likely() -> None:
    logits = torch.tensor([[2.0, -1.0, 1.9]])
    seen = torch.tensor([[True, True, False]])
    tokens, _ = draw(logits, torch.zeros(1), Sampling(temperature=0, repetition_penalty=2.0), seen)
    assert tokens.tolist() == [2]
