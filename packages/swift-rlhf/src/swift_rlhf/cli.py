"""`swift rlhf`."""

from __future__ import annotations

from swift_core.errors import ConfigError, Problem
from swift_core.registry import TASKS, import_target

from swift_rlhf.config import RlhfConfig


def run(config: RlhfConfig) -> int:
    """Train; the result goes to the run folder."""
    TASKS.load(config.task.rlhf_type)(config)
    return 0


def dry_run(config: RlhfConfig) -> int:
    """Prepare everything, show samples and the plan, train nothing."""
    spec = config.algorithm
    if spec is None or spec.dry_run is None:
        what = f"--rlhf_type {config.task.rlhf_type} has no dry run"
        raise ConfigError([Problem("--dry_run", what, "use --print_config to check the settings")])
    import_target(spec.dry_run, needed_for=f"--rlhf_type {spec.name}")(config)
    return 0
