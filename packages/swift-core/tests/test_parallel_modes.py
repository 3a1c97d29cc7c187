"""Two processes that spread a model train it as one process does; checkpoints go from any layout to any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from swift_core.errors import TrainingError
from swift_core.testing.ranks import copy_checkpoint, largest_difference, losses, on_ranks, train
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.checkpoint import why_invalid

pytestmark = pytest.mark.e2e  # two processes and a compiler

ALONE, BOTH = {"gradient_accumulation_steps": 4}, {"gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training by one process, with an untied and a tied model."""
    folder = tmp_path_factory.mktemp("alone")
    for name, tied in (("plain", False), ("tied", True)):
        make_tiny_model(folder / name, tie_word_embeddings=tied)
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("WORLD_SIZE", raising=False)
            train(str(folder / name), str(folder / f"{name}_run"), **ALONE)
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
    return folder, on_ranks(jobs, folder)


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
    assert largest_difference(reference / "checkpoint-4", folder / name / "checkpoint-4") < 2e-5


@pytest.mark.parametrize("name", ["fsdp_from_one", "tensor_from_one"])
def test_two_ranks_go_on_from_one_process(alone: Path, together: tuple[Path, dict[str, str]], name: str) -> None:
    folder, _ = together
    assert losses(folder / name) == pytest.approx(losses(alone / "plain_run")[-3:], abs=2e-5)
    assert largest_difference(alone / "plain_run" / "checkpoint-4", folder / name / "checkpoint-4") < 2e-5


@pytest.mark.parametrize("name", ["fsdp", "tensor"])
def test_one_process_goes_on_from_two_ranks(alone: Path, together: tuple[Path, dict[str, str]], name: str, tmp_path: Path) -> None:
    target = copy_checkpoint(together[0] / name / "checkpoint-2", tmp_path)
    train(str(alone / "plain"), str(tmp_path), str(target), **ALONE)
    assert losses(tmp_path) == pytest.approx(losses(alone / "plain_run")[-3:], abs=2e-5)
    assert largest_difference(alone / "plain_run" / "checkpoint-4", tmp_path / "checkpoint-4") < 2e-5
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
        train(str(alone / "plain"), str(tmp_path), saved, gradient_accumulation_steps=3)
