"""The engine over SGLang. The only file that imports it.

Written against SGLang 0.5.23. It needs a GPU: where there is none, tests compare the names used here with those of its wheel.
"""

# The library needs an environment of its own, which is not the one that types are checked in.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sglang
from safetensors.torch import save_file
from swift_core.errors import ConfigError, EngineError, Problem
from swift_core.protocols import Capabilities, RequestConfig, Running, TokenLogprob
from torch import Tensor

from swift_infer.adapter_names import adapter_problems, named_adapters
from swift_infer.config import EngineConfig
from swift_infer.engines.lines import Job, Line
from swift_infer.engines.looped import LoopEngine, Written, lora_folder

# What this engine itself decides.
_OURS = ("model_path", "tokenizer_path", "skip_tokenizer_init", "enable_lora")


class SglangEngine(LoopEngine):
    """Answers requests with SGLang.

    Args:
        config: what to load; its `engine_kwargs` are SGLang's own server arguments, such as `tp_size` and `mem_fraction_static`.

    Raises:
        NotFoundError: when the model or adapter is absent.
        EngineError: when SGLang does not start.
    """

    name = "sglang"

    def __init__(self, config: EngineConfig) -> None:
        problems = adapter_problems(config.loading.adapters)
        problems += [
            Problem("--engine_kwargs", f"{name} is decided by this engine", "use its own flag")
            for name in config.engine_kwargs
            if name in _OURS
        ]
        if config.logprobs_mode == "processed":
            what = "SGLang tells log-probabilities of the model's own distribution only"
            problems.append(Problem("--infer_backend sglang", what, "--infer_backend vllm or transformers"))
        if problems:
            raise ConfigError(problems)
        self._adapters: list[str] = []
        super().__init__(config)
        for name, folder in named_adapters(config.loading).items():
            self.add_adapter(name, folder)

    def _begin_library(self, config: EngineConfig, folder: Path) -> None:
        settings = server_arguments(config, folder, self.context_length)
        self._engine: Any = self._loop.call(lambda: sglang.Engine(**settings))

    @property
    def capabilities(self) -> Capabilities:
        """Return what the engine can do."""
        return Capabilities(token_ids=True, logprobs=True, structured=True, adapters=True, abort=True)

    @property
    def adapters(self) -> list[str]:
        """Return the names of the adapters that requests can ask for."""
        return list(self._adapters)

    def add_adapter(self, name: str, folder: str | Path) -> None:
        """Load an adapter; requests may ask for it from then on.

        Raises:
            EngineError: when the name is taken.
            NotFoundError: when the folder holds no adapter.
        """
        if name == self.model_name or name in self._adapters:
            raise EngineError(f"the name {name!r} is taken", fix="choose another name for the adapter")
        place = lora_folder(Path(folder).expanduser(), self.name)
        self._loop.run(self._engine.async_load_lora_adapter(lora_name=name, lora_path=str(place)))
        self._adapters.append(name)

    def remove_adapter(self, name: str) -> None:
        """Take an adapter away.

        Raises:
            EngineError: when there is none of that name.
        """
        if name not in self._adapters:
            raise EngineError(f"no adapter {name!r} is loaded", fix=f"loaded are: {', '.join(self._adapters) or 'none'}")
        self._loop.run(self._engine.async_unload_lora_adapter(lora_name=name))
        self._adapters.remove(name)

    def update_weights(self, weights: Mapping[str, Tensor], *, version: int | None = None, running: Running = "wait") -> None:
        """Replace weights through a file, by the names of the model's files; SGLang itself decides what becomes of running answers."""
        with tempfile.TemporaryDirectory(prefix="swift-sglang-") as folder:
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, Path(folder) / "model.safetensors")
            self._loop.call(lambda: self._engine.update_weights_from_disk(model_path=folder, load_format=None))
        self.version = self.version if version is None else version

    def close(self) -> None:
        """End SGLang and its processes."""
        if not self._closed:
            self._loop.call(self._engine.shutdown)
            super().close()

    async def _end(self, names: Sequence[str]) -> None:
        for name in names:
            self._engine.tokenizer_manager.abort_request(rid=name)

    async def _tokens(self, job: Job, line: Line, name: str) -> AsyncGenerator[Written]:
        wanted = job.config.logprobs
        outputs: Any = await self._engine.async_generate(
            input_ids=job.prompt.input_ids,
            sampling_params=sampling_arguments(job.config, line, sorted(self.prompts.ending(job.config))),
            return_logprob=wanted is not None,
            top_logprobs_num=wanted or 0,
            lora_path=job.adapter,
            stream=True,
            rid=name,
        )
        seen = 0
        async for output in outputs:
            # Each piece holds the whole answer so far.
            ids = output["output_ids"][seen:]
            told = None
            if wanted is not None:
                values = output["meta_info"]["output_token_logprobs"][seen:]
                tops = (output["meta_info"].get("output_top_logprobs") or [None] * (seen + len(ids)))[seen:]
                told = [_told(value, top) for value, top in zip(values, tops, strict=True)]
            seen += len(ids)
            yield Written(ids, told)


def server_arguments(config: EngineConfig, folder: Path, context_length: int | None) -> dict[str, Any]:
    """Return the arguments of `sglang.Engine`."""
    loading = config.loading
    return {
        "model_path": str(folder),
        "dtype": str(loading.torch_dtype or "auto").removeprefix("torch."),
        "context_length": context_length,
        "max_running_requests": config.max_batch_size,
        "trust_remote_code": loading.trust_remote_code,
        "log_level": "warning",
        **config.engine_kwargs,
        "skip_tokenizer_init": False,
        "enable_lora": bool(loading.adapters),
    }


def sampling_arguments(config: RequestConfig, line: Line, stop_ids: list[int]) -> dict[str, Any]:
    """Return SGLang's sampling parameters of one answer; stop texts are found by this toolbox."""
    drawing, form = line.drawing, config.structured
    values: dict[str, Any] = {
        "max_new_tokens": line.answer.limit,
        "min_new_tokens": config.min_tokens,
        "temperature": drawing.temperature,
        "top_p": drawing.top_p,
        "top_k": drawing.top_k or -1,
        "min_p": drawing.min_p,
        "repetition_penalty": drawing.repetition_penalty,
        "presence_penalty": drawing.presence_penalty,
        "frequency_penalty": drawing.frequency_penalty,
        "stop_token_ids": stop_ids,
        "ignore_eos": True,
    }
    if config.seed is not None:
        values["sampling_seed"] = line.seed
    if drawing.logit_bias:
        values["logit_bias"] = {str(token): value for token, value in drawing.logit_bias.items()}
    if form is not None and form.json_schema is not None:
        values["json_schema"] = json.dumps(form.json_schema or {"type": "object"})
    elif form is not None:
        values["regex"] = form.regex if form.regex is not None else choice_pattern(form.choice or ())
    return values


def choice_pattern(texts: Sequence[str]) -> str:
    """Return a pattern that matches one of these texts."""
    special = set(r"\.^$*+?{}[]|()")
    return "(" + "|".join("".join("\\" + letter if letter in special else letter for letter in text) for text in texts) + ")"


def _told(value: Sequence[Any], top: Sequence[Sequence[Any]] | None) -> TokenLogprob:
    return TokenLogprob(int(value[1]), float(value[0]), tuple((int(one[1]), float(one[0])) for one in top or ()))


def build_engine(config: EngineConfig) -> SglangEngine:
    """Return an engine with the model that the settings name."""
    return SglangEngine(config)
