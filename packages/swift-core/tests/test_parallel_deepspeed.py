"""DeepSpeed trains as one process does, and its checkpoints go from any layout to any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from swift_core.testing.ranks import copy_checkpoint, largest_difference, losses, on_ranks, train
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.checkpoint import why_invalid
from transformers import AutoModelForCausalLM

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.e2e  # two processes and a compiler

ALONE, BOTH = {"gradient_accumulation_steps": 4}, {"gradient_accumulation_steps": 2}
LOSS, WEIGHT = 2e-5, 5e-5


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """One process, and two with each stage from the start and from checkpoints of others."""
    folder = tmp_path_factory.mktemp("deepspeed")
    plain = str(make_tiny_model(folder / "plain"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WORLD_SIZE", raising=False)
        train(plain, str(folder / "alone"), **ALONE)
    jobs: list[dict[str, Any]] = [{"name": stage, "deepspeed": stage} for stage in ("zero1", "zero2", "zero3")]
    for stage, source in (("zero2", "zero2"), ("zero3", "zero3"), ("zero3", "alone"), ("zero2", "zero3")):
        jobs.append({"name": f"{stage}_from_{source}", "deepspeed": stage, "resume": str(folder / source / "checkpoint-2")})
    shared = {"sequence_parallel_size": 2, **ALONE}
    jobs.append({"name": "zero2_ulysses", "deepspeed": "zero2", "sequence_parallel_mode": "ulysses", **shared})
    jobs.append({"name": "zero3_ring", "deepspeed": "zero3", "sequence_parallel_mode": "ring", **shared})
    for job in jobs:
        job.update({"model_folder": plain, "out": str(folder / job["name"]), **BOTH, **job})
    return folder, on_ranks(jobs, folder)


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3", "zero2_ulysses", "zero3_ring"])
def test_each_stage_trains_as_one_process(runs: tuple[Path, dict[str, str]], stage: str) -> None:
    folder, done = runs
    assert done[stage] == "ZeroEngine DeepSpeedEngine 2"
    assert losses(folder / stage) == pytest.approx(losses(folder / "alone"), abs=LOSS)
    last = folder / stage / "checkpoint-4"
    assert why_invalid(last) is None
    assert largest_difference(folder / "alone" / "checkpoint-4", last) < WEIGHT
    assert sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(last).parameters()) > 0


@pytest.mark.parametrize("name", ["zero2_from_zero2", "zero3_from_zero3", "zero3_from_alone", "zero2_from_zero3"])
def test_two_ranks_go_on_from_any_layout(runs: tuple[Path, dict[str, str]], name: str) -> None:
    folder, done = runs
    assert done[name] == "ZeroEngine DeepSpeedEngine 2"
    assert losses(folder / name) == pytest.approx(losses(folder / "alone")[-3:], abs=LOSS)
    assert largest_difference(folder / "alone" / "checkpoint-4", folder / name / "checkpoint-4") < WEIGHT


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_one_process_goes_on_from_deepspeed(runs: tuple[Path, dict[str, str]], stage: str, tmp_path: Path) -> None:
    folder, _ = runs
    target = copy_checkpoint(folder / stage / "checkpoint-2", tmp_path)
    train(str(folder / "plain"), str(tmp_path), str(target), **ALONE)
    assert losses(tmp_path) == pytest.approx(losses(folder / "alone")[-3:], abs=LOSS)
    assert largest_difference(folder / "alone" / "checkpoint-4", tmp_path / "checkpoint-4") < WEIGHT
