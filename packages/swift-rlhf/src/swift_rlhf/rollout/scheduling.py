"""From settings to who plays the other side."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swift_core.errors import ConfigError, Problem
from swift_core.plugins import load_plugin_files
from swift_core.registry import ENVIRONMENTS, SCHEDULERS, Registry, import_target
from swift_core.templates.agents.base import load_agent
from swift_core.templates.chat import ChatTemplate

from swift_rlhf.config.turns import TurnsSection
from swift_rlhf.rollout.mcp import McpServer
from swift_rlhf.rollout.schedulers import Scheduler
from swift_rlhf.rollout.tools import PythonTool, Tool, ToolBox

USUAL_AGENT = "hermes"
"""How calls are read where neither settings nor model say it: most chat templates with tools write them so."""


def load_scheduler(settings: Any, template: ChatTemplate) -> Scheduler | None:
    """Return what plays the other side in a run, or None where nobody does.

    Raises:
        ConfigError: for settings that it does not take, and tools that do not say what they take.
        PluginError: for a file or module that cannot be imported.
        EngineError: when a tool server does not answer.
    """
    reference = settings.sampling.multi_turn_scheduler
    if reference is None:
        return None
    turns: TurnsSection = settings.turns
    kind = _named(reference, SCHEDULERS, "--multi_turn_scheduler")
    offered: dict[str, Callable[[], Any]] = {
        "tools": lambda: ToolBox(load_tools(turns.tools, timeout=turns.tool_timeout), timeout=turns.tool_timeout),
        "agent": lambda: template.agent or load_agent(USUAL_AGENT),
        "make_environment": lambda: _environment(turns),
        "tool_timeout": lambda: turns.tool_timeout,
    }
    return _made(kind, "--scheduler_kwargs", turns.scheduler_kwargs, offered)


def load_tools(references: Sequence[str], *, timeout: float) -> list[Tool]:
    """Return the tools of a run.

    Args:
        references: `FILE.py:FUNCTION`, `MODULE:FUNCTION`, `mcp:COMMAND` or the http address of an MCP server.
        timeout: seconds that a server may take for an answer.
    """
    found: list[Tool] = []
    for reference in references:
        if reference.startswith(("mcp:", "http://", "https://")):
            found += McpServer(reference.removeprefix("mcp:"), timeout=timeout).tools()
        else:
            loaded = _imported(reference, "--tools")
            found.append(loaded if isinstance(loaded, Tool) else PythonTool(loaded))
    return found


def _environment(turns: TurnsSection) -> Callable[[], Any]:
    if turns.gym_env is None:
        raise ConfigError([Problem("--gym_env", "is missing", "--gym_env number_guessing, or my_env.py:Environment")])
    kind = _named(turns.gym_env, ENVIRONMENTS, "--gym_env")
    return lambda: _made(kind, "--gym_env_kwargs", turns.gym_env_kwargs, {})


def _named(reference: str, registry: Registry[Any], flag: str) -> Any:
    return _imported(reference, flag) if ":" in reference and reference not in registry else registry.load(reference)


def _imported(reference: str, flag: str) -> Any:
    place, _, attribute = reference.rpartition(":")
    if not place:
        raise ConfigError([Problem(flag, f"{reference!r} does not say where it is", "FILE.py:NAME or MODULE:NAME")])
    module = load_plugin_files([place])[0] if place.endswith(".py") or Path(place).is_file() else place
    return import_target(f"{module}:{attribute}", needed_for=flag)


def _made(kind: Callable[..., Any], flag: str, given: Mapping[str, Any], offered: Mapping[str, Callable[[], Any]]) -> Any:
    """Call a class with what its constructor names: settings of the user first, then what the run offers."""
    parameters = inspect.signature(kind).parameters
    unknown = [name for name in given if name not in parameters]
    if unknown:
        known = ", ".join(name for name in parameters if name not in offered) or "no settings"
        raise ConfigError([Problem(flag, f"{getattr(kind, '__name__', kind)} has no setting {unknown[0]!r}", f"it takes {known}")])
    return kind(**{name: make() for name, make in offered.items() if name in parameters and name not in given}, **given)
