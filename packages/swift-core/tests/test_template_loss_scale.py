"""Weights of the loss: bases, strategies, pattern files, weights of single messages."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from swift_core.config.loss_scales import STRATEGIES as NAMES
from swift_core.config.loss_scales import parse_loss_scale
from swift_core.config.sections import TemplateSection
from swift_core.errors import NotFoundError, TemplateError
from swift_core.protocols import Sample
from swift_core.templates.chat import ChatTemplate, build_template
from swift_core.templates.loss_scale import STRATEGIES, LossScale, multiply
from swift_core.templates.mask import subtract
from swift_core.testing.tiny import make_tiny_tokenizer
from transformers import ByT5Tokenizer

REACT = "Thought: look\nAction: f\nAction Input: {}\nObservation: 3\nFinal Answer: 3"


def chat(*texts: str) -> Any:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def build(loss_scale: str, **more: Any) -> ChatTemplate:
    return build_template(make_tiny_tokenizer(), TemplateSection(loss_scale=loss_scale, **more))


def weighted(template: ChatTemplate, messages: Any, **more: Any) -> list[tuple[str, float]]:
    """Return the stretches of equal weight of what is trained, as the encoded sample has them."""
    encoded = template.encode(Sample(messages, **more))
    scale = encoded.loss_scale or [1.0 if label != -100 else 0.0 for label in encoded.labels]
    assert len(scale) == len(encoded.input_ids)
    runs: list[tuple[list[int], float]] = []
    for label, weight in zip(encoded.labels, scale, strict=True):
        assert (label == -100) == (weight == 0)
        if label == -100:
            continue
        if not runs or runs[-1][1] != weight:
            runs.append(([], weight))
        runs[-1][0].append(label)
    return [(str(template.tokenizer.decode(ids)), weight) for ids, weight in runs]


def test_the_names_in_the_settings_are_those_that_exist():
    assert set(NAMES) == set(STRATEGIES)


@pytest.mark.parametrize(
    ("text", "base", "strategies"),
    [
        ("default", "default", ()),
        ("all+react", "all", ("react",)),
        ("react", "default", ("react",)),
        ("last_round+hermes+ignore_empty_think", "last_round", ("hermes", "ignore_empty_think")),
    ],
)
def test_parsing(text, base, strategies):
    choice = parse_loss_scale(text)
    assert (choice.base, choice.strategies, choice.files) == (base, strategies, ())
    assert TemplateSection(loss_scale=text).loss_scale == text


def test_pattern_files_by_prefix_or_suffix():
    assert parse_loss_scale("all+regex:a/b.txt+c.json").files == ("a/b.txt", "c.json")


@pytest.mark.parametrize("text", ["defualt", "default+reakt", "default+all", ""])
def test_unknown_parts_are_refused_with_a_list(text):
    with pytest.raises(ValidationError, match=r"last_round.*agentflan.*regex:FILE"):
        TemplateSection(loss_scale=text)


def test_react_weights_calls_double_and_observations_nothing():
    assert weighted(build("default+react"), chat("q", REACT)) == [
        ("Thought: look\n", 1.0),
        ("Action: f\nAction Input: {}\nObservation:", 2.0),
        ("Final Answer: 3<|im_end|>", 1.0),
    ]


def test_hermes_weights_calls_double():
    text = 'I look.\n<tool_call>\n{"name": "f"}\n</tool_call>'
    assert weighted(build("default+hermes"), chat("q", text)) == [
        ("I look.\n", 1.0),
        ('<tool_call>\n{"name": "f"}\n</tool_call>', 2.0),
        ("<|im_end|>", 1.0),
    ]


def test_agentflan_looks_at_the_question():
    assert weighted(build("default+agentflan"), chat("What is the tool name?", "search")) == [("search<|im_end|>", 3.0)]
    assert weighted(build("default+agentflan"), chat("q", "Thought: a\nName: b")) == [("Thought: a\nName:", 1.0), (" b<|im_end|>", 3.0)]


@pytest.mark.parametrize("name", ["qwen", "alpha_umi"])
def test_other_strategies_weight_calls(name):
    text = "✿FUNCTION✿: f\n✿ARGS✿: {}" if name == "qwen" else "Action: f\nAction Input: {}"
    assert [weight for _, weight in weighted(build(f"default+{name}"), chat("q", text))] == [2.0]


def test_weights_of_nought_are_folded_into_the_labels():
    template = build("default+ignore_empty_think")
    encoded = template.encode(Sample(chat("q", "<think>\n\n</think>\n\nHi")))
    assert encoded.loss_scale is None
    assert template.tokenizer.decode([label for label in encoded.labels if label != -100]) == "Hi<|im_end|>"
    assert weighted(build("default+ignore_think_prefix"), chat("q", "<think>\nhm</think>Hi")) == [("hm</think>Hi<|im_end|>", 1.0)]
    assert weighted(build("default"), chat("q", "<think>\n\n</think>\n\nHi")) == [("<think>\n\n</think>\n\nHi<|im_end|>", 1.0)]


def test_strategies_multiply_and_all_keeps_the_rest():
    text = "<tool_call>Action: f\n</tool_call>"
    parts = weighted(build("all+react+hermes"), chat("q", text))
    assert ("Action: f\n</tool_call>", 4.0) in parts
    assert parts[0] == ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", 1.0)


def test_the_weight_of_a_message_takes_the_place_of_strategies():
    messages = chat("q", REACT, "q", "Action: g")
    messages[1]["loss_scale"] = 0.5
    assert weighted(build("default+react"), messages) == [(f"{REACT}<|im_end|>", 0.5), ("Action: g<|im_end|>", 2.0)]
    messages[1]["loss_scale"] = 0
    assert weighted(build("default"), messages) == [("Action: g<|im_end|>", 1.0)]
    messages[1]["loss_scale"] = -1
    with pytest.raises(TemplateError, match="loss_scale -1"):
        build("default").mark(Sample(messages))


def test_weights_with_plain_texts_and_slow_tokenizers():
    template = build_template(ByT5Tokenizer(), TemplateSection(use_chat_template=False, loss_scale="all+hermes"))
    encoded = template.encode(Sample([{"role": "assistant", "content": "a<tool_call>b</tool_call>"}]))
    assert encoded.loss_scale == [1.0] + [2.0] * 24 + [1.0]


def test_pattern_files(tmp_path):
    file = tmp_path / "weights.json"
    file.write_text(json.dumps({r"\d+": 3, "Note:": [0.5, 0.25]}), encoding="utf-8")
    expected = [("is", 1.0), (" 42", 3.0), ("Note:", 0.5), (" x<|im_end|>", 0.25)]
    for name in (f"default+{file}", f"default+regex:{file}"):
        assert weighted(build(name), chat("q", "is 42Note: x")) == expected
    for content, reason in (
        ("[", "not JSON"),
        ("{}", "no patterns"),
        ('{"(": 1}', "not a regular expression"),
        ('{"a": "b"}', "weight of 'a'"),
    ):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(TemplateError, match=reason):
            LossScale(f"default+{file}")
    with pytest.raises(NotFoundError, match="no such file"):
        LossScale("default+regex:absent.json")


parts = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6), st.sampled_from([0.0, 0.5, 2.0])), max_size=4).map(
    lambda items: [(start, start + length, weight) for start, length, weight in items]
)


def weight_at(weights: Any, at: int) -> float:
    product = 1.0
    for start, stop, weight in weights:
        product *= weight if start <= at < stop else 1.0
    return product


@given(one=parts, other=parts)
def test_products_hold_at_every_character(one, other):
    product = multiply(one, other)
    for at in range(30):
        assert weight_at(product, at) == weight_at(one, at) * weight_at(other, at)
    assert all(stop <= start for (_, stop, _), (start, _, _) in pairwise(product))


def test_subtract():
    assert subtract([(0, 6), (8, 9)], [(2, 4), (5, 8)]) == [(0, 2), (4, 5), (8, 9)]
    assert subtract([(0, 6)], [(0, 6)]) == []
