"""Losses of channels and data files: they add up to the loss of all samples, over micro-batches, ranks and resumed runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from swift_core.batching.collate import collate
from swift_core.config.training import SftConfig, TrainingConfig
from swift_core.errors import ConfigError
from swift_core.protocols import EncodedSample
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.channels import ChannelLm, dataset_of, trained_by_sample
from swift_core.train.plot import plot_run
from swift_core.train.report import read_log
from swift_core.train.trainer import Trainer
from transformers import AutoModelForCausalLM, PreTrainedModel


def sample(number: int, *, channel: str | None, file: str, untrained: int = 2) -> EncodedSample:
    ids = [(number * 7 + at) % 400 + 10 for at in range(5 + number % 4)]
    weights = [0.5] * len(ids) if number % 3 == 0 else None
    return EncodedSample(ids, [-100] * untrained + ids[untrained:], f"{file}:{number}", channel=channel, loss_scale=weights)


SAMPLES = [sample(n, channel=("chat", "code", None)[n % 3], file="data/a.jsonl" if n < 7 else "b.jsonl") for n in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("channels") / "model")


def model_of(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def alone() -> Any:
    return SimpleNamespace(gather=lambda value: [value], sharing=1)


@pytest.mark.parametrize("packed", [True, False])
def test_sums_of_channels_and_of_files_are_the_loss_of_all(folder: Path, tmp_path: Path, packed: bool) -> None:
    budget = {"per_device_token_budget": 24} if packed else {}
    args = TrainingConfig(
        output_dir=str(tmp_path), add_version=False, max_steps=4, per_device_train_batch_size=3, gradient_accumulation_steps=2,
        logging_steps=2, report_to=["none"], save_strategy="no", use_cpu=True, disable_tqdm=True, **budget,
    )  # fmt: skip
    output = Trainer(model_of(folder), args, SAMPLES, task=ChannelLm(alone(), packs=packed)).train()
    lines = [line for line in read_log(output.run_dir) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 4]
    before = 0
    for line in lines:
        trained = line["trained_tokens"] - before
        before = line["trained_tokens"]
        for kind in ("channel", "dataset"):
            names = [key.partition("/")[2] for key in line if key.startswith(f"{kind}_loss/")]
            assert sum(line[f"{kind}_tokens/{name}"] for name in names) == trained
            total = sum(line[f"{kind}_loss/{name}"] * line[f"{kind}_tokens/{name}"] for name in names)
            assert total == pytest.approx(line["loss"] * trained, rel=1e-5)
    assert {key for key in lines[-1] if key.startswith("channel_loss/")} == {f"channel_loss/{n}" for n in ("chat", "code", "none")}
    assert {key for key in lines[-1] if key.startswith("dataset_loss/")} == {"dataset_loss/a.jsonl", "dataset_loss/b.jsonl"}
    assert plot_run(lines, tmp_path / "plot.png")


def test_ranks_are_added_up_and_those_that_share_samples_count_once(folder: Path) -> None:
    other = {"channel/chat": [10.0, 4.0], "channel/new": [3.0, 2.0]}
    world: Any = SimpleNamespace(gather=lambda value: [value, {"channel/chat": [99.0, 1.0]}, other, {}], sharing=2)
    task = ChannelLm(world, packs=True)
    model, batch = model_of(folder), collate(SAMPLES[:4], pad_token_id=0, packed=True)
    task.begin_step(model, [batch])
    loss = task.loss(model, batch)
    task.loss(model, batch.masked())
    task.end_step(model, 1)
    found = task.log_values()
    own = found["channel_loss/chat"] * found["channel_tokens/chat"] - 10
    rest = sum(found[f"channel_loss/{name}"] * found[f"channel_tokens/{name}"] for name in ("code", "none"))
    assert own + rest == pytest.approx(float(loss.detach()), rel=1e-5)
    assert (found["channel_loss/new"], found["channel_tokens/new"]) == (1.5, 2)
    assert not any(key.startswith("dataset") for key in found)  # one file: its loss is that of all
    assert task.log_values() == {}


def test_a_resumed_run_logs_the_whole_window(folder: Path, tmp_path: Path) -> None:
    first, second = ChannelLm(alone(), packs=True), ChannelLm(alone(), packs=True)
    model, batch = model_of(folder), collate(SAMPLES, pad_token_id=0, packed=True)
    first.begin_step(model, [batch])
    first.loss(model, batch)
    first.end_step(model, 1)
    first.save_state(tmp_path)
    second.load_state(tmp_path)
    assert second.log_values() == first.log_values() != {}
    second.load_state(tmp_path / "older")
    assert second.log_values() == {}


@pytest.mark.parametrize("packed", [True, False])
def test_trained_tokens_of_each_sample(packed: bool) -> None:
    batch = collate(SAMPLES, pad_token_id=0, packed=packed)
    assert trained_by_sample(batch) == [one.trained_tokens for one in SAMPLES]
    assert sum(trained_by_sample(batch.masked())) == 0


@pytest.mark.parametrize(
    ("origin", "name"), [("data/a.jsonl:12", "a.jsonl"), ("b.jsonl:3#2", "b.jsonl"), ("c.parquet#7", "c.parquet"), ("self-cognition:5", "self-cognition")]
)  # fmt: skip
def test_names_of_files(origin: str, name: str) -> None:
    assert dataset_of(origin) == name


def test_other_tasks_refuse_channels() -> None:
    common: dict[str, Any] = {"model": "m", "dataset": ["x"], "tuner_type": "full", "enable_channel_loss": True}
    assert SftConfig(**common).reporting.enable_channel_loss
    with pytest.raises(ConfigError, match="next-token prediction"):
        SftConfig(**common, task_type="embedding")
