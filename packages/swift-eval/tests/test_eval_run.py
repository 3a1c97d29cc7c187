"""`swift eval` against a server with known answers: the scores, the report, and what is said when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from swift_core.cli.main import main
from swift_core.errors import ConfigError, EngineError
from swift_eval.config import EvalConfig
from swift_eval.endpoint import base_url, check_endpoint


def _lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _mcq(folder: Path, answers: str) -> Path:
    return _lines(folder / "mcq.jsonl", [{"question": f"Q{i}?", "A": "x", "B": "y", "answer": letter} for i, letter in enumerate(answers)])


def _words(server, *more: str) -> list[str]:
    return ["eval", "--eval_url", server.url, "--model", "fake", *more]


def test_two_of_four_right_is_one_half_and_failed_metrics_are_left_out(fake_openai, tmp_path, capsys):
    fake_openai.api_key = "sk-canary-1"
    # CSV for the questions, so both readers are used; the second and fourth answers are right.
    csv_file = tmp_path / "qa.csv"
    csv_file.write_text("query,response\ncapital?,Paris\nletter?,答案：A\n", encoding="utf-8")
    arguments = {"general_mcq": {"local_path": str(_mcq(tmp_path, "AABB"))}, "general_qa": {"local_path": str(csv_file)}}
    words = _words(fake_openai, "--eval_dataset", "general_mcq", "general_qa", "--eval_dataset_args", json.dumps(arguments))
    generation = '{"max_tokens": 7, "retries": 0}'
    code = main([*words, "--eval_generation_config", generation, "--eval_output_dir", str(tmp_path / "out"), "--api_key", "sk-canary-1"])
    shown = capsys.readouterr().out
    assert code == 0
    (run,) = (tmp_path / "out").iterdir()
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    mcq, qa = report["results"]
    assert (mcq["score"], mcq["count"], mcq["failed"]) == (0.5, 4, 0)
    assert (qa["score"], qa["count"]) == (0.5, 2)
    assert report["complete"] is True
    # A metric that could not be computed must not stand in the report as a zero.
    bleu = [score for score in qa["scores"] if score["metric"].startswith("bleu")]
    assert bool(bleu) != any("BLEU could not be computed" in note for note in qa["notes"])
    assert "0.5000" in shown and str(run / "report.md") in shown
    assert "| general_mcq | Accuracy | 4 | 0 | 0.5000 |" in (run / "report.md").read_text(encoding="utf-8")
    assert len(fake_openai.bodies) == 6
    assert {(body["max_tokens"], body["temperature"]) for body in fake_openai.bodies} == {(7, 0.0)}
    written = "".join(path.read_text(encoding="utf-8", errors="replace") for path in run.rglob("*") if path.is_file())
    assert "sk-canary-1" not in written + shown


def test_limit_is_obeyed_and_python_gives_the_evaluation(fake_openai, tmp_path):
    from swift_eval.cli import evaluate

    values = {
        "model": "fake",
        "eval_url": fake_openai.url + "/chat/completions",
        "eval_dataset": ["general_mcq"],
        "eval_dataset_args": {"general_mcq": {"local_path": str(_mcq(tmp_path, "ABBB"))}},
        "eval_limit": 2,
    }
    config = EvalConfig(**values)
    evaluation = evaluate(config, tmp_path / "run")
    assert (evaluation.results[0].score, evaluation.results[0].count) == (0.5, 2)
    assert evaluation.endpoint == fake_openai.url


def test_requests_that_fail_for_good_give_exit_code_one_and_no_score(fake_openai, tmp_path, capsys):
    # The endpoint lists its models to anyone but refuses to answer without the key.
    data = json.dumps({"general_mcq": {"local_path": str(_mcq(tmp_path, "AB"))}})
    words = _words(fake_openai, "--eval_dataset", "general_mcq", "--eval_dataset_args", data, "--eval_output_dir", str(tmp_path / "out"))
    fake_openai.models_status = 404
    fake_openai.api_key = "right"
    assert main([*words, "--api_key", "wrong"]) == 1
    assert "give the endpoint's key with --api_key" in capsys.readouterr().err
    fake_openai.api_key = None
    fake_openai.RequestHandlerClass.do_POST, kept = _refuse, fake_openai.RequestHandlerClass.do_POST
    try:
        assert main(words) == 1
    finally:
        fake_openai.RequestHandlerClass.do_POST = kept
    shown = capsys.readouterr().out
    assert "general_mcq failed:" in shown and "no such model" in shown
    (run,) = (tmp_path / "out").iterdir()
    result = json.loads((run / "report.json").read_text(encoding="utf-8"))["results"][0]
    assert result["score"] is None and "no such model" in result["error"]


def _refuse(self) -> None:
    self.rfile.read(int(self.headers["Content-Length"]))
    self._send(404, {"error": {"message": "no such model", "code": 404}})


@pytest.mark.parametrize(
    ("dataset", "arguments", "generation", "said"),
    [
        ("gsm9k", {}, {}, "did you mean gsm8k"),
        ("gsm8k", {"gsm8k": {"few_shot": 1}}, {}, "did you mean few_shot_num"),
        ("gsm8k", {}, {"max_token": 3}, "did you mean max_tokens"),
        ("gsm8k", {}, {"timeout": "soon"}, "EvalScope refuses the settings"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_one(fake_openai, tmp_path, capsys, dataset, arguments, generation, said):
    words = _words(fake_openai, "--eval_dataset", dataset, "--eval_output_dir", str(tmp_path / "out"))
    code = main([*words, "--eval_dataset_args", json.dumps(arguments), "--eval_generation_config", json.dumps(generation)])
    assert code == 2
    assert said in capsys.readouterr().err
    assert not fake_openai.bodies and not (tmp_path / "out").exists()


def test_extra_arguments_that_have_a_flag_are_refused():
    from swift_eval.backend import BenchmarkTask, benchmark_names, check_task

    task = BenchmarkTask(benchmark="gsm8k", model="m", url="http://127.0.0.1:1/v1", folder=Path("x"), extra={"limit": 3, "repeat": 2})
    said = " ".join(str(problem) for problem in check_task(task))
    assert "'limit' has a flag of its own" in said and "did you mean repeats" in said
    names = benchmark_names()
    assert len(names) > 100 and "general_qa" in names


def test_every_missing_setting_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        EvalConfig(**{"eval_dataset_args": {"arc": {}}, "eval_url": "localhost:8000"})
    assert [problem.where for problem in caught.value.problems] == ["--model", "--eval_url", "--eval_dataset", "--eval_dataset_args"]


def test_endpoint_that_is_absent_or_serves_another_model(fake_openai):
    assert check_endpoint(fake_openai.url, "fake") == ["fake", "other"]
    with pytest.raises(EngineError, match="--model fake"):
        check_endpoint(fake_openai.url, "fke")
    with pytest.raises(EngineError, match="HTTP 500"):
        fake_openai.models_status = 500
        check_endpoint(fake_openai.url, "fake")
    fake_openai.models_status = 404
    assert check_endpoint(fake_openai.url, "anything") == []
    url = fake_openai.url
    fake_openai.shutdown()
    fake_openai.server_close()
    with pytest.raises(EngineError, match="no endpoint answers at"):
        check_endpoint(url, "fake", timeout=2)


@pytest.mark.parametrize("url", ["http://h/v1", "http://h/v1/", "http://h/v1/chat/completions", "http://h/v1/chat/completions/"])
def test_base_url(url):
    assert base_url(url) == "http://h/v1"


def test_config_and_command_import_neither_evalscope_nor_torch():
    code = "import sys, swift_eval.specs, swift_eval.config, swift_eval.cli; print(sorted({'evalscope', 'torch', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
