"""LoRA and other light-weight ways to adapt a model, with merge."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig

    from swift_tuners.api import Swift
    from swift_tuners.lora_options import LoraOptions
    from swift_tuners.targets import find_all_linears

# Imported at first use, so that `import swift_tuners` does not load torch.
_HOMES = {
    "LoraConfig": "peft",
    "LoraOptions": "swift_tuners.lora_options",
    "Swift": "swift_tuners.api",
    "find_all_linears": "swift_tuners.targets",
}

__all__ = ["LoraConfig", "LoraOptions", "Swift", "find_all_linears"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
