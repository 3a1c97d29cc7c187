"""Packed rows give what the samples give one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from swift_core.batching.collate import collate
from swift_core.batching.layout import Layout
from swift_core.batching.packing import balanced_bins, best_fit, best_fit_stream
from swift_core.models.loading import get_model_tokenizer
from swift_core.protocols import EncodedSample
from swift_core.scoring.attention import attend
from swift_core.scoring.dense_attention import dense_causal
from swift_core.scoring.scorer import Scorer
from swift_core.testing.tiny import make_tiny_model
from transformers import AutoModelForCausalLM, Gemma2Config, MambaConfig, MistralConfig, Qwen3Config


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize(("heads", "pairs"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 3])
def test_written_out_attention_equals_the_kernel(length: int, heads: int, pairs: int, window: int | None) -> None:
    torch.manual_seed(0)
    query = torch.randn(1, heads, length, 8, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, pairs, length, 8, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, pairs, length, 8, dtype=torch.float64, requires_grad=True)
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    if window:
        allowed &= torch.ones(length, length, dtype=torch.bool).triu(1 - window)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=0.3, enable_gqa=True)
    found = attend(query, key, value, scale=0.3, window=window)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    ours = torch.autograd.grad(found, [query, key, value], direction)
    theirs = torch.autograd.grad(expected, [query, key, value], direction)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def samples() -> list[EncodedSample]:
    made = []
    for index, length in enumerate((11, 3, 7)):
        ids = [(index * 37 + place * 5) % 60 + 4 for place in range(length)]
        made.append(EncodedSample(ids, [-100, *ids[1:]], loss_scale=[0.5 + place / 8 for place in range(length)] if index == 1 else None))
    return made


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
CONFIGS = {
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "mistral-window": MistralConfig(**SMALL, sliding_window=4),
    "gemma2-softcap": Gemma2Config(**SMALL, head_dim=8, sliding_window=4, attn_logit_softcapping=20.0, final_logit_softcapping=5.0),
    "mamba-state": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_loss_and_gradient_equal_padded(name: str, checkpointing: bool) -> None:
    from swift_core.scoring.attention import checkpoint_contexts

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    model.train()
    reference = Scorer(model)(collate(samples(), pad_token_id=0))
    expected = torch.autograd.grad(reference.loss_sum, list(model.parameters()), allow_unused=True)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": checkpoint_contexts})
    scores = Scorer(model)(collate(samples(), pad_token_id=0, packed=True))
    assert scores.trained_tokens == reference.trained_tokens == 18
    torch.testing.assert_close(scores.loss_sum, reference.loss_sum, rtol=1e-5, atol=1e-5)
    scores.loss_sum.backward()
    for (label, parameter), wanted in zip(model.named_parameters(), expected, strict=True):
        if wanted is not None:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=1e-5, msg=lambda text, label=label: f"{label}: {text}")


def test_a_model_with_state_is_scored_sample_by_sample(caplog: pytest.LogCaptureFixture) -> None:
    Scorer(AutoModelForCausalLM.from_config(CONFIGS["mamba-state"]))(collate(samples(), pad_token_id=0, packed=True))
    assert "without padding does not fit this model" in caplog.text


def test_weights_multiply_the_loss(tmp_path: Path) -> None:
    model, _ = get_model_tokenizer(make_tiny_model(tmp_path))
    assert model is not None
    ids = [20, 21, 22]
    plain = [Scorer(model)(collate([EncodedSample(ids[:2], [-100, 21])], pad_token_id=0)).loss_sum]
    both = Scorer(model)(collate([EncodedSample(ids, [-100, 21, 22])], pad_token_id=0)).loss_sum
    weighted = Scorer(model)(collate([EncodedSample(ids, [-100, 21, 22], loss_scale=[1.0, 3.0, 0.5])], pad_token_id=0)).loss_sum
    torch.testing.assert_close(weighted, 3 * plain[0] + 0.5 * (both - plain[0]))


def test_padded_and_packed_hold_the_same_rows() -> None:
    packed, padded = collate(samples(), pad_token_id=0, packed=True), collate(samples(), pad_token_id=0)
    again = packed.padded()
    assert packed.trained_tokens == padded.trained_tokens and packed.tokens == padded.tokens == 21
    for name in ("input_ids", "attention_mask", "labels", "loss_scale"):
        left, right = getattr(again, name), getattr(padded, name)
        assert torch.equal(left * padded.attention_mask, right * padded.attention_mask), name


lengths_of = st.lists(st.integers(1, 30), min_size=1, max_size=60)


@given(lengths_of, st.integers(5, 40))
def test_packs_hold_each_sample_once_within_the_capacity(lengths: list[int], capacity: int) -> None:
    packs = best_fit(lengths, capacity)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in pack) <= capacity or len(pack) == 1 for pack in packs)
    assert packs == best_fit(list(lengths), capacity)
    fitting = sum(length for length in lengths if length <= capacity)
    smallest = sum(length > capacity for length in lengths) + -(-fitting // capacity)
    assert len(packs) <= 1.5 * smallest + 1


@settings(max_examples=40)
@given(lengths_of, st.integers(30, 60), st.integers(2, 9))
def test_streamed_packs_hold_each_item_once(lengths: list[int], capacity: int, window: int) -> None:
    packs = list(best_fit_stream(((index, length) for index, length in enumerate(lengths)), capacity, window=window))
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in pack) <= capacity for pack in packs)


@given(lengths_of, st.integers(1, 6))
def test_bins_are_balanced(lengths: list[int], bins: int) -> None:
    found = balanced_bins(list(range(len(lengths))), lengths, bins=bins)
    sums = [sum(lengths[index] for index in bin_) for bin_ in found]
    assert sorted(index for bin_ in found for index in bin_) == list(range(len(lengths)))
    assert sums == sorted(sums, reverse=True)
    assert max(sums) - min(sums) <= max(lengths)


def test_dense_attention_takes_the_types_that_autocast_leaves() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 12, 8, requires_grad=True) for heads in (4, 2, 2))
    expected = dense_causal(query, key, value, scale=0.3, layout=Layout((7, 5)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Positions are added in float32, values come from a product in half precision.
        found = dense_causal(query, key, value.bfloat16(), scale=0.3, layout=Layout((7, 5)))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05)
    found.float().sum().backward()
    assert query.grad is not None and query.grad.isfinite().all()
