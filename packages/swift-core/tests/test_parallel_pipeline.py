"""Processes that hold successive layers train as one process does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from swift_core.testing.ranks import copy_checkpoint, largest_difference, losses, on_ranks, train
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.checkpoint import why_invalid
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.e2e  # several processes

PEFT = importlib.util.find_spec("peft") is not None
# Few tokens in a micro-batch, so that there are several to keep two stages busy.
ALONE: dict[str, Any] = {"gradient_accumulation_steps": 4, "longest": 40, "per_device_token_budget": 64}
STAGES: dict[str, Any] = {"pipeline_parallel_size": 2, **ALONE}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """One process, and two stages, with an untied and a tied model."""
    folder = tmp_path_factory.mktemp("pipeline")
    for name in ("plain", "tied"):
        make_tiny_model(folder / name, layers=3, tie_word_embeddings=name == "tied")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WORLD_SIZE", raising=False)
        for name in ("plain", "tied"):
            train(str(folder / name), str(folder / f"{name}_alone"), **ALONE)
        if PEFT:
            train(str(folder / "plain"), str(folder / "lora_alone"), lora=True, **ALONE)
    jobs: list[dict[str, Any]] = [
        {"name": "plain", **STAGES},
        {"name": "plain_gpipe", **STAGES, "pipeline_parallel_schedule": "gpipe"},
        {"name": "tied", **STAGES, "gradient_checkpointing": True},
        {"name": "plain_on", **STAGES, "resume": str(folder / "out" / "plain" / "checkpoint-2")},
        {"name": "plain_from_alone", **STAGES, "resume": str(folder / "plain_alone" / "checkpoint-2")},
        {"name": "plain_too_many", **STAGES, "pipeline_parallel_size": 4},
    ]
    jobs += [{"name": "plain_lora", **STAGES, "lora": True}] if PEFT else []
    for job in jobs:
        job.update(model_folder=str(folder / job["name"].split("_")[0]), out=str(folder / "out" / job["name"]))
    return folder, on_ranks(jobs, folder)


@pytest.mark.parametrize("name", ["plain", "plain_gpipe", "tied", "plain_on", "plain_from_alone"])
def test_two_stages_train_as_one_process(runs: tuple[Path, dict[str, str]], name: str) -> None:
    folder, done = runs
    reference, run = folder / f"{name.split('_')[0]}_alone", folder / "out" / name
    assert done[name] == "PipelineParallel LossModule 2"
    found = losses(run)
    assert len(found) == (3 if "_on" in name or "_from" in name else 6)
    assert found == pytest.approx(losses(reference)[-len(found) :], abs=2e-5)
    last = run / "checkpoint-4"
    assert why_invalid(last) is None
    assert largest_difference(reference / "checkpoint-4", last) < 2e-5
    assert not any(weight.is_meta for weight in AutoModelForCausalLM.from_pretrained(last).parameters())


@pytest.mark.skipif(not PEFT, reason="needs peft")
def test_adapters_train_in_stages(runs: tuple[Path, dict[str, str]]) -> None:
    folder, _ = runs
    run, name = folder / "out" / "plain_lora", "adapter_model.safetensors"
    assert losses(run) == pytest.approx(losses(folder / "lora_alone"), abs=2e-5)
    assert largest_difference(folder / "lora_alone" / "checkpoint-4", run / "checkpoint-4", name) < 2e-5


def test_one_process_goes_on_from_stages(runs: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, _ = runs
    target = copy_checkpoint(folder / "out" / "plain" / "checkpoint-2", tmp_path)
    train(str(folder / "plain"), str(tmp_path), str(target), **ALONE)
    assert losses(tmp_path) == pytest.approx(losses(folder / "plain_alone")[-3:], abs=2e-5)


def test_more_stages_than_processes_are_refused(runs: tuple[Path, dict[str, str]]) -> None:
    assert "--pipeline_parallel_size 4: there are 2 processes" in runs[1]["plain_too_many"]


def test_groups_of_stages_share_out_the_samples(runs: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    job = {**STAGES, "gradient_accumulation_steps": 2, "model_folder": str(runs[0] / "tied"), "out": str(tmp_path / "mesh"), "name": "mesh"}
    assert on_ranks([job], tmp_path, ranks=4) == {"mesh": "PipelineParallel LossModule 4"}
    assert losses(tmp_path / "mesh") == pytest.approx(losses(runs[0] / "tied_alone"), abs=2e-5)
    assert largest_difference(runs[0] / "tied_alone" / "checkpoint-4", tmp_path / "mesh" / "checkpoint-4") < 2e-5
