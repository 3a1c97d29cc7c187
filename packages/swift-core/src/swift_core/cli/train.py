"""`swift sft` and `swift pt`."""

from __future__ import annotations

from swift_core.config.training import SftConfig


def run(config: SftConfig) -> int:
    """Train; the result goes to the run folder."""
    from swift_core.tasks.sft import train

    train(config)
    return 0


def dry_run(config: SftConfig) -> int:
    """Prepare everything, show samples with their loss mask and the plan, train nothing."""
    from swift_core.tasks.dry_run import show

    show(config)
    return 0
