"""`swift export`."""

from __future__ import annotations

from swift_core.config.export import ExportConfig


def run(config: ExportConfig) -> int:
    """Do what the settings ask for."""
    from swift_core.tasks.exporting import export

    export(config)
    return 0


def dry_run(config: ExportConfig) -> int:
    """Print the plan and write nothing."""
    import sys

    from swift_core.tasks.exporting import make_plan

    plan = make_plan(config)
    for number, spec in enumerate(plan.actions, 1):
        where = plan.folders.get(spec.name)
        sys.stdout.write(f"{number}. {spec.name}: {spec.summary}" + (f"\n   -> {where}" if where else "") + "\n")
    return 0
