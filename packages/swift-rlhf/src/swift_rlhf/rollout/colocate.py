"""Answers from an engine of another package that lives in this process, beside the model that is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from swift_core.errors import EngineError
from swift_core.protocols import InferRequest, RequestConfig
from swift_core.registry import ENGINES, import_target
from swift_core.templates.chat import ChatTemplate

from swift_rlhf.config.service import ServiceSection
from swift_rlhf.rollout.asked import stop_tokens
from swift_rlhf.rollout.engine import answered_together
from swift_rlhf.rollout.episodes import Generation
from swift_rlhf.rollout.play import TurnRequest
from swift_rlhf.rollout.sampling import Sampling
from swift_rlhf.rollout.servers import POLICY
from swift_rlhf.rollout.weights import TrainedWeights


class ColocatedEngine:
    """Writes answers with an engine that keeps weights of its own, and lets it sleep while the model is trained.

    Args:
        engine: an `Engine` that is a `WeightEngine` and takes token ids.
        weights: gives the weights of the model that is trained.
        stops: tokens that end an answer.
        decode: makes a text of token ids.
        sleep_level: what the engine gives back meanwhile: 0 nothing, 1 keys and values, 2 weights too.

    Raises:
        EngineError: when the engine cannot do that.
    """

    def __init__(
        self, engine: Any, weights: TrainedWeights, stops: Sequence[int], decode: Callable[[Sequence[int]], str], *, sleep_level: int = 0
    ) -> None:
        able = engine.capabilities
        if not (able.token_ids and able.logprobs and able.weights):
            raise EngineError(f"the engine {engine.name} cannot take token ids and new weights", fix="--use_vllm true, or remove it")
        self._engine, self._weights, self._stops, self._decode, self._level = engine, weights, list(stops), decode, sleep_level
        self._version: int | None = None
        self._adapter: str | None = None
        self._asleep = False

    def update(self, version: int) -> None:
        """Wake the engine and give it the weights as they are now, unless it has those of this version."""
        if self._asleep:
            self._engine.wake()
            self._asleep = False
        if version == self._version and self._level < 2:
            return
        adapter = self._weights.adapter()
        if adapter is not None:
            self._engine.update_adapter(POLICY, adapter[0], adapter[1], version=version)
            self._adapter = POLICY
        else:
            self._engine.update_weights(dict(self._weights.whole()), version=version)
        self._version = version

    def rest(self) -> None:
        """Let the engine give its memory back until it is needed again."""
        if self._level and not self._asleep:
            self._engine.sleep(self._level)
            self._asleep = True

    def generate(self, requests: Sequence[TurnRequest], sampling: Sampling, *, seed: int, version: int) -> list[Generation]:
        """Return one answer for each request, in order."""
        return answered_together(self, requests, sampling, seed=seed, version=version)

    async def answer(self, request: TurnRequest, sampling: Sampling, *, seed: int, version: int) -> Generation:
        """Return the answer to one request.

        Raises:
            EngineError: when the engine fails.
        """
        config = RequestConfig(
            max_tokens=request.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=max(sampling.top_k, 0),
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=seed & 0x7FFFFFFF,
            stop=sampling.stop,
            stop_token_ids=self._stops,
            logprobs=0,
        )
        response = await self._engine.ainfer(InferRequest(prompt_ids=request.prompt_ids, adapter=self._adapter), config)
        choice = response.choices[0]
        text = self._decode(choice.token_ids)
        places = [place for stop in sampling.stop if (place := text.find(stop)) >= 0]
        versions = [number for number, count in choice.versions for _ in range(count)] or None
        logps = [token.logprob for token in choice.logprobs or ()]
        text = text[: min(places)] if places else text
        return Generation(list(choice.token_ids), text, choice.finish_reason, logps, min(versions or [version]), versions)

    def close(self) -> None:
        """End the engine."""
        self._engine.close()


def start_engine(settings: Any, weights: TrainedWeights, template: ChatTemplate) -> ColocatedEngine:
    """Start vLLM in this process with the model that is trained.

    Raises:
        MissingDependencyError: when swift-infer or vLLM is not installed.
        EngineError: when it does not start.
    """
    service: ServiceSection = settings.service
    spec = ENGINES.get("vllm")
    kind = import_target(str(spec.options), needed_for="--use_vllm", install=spec.install)
    adapter = weights.adapter()
    given: dict[str, Any] = {
        "gpu_memory_utilization": service.vllm_gpu_memory_utilization,
        "tensor_parallel_size": service.vllm_tensor_parallel_size,
        "enforce_eager": service.vllm_enforce_eager,
        "enable_sleep_mode": service.sleep_level > 0,
        **({"max_model_len": service.vllm_max_model_len} if service.vllm_max_model_len else {}),
        **({"max_loras": 1, "max_lora_rank": int(adapter[0].get("r", 16))} if adapter is not None else {}),
        **service.vllm_engine_kwargs,
    }
    loading = settings.loading.model_copy(update={"adapters": []})
    rows = settings.sampling.rollout_batch_size
    engine = ENGINES.load("vllm")(kind(loading=loading, max_batch_size=rows, logprobs_mode="processed", engine_kwargs=given))
    decode: Any = template.tokenizer.decode

    def plain(ids: Sequence[int]) -> str:
        return str(decode(list(ids), skip_special_tokens=True))

    return ColocatedEngine(engine, weights, stop_tokens(template), plain, sleep_level=service.sleep_level)


__all__ = ["ColocatedEngine", "start_engine"]
