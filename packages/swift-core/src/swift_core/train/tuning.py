"""Finding the tuner that knows how to save a model."""

from __future__ import annotations

from torch import nn

from swift_core.protocols import Tuner
from swift_core.registry import TUNERS


def saver_for(model: nn.Module) -> Tuner:
    """Return the tuner that saves and restores a model that was prepared elsewhere: adapters by PEFT, or whole weights."""
    return load_tuner("lora" if hasattr(model, "peft_config") else "full")


def load_tuner(name: str) -> Tuner:
    """Return the tuner of a name."""
    return TUNERS.load(name)()
