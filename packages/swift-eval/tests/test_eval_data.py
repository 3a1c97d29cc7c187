"""Local data: absent paths, bad rows with file and line, and reports without secrets."""

from __future__ import annotations

import json

import pytest
from swift_core.errors import DataError, NotFoundError
from swift_eval.cli import new_folder
from swift_eval.datasets import check_local_data
from swift_eval.report import BenchmarkResult, Evaluation, Score, markdown, masked, table, write

GOOD = '{"question": "q", "A": "x", "B": "y", "answer": "B"}\n'


@pytest.mark.parametrize(
    ("benchmark", "text", "said"),
    [
        ("general_mcq", GOOD + "\n" + '{"question": "q"', r"data\.jsonl:3: is not JSON: .* column"),
        ("general_mcq", GOOD + "[1]\n", r"data\.jsonl:2: holds a list"),
        ("general_mcq", GOOD + '{"A": "x", "B": "y", "answer": "A"}', r":2: has no question"),
        ("general_mcq", '{"question": "q", "A": "x", "C": "y", "answer": "A"}', r":1: has the choices A, C"),
        ("general_mcq", '{"question": "q", "A": "x", "B": "y", "answer": "C"}', r":1: has the answer 'C', which is none of A, B"),
        ("general_qa", '{"response": "x"}', r":1: has no query"),
        ("general_qa", '{"query": "x"}', r":1: has no response to compare with"),
        ("general_qa", "\n\n", r"data\.jsonl: holds no rows"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, benchmark, text, said):
    file = tmp_path / "data.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        check_local_data(benchmark, {"local_path": str(file)})


def test_line_separators_inside_a_text_do_not_end_the_row(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"query": "a\u2028b", "response": "c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert check_local_data("general_qa", {"local_path": str(file)}) == [file]


def test_a_judge_needs_no_reference_and_many_answers_are_lists(tmp_path):
    (tmp_path / "qa.jsonl").write_text('{"query": "x"}\n', encoding="utf-8")
    assert check_local_data("general_qa", {"local_path": str(tmp_path / "qa.jsonl")}, judged=True)
    options = {"local_path": str(tmp_path / "m.jsonl"), "extra_params": {"multiple_correct": True}}
    (tmp_path / "m.jsonl").write_text('{"question": "q", "A": "x", "B": "y", "answer": ["A", "B"]}\n', encoding="utf-8")
    assert check_local_data("general_mcq", options)
    (tmp_path / "m.jsonl").write_text(GOOD, encoding="utf-8")
    with pytest.raises(DataError, match="it is a list of letters"):
        check_local_data("general_mcq", options)


def test_subsets_of_a_folder_are_found_as_evalscope_names_them(tmp_path):
    for name in ("en_val.jsonl", "zh.jsonl", "zh_val.csv"):
        (tmp_path / name).write_text(GOOD if name.endswith("l") else "question,A,B,answer\nq,x,y,A\n", encoding="utf-8")
    files = check_local_data("general_mcq", {"local_path": str(tmp_path), "subset_list": ["en", "zh"]})
    assert [file.name for file in files] == ["en_val.jsonl", "zh.jsonl"]
    with pytest.raises(NotFoundError, match=r"'fr' .* holds en_val.jsonl, zh.jsonl, zh_val.csv .*name it fr_val.jsonl"):
        check_local_data("general_mcq", {"local_path": str(tmp_path), "subset_list": ["fr"]})


@pytest.mark.parametrize(
    ("benchmark", "options", "said"),
    [
        ("general_qa", {}, "evaluates your own file"),
        ("gsm8k", {"local_path": "absent"}, "local_path of gsm8k does not exist: absent"),
        ("general_qa", {"local_path": __file__}, "has a format that general_qa does not read"),
    ],
)
def test_absent_data_is_said_before_anything_runs(benchmark, options, said):
    with pytest.raises(NotFoundError, match=said):
        check_local_data(benchmark, options)


def test_secrets_are_masked_at_any_depth_and_max_tokens_is_none():
    given = {
        "judge": {"models": [{"api_key": "sk-1", "model_id": "m"}]},
        "extra_headers": {"Authorization": "Bearer x"},
        "max_tokens": 5,
        "key": None,
    }
    assert masked(given) == {
        "judge": {"models": [{"api_key": "***", "model_id": "m"}]},
        "extra_headers": {"Authorization": "***"},
        "max_tokens": 5,
        "key": None,
    }


def test_report_shows_failures_and_counts_them_as_incomplete(tmp_path):
    scored = BenchmarkResult("arc", "Accuracy", 0.25, 4, failed=1, scores=(Score("acc", "a|b", "hard", 0.25, 4),))
    broken = BenchmarkResult("mmlu", error="no data")
    evaluation = Evaluation("m", "http://h/v1", "EvalScope", "2026-01-01", 1.0, {"api_key": "sk"}, (scored, broken))
    assert not evaluation.complete
    text = table(evaluation)
    assert "arc        Accuracy        4       1  0.2500" in text
    assert "arc: 1 samples gave no prediction" in text and "mmlu failed: no data" in text
    assert "| a\\|b | hard | 4 | 0.2500 |" in markdown(evaluation) and "sk" not in markdown(evaluation).replace("sklearn", "")
    data, _ = write(evaluation, tmp_path / "deep" / "run")
    assert json.loads(data.read_text(encoding="utf-8"))["settings"] == {"api_key": "***"}


def test_folders_of_the_same_second_differ(tmp_path):
    first = new_folder(tmp_path)
    first.mkdir()
    assert new_folder(tmp_path) != first
