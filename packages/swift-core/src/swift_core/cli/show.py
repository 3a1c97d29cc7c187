"""Printing a resolved config."""

from __future__ import annotations

import json

import yaml

from swift_core.config.command import CommandConfig


def config_as_json(config: CommandConfig) -> str:
    """Return all settings by flat name as one JSON object; secrets are masked."""
    return json.dumps(config.flat(), ensure_ascii=False, indent=2)


def config_as_yaml(config: CommandConfig) -> str:
    """Return all settings as YAML that can be used as a config file; a comment says where each value came from."""
    lines: list[str] = []
    for name, value in config.flat().items():
        text = yaml.safe_dump({name: value}, allow_unicode=True, default_flow_style=True, width=10_000).strip()
        lines.append(f"{text[1:-1]:<60}  # {config.source(name)}")
    return "\n".join(lines)
