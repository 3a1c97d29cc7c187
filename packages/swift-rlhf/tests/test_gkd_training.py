"""Distillation from settings to weights, on tiny models."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.batching.collate import IGNORED
from swift_core.errors import ConfigError, DataError, EngineError, ModelError
from swift_core.registry import TASKS
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.parallel import make_world
from swift_rlhf.config import RlhfConfig
from swift_rlhf.gkd.endpoint import EndpointTeacher
from swift_rlhf.gkd.samples import Lesson
from swift_rlhf.gkd.task import GkdTask
from swift_rlhf.gkd.teacher import LocalTeacher, Measure
from swift_rlhf.grpo.metrics import Meter
from transformers import AutoModelForCausalLM

WORDS = ("one", "two", "six", "ten", "red")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(Path(tmp_path_factory.mktemp("student")))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(Path(tmp_path_factory.mktemp("teacher")), seed=1)


def rows(**more: Any) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": f"{word}, thank you"}], **more}
        for word in WORDS
    ]


def write(path: Path, values: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(path)


def trained(folder: Path, out: Path, data: str, **settings: Any) -> list[dict[str, Any]]:
    values: dict[str, Any] = {
        "rlhf_type": "gkd",
        "model": str(folder),
        "dataset": [data],
        "tuner_type": "full",
        "use_cpu": True,
        "output_dir": str(out),
        "add_version": False,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": ["none"],
        "disable_tqdm": True,
        "save_strategy": "no",
        **({} if settings.get("lmbda") == 0 else {"max_completion_length": 6}),
        **settings,
    }
    TASKS.load("gkd")(RlhfConfig(**values))
    return [json.loads(line) for line in (out / "logging.jsonl").read_text("utf-8").splitlines()]


def test_the_student_comes_nearer_to_the_teacher(folder: Path, teacher: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows())
    settings = {"max_steps": 16, "eval_strategy": "steps", "eval_steps": 16, "eval_on_start": True, "val_dataset": [data]}
    found = trained(folder, tmp_path / "out", data, teacher_model=str(teacher), **settings)
    held_out = [line["eval_loss"] for line in found if "eval_loss" in line]
    assert held_out[-1] < 0.7 * held_out[0]
    steps = [line for line in found if "loss" in line]
    assert {line["gkd/on_policy"] for line in steps} == {0.0, 1.0}
    assert all(line["loss"] == pytest.approx(line["gkd/divergence"], rel=1e-4) for line in steps)
    written = (tmp_path / "out" / "completions.jsonl").read_text("utf-8").splitlines()
    assert len(written) == 4 * sum(line["gkd/on_policy"] for line in steps)


def test_a_resumed_run_is_the_uninterrupted_one(folder: Path, teacher: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows())
    settings: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "teacher_model": str(teacher), "sft_alpha": 0.1}
    out = tmp_path / "out"
    whole = trained(folder, out, data, **settings)
    weights = (out / "checkpoint-6" / "model.safetensors").read_bytes()
    lines = (out / "completions.jsonl").read_text("utf-8")
    shutil.rmtree(out / "checkpoint-6")
    again = trained(folder, out, data, **settings, resume_from_checkpoint=str(out / "checkpoint-3"))
    assert (out / "checkpoint-6" / "model.safetensors").read_bytes() == weights
    names = [name for name in whole[-1] if name.startswith(("loss", "gkd", "grad"))]
    assert [whole[-1][name] for name in names] == [again[-1][name] for name in names]
    assert {line["gkd/on_policy"] for line in whole[3:]} == {0.0, 1.0}
    assert (out / "completions.jsonl").read_text("utf-8") == lines


def lessons() -> list[Lesson]:
    """Return lessons; the second has an observation in it and another prompt for the teacher."""
    first = Lesson([5, 6, 7, 8, 9], [IGNORED] * 2 + [7, 8, 9], "a")
    second = Lesson([5, 9, 11, 12, 13, 14], [IGNORED] * 2 + [11, IGNORED, 13, 14], "b", teacher_prompt=[40, 41, 42], own=True)
    return [first, second]


def task(teacher: Any, tmp_path: Path, *, packed: bool = True, sft_alpha: float = 0.0) -> GkdTask:
    settings = RlhfConfig(rlhf_type="gkd", model="m", dataset=["d"], tuner_type="full", use_cpu=True, output_dir=str(tmp_path))
    return GkdTask(teacher, Meter(make_world(settings)), sft_alpha=sft_alpha, packed=packed)


@pytest.mark.parametrize("topk", [None, 5])
def test_the_loss_is_that_of_the_formula_whatever_the_layout(folder: Path, teacher: Path, tmp_path: Path, topk: int | None) -> None:
    other: Any = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float64)
    expected, gradients = None, []
    for packed in (True, False):
        student: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        made = task(LocalTeacher(other, Measure(0.3, 2.0, topk), torch.device("cpu")), tmp_path, packed=packed, sft_alpha=0.2)
        loss = made.loss(student, made.collate(lessons(), pad_token_id=0))
        loss.backward()
        gradients.append([weight.grad for weight in student.parameters()])
        if expected is None:
            expected = 0.0
            for lesson in lessons():
                ids, shown = torch.tensor([lesson.input_ids]), lesson.for_teacher()
                with torch.no_grad():
                    ours = student(ids).logits[0]
                    theirs = other(torch.tensor([shown.input_ids])).logits[0][len(shown.input_ids) - len(lesson.input_ids) :]
                for place, label in enumerate(lesson.labels):
                    if label == IGNORED:
                        continue
                    s, t = ((each[place - 1] / 2.0).softmax(-1) for each in (ours, theirs))
                    if topk:
                        best = t.topk(topk).indices
                        s, t = (torch.cat([each[best], 1 - each[best].sum(0, keepdim=True)]) for each in (s, t))
                    m = 0.7 * s + 0.3 * t
                    expected += float(0.3 * (t * (t / m).log()).sum() + 0.7 * (s * (s / m).log()).sum())
                    expected -= 0 if lesson.own else float(0.2 * ours[place - 1].log_softmax(-1)[label])
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


class _Server(BaseHTTPRequestHandler):
    model: Any = None
    seen: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._send({"data": [{"id": "big"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen.append(body)
        with torch.no_grad():
            logps = self.model(torch.tensor([body["prompt"]])).logits[0].float().log_softmax(-1)
        places: list[Any] = [None]
        for place, token in enumerate(body["prompt"][1:]):
            best = {*logps[place].topk(body["prompt_logprobs"]).indices.tolist(), token}
            places.append({str(each): {"logprob": float(logps[place, each])} for each in best})
        self._send({"choices": [{"prompt_logprobs": places}]})

    def _send(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(teacher: Path) -> Iterator[tuple[str, Any]]:
    kind = type("Server", (_Server,), {"model": AutoModelForCausalLM.from_pretrained(teacher), "seen": []})
    found = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}/v1", kind
    found.shutdown()
    found.server_close()


def test_a_teacher_behind_a_server_teaches_as_one_in_the_process(folder: Path, teacher: Path, tmp_path: Path, server: Any) -> None:
    url, kind = server
    data = write(tmp_path / "rows.jsonl", rows())
    settings: dict[str, Any] = {"max_steps": 3, "gkd_logits_topk": 4, "beta": 0.5, "torch_dtype": "float32"}
    far = trained(folder, tmp_path / "far", data, teacher_model_server=url, **settings)
    near = trained(folder, tmp_path / "near", data, teacher_model=str(teacher), **settings)
    assert [line["loss"] for line in far] == pytest.approx([line["loss"] for line in near], rel=1e-4)
    assert all(body["model"] == "big" and body["prompt_logprobs"] == 4 for body in kind.seen) and len(kind.seen) == 12
    with pytest.raises(EngineError, match="no model 'small'"):
        EndpointTeacher(url, Measure(0.5, 1.0, 4), model="small", key="NO_KEY", timeout=5).check()


def test_a_model_learns_from_itself_when_it_is_told_more(folder: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows(teacher_prompt="say it twice"))
    found = trained(folder, tmp_path / "out", data, max_steps=8, lmbda=1.0, learning_rate=3e-3)
    losses = [line["loss"] for line in found]
    assert 0 < sum(losses[-3:]) < sum(losses[:3])
    bare = write(tmp_path / "bare.jsonl", rows())
    with pytest.raises(DataError, match="no teacher_prompt") as caught:
        trained(folder, tmp_path / "no", bare)
    assert "bare.jsonl:" in str(caught.value)


def test_the_teacher_writes_what_the_data_lacks(folder: Path, teacher: Path, tmp_path: Path) -> None:
    prompts = [{"messages": row["messages"][:1]} for row in rows()]
    data = write(tmp_path / "rows.jsonl", prompts)
    found = trained(folder, tmp_path / "out", data, teacher_model=str(teacher), seq_kd=True, lmbda=0.0, sft_alpha=1.0, max_steps=2)
    assert all(line["gkd/on_policy"] == 0 and line["gkd/cross_entropy"] > 1 for line in found)
    assert len((tmp_path / "out" / "completions.jsonl").read_text("utf-8").splitlines()) == 8
    with pytest.raises(DataError):
        trained(folder, tmp_path / "no", data, teacher_model=str(teacher), lmbda=0.0)


def test_a_teacher_of_other_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", vocab_size=300)
    with pytest.raises(ModelError, match="reads other tokens"):
        trained(folder, tmp_path / "out", write(tmp_path / "rows.jsonl", rows()), teacher_model=str(other))


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"teacher_model": "a", "teacher_model_server": "http://b", "gkd_logits_topk": 4}, "--teacher_model_server"),
        ({"teacher_model_server": "http://b"}, "--gkd_logits_topk"),
        ({"teacher_model_server": "b", "gkd_logits_topk": 4}, "--teacher_model_server"),
        ({"teacher_model_server": "http://b", "gkd_logits_topk": 4, "gkd_temperature": 2.0}, "--gkd_temperature"),
        ({"teacher_adapters": ["a"]}, "--teacher_adapters"),
        ({"seq_kd": True}, "--seq_kd"),
        ({"offload_teacher_model": True}, "--offload_teacher_model"),
        ({"beta": 1.5}, "--beta 1.5"),
        ({"teacher_model": "a", "lmbda": 1.0, "sft_alpha": 0.5}, "--sft_alpha"),
        ({"lmbda": 0.0, "top_p": 0.9}, "--top_p"),
        ({"ref_model": "x"}, "--ref_model"),
        ({"reward_funcs": ["format"]}, "--reward_funcs"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RlhfConfig(rlhf_type="gkd", model="m", dataset=["d"], tuner_type="full", **settings)
    assert where in {problem.where for problem in caught.value.problems}
