"""Changes of settings that need less memory, each with what it saves."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from swift_core.config.training import SftConfig
from swift_core.errors import SwiftError
from swift_core.planner.estimate import Plan, examine, plan_run
from swift_core.planner.record import RunEstimate, Suggestion


def suggestions(plan: Plan, present: RunEstimate) -> tuple[Suggestion, ...]:
    """Return what would need less memory than a plan, most effective first; settings that do not go with its others are left out."""
    found: list[Suggestion] = []
    for changes in _changes(plan):
        try:
            config = changed(plan.config, changes)
            total = examine(plan_run(config, plan.folder, _shortened(plan, config)))[0].memory.total
        except SwiftError:
            continue
        if total < 0.98 * present.memory.total:
            flags = " ".join(f"--{name} {_word(value)}" for name, value in changes.items())
            found.append(Suggestion(flags, total, present.memory.total - total))
    return tuple(sorted(found, key=lambda suggestion: suggestion.total))


def _shortened(plan: Plan, config: SftConfig) -> list[int]:
    """Return the lengths of the samples under another `--max_length`."""
    limit = config.chat.max_length
    return [length if limit is None else min(length, limit) for length in plan.lengths]


def changed(config: SftConfig, changes: dict[str, Any]) -> SftConfig:
    """Return a config with some settings changed, and those derived anew that depend on them.

    Raises:
        ConfigError: when they do not go with the others.
    """
    flat = config.flat(mask=False)
    given = {name: flat[name] for name in flat if not config.source(name).startswith(("default", "derived"))}
    return type(config)(**{**given, **changes})


def _changes(plan: Plan) -> Iterator[dict[str, Any]]:
    config, training = plan.config, plan.config.training
    if not training.gradient_checkpointing and (plan.device == "cpu" or training.gradient_checkpointing is False):
        yield {"gradient_checkpointing": True}
    if config.tuner.tuner_type == "full":
        yield {"tuner_type": "lora"}
        if config.optimization.optim.startswith("adamw_torch") and importlib.util.find_spec("bitsandbytes") is not None:
            yield {"optim": "adamw_8bit"}
        if plan.size > 1 and config.parallel.deepspeed is None and not config.parallel.fsdp:
            yield {"deepspeed": "zero2"}
            yield {"deepspeed": "zero3"}
    elif config.quantization.quant_method is None:
        yield {"quant_method": "bnb", "quant_bits": "4"}
    tokens = sum(plan.fullest.lengths)
    if len(plan.fullest.lengths) > 1 and training.padding_free is not False:
        yield {"per_device_token_budget": max(max(plan.fullest.lengths), tokens // 2)}
    elif len(plan.fullest.lengths) > 1:
        half = max(1, training.per_device_train_batch_size // 2)
        yield {"per_device_train_batch_size": half, "gradient_accumulation_steps": 2 * (training.gradient_accumulation_steps or 1)}
    longest = max(plan.fullest.lengths)
    if longest > 1024:
        yield {"max_length": longest // 2}


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
