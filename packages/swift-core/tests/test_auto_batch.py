"""The token budget that is tried out before the first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.config.training import SftConfig
from swift_core.errors import ConfigError
from swift_core.protocols import EncodedSample
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.auto_batch import SMALLEST, Tried, search
from swift_core.train.trainer import Trainer
from transformers import AutoModelForCausalLM

MIB = 2**20


def attempts(*, rate: Callable[[int], float], limit: int = 10**9) -> tuple[Callable[[int], Tried | None], list[int]]:
    asked: list[int] = []

    def attempt(budget: int) -> Tried | None:
        asked.append(budget)
        return Tried(budget, budget * MIB, budget / rate(budget)) if budget <= limit else None

    return attempt, asked


@pytest.mark.parametrize(
    ("speeds", "limit", "largest", "room", "found"),
    [
        ({}, 10**9, 16384, 10**15, 1024),  # no faster: the smallest
        ({2048: 150, 4096: 200}, 10**9, 16384, 10**15, 4096),
        ({2048: 150, 4096: 200, 8192: 300}, 4096, 16384, 10**15, 4096),  # runs out of memory at 8192
        ({2048: 150, 4096: 200, 8192: 300}, 10**9, 16384, 5000 * MIB, 4096),  # 8192 would not fit, and is not tried
        ({2048: 150, 4096: 200}, 10**9, 3000, 10**15, 2048),  # a step holds no more than 3000
        ({}, 10**9, 300, 10**15, 300),
        ({}, 10**9, 16384, 900 * MIB, 512),  # the first is too much already
    ],
)
def test_the_budget_is_the_fastest_that_fits(speeds: dict[int, int], limit: int, largest: int, room: float, found: int) -> None:
    attempt, asked = attempts(rate=lambda budget: speeds.get(budget, 100), limit=limit)
    assert search(attempt, smallest=1024, largest=largest, room=room) == found
    assert max(asked) * MIB <= max(room, 1024 * MIB)


def settings(folder: Path, output: Path, **values: Any) -> dict[str, Any]:
    return {
        "model": str(folder), "dataset": ["x"], "tuner_type": "full", "output_dir": str(output), "add_version": False, "report_to": ["none"],
        "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 2,
        "save_steps": 1, **values,
    }  # fmt: skip


def test_the_budget_is_kept_in_the_settings_and_by_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    samples = [EncodedSample([5 + (n + at) % 300 for at in range(20 + n)], [5 + (n + at) % 300 for at in range(20 + n)]) for n in range(12)]

    def run(**values: Any) -> Trainer:
        args = SftConfig(**settings(folder, tmp_path / "run", auto_batch=True, **values))
        trainer = Trainer(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), args, samples)
        trainer.train()
        return trainer

    first = run()
    kept = json.loads((tmp_path / "run" / "checkpoint-1" / "args.json").read_text(encoding="utf-8"))
    assert first.shape.token_budget == kept["per_device_token_budget"] == 31 + 30 + 29 + 28  # the fullest step; SMALLEST is more
    assert kept["per_device_token_budget"] < SMALLEST
    assert kept["auto_batch"] is False
    assert f"--auto_batch: {kept['per_device_token_budget']} tokens" in capsys.readouterr().err
    assert all(parameter.grad is None for parameter in first.model.parameters())

    def again(*args: Any, **more: Any) -> int:
        raise AssertionError("a resumed run tried budgets once more")

    monkeypatch.setattr("swift_core.train.trainer.find_budget", again)
    second = run(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert second.shape.token_budget == kept["per_device_token_budget"]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"per_device_token_budget": 2048}, "which is given"),
        ({"padding_free": False}, "in rows"),
        ({"fsdp": ["full_shard"]}, "weights are spread"),
        ({"task_type": "embedding"}, "next-token prediction"),
    ],
)
def test_settings_that_leave_nothing_to_find_are_refused(tmp_path: Path, values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=f"--auto_batch.*{why}"):
        SftConfig(**settings(tmp_path, tmp_path, auto_batch=True, **values))
