"""Preference and reinforcement learning: losses, advantages, rewards, rollouts and trainers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swift_rlhf.config.command import RlhfConfig
    from swift_rlhf.config.python import GRPOConfig
    from swift_rlhf.grpo.trainer import GRPOTrainer

__all__ = ["GRPOConfig", "GRPOTrainer", "RlhfConfig"]

# Imported at first use: `import swift_rlhf` loads neither torch nor pydantic.
_EXPORTS = {
    "GRPOConfig": "swift_rlhf.config.python:GRPOConfig",
    "GRPOTrainer": "swift_rlhf.grpo.trainer:GRPOTrainer",
    "RlhfConfig": "swift_rlhf.config.command:RlhfConfig",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'swift_rlhf' has no attribute {name!r}")
    module, _, attribute = _EXPORTS[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
