"""The engine over vLLM in this process: its scheduler, our prompts, texts and stops. The only file of this side that imports vLLM."""

# The library needs an environment of its own, which is not the one that types are checked in.
# pyright: reportMissingImports=false

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from swift_core.errors import ConfigError, EngineError, Problem
from swift_core.protocols import Capabilities, EncodedSample, RequestConfig, Running, TokenLogprob
from torch import Tensor
from vllm import AsyncEngineArgs, SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from swift_infer.adapter_names import adapter_folders, adapter_problems, named_adapters
from swift_infer.config import ChatSection, EngineConfig, LogprobsMode
from swift_infer.engines.lines import Job, Line
from swift_infer.engines.looped import LoopEngine, Written, loading_of, lora_folder
from swift_infer.engines.weights import adapter_folder, check_names, shapes_of

_EXTENSION = "swift_infer.engines.vllm_worker"
# What this engine itself decides.
_OURS = ("model", "tokenizer", "enable_lora", "logprobs_mode", "worker_extension_cls", "weight_transfer_config", "generation_config")


class VllmEngine(LoopEngine):
    """Answers requests with vLLM.

    Args:
        model_path: anything `--model` takes.
        adapters: adapter folders by name, chosen by `InferRequest.adapter`; or one folder, which then answers all requests.
        template, system: prompt format and default system message.
        torch_dtype: `float32`, `bfloat16` or `float16`; by default as saved.
        max_batch_size: most answers that are written at the same time.
        max_length: most tokens of prompt and answer together.
        trust_remote_code: run Python code that comes with the model.
        logprobs_mode: log-probabilities are those of the model's own distribution (`raw`) or of the one that a token was drawn from.
        engine_kwargs: further settings of vLLM, as `vllm serve` calls them: `tensor_parallel_size`, `data_parallel_size`,
            `enable_prefix_caching`, `quantization`, `speculative_config`, `gpu_memory_utilization`, `max_lora_rank`, ...

    Raises:
        NotFoundError: when the model or adapter is absent.
        EngineError: when vLLM does not start.
    """

    name = "vllm"

    def __init__(
        self,
        model_path: str | Path | EngineConfig,
        *,
        adapters: Sequence[str | Path] | Mapping[str, str | Path] = (),
        template: str | None = None,
        system: str | None = None,
        torch_dtype: Any = None,
        max_batch_size: int = 64,
        max_length: int | None = None,
        trust_remote_code: bool = False,
        logprobs_mode: LogprobsMode = "raw",
        engine_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        config = model_path
        if not isinstance(config, EngineConfig):
            config = EngineConfig(
                loading=loading_of(config, adapters, torch_dtype, trust_remote_code),
                chat=ChatSection(template=template, system=system, max_length=max_length),
                max_batch_size=max_batch_size,
                logprobs_mode=logprobs_mode,
                engine_kwargs=dict(engine_kwargs or {}),
            )
        if problems := [*adapter_problems(config.loading.adapters), *_refused(config.engine_kwargs)]:
            raise ConfigError(problems)
        self._adapters: dict[str, LoRARequest] = {}
        self._always: LoRARequest | None = None
        self._updating = False
        self._broken: EngineError | None = None
        self._shapes: dict[str, list[int]] = {}
        self._ids = itertools.count(1)
        self._folders = tempfile.TemporaryDirectory(prefix="swift-vllm-")
        super().__init__(config)
        for name, place in named_adapters(config.loading).items():
            self.add_adapter(name, place)
        for place in [] if self._adapters else adapter_folders(config.loading):
            self._always = self._lora(self.model_name, place)

    def _begin_library(self, config: EngineConfig, folder: Path) -> None:
        self._shapes = shapes_of(folder)
        self._llm = self._loop.run(_started(_arguments(config, folder, self.context_length)))

    @property
    def capabilities(self) -> Capabilities:
        """Return what the engine can do."""
        return Capabilities(
            token_ids=True,
            logprobs=True,
            prompt_logprobs=True,
            structured=True,
            adapters=True,
            abort=True,
            weights=True,
            sleep=True,
        )

    # ---- adapters --------------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> list[str]:
        """Return the names of the adapters that requests can ask for."""
        return list(self._adapters)

    def add_adapter(self, name: str, folder: str | Path) -> None:
        """Load an adapter; requests may ask for it from then on.

        Raises:
            EngineError: when the name is taken or vLLM refuses the adapter.
            NotFoundError: when the folder holds no adapter.
        """
        if name == self.model_name or name in self._adapters:
            raise EngineError(f"the name {name!r} is taken", fix="choose another name for the adapter")
        self._adapters[name] = self._lora(name, Path(folder).expanduser())

    def remove_adapter(self, name: str) -> None:
        """Take an adapter away.

        Raises:
            EngineError: when there is none of that name.
        """
        found = self._adapters.pop(name, None)
        if found is None:
            raise EngineError(f"no adapter {name!r} is loaded", fix=f"loaded are: {', '.join(self._adapters) or 'none'}")
        self._loop.run(self._llm.remove_lora(found.lora_int_id))

    def _lora(self, name: str, folder: Path, number: int | None = None) -> LoRARequest:
        found = LoRARequest(name, number or next(self._ids), str(lora_folder(folder, self.name)), load_inplace=number is not None)
        try:
            self._loop.run(self._llm.add_lora(found))
        except Exception as error:
            raise EngineError(
                f"vLLM refuses the adapter of {str(folder)!r}: {error}", fix="--engine_kwargs with a larger max_lora_rank"
            ) from error
        return LoRARequest(name, found.lora_int_id, str(folder))

    # ---- answers ---------------------------------------------------------------------------------------------------

    @property
    def error(self) -> BaseException | None:
        """Return why vLLM has died, or None."""
        return self._broken or (self._llm.dead_error if self._llm.errored else None)

    def close(self) -> None:
        """End vLLM and its processes."""
        if not self._closed:
            self._loop.call(self._llm.shutdown)
            super().close()
            self._folders.cleanup()

    async def _end(self, names: Sequence[str]) -> None:
        await self._llm.abort(list(names))

    async def _tokens(self, job: Job, line: Line, name: str) -> AsyncGenerator[Written]:
        lora = self._adapters.get(job.adapter) if job.adapter is not None else self._always
        prompt = TokensPrompt(prompt_token_ids=job.prompt.input_ids)
        async with aclosing(self._llm.generate(prompt, self._params(job, line), name, lora_request=lora)) as outputs:
            async for output in outputs:
                if output.prompt_logprobs is not None and job.prompt_logprobs is None:
                    job.prompt_logprobs = _of_prompt(job.prompt, output.prompt_logprobs)
                found = output.outputs[0]
                told = None
                if found.logprobs is not None:
                    most = job.config.logprobs or 0
                    told = [_told(token, one, most) for token, one in zip(found.token_ids, found.logprobs, strict=True)]
                yield Written(found.token_ids, told)

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, EngineDeadError):
            return EngineError("vLLM has died; its log says why", fix="start the engine again")
        return super()._translated(error)

    def _params(self, job: Job, line: Line) -> SamplingParams:
        config, drawing = job.config, line.drawing
        return SamplingParams(
            temperature=drawing.temperature,
            top_p=drawing.top_p,
            top_k=drawing.top_k,
            min_p=drawing.min_p,
            repetition_penalty=drawing.repetition_penalty,
            presence_penalty=drawing.presence_penalty,
            frequency_penalty=drawing.frequency_penalty,
            logit_bias=dict(drawing.logit_bias) or None,
            seed=line.seed % 2**63 if config.seed is not None else None,
            max_tokens=line.answer.limit,
            min_tokens=min(config.min_tokens, line.answer.limit),
            # Stops are ours: the template's tokens, and texts as `Answer` finds them.
            ignore_eos=True,
            stop_token_ids=sorted(self.prompts.ending(config)),
            logprobs=config.logprobs,
            prompt_logprobs=0 if config.prompt_logprobs and line.index == 0 else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            structured_outputs=_form(config),
        )

    # ---- weights ---------------------------------------------------------------------------------------------------

    def update_weights(self, weights: Mapping[str, Tensor], *, version: int | None = None, running: Running = "wait") -> None:
        """Replace weights by the names of the model's files; parts of an update have no version, its last one has.

        Nothing is answered between the first part and the last.

        Raises:
            RequestError: when the model's files have no tensor of that name and shape; nothing is changed then.
            EngineError: when vLLM fails on the way; its weights are of no use then.
        """
        check_names(weights, self._shapes)
        with tempfile.TemporaryDirectory(dir=self._folders.name) as folder:
            path = Path(folder) / "weights.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
            self._loop.run(self._transfer(path, version, running))
        self.version = self.version if version is None else version

    async def _transfer(self, path: Path, version: int | None, running: Running) -> None:
        try:
            if not self._updating:
                await self._llm.pause_generation(mode=running)
                await self._llm.start_weight_update()
                self._updating = True
            await self._llm.update_weights(WeightTransferUpdateRequest({"path": str(path)}))
            if version is not None:
                await self._llm.finish_weight_update(str(version))
                await self._llm.resume_generation()
                self._updating = False
        except Exception as error:
            # Layers that were taken apart for new weights do not come back by themselves.
            self._broken = EngineError(f"vLLM failed while its weights were replaced: {error}", fix="start the engine again")
            raise self._broken from error

    def update_adapter(
        self,
        name: str,
        settings: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        *,
        version: int | None = None,
        running: Running = "wait",
    ) -> None:
        """Put a PEFT LoRA adapter in the place of the one of that name, or beside the others.

        Raises:
            EngineError: when vLLM refuses the adapter.
        """
        before = self._adapters.get(name)
        with adapter_folder(settings, weights, inside=self._folders.name) as folder:
            self._loop.run(self._llm.pause_generation(mode=running))
            try:
                self._adapters[name] = self._lora(name, folder, before.lora_int_id if before else None)
            finally:
                self._loop.run(self._llm.resume_generation())
        self.version = self.version if version is None else version

    def pause(self, running: Running = "wait") -> None:
        """Begin nothing new from now on; return once what runs has ended, was aborted or stands still."""
        self._loop.run(self._llm.pause_generation(mode=running))

    def resume(self) -> None:
        """Go on."""
        self._loop.run(self._llm.resume_generation())

    def sleep(self, level: int = 1) -> None:
        """Let running answers end, begin nothing new and give memory back, as far as vLLM's platform can."""
        self._loop.run(self._llm.pause_generation(mode="wait"))
        self._loop.run(self._llm.sleep(level))

    def wake(self) -> None:
        """Go on."""
        self._loop.run(self._llm.wake_up())
        self._loop.run(self._llm.resume_generation())


