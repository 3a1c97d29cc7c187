"""Settings of conversations of several turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from swift_core.config.fields import Section, option
from swift_core.errors import Problem


class TurnsSection(Section):
    """Multi-turn options."""

    tools: list[str] = option(
        [],
        "what the model may call: FILE.py:FUNCTION, MODULE:FUNCTION, mcp:COMMAND of an MCP server, or the http address of one",
    )
    tool_timeout: float = option(30.0, "seconds that a call of a tool or a step of an environment may take", gt=0)
    gym_env: str | None = option(None, "environment of --multi_turn_scheduler gym: a name (see `swift list environments`), FILE.py:CLASS")
    gym_env_kwargs: dict[str, Any] = option({}, 'settings of that environment, as JSON: {"highest": 16}')
    scheduler_kwargs: dict[str, Any] = option({}, "settings of --multi_turn_scheduler, as JSON")
    history: Literal["append", "rebuild"] = option(
        "append",
        "what the model sees of earlier turns: the very tokens (one training row), or the conversation written anew by the chat "
        "template, which may drop thoughts (one training row for each turn)",
    )
    completion_length_limit_scope: Literal["total", "per_round"] = option(
        "total", "what --max_completion_length bounds: all turns with what is shown between them, or each answer"
    )


def turns_problems(config: Any) -> Iterator[Problem]:
    """Yield the settings of several turns that do not fit together."""
    turns: TurnsSection = config.turns
    scheduler = config.sampling.multi_turn_scheduler
    if scheduler is None:
        for name in TurnsSection.model_fields:
            if config.given(name) and hasattr(config, "data"):
                yield Problem(f"--{name}", "nobody answers the model", "add --multi_turn_scheduler tools, gym, retry or FILE.py:CLASS")
        return
    if scheduler == "tools" and not turns.tools:
        yield Problem("--multi_turn_scheduler tools", "there are no tools", "add --tools my_tools.py:calculate")
    if turns.tools and scheduler in ("gym", "retry"):
        yield Problem("--tools", f"are not used by --multi_turn_scheduler {scheduler}", "--multi_turn_scheduler tools")
    if scheduler == "gym" and turns.gym_env is None:
        yield Problem("--multi_turn_scheduler gym", "there is no environment", "add --gym_env number_guessing, or my_env.py:Environment")
    if turns.gym_env is not None and scheduler in ("tools", "retry"):
        yield Problem("--gym_env", f"is not used by --multi_turn_scheduler {scheduler}", "--multi_turn_scheduler gym")
    if config.sampling.max_turns < 2:
        yield Problem(f"--multi_turn_scheduler {scheduler}", "the model has one turn only", "add --max_turns 4")


def append_problems(config: Any) -> Iterator[Problem]:
    """Yield the settings of several turns that do not fit an algorithm with one training row for each episode."""
    yield from turns_problems(config)
    if config.turns.history != "append":
        yield Problem("--history rebuild", f"{config.task.rlhf_type} trains on an episode as one row", "--history append")
