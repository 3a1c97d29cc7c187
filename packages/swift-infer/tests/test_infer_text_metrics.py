"""Metrics of answers by hand."""

import json
import math

import pytest
from swift_infer.text_metrics import accuracy, bleu, measure, rouge_l, tokens


def test_values_by_hand():
    assert accuracy(["a ", "b"], ["a", "c"]) == 0.5
    # Common "the cat sat" of 4 and 5 words: 2 * 3 / 9.
    assert rouge_l(["the cat sat down"], ["the cat never sat there"]) == pytest.approx(6 / 9)
    assert rouge_l(["x"], ["y"]) == 0 and rouge_l([""], [""]) == 0
    # 1-grams 4/5, 2-grams 3/4, 3-grams 2/3, 4-grams 1/2, same length.
    assert bleu(["a b c d x"], ["a b c d e"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # Two words only: orders 1 and 2, and a penalty for brevity.
    assert bleu(["a b"], ["a b c d"]) == pytest.approx(math.exp(1 - 4 / 2))
    assert bleu(["a b"], ["a b"]) == 1 and bleu(["a"], ["b"]) == 0


def test_ideographs_are_words():
    assert tokens("你好, World 42!") == ["你", "好", ",", "world", "42", "!"]


def test_rows_without_a_reference_are_left_out(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [{"response": "4", "labels": "4"}, {"response": "5", "labels": None}]))
    assert measure(file, ["acc", "bleu"]) == ({"acc": 1.0, "bleu": 1.0}, 1)
