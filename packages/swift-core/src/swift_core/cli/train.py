"""`swift sft` and `swift pt`."""

from __future__ import annotations

from swift_core.config.training import SftConfig
from swift_core.registry import TASKS


def run(config: SftConfig) -> int:
    """Train; the result goes to the run folder."""
    TASKS.load(config.task.task_type)(config)
    return 0


def dry_run(config: SftConfig) -> int:
    """Prepare everything, show samples with their loss mask and the plan, train nothing."""
    if config.task.task_type == "causal_lm":
        from swift_core.tasks.dry_run import show
    else:
        from swift_core.tasks.headed import show

    show(config)
    return 0
