"""`swift export`."""

from __future__ import annotations

from swift_core.config.export import ExportConfig


def run(config: ExportConfig) -> int:
    """Write what the settings ask for."""
    from swift_core.tasks.export_tokens import export_tokens

    export_tokens(config)
    return 0
