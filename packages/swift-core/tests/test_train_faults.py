"""Faults that a run of one process survives, and runs that go on as if nothing had happened."""

from __future__ import annotations

import errno
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core import Seq2SeqTrainingArguments, get_model_tokenizer
from swift_core.errors import CheckpointError, Interrupted, TrainingError
from swift_core.protocols import EncodedSample
from swift_core.testing.faults import STEPS, AtStep, Trial, damaged_files, killed_saves, resumes_equal, small_trainer
from swift_core.testing.ranks import COMMON, largest_difference, make_samples
from swift_core.testing.tiny import make_tiny_model
from swift_core.train import checkpoint
from swift_core.train.checkpoint import list_checkpoints
from swift_core.train.module import LossModule
from swift_core.train.report import JsonlSink, TensorBoardSink, read_log
from swift_core.train.trainer import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs, with evaluations."""
    run_dir = tmp_path_factory.mktemp("whole")
    small_trainer(model, run_dir, **EVALUATED).train()
    return run_dir


EVALUATED: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 1}


def lost(trials: list[Trial]) -> list[Trial]:
    assert trials
    return [trial for trial in trials if not trial.survived]


def names(run_dir: Path) -> list[str]:
    return [folder.name for folder in list_checkpoints(run_dir)]


def curves(run_dir: Path) -> list[tuple[Any, ...]]:
    return [tuple(line.get(name) for name in ("step", "loss", "eval_loss", "learning_rate", "grad_norm")) for line in read_log(run_dir)]


def test_killed_at_any_point_of_a_save_it_goes_on(model: Path, tmp_path: Path) -> None:
    trials = killed_saves(model, tmp_path, tries=20, resume_all=False)
    assert lost(trials) == []
    assert {trial.seen for trial in trials} == {"went on from checkpoint-2", "went on from checkpoint-4"}


def test_damage_to_any_file_is_noticed(whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    trials = damaged_files(run_dir)
    assert lost(trials) == []
    assert {"optimizer.pt cut", "rng_state_0.pth one bit flipped", "manifest.json cut"} <= {trial.detail for trial in trials}


def fail_to_save(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    usual = checkpoint.seal

    def seal(folder: Path) -> None:
        if int(folder.name.rpartition("-")[2]) in steps:
            raise OSError(errno.ENOSPC, "No space left on device")
        usual(folder)

    monkeypatch.setattr(checkpoint, "seal", seal)


def test_a_save_that_fails_on_the_way_is_told_and_the_run_goes_on(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_to_save({4}, monkeypatch)
    small_trainer(model, tmp_path, save_total_limit=1, **EVALUATED).train()
    assert "warning: checkpoint" in capsys.readouterr().err
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]  # the newest but one, and the best
    assert largest_difference(tmp_path / "checkpoint-6", whole / "checkpoint-6") == 0


def test_a_last_save_that_fails_is_an_error_and_the_best_is_the_one_that_is_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_save({4, 6}, monkeypatch)
    run = small_trainer(model, tmp_path, save_total_limit=1, **EVALUATED)
    with pytest.raises(CheckpointError, match=r"checkpoint-6 could not be written.*No space left.*go on from .*checkpoint-2"):
        run.train()
    assert names(tmp_path) == ["checkpoint-2"]
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_an_error_of_the_program_is_no_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seal(folder: Path) -> None:
        raise KeyError("a slip")

    monkeypatch.setattr(checkpoint, "seal", seal)
    with pytest.raises(KeyError, match="a slip"):
        small_trainer(model, tmp_path).train()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_evaluation_stops_at_a_signal_and_is_made_up_for(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    usual, measured = LossModule.measure, []

    def measure(self: LossModule, batch: Any) -> Any:
        measured.append(batch)
        signal.raise_signal(number)
        return usual(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(LossModule, "measure", measure)
        with pytest.raises(Interrupted) as caught:
            small_trainer(model, tmp_path, **EVALUATED).train()
    assert caught.value.exit_code == code
    assert len(measured) == 1 and names(tmp_path) == ["checkpoint-2"]
    assert resumes_equal(model, tmp_path, whole, **EVALUATED)
    assert curves(tmp_path) == curves(whole)


def test_a_signal_during_a_save_costs_no_further_step(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = checkpoint.seal

    def seal(folder: Path) -> None:
        signal.raise_signal(signal.SIGTERM)
        usual(folder)

    monkeypatch.setattr(checkpoint, "seal", seal)
    with pytest.raises(Interrupted):
        small_trainer(model, tmp_path).train()
    assert names(tmp_path) == ["checkpoint-2"]
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]


def test_an_infinite_gradient_stops_before_the_update(model: Path, tmp_path: Path) -> None:
    kept: dict[str, torch.Tensor] = {}

    def spoil() -> None:
        kept.update({name: value.clone() for name, value in run.model.state_dict().items()})
        next(run.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))

    run = small_trainer(model, tmp_path, callbacks=[AtStep(2, spoil)])
    with pytest.raises(TrainingError, match="gradient of step 3 is not finite"):
        run.train()
    assert all(torch.equal(value, kept[name]) for name, value in run.model.state_dict().items())


class Numbered(Iterator[EncodedSample]):
    """Samples without end."""

    def __init__(self) -> None:
        self.position = 0
        self._samples = make_samples()

    def __next__(self) -> EncodedSample:
        self.position += 1
        return self._samples[self.position * 7 % len(self._samples)]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@pytest.mark.parametrize(
    ("stream", "settings"),
    [
        (False, {"save_steps": 7, "max_steps": 12}),
        (True, {"save_steps": 4}),
        (True, {"save_steps": 4, "packing": True, "packing_length": 24}),
    ],
)
def test_resumed_in_a_later_epoch_or_a_stream_it_is_the_same_run(
    model: Path, tmp_path: Path, stream: bool, settings: dict[str, Any]
) -> None:
    """20 samples are 5 steps: step 7 is in the second epoch, and the third one begins before step 12."""

    def run(out: Path, resume: bool = False) -> Any:
        if not stream:
            return small_trainer(model, out, **settings).train(str(out) if resume else None)
        loaded, tokenizer = get_model_tokenizer(model)
        usual = {**COMMON, "eval_strategy": "no", "max_steps": STEPS, "gradient_accumulation_steps": 2, **settings}
        arguments = Seq2SeqTrainingArguments(output_dir=str(out), **usual)
        return Trainer(loaded, arguments, Numbered(), tokenizer=tokenizer).train(str(out) if resume else None)

    last = run(tmp_path / "whole").last_checkpoint
    (tmp_path / "cut").mkdir()
    saved = f"checkpoint-{settings['save_steps']}"
    shutil.copytree(tmp_path / "whole" / saved, tmp_path / "cut" / saved)
    resumed = run(tmp_path / "cut", resume=True)
    assert largest_difference(resumed.last_checkpoint, last) == 0
    assert curves(tmp_path / "cut") == curves(tmp_path / "whole")[settings["save_steps"] :]


def test_a_run_that_was_moved_goes_on_and_still_knows_its_best(model: Path, whole: Path, tmp_path: Path) -> None:
    best_first: dict[str, Any] = {**EVALUATED, "save_total_limit": 1, "greater_is_better": True}  # the loss falls: the first one stays best
    small_trainer(model, tmp_path / "old", max_steps=4, **best_first).train()
    assert names(tmp_path / "old") == ["checkpoint-2", "checkpoint-4"]
    (tmp_path / "old").rename(tmp_path / "new")
    output = small_trainer(model, tmp_path / "new", **best_first).train(resume_from_checkpoint=str(tmp_path / "new"))
    assert output.best_checkpoint == tmp_path / "new" / "checkpoint-2"
    assert names(tmp_path / "new") == ["checkpoint-2", "checkpoint-6"]
    assert not (tmp_path / "old").exists()


class FullDisk:
    """A file on a disk that takes half of a line, then nothing, until there is room again."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.name = "logging.jsonl"
        self.room = 10**9

    def write(self, data: bytes) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self._file.write(data[: self.room])
        self.room -= taken
        return taken

    def close(self) -> None:
        self._file.close()


