"""Faults of two ranks, of `swift sft` in each stage, and of a real disk; the same ones as `tools/faults.py` tries."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from swift_core.cli.main import main
from swift_core.testing.faults import STAGES, full_disk, interrupted, small_disk
from swift_core.testing.rank_faults import hung_rank, killed_rank, nonsense_of_a_rank, stopped_rank
from swift_core.testing.tiny import make_tiny_model

pytestmark = pytest.mark.e2e  # several processes at once


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_to_one_rank_saves_on_all_and_resumes_bit_for_bit(model: Path, tmp_path: Path, rank: int, number: signal.Signals) -> None:
    trial = stopped_rank(model, tmp_path, rank, number)
    assert trial.survived, trial.seen


def test_nan_on_one_rank_stops_all_before_the_update(model: Path, tmp_path: Path) -> None:
    trial = nonsense_of_a_rank(model, tmp_path)
    assert trial.survived, trial.seen


@pytest.mark.parametrize("holding", [False, True])
def test_a_rank_that_hangs_ends_the_job_and_shows_where(model: Path, tmp_path: Path, holding: bool) -> None:
    trial = hung_rank(model, tmp_path, holding=holding)
    assert trial.survived, trial.seen


def test_a_rank_that_dies_ends_the_others(model: Path, tmp_path: Path) -> None:
    trial = killed_rank(model, tmp_path)
    assert trial.survived, trial.seen


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_any_stage_leaves_nothing_over(model: Path, tmp_path: Path, stage: str, number: signal.Signals) -> None:
    trial, _ = interrupted(main, model, tmp_path / "run", stage, number)
    assert trial.survived, trial.seen


@pytest.mark.parametrize("freed", [True, False])
def test_a_full_disk_keeps_the_checkpoint_before(model: Path, tmp_path: Path, freed: bool) -> None:
    try:
        with small_disk(tmp_path / "disk") as disk:
            trial = full_disk(model, disk, freed=freed)
    except PermissionError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    assert trial.survived, trial.seen
