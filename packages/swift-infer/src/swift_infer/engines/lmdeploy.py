"""The engine over LMDeploy. The only file that imports it.

Written against LMDeploy 0.18.0, PyTorch backend. It needs a GPU: where there is none, tests compare the names used here with those of
its wheel.
"""

# The library needs an environment of its own, which is not the one that types are checked in.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import lmdeploy
from swift_core.errors import ConfigError, Problem
from swift_core.protocols import Capabilities, RequestConfig, TokenLogprob

from swift_infer.adapter_names import adapter_problems, named_adapters
from swift_infer.config import EngineConfig
from swift_infer.engines.lines import Job, Line
from swift_infer.engines.looped import LoopEngine, Written, lora_folder

# What this engine itself decides.
_OURS = ("adapters", "logprobs_mode", "thread_safe")


class LmdeployEngine(LoopEngine):
    """Answers requests with LMDeploy.

    Args:
        config: what to load; its `engine_kwargs` are fields of LMDeploy's `PytorchEngineConfig`, such as `tp`.

    Raises:
        NotFoundError: when the model or adapter is absent.
        EngineError: when LMDeploy does not start.
    """

    name = "lmdeploy"

    def __init__(self, config: EngineConfig) -> None:
        problems = adapter_problems(config.loading.adapters)
        problems += [
            Problem("--engine_kwargs", f"{name} is decided by this engine", "use its own flag")
            for name in config.engine_kwargs
            if name in _OURS
        ]
        if problems:
            raise ConfigError(problems)
        self._adapters = {name: lora_folder(folder, "lmdeploy") for name, folder in named_adapters(config.loading).items()}
        super().__init__(config)

    def _begin_library(self, config: EngineConfig, folder: Path) -> None:
        adapters = {name: str(place) for name, place in self._adapters.items()}
        backend = lmdeploy.PytorchEngineConfig(**backend_arguments(config, self.context_length, adapters))
        self._pipeline: Any = lmdeploy.pipeline(
            str(folder), backend_config=backend, trust_remote_code=config.loading.trust_remote_code, log_level="WARNING"
        )
        # LMDeploy runs a loop of its own, on which all its coroutines have to run.
        self._loop.close()
        self._loop = _Borrowed(self._pipeline.internal_thread.loop)

    @property
    def capabilities(self) -> Capabilities:
        """Return what the engine can do."""
        return Capabilities(token_ids=True, logprobs=True, structured=True, adapters=bool(self._adapters), abort=True)

    @property
    def adapters(self) -> list[str]:
        """Return the names of the adapters that requests can ask for."""
        return list(self._adapters)

    def close(self) -> None:
        """End LMDeploy."""
        if not self._closed:
            self._closed = True
            self._pipeline.close()

    async def _end(self, names: Sequence[str]) -> None:
        """Do nothing: answers that were asked to end leave their generator at the next token."""

    async def _tokens(self, job: Job, line: Line, name: str) -> AsyncGenerator[Written]:
        engine: Any = self._pipeline.async_engine
        settings = lmdeploy.GenerationConfig(**generation_arguments(job.config, line, sorted(self.prompts.ending(job.config))))
        request = await engine.preprocess(
            None,
            self._pipeline.session(),
            gen_config=settings,
            do_preprocess=False,
            adapter_name=job.adapter,
            input_ids=job.prompt.input_ids,
        )
        wanted = job.config.logprobs
        async with aclosing(engine.generate(request, stream_response=True)) as outputs:
            async for output in outputs:
                ids = output.token_ids or []
                told = None
                if wanted is not None and output.logprobs is not None:
                    told = [_told(token, one, wanted) for token, one in zip(ids, output.logprobs, strict=True)]
                yield Written(ids, told)


class _Borrowed:
    """A loop that belongs to a library."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def start(self, work: Any) -> Any:
        import asyncio

        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Any) -> Any:
        return self.start(work).result()

    def close(self) -> None:
        pass


def backend_arguments(config: EngineConfig, context_length: int | None, adapters: dict[str, str]) -> dict[str, Any]:
    """Return the fields of LMDeploy's `PytorchEngineConfig`."""
    return {
        "dtype": str(config.loading.torch_dtype or "auto").removeprefix("torch."),
        "session_len": context_length,
        "max_batch_size": config.max_batch_size,
        **config.engine_kwargs,
        "adapters": adapters or None,
        "logprobs_mode": f"{config.logprobs_mode}_logprobs",
    }


def generation_arguments(config: RequestConfig, line: Line, stop_ids: list[int]) -> dict[str, Any]:
    """Return the fields of LMDeploy's `GenerationConfig` of one answer; stop texts are found by this toolbox.

    Raises:
        ValueError: for settings that it has no field for.
    """
    drawing = line.drawing
    if drawing.presence_penalty or drawing.frequency_penalty or drawing.logit_bias:
        raise ValueError("LMDeploy has no presence_penalty, frequency_penalty and logit_bias")
    return {
        "n": 1,
        "max_new_tokens": line.answer.limit,
        "min_new_tokens": config.min_tokens or None,
        "do_sample": drawing.temperature > 0,
        "temperature": drawing.temperature or 1.0,
        "top_p": drawing.top_p,
        "top_k": drawing.top_k,
        "min_p": drawing.min_p,
        "repetition_penalty": drawing.repetition_penalty,
        "random_seed": line.seed if config.seed is not None else None,
        "stop_token_ids": stop_ids,
        "ignore_eos": True,
        "logprobs": None if config.logprobs is None else max(1, config.logprobs),
        "response_format": _form(config),
    }


def _form(config: RequestConfig) -> dict[str, Any] | None:
    form = config.structured
    if form is None:
        return None
    if form.json_schema is not None:
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.json_schema or {"type": "object"}}}
    if form.regex is None:
        raise ValueError("LMDeploy keeps answers to a schema or a pattern, not to a choice")
    return {"type": "regex_schema", "regex_schema": form.regex}


def _told(token: int, found: dict[int, float], most: int) -> TokenLogprob:
    ranked = sorted(found.items(), key=lambda one: -one[1])
    return TokenLogprob(token, found[token], tuple(ranked[:most]))


def build_engine(config: EngineConfig) -> LmdeployEngine:
    """Return an engine with the model that the settings name."""
    return LmdeployEngine(config)
