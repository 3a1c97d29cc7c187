"""The sections that commands are composed of: one for each stage that reads settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, SerializeAsAny, field_validator

from swift_core.config.fields import Section, option
from swift_core.config.loss_scales import parse_loss_scale
from swift_core.errors import NotFoundError


class ModelSection(Section):
    """Model options."""

    model: str | None = option(
        None, "model id or folder: pypi::NAME, hf::ORG/NAME, ms::ORG/NAME, a path, or a known name such as Qwen2.5-7B-Instruct", basic=True
    )
    model_revision: str | None = option(None, "branch, tag or commit on the hub")
    model_type: str | None = option(None, "family of the model (see `swift list models`); default: found out from its files")
    torch_dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "number type of the weights; default: as saved, float32 on a CPU without bfloat16", basic=True
    )
    attn_impl: str | None = option(None, "attention implementation of transformers, such as sdpa, eager or flash_attention_2")
    rope_scaling: str | dict[str, Any] | None = option(
        None,
        "stretch rotary positions over a longer context: linear, dynamic or yarn with --max_model_len, or JSON with rope_type",
    )
    max_model_len: int | None = option(None, "context length in tokens; default: as config.json says", ge=1)
    new_special_tokens: list[str] = option(
        [],
        "tokens to add to tokenizer and embedding, or .txt files with one a line; train embed_tokens and lm_head too",
    )
    trust_remote_code: bool = option(False, "run Python code that comes with the model; read it first")
    use_hf: bool = option(False, "take ids without a prefix from Hugging Face instead of ModelScope", basic=True)
    offline: bool = option(False, "open no connection; everything must be on this machine")
    hub_token: str | None = option(None, "access token for private repositories", secret=True)
    adapters: list[str] = option(
        [],
        "adapters to load on top of the model: checkpoint folders or hf::ORG/NAME; infer and deploy take several as NAME=FOLDER",
        basic=True,
    )

    @field_validator("rope_scaling", mode="before")
    @classmethod
    def _scaling(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise ValueError(f"not readable as JSON: {error}") from error
        if isinstance(value, str) and value not in ("linear", "dynamic", "yarn"):
            raise ValueError('write linear, dynamic, yarn, or JSON such as {"rope_type": "yarn", "factor": 4.0}')
        if isinstance(value, dict) and not {"rope_type", "type"} & set(cast(dict[str, Any], value)):
            raise ValueError('says no rope_type; write for example {"rope_type": "yarn", "factor": 4.0}')
        return cast(Any, value)

    @property
    def special_tokens(self) -> list[str]:
        """Return the tokens of `new_special_tokens`, files read.

        Raises:
            NotFoundError: when a file is absent.
        """
        found: list[str] = []
        for item in self.new_special_tokens:
            if not item.endswith(".txt"):
                found.append(item)
                continue
            file = Path(item).expanduser()
            if not file.is_file():
                raise NotFoundError(f"--new_special_tokens {item}: there is no such file", fix="give the token or the path of a file")
            found += [line for line in file.read_text("utf-8").splitlines() if line.strip()]
        return list(dict.fromkeys(found))


class DataSection(Section):
    """Data options."""

    dataset: list[str] = option(
        [], "data sets: file, folder, hub id or known name, each with optional :subset, #count and @weight", basic=True
    )
    val_dataset: list[str] = option([], "data sets to evaluate on, written like --dataset", basic=True)
    split_dataset_ratio: float = option(
        0.0, "share of --dataset set aside for evaluation when --val_dataset is empty", basic=True, ge=0, lt=1
    )
    dataset_shuffle: bool = option(True, "shuffle the rows of --dataset once when they are read")
    val_dataset_shuffle: bool = option(False, "shuffle the rows of --val_dataset")
    data_seed: int = option(42, "seed of shuffling, sampling and splitting")
    interleave_prob: list[float] = option(
        [], "chance of drawing the next row from each data set of --dataset, in order; default: one set after the other, then shuffled"
    )
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = option(
        "first_exhausted", "when drawing by chance ends: as soon as one data set is used up, or once all were (shorter ones repeat)"
    )
    streaming: bool = option(False, "read rows while training instead of holding the data set in memory; needs --max_steps")
    shuffle_buffer_size: int = option(1000, "rows that streaming holds to shuffle", ge=1)
    custom_dataset_info: list[str] = option([], "JSON files that describe data sets of your own, which --dataset then takes by name")
    disable_auto_column_mapping: bool = option(False, "take columns only under their own names, not under aliases such as prompt or answer")
    columns: dict[str, str] = option({}, 'rename columns before the format is detected, as JSON: {"my_question": "query"}')
    on_bad_row: Literal["fail", "skip", "quarantine"] = option(
        "fail", "what to do with a row that cannot be read: stop, leave it out, or write it to rejected.jsonl", basic=True
    )
    max_bad_rows: int | None = option(None, "stop when more rows than this are bad", ge=0)
    model_name: list[str] = option([], "name of the assistant in the self-cognition data: Chinese name, English name (or one for both)")
    model_author: list[str] = option([], "author of the assistant in the self-cognition data: Chinese name, English name (or one for both)")


class EncodingSection(Section):
    """Encoding options."""

    load_from_cache_file: bool = option(True, "take token ids from the cache when data, template, tokenizer and limits are the same")
    dataset_num_proc: int = option(1, "processes that encode rows", ge=1)
    lazy_tokenize: bool = option(False, "encode a row when training asks for it instead of all rows before the start")
    cached_dataset: list[str] = option([], "folders made by `swift export --to_cached_dataset`, used instead of --dataset")
    cached_val_dataset: list[str] = option([], "folders made by `swift export --to_cached_dataset`, used instead of --val_dataset")


class TemplateSection(Section):
    """Template options."""

    template: str | None = option(
        None, "named prompt format (see `swift list templates`); default: the model's own chat template", basic=True
    )
    system: str | None = option(None, "system message for rows without one, or a .txt file that holds it", basic=True)
    max_length: int | None = option(None, "longest sample in tokens; default: what the model allows", basic=True, ge=1)
    truncation_strategy: Literal["delete", "left", "right", "split"] = option(
        "delete", "samples over --max_length: drop, cut at the left or right, or split into several (pt only)"
    )
    loss_scale: str = option(
        "default",
        "what is trained: default (every answer), last_round or all, with weights of parts added as +react, +hermes, +qwen, "
        "+agentflan, +alpha_umi, +ignore_empty_think, +ignore_think_prefix or +regex:FILE.json",
    )
    use_chat_template: bool = option(True, "render messages with the chat template; false joins their texts as they are")
    chat_template_kwargs: dict[str, Any] = option({}, 'variables for the chat template, as JSON: {"reasoning_effort": "low"}')
    agent_template: str | None = option(
        None, "how tools and calls are written where the chat template has no place for them (see `swift list agent_templates`)"
    )
    enable_thinking: bool | None = option(None, "make the model think before it answers, or keep it from that; default: the template's own")
    preserve_thinking: bool | None = option(None, "keep or remove the thoughts of earlier answers; default: the template's own")
    add_non_thinking_prefix: bool | None = option(
        None, "open answers without thoughts with the template's empty thinking block; default: the template's own"
    )
    ignore_empty_think: bool | None = option(
        None, "leave empty thinking blocks out of the loss; default: where the template can switch thinking on and off"
    )
    response_prefix: str | None = option(None, "text that every generated answer starts with")

    @field_validator("loss_scale")
    @classmethod
    def _known_loss_scale(cls, value: str) -> str:
        parse_loss_scale(value)
        return value


class MediaSection(Section):
    """Media options."""

    media_dir: str | None = option(
        None, "folder that relative media paths start from; default: the data file's folder, then the current one"
    )
    max_pixels: int | None = option(
        None, "shrink images to at most so many pixels (width x height); default: what the processor does", ge=1
    )
    min_pixels: int | None = option(None, "enlarge images to at least so many pixels; default: what the processor does", ge=1)
    norm_bbox: Literal["norm1000", "none"] | None = option(
        None, "unit of boxes in texts: norm1000 (thousandths of the image) or none (pixels as the model sees them); default: the model's"
    )
    bbox_format: Literal["default", "json", "qwen2_vl", "internvl"] | None = option(
        None, "how boxes and references are written into texts; default: as the model family does"
    )
    video_max_pixels: int | None = option(None, "shrink each frame of a video to at most so many pixels", ge=1)
    fps: float | None = option(None, "frames taken from each second of a video; default: 2", gt=0)
    max_frames: int | None = option(None, "most frames taken from a video; default: 64", ge=1)
    media_timeout: float = option(20.0, "seconds in which a URL of a data set must have been fetched", gt=0)
    media_max_bytes: int = option(64 * 2**20, "largest media file, in bytes", ge=1)
    media_max_pixels: int = option(
        89_478_485, "refuse images and frames with more pixels than this before they are decoded", ge=1, le=178_956_970
    )
    media_max_seconds: float = option(3600.0, "refuse sounds and videos that are longer than this", gt=0)
    media_allow_private: bool = option(False, "fetch URLs of this machine and of private networks too")


class TunerSection(Section):
    """Tuner options."""

    tuner_type: str = option("lora", "how the model is adapted (see `swift list tuners`)", basic=True)
    tuner_backend: Literal["peft", "unsloth"] = option("peft", "library that makes adapters; unsloth is refused with what to use instead")
    freeze_llm: bool = option(False, "multimodal models: do not train the language model")
    freeze_vit: bool = option(True, "multimodal models: do not train the towers that see and hear")
    freeze_aligner: bool = option(True, "multimodal models: do not train the part between towers and language model")
    freeze_parameters: list[str] = option([], "prefixes of parameters that stay fixed (full tuning)")
    freeze_parameters_regex: str | None = option(None, "regular expression of parameters that stay fixed (full tuning)")
    freeze_parameters_ratio: float = option(
        0.0, "share of the parameters, counted from the input, that stays fixed (full tuning)", ge=0, le=1
    )
    trainable_parameters: list[str] = option([], "prefixes of parameters that are trained in spite of the freeze settings (full tuning)")
    trainable_parameters_regex: str | None = option(
        None, "regular expression of parameters trained in spite of the freeze settings (full tuning)"
    )
    options: SerializeAsAny[Section] = Field(default_factory=Section, exclude=True)


class OptimSection(Section):
    """Optimizer options."""

    learning_rate: float | None = option(None, "peak learning rate; default: 1e-4 for adapters, 1e-5 for full tuning", basic=True, gt=0)
    vit_lr: float | None = option(None, "learning rate of the towers that see and hear; default: as --learning_rate", gt=0)
    aligner_lr: float | None = option(
        None, "learning rate of the part between towers and language model; default: as --learning_rate", gt=0
    )
    embedding_lr: float | None = option(
        None, "learning rate of embedding and output head, where they are trained; default: as --learning_rate", gt=0
    )
    lr_scheduler_type: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
    ] = option("cosine", "shape of the learning rate over the run")
    lr_scheduler_kwargs: dict[str, Any] = option({}, "further arguments of the scheduler, as JSON")
    warmup_ratio: float = option(0.0, "share of the steps over which the learning rate rises", ge=0, le=1)
    warmup_steps: int = option(0, "steps over which the learning rate rises; wins over --warmup_ratio", ge=0)
    weight_decay: float = option(0.1, "decoupled weight decay; biases and norms are left out", ge=0)
    adam_beta1: float = option(0.9, "decay of the gradient average", ge=0, lt=1)
    adam_beta2: float = option(0.95, "decay of the squared gradient average", ge=0, lt=1)
    adam_epsilon: float = option(1e-8, "added to the denominator", gt=0)
    max_grad_norm: float = option(1.0, "clip the gradient to this norm; 0 switches clipping off", ge=0)
    optim: str = option("adamw_torch", "optimizer (see `swift list optimizers`)")
    optim_args: dict[str, Any] = option({}, 'further arguments of the optimizer, as JSON: {"momentum": 0.9}')


class TrainSection(Section):
    """Training options."""

    num_train_epochs: float = option(3.0, "passes over the data", basic=True, gt=0)
    max_steps: int = option(-1, "optimizer steps; overrides --num_train_epochs when positive", basic=True, ge=-1)
    per_device_train_batch_size: int = option(1, "samples of one forward pass on one device", basic=True, ge=1)
    per_device_eval_batch_size: int = option(1, "samples of one evaluation pass on one device", ge=1)
    gradient_accumulation_steps: int | None = option(
        None, "forward passes before an optimizer step; default: so many that a step holds at least 16 samples", basic=True, ge=1
    )
    packing: bool = option(
        False, "put samples together into packs of --packing_length tokens; a pack counts as one sample of the batch size", basic=True
    )
    packing_length: int | None = option(None, "tokens of a pack; default: --max_length", ge=1)
    padding_free: bool | None = option(
        None, "run the samples of a batch side by side without padding; default: wherever the model allows it, with the same result"
    )
    per_device_token_budget: int | None = option(
        None, "deal the samples of a step to forward passes of about so many tokens, whatever the batch size; default: 1024 on a CPU", ge=1
    )
    auto_batch: bool = option(
        False, "try out micro-batches before the first step and use the token budget that fits and is fast; it is kept in args.json"
    )
    gradient_checkpointing: bool | None = option(
        None, "recompute activations in the backward pass to save memory; default: on for accelerators, off on a CPU"
    )
    gradient_checkpointing_policy: str = option(
        "all",
        "what gradient checkpointing recomputes: all layers, every_2 (or 3, ...) for each second layer only, matmul to keep the products "
        "of linear layers, or attention to keep what attention computes",
    )
    vit_gradient_checkpointing: bool | None = option(
        None, "multimodal models: recompute activations of the towers; default: as --gradient_checkpointing"
    )
    activation_offload: bool = option(False, "keep activations in main memory between forward and backward pass; needs an accelerator")
    fuse_layers: bool | None = option(
        None, "compute norms, MLPs and LoRA layers in fewer passes over memory, with the same formulas; default: on CPUs"
    )
    use_liger_kernel: bool = option(False, "run norms, rotary positions and MLPs by the kernels of liger-kernel; needs an accelerator")
    neftune_noise_alpha: float | None = option(None, "add noise of this strength to the embeddings of training samples (NEFTune)", gt=0)
    bf16: bool | None = option(None, "compute in bfloat16 over float32 weights; default: only when the weights are bfloat16")
    seed: int = option(42, "seed of initialisation, dropout and sampling", basic=True)
    dataloader_num_workers: int = option(0, "processes that prepare batches", ge=0)
    train_dataloader_shuffle: bool = option(True, "draw the rows in a new order in every epoch")
    group_by_length: bool = option(False, "put samples of like length into the same batch")
    eval_strategy: Literal["no", "steps", "epoch"] | None = option(
        None, "when to evaluate; default: as --save_strategy when there is evaluation data, else no"
    )
    eval_steps: int | None = option(None, "steps between evaluations; default: as --save_steps", ge=1)
    eval_on_start: bool = option(False, "evaluate before the first step")
    callbacks: list[str] = option([], "trainer callbacks by name, or module:Class of a transformers.TrainerCallback")

    @field_validator("gradient_checkpointing_policy")
    @classmethod
    def _known_policy(cls, value: str) -> str:
        if value not in ("all", "matmul", "attention") and not (value.startswith("every_") and value[6:].isdigit() and int(value[6:]) > 1):
            raise ValueError("write all, every_2 (or every_3, ...), matmul or attention")
        return value


class CheckpointSection(Section):
    """Checkpoint options."""

    output_dir: str | None = option(None, "folder of the run; default: output/<model name>", basic=True)
    add_version: bool = option(True, "put each run into a subfolder v<N>-<time> of --output_dir")
    save_strategy: Literal["steps", "epoch", "no"] = option("steps", "when to save a checkpoint (one is always saved at the end unless no)")
    save_steps: int = option(500, "steps between checkpoints", basic=True, ge=1)
    save_total_limit: int | None = option(None, "checkpoints to keep: the newest ones, and the best one; default: all", ge=1)
    save_only_model: bool = option(False, "save weights without the state that resuming needs")
    resume_from_checkpoint: str | None = option(
        None, "checkpoint-N folder, run folder (newest valid checkpoint), or true for the newest run in --output_dir", basic=True
    )
    metric_for_best_model: str = option("eval_loss", "metric that names the best checkpoint")
    greater_is_better: bool | None = option(None, "whether a larger metric is better; default: false for names that end in loss or mse")
    load_best_model_at_end: bool = option(False, "put the best weights back when training ends")
    early_stop_interval: int | None = option(
        None, "end training after this many evaluations in a row without a better --metric_for_best_model", ge=1
    )


class ReportSection(Section):
    """Reporting options."""

    report_to: list[Literal["tensorboard", "wandb", "swanlab", "none"]] = option(
        ["tensorboard"], "trackers; logging.jsonl and the loss plot are always written"
    )
    logging_steps: int = option(5, "steps between log lines", basic=True, ge=1)
    logging_first_step: bool = option(True, "log the first step as well")
    logging_dir: str | None = option(None, "folder of the TensorBoard files; default: runs in the run folder")
    run_name: str | None = option(None, "name of the run in trackers")
    tracker_project: str | None = option(None, "project in Weights & Biases or SwanLab; default: swift")
    enable_channel_loss: bool = option(
        False, "log the loss of each channel (column `channel` of the rows) and of each data file as well (next-token prediction)"
    )
    disable_tqdm: bool = option(False, "print log lines only, no progress bar")


class LaunchSection(Section):
    """Launch options."""

    use_cpu: bool = option(False, "train on the CPU even where there is an accelerator")
    ddp_backend: Literal["nccl", "gloo", "hccl", "xccl"] | None = option(None, "communication between processes; default: by device")
    ddp_timeout: int = option(1800, "seconds after which a stuck communication ends the job", ge=1)
    hang_timeout: float = option(
        20.0,
        "seconds without progress after which one of several processes shows where it hangs and ends the job, though never before "
        "three times its longest pause so far; 0: never",
        ge=0,
    )
    external_plugins: list[str] = option([], "Python files that register your own parts, loaded in every process")
