"""What goes with which way of spreading a run: one table, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swift_core.config.parallel import FSDP_CONFIG, deepspeed_stage, modes_asked
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
}

# Optimizers that treat each number by itself: a part of a matrix is enough for them.
ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")

_NOT_OFFERED = {
    "sequence": Problem(
        "--sequence_parallel_size",
        "training does not offer it yet",
        "spread the model with --fsdp full_shard, and add --gradient_checkpointing",
    ),
    "pipeline": Problem("--pipeline_parallel_size", "training does not offer it yet", "use --fsdp full_shard or --deepspeed zero3"),
}


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

FEATURES: dict[str, Feature] = {
    "full": Feature("--tuner_type full", lambda config: _part(config, "tuner", "tuner_type") == "full", {}, ""),
    "lora": Feature("--tuner_type lora", lambda config: _part(config, "tuner", "tuner_type") == "lora",
        {"tensor": "the plan of the model has no place for adapters"}, "use --fsdp full_shard, or --tuner_type full"),
    "other_tuners": Feature(
        "--tuner_type", lambda config: _part(config, "tuner", "tuner_type") not in (None, "full", "lora"),
        {"fsdp": "it has been tried with full and lora only", "deepspeed": "it has been tried with full and lora only",
         "tensor": "the plan of the model has no place for adapters"}, "use --tuner_type lora, or plain DDP"),
    "packing": Feature("--packing", lambda config: config.training.packing, {}, ""),
    "streaming": Feature("--streaming", lambda config: bool(_part(config, "data", "streaming")), {}, ""),
    "bf16": Feature("--bf16", lambda config: bool(config.training.bf16),
        {"tensor": "DTensors do not go through autocast"}, "load the weights in bfloat16: --torch_dtype bfloat16"),
    "gradient_checkpointing": Feature("--gradient_checkpointing", lambda config: bool(config.training.gradient_checkpointing), {}, ""),
    "quantised_base": Feature("--quant_method", lambda config: _part(config, "quantization", "quant_method") is not None,
        {"fsdp": "packed weights cannot be cut into parts", "deepspeed": "packed weights cannot be cut into parts",
         "tensor": "packed weights cannot be cut into parts"}, "use plain DDP, or a base that is not packed"),
    "whole_matrix_optimizer": Feature("--optim", lambda config: config.optimization.optim not in ELEMENTWISE,
        {"fsdp": _SPLIT, "deepspeed": _SPLIT, "tensor": _SPLIT}, f"one of {', '.join(ELEMENTWISE)}"),
    "lisa": Feature("--lisa_activated_layers", lambda config: bool(_part(config, "memory", "lisa_activated_layers")),
        {"fsdp": "what is trained may not change in a run", "deepspeed": "what is trained may not change in a run",
         "tensor": "what is trained may not change in a run"}, "remove it"),
    "fused_layers": Feature("--fuse_layers", lambda config: config.training.fuse_layers is True,
        {"fsdp": _SPLIT, "deepspeed": _SPLIT, "tensor": _SPLIT}, "remove it"),
    "liger": Feature("--use_liger_kernel", lambda config: config.training.use_liger_kernel, {"tensor": _SPLIT}, "remove it"),
    "neftune": Feature("--neftune_noise_alpha", lambda config: config.training.neftune_noise_alpha is not None,
        {"tensor": "processes that share a sample would draw different noise"}, "remove it"),
    "best_at_end": Feature("--load_best_model_at_end", lambda config: config.saving.load_best_model_at_end, {}, ""),
}  # fmt: skip


def parallel_problems(config: TrainingConfig) -> list[Problem]:
    """Return what does not go together, each with its remedy."""
    asked = modes_asked(config)
    if len(asked) > 1:
        flags = list(asked.values())
        return [Problem(flags[1], f"does not go with {flags[0]}", "keep one of them")]
    problems = _own_problems(config)
    for mode, flag in asked.items():
        if mode in _NOT_OFFERED:
            return [_NOT_OFFERED[mode]]
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
    for mode, flag in modes_asked(config).items():
        size = config.parallel.tensor_parallel_size
        if processes < 2:
            raise ConfigError([Problem(flag, "needs more than one process", "start with NPROC_PER_NODE=2 swift ..., or torchrun")])
        if mode == "tensor" and processes != size:
            fix = f"start {size}, or --tensor_parallel_size {processes}"
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
    if section.zero_hpz_partition_size is not None and stage != 3:
        problems.append(Problem("--zero_hpz_partition_size", "only acts in ZeRO 3", "add --deepspeed zero3, or remove it"))
    return problems


def table() -> list[dict[str, str]]:
    """Return the table as rows: one for each feature, a column for each mode with `yes` or why not."""
    rows: list[dict[str, str]] = []
    for name, feature in FEATURES.items():
        cells = {mode: "no: not offered" if mode in _NOT_OFFERED else _cell(feature, mode) for mode in MODES}
        rows.append({"with": name, "flag": feature.flag, **cells})
    return rows


def _cell(feature: Feature, mode: str) -> str:
    return f"no: {feature.refused[mode]}" if mode in feature.refused else "yes"
