"""What goes with which way of spreading a run: one table, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swift_core.config.parallel import FSDP_CONFIG, MODE_FLAGS, deepspeed_stage, modes_asked
from swift_core.errors import ConfigError, Problem

if TYPE_CHECKING:
    from swift_core.config.training import TrainingConfig

MODES = {
    "ddp": "one process, or DDP: every process holds the whole model",
    "fsdp": "FSDP2: every process keeps a part of weights, gradients and optimizer (--fsdp full_shard)",
    "deepspeed": "DeepSpeed ZeRO 1 to 3 (--deepspeed zero2)",
    "tensor": "tensor parallel: every process keeps a part of each matrix (--tensor_parallel_size N)",
    "sequence": "sequence parallel: every process keeps a part of each sample (--sequence_parallel_size N)",
    "pipeline": "pipeline parallel: every process keeps some of the layers (--pipeline_parallel_size N)",
    "device_map": "one process keeps some of the layers on each of its devices (--device_map auto)",
}

# Optimizers that treat each number by itself: a part of a matrix is enough for them.
ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")

# Modes that go together; all others stand alone. Each may have more processes than it needs: these share out the samples (DDP),
# except for those of tensor parallel.
TOGETHER: tuple[frozenset[str], ...] = (frozenset({"fsdp", "sequence"}), frozenset({"deepspeed", "sequence"}))


@dataclass(frozen=True, slots=True)
class Feature:
    """Something a run may use.

    Attributes:
        flag: as the user writes it.
        used: whether a config uses it.
        refused: mode -> why they do not go together; modes that are not named allow it.
        fix: what to do instead.
    """

    flag: str
    used: Callable[[Any], bool]
    refused: dict[str, str]
    fix: str


def _part(config: Any, section: str, name: str) -> Any:
    return getattr(getattr(config, section, None), name, None)


_SPLIT = "each process holds a part of a weight, and this needs whole ones"
_TRIED = "it has been tried with full and lora only"
_NO_PLACE = "the plan of the model has no place for adapters"
_PACKED = "packed weights cannot be cut into parts"
_FIXED = "what is trained may not change in a run"
_NOISE = "processes that share a sample would draw different noise"
_ROWS = "samples must lie side by side in a row to be cut"
_ONE_LOSS = "it is made for next-token prediction"

FEATURES: dict[str, Feature] = {
    "full": Feature("--tuner_type full", lambda config: _part(config, "tuner", "tuner_type") == "full", {}, ""),
    "lora": Feature("--tuner_type lora", lambda config: _part(config, "tuner", "tuner_type") == "lora",
        {"tensor": _NO_PLACE}, "use --fsdp full_shard, or --tuner_type full"),
    "other_tuners": Feature(
        "--tuner_type", lambda config: _part(config, "tuner", "tuner_type") not in (None, "full", "lora"),
        {"fsdp": _TRIED, "deepspeed": _TRIED, "sequence": _TRIED, "pipeline": _TRIED, "tensor": _NO_PLACE},
        "use --tuner_type lora, or plain DDP"),
    "rlhf": Feature("swift rlhf", lambda config: getattr(config, "command", "") == "rlhf",
        {"sequence": _ONE_LOSS, "pipeline": _ONE_LOSS, "device_map": "models of several roles are placed on one device"},
        "use --fsdp full_shard or --deepspeed zero3"),
    "other_tasks": Feature("--task_type", lambda config: _part(config, "task", "task_type") not in (None, "causal_lm"),
        {"sequence": _ONE_LOSS, "pipeline": _ONE_LOSS}, "use --fsdp full_shard or --deepspeed zero3"),
    "packing": Feature("--packing", lambda config: config.training.packing, {}, ""),
    "padded_rows": Feature("--padding_free false", lambda config: config.training.padding_free is False,
        {"sequence": _ROWS, "pipeline": _ROWS}, "remove it"),
    "streaming": Feature("--streaming", lambda config: bool(_part(config, "data", "streaming")), {}, ""),
    "bf16": Feature("--bf16", lambda config: bool(config.training.bf16),
        {"tensor": "DTensors do not go through autocast", "pipeline": "what goes from stage to stage has the type of the weights"},
        "load the weights in bfloat16: --torch_dtype bfloat16"),
    "gradient_checkpointing": Feature("--gradient_checkpointing", lambda config: bool(config.training.gradient_checkpointing), {}, ""),
    "quantised_base": Feature("--quant_method", lambda config: _part(config, "quantization", "quant_method") is not None,
        {"fsdp": _PACKED, "deepspeed": _PACKED, "tensor": _PACKED, "pipeline": _PACKED},
        "use plain DDP, or a base that is not packed"),
    "whole_matrix_optimizer": Feature("--optim", lambda config: config.optimization.optim not in ELEMENTWISE,
        {"fsdp": _SPLIT, "deepspeed": _SPLIT, "tensor": _SPLIT, "pipeline": "it has been tried with these only"},
        f"one of {', '.join(ELEMENTWISE)}"),
    "lisa": Feature("--lisa_activated_layers", lambda config: bool(_part(config, "memory", "lisa_activated_layers")),
        {"fsdp": _FIXED, "deepspeed": _FIXED, "tensor": _FIXED, "pipeline": _FIXED}, "remove it"),
    "fused_layers": Feature("--fuse_layers", lambda config: config.training.fuse_layers is True,
        {"fsdp": _SPLIT, "deepspeed": _SPLIT, "tensor": _SPLIT, "sequence": "processes that share rows run the model's own layers",
         "pipeline": "each process holds some of the layers", "device_map": "layers are called through hooks"}, "remove it"),
    "liger": Feature("--use_liger_kernel", lambda config: config.training.use_liger_kernel,
        {"tensor": _SPLIT, "pipeline": "each process holds some of the layers"}, "remove it"),
    "neftune": Feature("--neftune_noise_alpha", lambda config: config.training.neftune_noise_alpha is not None,
        {"tensor": _NOISE, "sequence": _NOISE, "pipeline": _NOISE}, "remove it"),
    "best_at_end": Feature("--load_best_model_at_end", lambda config: config.saving.load_best_model_at_end, {}, ""),
}  # fmt: skip


def parallel_problems(config: TrainingConfig) -> list[Problem]:
    """Return what does not go together, each with its remedy."""
    asked = modes_asked(config)
    if len(asked) > 1 and frozenset(asked) not in TOGETHER:
        flags = list(asked.values())
        return [Problem(flags[1], f"does not go with {flags[0]}", "keep one of them")]
    problems = _own_problems(config)
    for mode, flag in asked.items():
        for feature in FEATURES.values():
            why = feature.refused.get(mode)
            if why is not None and feature.used(config):
                problems.append(Problem(feature.flag, f"does not go with {flag}: {why}", feature.fix))
    return problems


def check_processes(config: TrainingConfig, processes: int) -> None:
    """Check that a run has the processes that its mode needs; only a run that starts knows how many there are.

    Raises:
        ConfigError: when there are too few or too many.
    """
    section = config.parallel
    sizes = {
        "tensor": section.tensor_parallel_size,
        "sequence": section.sequence_parallel_size,
        "pipeline": section.pipeline_parallel_size,
    }
    for mode, flag in modes_asked(config).items():
        size = sizes.get(mode, 1)
        if mode == "device_map":
            if processes > 1:
                fix = "start one, or use --pipeline_parallel_size"
                raise ConfigError([Problem(flag, f"is for one process, and there are {processes}", fix)])
            continue
        if processes < 2:
            raise ConfigError(
                [Problem(flag, "needs more than one process", f"start with NPROC_PER_NODE={max(size, 2)} swift ..., or torchrun")]
            )
        # The plan of tensor parallel takes all processes; groups of the others share out the samples.
        if processes % size or (mode == "tensor" and processes != size):
            fix = f"start {size}, or {flag} {processes}" if mode == "tensor" else f"start {size} or a multiple of it"
            raise ConfigError([Problem(f"{flag} {size}", f"there are {processes} processes", fix)])


def _own_problems(config: TrainingConfig) -> list[Problem]:
    section, problems = config.parallel, list[Problem]()
    shards = [word for word in section.fsdp if word in ("full_shard", "shard_grad_op", "fsdp2")]
    if section.fsdp and not shards:
        problems.append(Problem(f"--fsdp {' '.join(section.fsdp)}", "does not say what is spread", "add full_shard"))
    if {"shard_grad_op", "full_shard"} <= set(shards):
        problems.append(Problem("--fsdp shard_grad_op", "does not go with full_shard", "keep one of them"))
    unknown = [name for name in section.fsdp_config if name not in FSDP_CONFIG]
    if unknown:
        problems.append(Problem("--fsdp_config", f"{unknown[0]!r} is not known", f"known: {', '.join(FSDP_CONFIG)}"))
    if section.fsdp_config and not section.fsdp:
        problems.append(Problem("--fsdp_config", "does nothing without --fsdp", "add --fsdp full_shard"))
    if section.fsdp_config.get("fsdp_version", 2) != 2:
        problems.append(Problem("--fsdp_config", "version 1 of FSDP is not offered", "remove fsdp_version"))
    try:
        stage = deepspeed_stage(section)
    except ConfigError as error:
        return [*problems, *error.problems]
    if section.deepspeed is not None and stage not in (1, 2, 3):
        fix = "--deepspeed zero2, or leave --deepspeed out for DDP"
        problems.append(Problem(f"--deepspeed {section.deepspeed}", f"ZeRO stage {stage} spreads nothing", fix))
    if section.sequence_parallel_mode is not None and section.sequence_parallel_size == 1:
        fix = "add --sequence_parallel_size 2, or remove it"
        problems.append(Problem("--sequence_parallel_mode", "does nothing while each process has rows of its own", fix))
    if section.pipeline_parallel_schedule != "1f1b" and section.pipeline_parallel_size == 1:
        fix = "add --pipeline_parallel_size 2, or remove it"
        problems.append(Problem("--pipeline_parallel_schedule", "does nothing while each process holds all layers", fix))
    if section.zero_hpz_partition_size is not None and stage != 3:
        problems.append(Problem("--zero_hpz_partition_size", "only acts in ZeRO 3", "add --deepspeed zero3, or remove it"))
    return problems


def table() -> list[dict[str, str]]:
    """Return the table as rows: one for each mode and feature, a column for each mode with `yes` or why not."""
    rows: list[dict[str, str]] = []
    for other in MODES:
        rows.append({"with": other, "flag": MODE_FLAGS[other], **{mode: _pair(other, mode) for mode in MODES}})
    for name, feature in FEATURES.items():
        rows.append({"with": name, "flag": feature.flag, **{mode: _cell(feature, mode) for mode in MODES}})
    return rows


def _pair(one: str, other: str) -> str:
    if one == other or frozenset({one, other}) in TOGETHER:
        return "yes"
    if "ddp" in (one, other):
        alone = "tensor" in (one, other)
        if "device_map" in (one, other):
            return "no: it is for one process"
        return "no: all processes share the same samples" if alone else "yes"
    return "no: they spread the same thing in two ways, or have not been tried together"


def _cell(feature: Feature, mode: str) -> str:
    return f"no: {feature.refused[mode]}" if mode in feature.refused else "yes"
