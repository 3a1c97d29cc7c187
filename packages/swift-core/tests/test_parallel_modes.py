"""Two processes that spread a model train it as one process does; checkpoints go from any layout to any other."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from swift_core import Seq2SeqTrainer, Seq2SeqTrainingArguments, get_model_tokenizer
from swift_core.errors import SwiftError, TrainingError
from swift_core.protocols import EncodedSample
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.checkpoint import why_invalid
from swift_core.train.report import read_log

pytestmark = pytest.mark.e2e  # two processes and a compiler

STEPS = 4
COMMON: dict[str, Any] = {
    "add_version": False, "learning_rate": 1e-2, "max_steps": STEPS, "per_device_train_batch_size": 2, "logging_steps": 1,
    "report_to": ["none"], "use_cpu": True, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
}  # fmt: skip
ALONE, BOTH = {"gradient_accumulation_steps": 4}, {"gradient_accumulation_steps": 2}


def samples(count: int = 20) -> list[EncodedSample]:
    made = []
    for index in range(count):
        ids = [(index * 31 + place * 7) % 200 + 10 for place in range(5 + index % 7)]
        made.append(EncodedSample(ids, [-100, *ids[1:]], f"made:{index}"))
    return made


def run(model_folder: str, out: str, resume: str | None = None, **settings: Any) -> Seq2SeqTrainer:
    model, tokenizer = get_model_tokenizer(model_folder)
    assert model is not None
    arguments = Seq2SeqTrainingArguments(output_dir=out, **{**COMMON, **settings})
    trainer = Seq2SeqTrainer(model, arguments, samples(), samples(5), tokenizer=tokenizer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def on_two_ranks(jobs: Sequence[dict[str, Any]], folder: Path) -> dict[str, str]:
    """Do the jobs one after another on two ranks; returns name -> class of what was trained, or the error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    processes = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        env = {**os.environ, **own, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, __file__, str(folder)]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True))
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors[0][-3000:] + errors[1][-3000:]
    return json.loads((folder / "done.json").read_text())


def _rank(folder: Path) -> None:
    done: dict[str, str] = {}
    for job in json.loads((folder / "jobs.json").read_text()):
        name = job.pop("name")
        try:
            trainer = run(**job)
            done[name] = f"{type(trainer.engine).__name__} {type(trainer.module).__name__} {trainer.world.size}"
        except SwiftError as error:
            done[name] = str(error)
    if os.environ["RANK"] == "0":
        (folder / "done.json").write_text(json.dumps(done))
    torch.distributed.destroy_process_group()


