"""`swift data preview` shows rows of every kind as the task sees them."""

import json

import pytest
from swift_core.cli.data import main
from swift_core.config.preview import PreviewConfig
from swift_core.data.task_detection import task_of_rows
from swift_core.errors import ConfigError, DataError
from swift_core.testing.tiny import make_tiny_model


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


ASKED = [user("Who?")]
CHAT = [*ASKED, answer("I.")]
ROWS = {
    "causal_lm": {"messages": CHAT},
    "preference": {"messages": CHAT, "rejected_response": "Nobody."},
    "kto": {"messages": CHAT, "label": False},
    "prompt": {"messages": ASKED, "difficulty": 3},
    "seq_cls": {"messages": ASKED, "label": 2},
    "embedding": {"messages": ASKED, "positive_messages": [[user("Near")]], "negative_messages": [[user("Far")], [user("Farther")]]},
    "reranker": {"query": "Who?", "document": "A page", "label": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp("model"), max_length=128))


def preview(capsys, model, tmp_path, rows, *words):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["preview", "--model", model, "--dataset", str(file), "--color", "never", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("task", ROWS)
def test_columns_say_what_rows_are_for(task):
    assert task_of_rows([ROWS[task]], {})[0] == task


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"conversations": [{"from": "human", "value": "a"}], "chosen": "b", "rejected": "c"}, "preference"),
        ({"conversations": CHAT, "rejected": False}, "causal_lm"),
        ({"messages": CHAT, "label": "true"}, "kto"),
        ({"messages": CHAT, "label": 1}, "kto"),
        ({"messages": CHAT, "label": [0, 2]}, "seq_cls"),
        ({"sentence1": "a", "sentence2": "b", "score": 0.4}, "embedding"),
        ({"premise": "a", "hypothesis": "b", "label": 2}, "seq_cls"),
        ({"text": "a", "label": 0}, "seq_cls"),
        ({"mine": "a", "other": "b"}, "causal_lm"),
    ],
)
def test_further_layouts(row, task):
    assert task_of_rows([row], {})[0] == task


def test_renamed_columns_count_under_their_new_name():
    assert task_of_rows([{"messages": CHAT, "worse": "c"}], {"worse": "rejected_response"})[0] == "preference"


def test_one_pair_among_conversations_makes_pairs_of_all():
    assert task_of_rows([ROWS["causal_lm"], ROWS["preference"]], {})[0] == "preference"


def test_pairs_show_both_answers_with_their_masks(capsys, model, tmp_path):
    out = preview(capsys, model, tmp_path, [ROWS["preference"]])
    assert "taken for pairs" in out
    assert "[chosen: " in out
    assert "⟦I.<|im_end|>⟧" in out
    assert "⟦Nobody.<|im_end|>⟧" in out
    assert "1 of 1 pairs kept" in out


def test_judged_answers_show_their_label(capsys, model, tmp_path):
    out = preview(capsys, model, tmp_path, [ROWS["kto"]])
    assert "undesirable, " in out
    assert "0 desirable and 1 undesirable" in out


def test_prompts_end_where_the_model_goes_on_and_show_their_columns(capsys, model, tmp_path):
    out = preview(capsys, model, tmp_path, [ROWS["prompt"]])
    assert "<|im_start|>assistant\n[column difficulty: 3]" in out
    assert "⟦" not in out


def test_prompts_of_answered_rows_leave_the_answer_out(capsys, model, tmp_path):
    out = preview(capsys, model, tmp_path, [{"messages": CHAT, "solution": "42"}], "--rlhf_type", "grpo")
    assert "assistant\n[column (last answer, not part of the prompt): I.]\n[column solution: 42]" in out


def test_texts_to_compare_show_all_of_them(capsys, model, tmp_path):
    out = preview(capsys, model, tmp_path, [ROWS["embedding"]])
    assert out.count("[negative: ") == 2
    assert "Farther" in out
    as_pairs = preview(capsys, model, tmp_path, [ROWS["embedding"]], "--task_type", "reranker", "--max_length", "2000")
    assert as_pairs.count("<Query>: Who?") == 3


def test_labels_of_classes_are_counted(capsys, model, tmp_path):
    out = preview(capsys, model, tmp_path, [ROWS["seq_cls"], {"messages": ASKED, "label": 0}])
    assert "label 2, " in out
    assert "single label classification, 3 labels" in out


def test_json_names_the_parts(capsys, model, tmp_path):
    pair = json.loads(preview(capsys, model, tmp_path, [ROWS["preference"]], "--format", "json"))
    assert pair["rejected"]["text"].endswith("Nobody.<|im_end|>\n")
    assert len(pair["chosen"]["input_ids"]) == len(pair["chosen"]["labels"])
    texts = json.loads(preview(capsys, model, tmp_path, [ROWS["embedding"]], "--format", "json"))
    assert [len(texts["positives"]), len(texts["negatives"])] == [1, 2]


def test_a_task_that_the_rows_are_not_for_is_refused(capsys, model, tmp_path):
    with pytest.raises(DataError, match="no rejected answer"):
        preview(capsys, model, tmp_path, [ROWS["causal_lm"]], "--rlhf_type", "dpo")
    with pytest.raises(DataError, match="swift rlhf"):
        preview(capsys, model, tmp_path, [ROWS["preference"]], "--task_type", "causal_lm")


def test_one_of_task_and_method():
    with pytest.raises(ConfigError, match="keep one"):
        PreviewConfig(model="m", dataset=["d"], task_type="seq_cls", rlhf_type="dpo")
