"""Inference engines behind one protocol, batch and terminal chat, and an OpenAI-compatible server."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swift_core.protocols import InferRequest, InferResponse, RequestConfig, TextDelta

    from swift_infer.engines.transformers import TransformersEngine

_HOMES = {
    "InferRequest": "swift_core.protocols",
    "InferResponse": "swift_core.protocols",
    "RequestConfig": "swift_core.protocols",
    "TextDelta": "swift_core.protocols",
    "TransformersEngine": "swift_infer.engines.transformers",
}

__all__ = ["InferRequest", "InferResponse", "RequestConfig", "TextDelta", "TransformersEngine"]


def __getattr__(name: str) -> Any:
    # Names are imported when they are used, so that `import swift_infer` costs nothing.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