async def _started(arguments: AsyncEngineArgs) -> AsyncLLM:
    return AsyncLLM.from_engine_args(arguments)


def _arguments(config: EngineConfig, folder: Path, context_length: int | None) -> AsyncEngineArgs:
    loading = config.loading
    dtype = str(loading.torch_dtype or "auto").removeprefix("torch.")
    settings: dict[str, Any] = {
        "model": str(folder),
        "dtype": dtype,
        "max_model_len": context_length,
        "max_num_seqs": config.max_batch_size,
        "trust_remote_code": loading.trust_remote_code,
        "enable_log_requests": False,
        "max_logprobs": 20,
        **config.engine_kwargs,
        # Sampling settings of the model's own file are looked at by this engine, as by all others.
        "generation_config": "vllm",
        "logprobs_mode": f"{config.logprobs_mode}_logprobs",
        "enable_lora": bool(loading.adapters) or bool(config.engine_kwargs.get("max_loras")),
        "worker_extension_cls": f"{_EXTENSION}.WorkerExtension",
        "weight_transfer_config": WeightTransferConfig(backend="swift_safetensors"),
    }
    return AsyncEngineArgs(**settings)


def _refused(given: Mapping[str, Any]) -> list[Problem]:
    known = AsyncEngineArgs.__dataclass_fields__
    found = [Problem("--engine_kwargs", f"{name} is decided by this engine", "use its own flag") for name in given if name in _OURS]
    found += [Problem("--engine_kwargs", f"vLLM has no setting {name!r}", "see `vllm serve --help`") for name in given if name not in known]
    return found


def _form(config: RequestConfig) -> StructuredOutputsParams | None:
    wanted = config.structured
    if wanted is None:
        return None
    choice = list(wanted.choice) if wanted.choice is not None else None
    return StructuredOutputsParams(json=wanted.json_schema, regex=wanted.regex, choice=choice)


def _told(token: int, found: Mapping[int, Any], most: int) -> TokenLogprob:
    ranked = sorted(found.items(), key=lambda one: one[1].rank or 0)
    return TokenLogprob(token, found[token].logprob, tuple((other, one.logprob) for other, one in ranked[:most]))


def _of_prompt(prompt: EncodedSample, found: Sequence[Mapping[int, Any] | None]) -> list[TokenLogprob]:
    pairs = zip(prompt.input_ids[1:], found[1:], strict=True)
    return [_told(token, one, 0) for token, one in pairs if one is not None]


def build_engine(config: EngineConfig) -> VllmEngine:
    """Return an engine with the model that the settings name."""
    return VllmEngine.from_config(config)
