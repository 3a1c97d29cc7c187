"""Command line words to flat values. Flags are flat, dashes and underscores are equal, lists are separated by spaces."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from swift_core.config.aliases import ALIASES
from swift_core.config.fields import Setting
from swift_core.errors import Problem

_NUMBER = re.compile(r"-\d|-\.\d")
_CONFIG_ENDINGS = (".yaml", ".yml", ".json", ".toml")


@dataclass(slots=True)
class ParsedWords:
    """What a command line says.

    Attributes:
        values: flat name -> text, list of texts, parsed JSON or bool.
        files: config files in order.
        problems: what is wrong with the words themselves.
        hints: remarks to show on stderr, such as a renamed flag.
        help: None, `basic` or `all`.
        print_config: None, `yaml` or `json`.
        dry_run: prepare everything, train nothing.
    """

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    files: list[Path] = field(default_factory=list[Path])
    problems: list[Problem] = field(default_factory=list[Problem])
    hints: list[str] = field(default_factory=list[str])
    help: str | None = None
    print_config: str | None = None
    dry_run: bool = False


def parse_words(words: Sequence[str], settings: Mapping[str, Setting]) -> ParsedWords:
    """Parse the words after the command name.

    Args:
        words: such as `["run.yaml", "--lora_rank", "8"]`.
        settings: flat name -> setting, tuner options included. Unknown flags are kept as texts, for whoever knows more.
    """
    parsed = ParsedWords()
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word in ("-h", "--help", "--help_all", "--help-all"):
            parsed.help = "all" if word.endswith("all") else (parsed.help or "basic")
            continue
        if not word.startswith("--"):
            _positional(word, parsed)
            continue
        flag, equals, attached = word[2:].partition("=")
        values = [attached] if equals else []
        while not equals and position < len(words) and not _is_flag(words[position]):
            values.append(words[position])
            position += 1
        _flag(flag.replace("-", "_"), values, settings, parsed)
    return parsed


def _is_flag(word: str) -> bool:
    return (word.startswith("--") or word == "-h") and not _NUMBER.match(word)


def _positional(word: str, parsed: ParsedWords) -> None:
    if word.endswith(_CONFIG_ENDINGS):
        parsed.files.append(Path(word))
    else:
        parsed.problems.append(
            Problem(
                repr(word),
                "is neither a flag nor a config file",
                f"flags start with --, config files end with {', '.join(_CONFIG_ENDINGS)}",
            )
        )


def _flag(name: str, values: list[str], settings: Mapping[str, Setting], parsed: ParsedWords) -> None:
    if name == "print_config":
        _print_config(values, parsed)
    elif name == "dry_run":
        parsed.dry_run = _boolean("dry_run", values, parsed) is True
    elif name == "config":
        parsed.files += [Path(value) for value in values]
    elif name in settings:
        _record(settings[name], values, parsed)
    elif name in ALIASES and ALIASES[name] in settings:
        parsed.hints.append(f"--{name} is called --{ALIASES[name]} here")
        _record(settings[ALIASES[name]], values, parsed)
    elif name.startswith("no_") and name[3:] in settings and settings[name[3:]].shape == "bool" and not values:
        parsed.values[name[3:]] = False
    else:
        parsed.values[name] = values[0] if len(values) == 1 else values


def _print_config(values: list[str], parsed: ParsedWords) -> None:
    form = values[0] if values else "yaml"
    if len(values) > 1 or form not in ("yaml", "json"):
        parsed.problems.append(Problem("--print_config", f"{' '.join(values)!r} is not allowed", "allowed: yaml, json"))
    parsed.print_config = form


def _record(setting: Setting, values: list[str], parsed: ParsedWords) -> None:
    known = len(parsed.problems)
    value = _convert(setting, values, parsed)
    if len(parsed.problems) == known:
        parsed.values[setting.name] = value


def _convert(setting: Setting, values: list[str], parsed: ParsedWords) -> Any:
    if setting.shape == "bool":
        return _boolean(setting.name, values, parsed)
    if setting.shape == "list":
        return _list(setting, values, parsed)
    if len(values) != 1:
        shown = "" if setting.secret else f": {' '.join(values)}"
        given = f"got {len(values)}{shown}" if values else "got none"
        quote = " (put quotes around a text with spaces)" if values else ""
        parsed.problems.append(Problem(f"--{setting.name}", f"takes one value, {given}", f"--{setting.name} {setting.metavar}{quote}"))
        return None
    if setting.optional and values[0].lower() in ("none", "null"):
        return None
    return _json(setting.name, values[0], parsed) if setting.shape == "dict" else values[0]


def _boolean(name: str, values: list[str], parsed: ParsedWords) -> Any:
    text = " ".join(values).lower()
    known = {"": True, "true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "none": None, "null": None}
    if text not in known:
        parsed.problems.append(Problem(f"--{name}", f"{text!r} is not allowed", "allowed: true, false"))
        return None
    return known[text]


def _list(setting: Setting, values: list[str], parsed: ParsedWords) -> Any:
    if len(values) == 1 and values[0].startswith("["):
        try:
            found = json.loads(values[0])
        except json.JSONDecodeError:
            return values  # a glob such as [ab]*.jsonl
        return cast(list[Any], found) if isinstance(found, list) else values
    return values


def _json(name: str, text: str, parsed: ParsedWords) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        parsed.problems.append(
            Problem(f"--{name}", f"{text!r} is not JSON: {error.msg} at character {error.pos + 1}", f"""--{name} '{{"key": "value"}}'""")
        )
        return {}
    if not isinstance(value, dict):
        parsed.problems.append(Problem(f"--{name}", f"{text!r} is not a JSON object", f"""--{name} '{{"key": "value"}}'"""))
        return {}
    return cast(dict[str, Any], value)
