"""Processes that share the tokens of each row train as one process does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from swift_core.testing.ranks import copy_checkpoint, largest_difference, losses, on_ranks, train
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.checkpoint import why_invalid

pytestmark = pytest.mark.e2e  # several processes

PEFT = importlib.util.find_spec("peft") is not None
ALONE: dict[str, Any] = {"gradient_accumulation_steps": 4, "longest": 40}
RING, ULYSSES = ({"sequence_parallel_size": 2, "sequence_parallel_mode": mode, **ALONE} for mode in ("ring", "ulysses"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """One process, and two that share rows."""
    folder = tmp_path_factory.mktemp("sequence")
    plain = str(make_tiny_model(folder / "plain"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WORLD_SIZE", raising=False)
        train(plain, str(folder / "alone"), **ALONE)
        if PEFT:
            train(plain, str(folder / "lora_alone"), lora=True, **ALONE)
    jobs: list[dict[str, Any]] = [
        {"name": "ulysses", **ULYSSES},
        {"name": "ring", **RING},
        {"name": "ulysses_on", **ULYSSES, "resume": str(folder / "ulysses" / "checkpoint-2")},
        {"name": "ring_on", **RING, "resume": str(folder / "ring" / "checkpoint-2")},
        {"name": "ring_checkpointed", **RING, "gradient_checkpointing": True},
        {"name": "fsdp_ulysses", **ULYSSES, "fsdp": ["full_shard"]},
        {"name": "fsdp_ring_from_alone", **RING, "fsdp": ["full_shard"], "resume": str(folder / "alone" / "checkpoint-2")},
    ]
    jobs += [{"name": "ring_lora", **RING, "lora": True}] if PEFT else []
    for job in jobs:
        job.update(model_folder=plain, out=str(folder / job["name"]))
    return folder, on_ranks(jobs, folder)


NAMES = ["ulysses", "ring", "ulysses_on", "ring_on", "ring_checkpointed", "fsdp_ulysses", "fsdp_ring_from_alone"]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_that_share_rows_train_as_one_process(runs: tuple[Path, dict[str, str]], name: str) -> None:
    folder, done = runs
    assert done[name] == ("FullySharded FSDPLossModule 2" if "fsdp" in name else "Engine DistributedDataParallel 2")
    found = losses(folder / name)
    assert len(found) == (3 if "_on" in name or "_from" in name else 6)
    assert found == pytest.approx(losses(folder / "alone")[-len(found) :], abs=2e-5)
    assert why_invalid(folder / name / "checkpoint-4") is None
    assert largest_difference(folder / "alone" / "checkpoint-4", folder / name / "checkpoint-4") < 2e-5


@pytest.mark.skipif(not PEFT, reason="needs peft")
def test_adapters_train_on_shared_rows(runs: tuple[Path, dict[str, str]]) -> None:
    folder, _ = runs
    assert losses(folder / "ring_lora") == pytest.approx(losses(folder / "lora_alone"), abs=2e-5)
    name, last = "adapter_model.safetensors", "checkpoint-4"
    assert largest_difference(folder / "lora_alone" / last, folder / "ring_lora" / last, name) < 2e-5


def test_one_process_goes_on_from_shared_rows(runs: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, _ = runs
    target = copy_checkpoint(folder / "ring" / "checkpoint-2", tmp_path)
    train(str(folder / "plain"), str(tmp_path), str(target), **ALONE)
    assert losses(tmp_path) == pytest.approx(losses(folder / "alone")[-3:], abs=2e-5)


def test_groups_that_share_rows_share_out_the_samples(runs: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    plain = str(runs[0] / "plain")
    mesh: dict[str, Any] = {"model_folder": plain, "longest": 40, "gradient_accumulation_steps": 2, "sequence_parallel_size": 2}
    jobs = [
        {"name": "two_by_two", "out": str(tmp_path / "two_by_two"), **mesh},
        {"name": "ring_of_four", "out": str(tmp_path / "ring_of_four"), **mesh, **ALONE, "sequence_parallel_size": 4},
    ]
    done = on_ranks(jobs, tmp_path, ranks=4)
    for name in done:
        assert done[name] == "Engine DistributedDataParallel 4"
        assert losses(tmp_path / name) == pytest.approx(losses(runs[0] / "alone"), abs=2e-5)
