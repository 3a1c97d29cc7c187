"""What swift-ui adds to the command line."""

from __future__ import annotations

from swift_core.specs import CommandSpec

COMMANDS = (
    CommandSpec(
        name="web-ui",
        summary="train from a web page: forms, jobs, logs and curves",
        target="swift_ui.cli:run",
        config="swift_ui.config:WebUiConfig",
        group="Web",
        aliases=("ui",),
    ),
)
