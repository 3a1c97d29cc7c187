"""Options of training methods that save memory, and which of them go together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from swift_core.config.fields import Section, option
from swift_core.errors import Problem, RegistryError
from swift_core.registry import OPTIMIZERS

if TYPE_CHECKING:
    from swift_core.config.training import TrainingConfig

# Names of other tools that are not here, with the reason.
NOT_HERE = {
    **dict.fromkeys(
        ("lomo", "adalomo"),
        "is not here: lomo-optim, the only library that has it, has had no release since 2024 and takes no part in checkpoints",
    ),
    **dict.fromkeys(
        ("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"),
        "is --galore_optim_per_parameter true here",
    ),
}


class MemorySection(Section):
    """Memory options."""

    use_galore: bool = option(False, "train in low-rank projections of the gradients (GaLore): --optim galore_adamw in other words")
    galore_target_modules: list[str] = option(
        [], "parts of the names of the weights that are projected, such as attn mlp; default: every matrix but embedding and head"
    )
    galore_rank: int = option(128, "rank of the projection", ge=1)
    galore_update_proj_gap: int = option(50, "steps between two looks for a new projection", ge=1)
    galore_scale: float = option(1.0, "factor of the update that comes back from the projection", gt=0)
    galore_proj_type: Literal["std", "reverse_std", "left", "right", "full"] = option(
        "std", "side that is projected: std the shorter one, reverse_std the longer one, left, right, or full for both"
    )
    galore_optim_per_parameter: bool = option(
        False, "project each gradient in the backward pass and free it at once; one process only", basic=False
    )
    galore_with_embedding: bool = option(False, "project the embedding and the output head as well")
    galore_quantization: bool = option(
        False, "Q-GaLore: packed projections that are renewed less often once they stand still; --optim galore_adamw_8bit packs the rest"
    )
    galore_proj_bits: Literal["4", "8"] = option("4", "Q-GaLore: bits of a packed projection")
    galore_proj_group_size: int = option(256, "Q-GaLore: numbers of a projection that share a scale", ge=8)
    galore_cos_threshold: float = option(
        0.4, "Q-GaLore: likeness of successive projections from which they count as standing still", ge=0, le=1
    )
    galore_gamma_proj: int = option(2, "Q-GaLore: factor of the gap when the projection stands still", ge=1)
    galore_queue_size: int = option(5, "Q-GaLore: successive projections that are compared", ge=1)
    apollo_rank: int | None = option(None, "APOLLO: rank of the random projection; default: 256, and 1 for apollo_mini", ge=1)
    apollo_update_proj_gap: int = option(200, "APOLLO: steps between two random projections", ge=1)
    apollo_scale: float | None = option(None, "APOLLO: the update is multiplied by its root; default: 1, and 128 for apollo_mini", gt=0)
    lisa_activated_layers: int = option(0, "train so many layers at a time, drawn anew again and again (LISA); 0: all layers", ge=0)
    lisa_step_interval: int = option(20, "LISA: steps between two draws", ge=1)

    @field_validator("galore_proj_bits", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


def memory_problems(config: TrainingConfig) -> list[Problem]:
    """Return what is wrong with the choice of the optimizer and of methods that save memory."""
    return [*_optimizer_problems(config), *_idle_settings(config), *_galore_problems(config), *_lisa_problems(config)]


def chosen_optimizer(config: TrainingConfig) -> str:
    """Return the name of the optimizer in use: `--optim`, made a GaLore one by `--use_galore`."""
    name = config.optimization.optim
    if not config.memory.use_galore or name.startswith("galore_"):
        return name
    return {"adamw_torch": "galore_adamw", "adamw_8bit": "galore_adamw_8bit", "adafactor": "galore_adafactor"}.get(name, name)


def _optimizer_problems(config: TrainingConfig) -> list[Problem]:
    name = chosen_optimizer(config)
    where = f"--optim {config.optimization.optim}"
    if name in NOT_HERE:
        return [Problem(where, NOT_HERE[name], "see `swift list optimizers`")]
    try:
        spec = OPTIMIZERS.get(name)
    except RegistryError as error:
        return [Problem(where, "no such optimizer is installed", error.fix)]
    problems: list[Problem] = []
    schedule = config.optimization.lr_scheduler_type
    if spec.schedules and config.given("lr_scheduler_type") and schedule not in spec.schedules:
        problems.append(Problem(f"--lr_scheduler_type {schedule}", f"does not go with {where}", f"one of {', '.join(spec.schedules)}"))
    if spec.full_only and _tuner(config) != "full":
        fix = "add --tuner_type full, or choose adamw_torch or adamw_8bit"
        problems.append(Problem(where, f"needs whole weights, and --tuner_type {_tuner(config)} trains small ones of its own", fix))
    return problems


def _tuner(config: TrainingConfig) -> str:
    tuner = config.__dict__.get("tuner")
    return tuner.tuner_type if tuner is not None else "full"  # the trainer alone takes models as they are; see `make_optimizer`


def _idle_settings(config: TrainingConfig) -> list[Problem]:
    name = chosen_optimizer(config)
    family = OPTIMIZERS.get(name).family if name in OPTIMIZERS else ""
    problems: list[Problem] = []
    for setting in MemorySection.model_fields:
        owner = setting.partition("_")[0]
        if not config.given(setting) or owner in ("use", "lisa") or owner == family:
            continue
        fix = f"add --optim {'galore_adamw' if owner == 'galore' else 'apollo_adamw'}, or remove it"
        problems.append(Problem(f"--{setting}", f"has no effect with --optim {name}", fix))
    if config.memory.use_galore and not name.startswith("galore_"):
        problems.append(Problem("--use_galore", f"does not go with --optim {name}", "use adamw_torch, adamw_8bit or adafactor"))
    return problems


def _galore_problems(config: TrainingConfig) -> list[Problem]:
    memory = config.memory
    packed = ("proj_bits", "proj_group_size", "cos_threshold", "gamma_proj", "queue_size")
    problems = [
        Problem(f"--galore_{name}", "has no effect on its own", "add --galore_quantization true, or remove it")
        for name in packed
        if config.given(f"galore_{name}") and not memory.galore_quantization
    ]
    if memory.galore_optim_per_parameter and processes_asked() > 1:
        what = "frees gradients before the processes have exchanged them"
        problems.append(Problem("--galore_optim_per_parameter", what, "train with one process, or remove it"))
    return problems


def _lisa_problems(config: TrainingConfig) -> list[Problem]:
    memory = config.memory
    if not memory.lisa_activated_layers:
        fix = "add --lisa_activated_layers 2, or remove it"
        return [Problem("--lisa_step_interval", "has no effect on its own", fix)] if config.given("lisa_step_interval") else []
    problems: list[Problem] = []
    if _tuner(config) != "full":
        fix = "add --tuner_type full, or remove it"
        problems.append(Problem("--lisa_activated_layers", f"draws whole layers, and --tuner_type {_tuner(config)} trains none", fix))
    name = chosen_optimizer(config)
    if name in OPTIMIZERS and (OPTIMIZERS.get(name).full_only or name.startswith("schedule_free")):
        what = f"drops the state of resting layers, which --optim {name} cannot do without"
        problems.append(Problem("--lisa_activated_layers", what, "use --optim adamw_torch or adamw_8bit"))
    if processes_asked() > 1:
        problems.append(
            Problem("--lisa_activated_layers", "changes what is trained, which several processes cannot follow", "train with one process")
        )
    return problems


def processes_asked() -> int:
    """Return the processes that the environment asks for, over all machines."""
    return int(os.environ.get("WORLD_SIZE") or int(os.environ.get("NPROC_PER_NODE") or 1) * int(os.environ.get("NNODES") or 1))