def test_no_line_of_the_log_is_lost_or_cut_by_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = JsonlSink(tmp_path / "logging.jsonl", resumed_step=0)
    disk = FullDisk(sink._file)
    sink._file = disk  # pyright: ignore[reportAttributeAccessIssue]
    sink.log({"step": 1})
    disk.room = 5
    for step in (2, 3):
        sink.log({"step": step})
    assert [line["step"] for line in read_log(tmp_path)] == [1]
    disk.room = 10**9
    sink.log({"step": 4})
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]
    assert caplog.text.count("cannot be written for now") == 1
    sink.close()


def test_curves_have_each_step_once_after_a_resume_though_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was killed after step 4 and resumed from a checkpoint of step 2."""
    now = time.time
    for resumed, steps, back in ((0, (1, 2, 3, 4), 0.0), (2, (3, 4, 5), 3600.0)):
        monkeypatch.setattr(time, "time", lambda back=back: now() - back)
        sinks = [TensorBoardSink(tmp_path / "runs", resumed_step=resumed), JsonlSink(tmp_path / "logging.jsonl", resumed_step=resumed)]
        for step in steps:
            for sink in sinks:
                sink.log({"step": step, "loss": 10.0 * step + resumed})
        for sink in sinks:
            sink.close()
    events = EventAccumulator(str(tmp_path / "runs")).Reload().Scalars("train/loss")
    wanted = [(1, 10.0), (2, 20.0), (3, 32.0), (4, 42.0), (5, 52.0)]
    assert [(event.step, event.value) for event in events] == wanted
    assert [(line["step"], line["loss"]) for line in read_log(tmp_path)] == wanted


def test_a_killed_run_has_shown_all_its_steps(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path, resumed_step=0)
    sink.log({"step": 1, "loss": 1.0})
    assert [event.step for event in EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")] == [1]
    sink.close()
