"""Parameter groups and schedules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from swift_core.config.sections import OptimSection
from swift_core.errors import ConfigError, ModelError
from swift_core.models.loading import load_model
from swift_core.testing.tiny_multimodal import make_tiny_multimodal
from swift_core.train.optim import make_optimizer, make_scheduler, parameter_groups, warmup_steps
from torch import nn


def test_vectors_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    groups = parameter_groups(model, OptimSection(weight_decay=0.3, learning_rate=1e-3))
    assert {(group["weight_decay"], len(group["params"])) for group in groups} == {(0.3, 1), (0.0, 3)}


def test_towers_and_aligner_have_rates_of_their_own(tmp_path: Path) -> None:
    from swift_core.config.sections import ModelSection

    folder = make_tiny_multimodal("llava", tmp_path / "m")
    model = load_model(ModelSection(model=str(folder)), folder, dtype=torch.float32)
    model.requires_grad_(True)
    section = OptimSection(learning_rate=1e-3, vit_lr=1e-5, aligner_lr=1e-4)
    optimizer = make_optimizer(model, section)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    expected = {"vision_tower": 1e-5, "multi_modal_projector": 1e-4, "language_model": 1e-3}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == next((rate for part, rate in expected.items() if part in name), 1e-3), name
    model.requires_grad_(False)
    next(parameter for name, parameter in model.named_parameters() if "language_model" in name).requires_grad_(True)
    with pytest.raises(ModelError, match="--vit_lr: this run trains no such part"):
        make_optimizer(model, section)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ModelError, match="no parameter is trainable"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimSection())


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"])
def test_every_optimizer_takes_a_step(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = make_optimizer(model, OptimSection(optim=name, learning_rate=1e-2))  # type: ignore[arg-type]
    data = torch.randn(8, 3)
    losses = []
    for _ in range(20):
        loss = (model(data) - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_schedules_warm_up_and_end() -> None:
    section = OptimSection(learning_rate=1.0, warmup_ratio=0.25, lr_scheduler_type="linear")
    optimizer = make_optimizer(nn.Linear(1, 1), section)
    scheduler = make_scheduler(optimizer, section, 8)
    assert warmup_steps(section, 8) == 2
    rates = []
    for _ in range(8):
        rates.append(round(scheduler.get_last_lr()[0], 4))
        optimizer.step()
        scheduler.step()
    assert rates == [0.0, 0.5, 1.0, 0.8333, 0.6667, 0.5, 0.3333, 0.1667]
    assert scheduler.get_last_lr()[0] == 0
    odd = OptimSection(lr_scheduler_type="linear", lr_scheduler_kwargs={"num_cyles": 2})
    with pytest.raises(ConfigError, match="linear does not take this"):
        make_scheduler(optimizer, odd, 8)
