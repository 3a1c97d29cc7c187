"""How a run is spread over devices: its flags, and the presets of DeepSpeed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import field_validator

from swift_core.config.fields import Section, option
from swift_core.errors import ConfigError, Problem

if TYPE_CHECKING:
    from swift_core.config.training import TrainingConfig

FSDP_WORDS = ("full_shard", "shard_grad_op", "offload", "auto_wrap", "fsdp2")
FSDP_CONFIG = ("fsdp_version", "reshard_after_forward", "transformer_layer_cls_to_wrap")

_OFFLOADED = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
_STAGE_3: dict[str, Any] = {
    "stage": 3,
    "overlap_comm": False,
    "contiguous_gradients": True,
    "stage3_gather_16bit_weights_on_model_save": True,
}

# What each name stands for in DeepSpeed's own settings, under `zero_optimization`.
DEEPSPEED_PRESETS: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2, "overlap_comm": False, "contiguous_gradients": True},
    "zero3": _STAGE_3,
    "zero2_offload": {"stage": 2, "overlap_comm": False, "contiguous_gradients": True, **_OFFLOADED},
    "zero3_offload": {**_STAGE_3, **_OFFLOADED, "offload_param": {"device": "cpu", "pin_memory": False}},
}


# The flag that asks for each mode; several processes without any of them are DDP.
MODE_FLAGS = {
    "ddp": "NPROC_PER_NODE",
    "fsdp": "--fsdp",
    "deepspeed": "--deepspeed",
    "tensor": "--tensor_parallel_size",
    "sequence": "--sequence_parallel_size",
    "pipeline": "--pipeline_parallel_size",
    "device_map": "--device_map",
}


class ParallelSection(Section):
    """Parallel options."""

    fsdp: list[Literal["full_shard", "shard_grad_op", "offload", "auto_wrap", "fsdp2"]] = option(
        [],
        "spread weights, gradients and optimizer over processes by PyTorch's FSDP2: full_shard (or fsdp2), or shard_grad_op to keep "
        "weights whole between forward and backward pass; offload keeps them in main memory; auto_wrap is always on",
    )
    fsdp_config: dict[str, Any] = option(
        {}, 'further settings of FSDP2, as JSON: {"reshard_after_forward": true, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}'
    )
    deepspeed: str | None = option(
        None, "spread the run by DeepSpeed: zero1, zero2, zero3, zero2_offload, zero3_offload, or a JSON file of DeepSpeed's settings"
    )
    zero_hpz_partition_size: int | None = option(
        None, "DeepSpeed ZeRO 3: processes over which a second copy of the weights is spread (ZeRO++), mostly those of one machine", ge=1
    )
    tensor_parallel_size: int = option(1, "processes that share each matrix of the model, by the plan that transformers has for it", ge=1)
    sequence_parallel_size: int = option(1, "processes that share the tokens of each row, for texts that one device cannot hold", ge=1)
    sequence_parallel_mode: Literal["ulysses", "ring"] | None = option(
        None,
        "how attention looks past its process: ulysses deals out the heads, ring sends keys and values around, for any number of "
        "processes; default: ulysses where the heads can be dealt out",
    )
    pipeline_parallel_size: int = option(1, "processes that hold successive layers of the model", ge=1)
    pipeline_parallel_schedule: Literal["1f1b", "gpipe"] = option(
        "1f1b", "order of the micro-batches: one forward, one backward, which keeps fewer activations; or all forward, then all backward"
    )

    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = option(
        None, "spread the layers of one process over its devices, as transformers does it; one device computes at a time"
    )

    @field_validator("fsdp", mode="before")
    @classmethod
    def _as_words(cls, value: Any) -> Any:
        # Users know `--fsdp "full_shard auto_wrap"`, as one word.
        words: list[Any] = [value] if isinstance(value, str) else list(value or [])
        return [word for text in words for word in str(text).split()]

    @field_validator("deepspeed")
    @classmethod
    def _known_preset(cls, value: str | None) -> str | None:
        if value is None or value in DEEPSPEED_PRESETS or Path(value).expanduser().is_file():
            return value
        raise ValueError(f"write {', '.join(DEEPSPEED_PRESETS)}, or a JSON file that exists")


def mode_of(config: TrainingConfig) -> str:
    """Return what spreads weights: `fsdp`, `deepspeed`, `tensor`, `pipeline`, `device_map`, or `ddp` for one process and plain DDP."""
    return next((mode for mode in modes_asked(config) if mode != "sequence"), "ddp")


def processes_for_a_sample(section: ParallelSection) -> int:
    """Return how many successive processes work on the same samples."""
    return section.tensor_parallel_size * section.sequence_parallel_size * section.pipeline_parallel_size


def modes_asked(config: TrainingConfig) -> dict[str, str]:
    """Return mode -> the flag that asks for it."""
    section = config.parallel
    wanted = {
        "fsdp": bool(section.fsdp),
        "deepspeed": section.deepspeed is not None,
        "tensor": section.tensor_parallel_size > 1,
        "sequence": section.sequence_parallel_size > 1,
        "pipeline": section.pipeline_parallel_size > 1,
        "device_map": section.device_map is not None,
    }
    return {mode: MODE_FLAGS[mode] for mode in wanted if wanted[mode]}


def deepspeed_settings(section: ParallelSection, *, micro_batch: int, clipping: float, bf16: bool) -> dict[str, Any]:
    """Return DeepSpeed's settings of a run.

    Batches, clipping and number type come from the run, so that a value of `auto` in a file means them, and another one is
    refused where it differs.

    Raises:
        ConfigError: when a file is no JSON object or contradicts the run.
    """
    name = section.deepspeed or "zero2"
    given = {"zero_optimization": DEEPSPEED_PRESETS[name]} if name in DEEPSPEED_PRESETS else _read(Path(name).expanduser())
    settings = deepcopy(dict(given))
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,  # the trainer says which micro-batch is the last of a step
        "gradient_clipping": clipping,
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }
    problems: list[Problem] = []
    for part in ("optimizer", "scheduler"):
        if part in settings:
            problems.append(
                Problem(f"--deepspeed {name}", f"it has a part {part!r}, which the run's own flags say", f"remove {part!r} from it")
            )
    if cast("dict[str, Any]", settings.get("fp16") or {}).get("enabled") is True:
        problems.append(Problem(f"--deepspeed {name}", "fp16 is not offered: losses overflow in it", 'remove "fp16" and use --bf16'))
    if problems:
        raise ConfigError(problems)
    for batch in ("train_batch_size", "fp16"):
        settings.pop(batch, None)
    zero = {key: value for key, value in settings.get("zero_optimization", {}).items() if value != "auto"}
    if section.zero_hpz_partition_size is not None:
        zero["zero_hpz_partition_size"] = section.zero_hpz_partition_size
    return {**{key: value for key, value in settings.items() if value != "auto"}, **ours, "zero_optimization": zero}


def deepspeed_stage(section: ParallelSection) -> int:
    """Return the ZeRO stage that `--deepspeed` means, 0 where nothing is asked for."""
    if section.deepspeed is None:
        return 0
    name = section.deepspeed
    settings: Any = DEEPSPEED_PRESETS.get(name) or _read(Path(name).expanduser()).get("zero_optimization", {})
    return int(settings.get("stage", 0))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(
            [Problem(f"{path}:{error.lineno}", f"is no JSON: {error.msg}", "correct it, or use --deepspeed zero2")]
        ) from error
    except OSError as error:
        raise ConfigError([Problem(f"--deepspeed {path}", f"cannot be read: {error}", "use --deepspeed zero2")]) from error
    if not isinstance(found, dict):
        raise ConfigError([Problem(f"--deepspeed {path}", "is no JSON object", "use --deepspeed zero2")])
    return cast("dict[str, Any]", found)
