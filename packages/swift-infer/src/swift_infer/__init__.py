"""Inference engines behind one protocol, batch and terminal chat, and an OpenAI-compatible server."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swift_core.protocols import InferRequest, InferResponse, RequestConfig, StructuredOutput, TextDelta

    from swift_infer.engines.client import InferClient
    from swift_infer.engines.lmdeploy import LmdeployEngine
    from swift_infer.engines.sglang import SglangEngine
    from swift_infer.engines.transformers import TransformersEngine
    from swift_infer.engines.vllm import VllmEngine

_HOMES = {
    "InferClient": "swift_infer.engines.client",
    "InferRequest": "swift_core.protocols",
    "InferResponse": "swift_core.protocols",
    "LmdeployEngine": "swift_infer.engines.lmdeploy",
    "RequestConfig": "swift_core.protocols",
    "SglangEngine": "swift_infer.engines.sglang",
    "StructuredOutput": "swift_core.protocols",
    "TextDelta": "swift_core.protocols",
    "TransformersEngine": "swift_infer.engines.transformers",
    "VllmEngine": "swift_infer.engines.vllm",
}

__all__ = [
    "InferClient",
    "InferRequest",
    "InferResponse",
    "LmdeployEngine",
    "RequestConfig",
    "SglangEngine",
    "StructuredOutput",
    "TextDelta",
    "TransformersEngine",
    "VllmEngine",
]


def __getattr__(name: str) -> Any:
    # Names are imported when they are used, so that `import swift_infer` costs nothing.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
