"""Server-sent events."""

from __future__ import annotations

import json
from typing import Any


def event(value: dict[str, Any]) -> str:
    """Return an event that carries JSON."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
