"""Rewards by rule, found through the registry as training finds them."""

from __future__ import annotations

import pytest
from swift_core.errors import ConfigError
from swift_core.registry import REWARDS


@pytest.mark.parametrize(
    ("answer", "solution", "reward"),
    [
        ("The answer is 42.", "42", 1.0),
        ("3 apples and 4 pears make 7", "#### 7", 1.0),
        ("It is 1,000 dollars", "1000.0", 1.0),
        (r"So \boxed{-3} because 5 is wrong", "-3", 1.0),
        ("<think>17?</think><answer>18</answer> 99", "18", 1.0),
        ("x = 1/2", "0.5", 1.0),
        ("0.30000000000000001", "0.3", 0.0),
        ("forty-two", "42", 0.0),
        ("", "42", 0.0),
        ("1/0", "1", 0.0),
        ("pages 10-3", "3", 1.0),
        ("it is -3", "3", 0.0),
        ("42", "it depends", None),
        ("the total is 41", "42", 0.0),
        ("42", None, None),
        ("42", 42, 1.0),
    ],
)
def test_number_compares_final_numbers(answer, solution, reward) -> None:
    assert REWARDS.load("number")([answer], solution=[solution], prompt=["ignored"]) == [reward]


def test_number_needs_one_solution_for_each_answer() -> None:
    with pytest.raises(ValueError, match="shorter"):
        REWARDS.load("number")(["1", "2"], solution=["1"])


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a\nb</think>\n<answer>1</answer>", 1.0),
        ("<think></think><answer></answer>\n", 1.0),
        ("<answer>1</answer>", 0.0),
        ("<think>a</think> well <answer>1</answer>", 0.0),
        ("<think>a</think><answer>1</answer> and more", 0.0),
        ("<think>a</think><think>b</think><answer>1</answer>", 0.0),
        ("<think>a <answer>1</answer></think><answer>2</answer>", 0.0),
        ("<answer>1</answer><think>a</think>", 0.0),
    ],
)
def test_format_wants_one_thought_then_one_answer(text, reward) -> None:
    assert REWARDS.load("format")([text]) == [reward]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("Thought: look it up\nAction: search\nAction Input: {}", 1.0),
        ("Thought: I know\nFinal Answer: 4", 1.0),
        ("Action: search\nAction Input: {}", 0.0),
        ("Thought: a\nAction: search", 0.0),
        ("Thought: a\nAction: b\nAction Input: {}\nObservation: made up", 0.0),
        ("Thought: a\nAction: b\nAction Input: {}\nFinal Answer: 4", 0.0),
    ],
)
def test_react_format_is_one_step(text, reward) -> None:
    assert REWARDS.load("react_format")([text]) == [reward]


def test_repetition_counts_words_and_characters() -> None:
    price = REWARDS.load("repetition")(repetition_n_grams=2)
    assert price(["a b c d", "a b A b", "", "one", "天天天天"]) == pytest.approx([0, -1 / 3, 0, 0, -2 / 3])


def test_soft_overlong_follows_dapo() -> None:
    price = REWARDS.load("soft_overlong")(soft_max_length=20480, soft_cache_length=4096)
    found = price([""] * 4, completion_ids=[range(length) for length in (16000, 18432, 20480, 20481)])
    assert found == [0, -0.5, -1, -1]
    with pytest.raises(ConfigError, match="soft_cache_length"):
        REWARDS.load("soft_overlong")(soft_max_length=10, soft_cache_length=20)


def test_accuracy_understands_mathematics() -> None:
    pytest.importorskip("math_verify")
    cases = [
        (r"So it is \boxed{\frac{1}{2}}", "0.5", 1.0),
        ("<think>3</think><answer>1/2</answer> or 7", r"\frac{1}{2}", 1.0),
        (r"\boxed{x^2 + 2x + 1}", "(x+1)^2", 1.0),
        (r"\boxed{\{1, 2\}}", r"\{2, 1\}", 1.0),
        ("The answer is 41.", "6*7 makes #### 42", 0.0),
        ("", "42", 0.0),
        ("4", "", None),
        ("None", None, None),
    ]
    texts, solutions, expected = (list(column) for column in zip(*cases, strict=True))
    assert REWARDS.load("accuracy")(texts, solution=solutions) == expected


def test_cosine_prefers_short_correct_and_long_wrong_answers() -> None:
    pytest.importorskip("math_verify")
    value = REWARDS.load("cosine")(cosine_max_len=10)
    ids = [range(0), range(5), range(10), range(99), range(0), range(10), range(3)]
    found = value(["4"] * 4 + ["5"] * 2 + ["4"], completion_ids=ids, solution=["4"] * 6 + [""])
    assert found == [pytest.approx(each) if each is not None else None for each in (1, 0.75, 0.5, 0.5, -0.5, 0, None)]
