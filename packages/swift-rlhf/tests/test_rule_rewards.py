"""Rewards by rule, found through the registry as training finds them."""

from __future__ import annotations

import pytest
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
    ],
)
def test_accuracy_compares_final_numbers(answer, solution, reward) -> None:
    assert REWARDS.load("accuracy")([answer], solution=[solution], prompt=["ignored"]) == [reward]


def test_accuracy_needs_one_solution_for_each_answer() -> None:
    with pytest.raises(ValueError, match="shorter"):
        REWARDS.load("accuracy")(["1", "2"], solution=["1"])


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
