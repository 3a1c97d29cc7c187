"""Settings of tuners that need no tuner package: freeze, the backend, what to install."""

from __future__ import annotations

from typing import Any

import pytest
from swift_core.config.training import SftConfig
from swift_core.errors import ConfigError
from swift_core.registry import TUNERS

BASE: dict[str, Any] = {"model": "m", "dataset": ["self-cognition"]}


def problems(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        SftConfig(**BASE, **values)
    return str(caught.value)


def test_freeze_is_full_tuning_that_insists_on_something_to_freeze() -> None:
    config = SftConfig(**BASE, tuner_type="freeze", freeze_parameters_ratio=0.5)
    assert (config.tuner.tuner_type, config.learning_rate) == ("full", 1e-5)
    assert "freeze" in config.source("tuner_type")
    assert "--freeze_parameters_ratio" in problems(tuner_type="freeze")
    assert "--freeze_parameters_ratio" in problems(tuner_type="freeze", trainable_parameters=["lm_head"])
    assert "--freeze_parameters_ratio" in problems(tuner_type="freeze", freeze_vit=False)
    assert SftConfig(**BASE, tuner_type="full").tuner.tuner_type == "full"


def test_unsloth_is_refused_with_what_to_use() -> None:
    told = problems(tuner_type="full", tuner_backend="unsloth")
    assert "unsloth" in told and "pip install" in told


def test_every_tuner_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TUNERS, "_specs", {"full": TUNERS.get("full")})
    monkeypatch.setattr(TUNERS, "_aliases", {"freeze": "full"})
    for name in ("lora", "reft", "bone", "prefix_tuning"):
        assert "pip install swift-tuners" in problems(tuner_type=name), name
