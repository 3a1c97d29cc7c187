"""Branches of a packed row: each sees what it continues, and scores as if it stood alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from swift_core.batching.layout import Layout
from swift_core.scoring.attention import NAME, packed, set_text_attention
from swift_core.scoring.dense_attention import dense_causal
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig, Qwen3Config

# A prompt of 4 with two answers, one of which has two endings; and a sample of its own.
TREE = Layout((4, 3, 2, 2, 5), (-1, 0, 1, 1, -1))


def test_spans_and_positions_follow_the_parents() -> None:
    assert TREE.before(3) == [(0, 4), (4, 7)]
    assert TREE.span(4) == (11, 16)
    assert TREE.positions() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 8, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(("lengths", "parents"), [((2, 2), (0, -1)), ((2, 2), (1, -1)), ((2,), (-1, -1)), ((2, 2), (-1, -2))])
def test_a_segment_cannot_continue_what_comes_later(lengths: tuple[int, ...], parents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="segment"):
        Layout(lengths, parents)


def paths(layout: Layout) -> list[list[int]]:
    """Return the places in the row of each segment with all that it continues."""
    spans = [[*layout.before(number), layout.span(number)] for number in range(len(layout.lengths))]
    return [[place for start, stop in chain for place in range(start, stop)] for chain in spans]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(-1, 5)), min_size=1, max_size=6), st.sampled_from([None, 3]))
def test_attention_in_a_tree_equals_attention_along_each_path(tree: list[tuple[int, int]], window: int | None) -> None:
    layout = Layout(tuple(length for length, _ in tree), tuple(min(parent, number - 1) for number, (_, parent) in enumerate(tree)))
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, layout.tokens, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    found = dense_causal(query, key, value, scale=0.4, layout=layout, window=window)
    expected = torch.zeros_like(found)
    for number, path in enumerate(paths(layout)):
        alone = dense_causal(*(one[:, :, path] for one in (query, key, value)), scale=0.4, layout=Layout((len(path),)), window=window)
        start, stop = layout.span(number)
        expected = torch.cat([expected[:, :start], alone[:, len(path) - (stop - start) :], expected[:, stop:]], dim=1)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    for one, other in zip(*(torch.autograd.grad(result, [query, key, value], direction) for result in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(**SMALL, head_dim=8),
        Gemma2Config(**SMALL, head_dim=8, sliding_window=4),  # soft-capped scores, every second layer looks 4 back
        MistralConfig(**SMALL, sliding_window=3),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_computes_a_prompt_once_for_all_its_answers(config: object) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    tokens = torch.randint(3, 60, (1, TREE.tokens))
    alone = [model.base_model(input_ids=tokens[:, path]).last_hidden_state for path in paths(TREE)]
    set_text_attention(model, NAME)
    with packed(TREE):
        together = model.base_model(input_ids=tokens, position_ids=torch.tensor(TREE.positions())[None]).last_hidden_state
    for number, one in enumerate(alone):
        start, stop = TREE.span(number)
        torch.testing.assert_close(together[:, start:stop], one[:, start - stop :], atol=1e-5, rtol=1e-5)
