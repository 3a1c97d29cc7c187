"""What alignment needs besides training on samples, for `swift estimate`."""

from __future__ import annotations

from typing import Any

import pytest
from swift_core.planner.record import Extra
from swift_rlhf.config import RlhfConfig


@pytest.mark.parametrize(
    ("values", "extra"),
    [
        ({"rlhf_type": "dpo"}, Extra(samples=2, copies=1)),
        ({"rlhf_type": "simpo"}, Extra(samples=2)),
        ({"rlhf_type": "kto"}, Extra(samples=1, copies=1)),
        (
            {"rlhf_type": "grpo", "per_device_train_batch_size": 8, "max_completion_length": 64, "reward_funcs": ["format"]},
            Extra(copies=1, answers=8, answer_tokens=64),
        ),
    ],
)
def test_algorithms_say_what_they_need(values: dict[str, Any], extra: Extra) -> None:
    config = RlhfConfig(model="m", dataset=["x"], tuner_type="full", **values)
    assert config.planned_extra() == extra
