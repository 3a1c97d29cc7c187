"""`swift web-ui`: serve the page until it is interrupted."""

from __future__ import annotations

from swift_ui.config import WebUiConfig


def run(config: WebUiConfig) -> int:
    """Serve the page and return 0 when it is stopped."""
    from swift_ui.app import serve

    serve(config)
    return 0