def losses(folder: Path) -> list[float]:
    return [line[name] for line in read_log(folder) for name in ("loss", "eval_loss") if name in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training by one process, with an untied and a tied model."""
    folder = tmp_path_factory.mktemp("alone")
    for name, tied in (("plain", False), ("tied", True)):
        make_tiny_model(folder / name, tie_word_embeddings=tied)
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("WORLD_SIZE", raising=False)
            run(str(folder / name), str(folder / f"{name}_run"), **ALONE)
    return folder


@pytest.fixture(scope="module")
def together(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("together")
    plain, tied, saved = str(alone / "plain"), str(alone / "tied"), str(alone / "plain_run" / "checkpoint-2")
    full, tensor = {"fsdp": ["full_shard"]}, {"tensor_parallel_size": 2, "gradient_accumulation_steps": 4}
    jobs = [
        {"name": "ddp", "model_folder": plain, **BOTH},
        {"name": "fsdp", "model_folder": plain, **BOTH, **full},
        {"name": "fsdp_tied", "model_folder": tied, **BOTH, "fsdp": ["shard_grad_op", "offload"]},
        {"name": "tensor", "model_folder": plain, **tensor},
        {"name": "tensor_tied", "model_folder": tied, **tensor},
        {"name": "fsdp_from_one", "model_folder": plain, **BOTH, **full, "resume": saved},
        {"name": "tensor_from_one", "model_folder": plain, **tensor, "resume": saved},
        {"name": "other_step", "model_folder": plain, **full, "gradient_accumulation_steps": 4, "resume": saved},
    ]
    for job in jobs:
        job["out"] = str(folder / job["name"])
        if "resume" in job:  # a run goes on in the folder of its checkpoint
            copied = folder / job["name"] / "checkpoint-2"
            copied.mkdir(parents=True)
            for file in Path(job["resume"]).iterdir():
                (copied / file.name).write_bytes(file.read_bytes())
            job["resume"] = str(copied)
    return folder, on_two_ranks(jobs, folder)


def same_weights(one: Path, other: Path, *, atol: float = 2e-5) -> None:
    found, expected = load_file(other / "model.safetensors"), load_file(one / "model.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("ddp", "Engine DistributedDataParallel 2"),
        ("fsdp", "FullySharded FSDPLossModule 2"),
        ("fsdp_tied", "FullySharded FSDPLossModule 2"),
        ("tensor", "TensorParallel LossModule 2"),
    ],
)
def test_two_ranks_train_as_one_process(alone: Path, together: tuple[Path, dict[str, str]], name: str, engine: str) -> None:
    folder, done = together
    reference = alone / ("tied_run" if name.endswith("tied") else "plain_run")
    assert done[name] == engine
    assert losses(folder / name) == pytest.approx(losses(reference), abs=2e-5)
    assert why_invalid(folder / name / "checkpoint-4") is None
    same_weights(reference / "checkpoint-4", folder / name / "checkpoint-4")


@pytest.mark.parametrize("name", ["fsdp_from_one", "tensor_from_one"])
def test_two_ranks_go_on_from_one_process(alone: Path, together: tuple[Path, dict[str, str]], name: str) -> None:
    folder, _ = together
    assert losses(folder / name) == pytest.approx(losses(alone / "plain_run")[-3:], abs=2e-5)
    same_weights(alone / "plain_run" / "checkpoint-4", folder / name / "checkpoint-4")


@pytest.mark.parametrize("name", ["fsdp", "tensor"])
def test_one_process_goes_on_from_two_ranks(alone: Path, together: tuple[Path, dict[str, str]], name: str, tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-2"
    target.mkdir()
    for file in (together[0] / name / "checkpoint-2").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    run(str(alone / "plain"), str(tmp_path), str(target), **ALONE)
    assert losses(tmp_path) == pytest.approx(losses(alone / "plain_run")[-3:], abs=2e-5)
    same_weights(alone / "plain_run" / "checkpoint-4", tmp_path / "checkpoint-4")
    kept = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)["param_groups"][0]
    assert kept["foreach"] is None


def test_another_number_of_samples_a_step_is_refused(together: tuple[Path, dict[str, str]]) -> None:
    message = together[1]["other_step"]
    assert "saved with 8 samples a step, by 1 process(es); now a step has 16 (2 x 4 accumulated x 2 devices)" in message
    assert "fix: --gradient_accumulation_steps 2" in message


def test_tensor_parallel_refuses_a_tied_head(together: tuple[Path, dict[str, str]]) -> None:
    assert "embedding and head of this model are one weight" in together[1]["tensor_tied"]


def test_one_process_refuses_another_number_of_samples(alone: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="now a step has 6"):
        saved = str(alone / "plain_run" / "checkpoint-2")
        run(str(alone / "plain"), str(tmp_path), saved, gradient_accumulation_steps=3)


DEEPSPEED = importlib.util.find_spec("deepspeed") is not None


@pytest.mark.skipif(not DEEPSPEED, reason="needs deepspeed")
def test_deepspeed_trains_as_one_process(alone: Path, tmp_path: Path) -> None:
    plain, reference = str(alone / "plain"), alone / "plain_run"
    modes = ("zero2", "zero3")
    jobs = [{"name": mode, "model_folder": plain, "out": str(tmp_path / mode), **BOTH, "deepspeed": mode} for mode in modes]
    done = on_two_ranks(jobs, tmp_path)
    for mode in modes:
        assert done[mode] == "ZeroEngine DeepSpeedEngine 2"
        assert losses(tmp_path / mode) == pytest.approx(losses(reference), abs=2e-5)
        same_weights(reference / "checkpoint-4", tmp_path / mode / "checkpoint-4", atol=1e-4)


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
