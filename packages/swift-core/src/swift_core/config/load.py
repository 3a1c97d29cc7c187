"""Defaults, files and flags to one checked config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from swift_core.config.aliases import ALIASES
from swift_core.config.argparser import ParsedWords, parse_words
from swift_core.config.command import CommandConfig, tuner_flags
from swift_core.config.fields import Setting
from swift_core.config.files import read_config_file
from swift_core.errors import ConfigError, Problem

C = TypeVar("C", bound=CommandConfig)

ARGS_FILE = "args.json"


@dataclass(frozen=True, slots=True)
class Invocation(Generic[C]):
    """A command line, understood.

    Attributes:
        words: its words, parsed.
        config: the checked config; None when only help is wanted.
    """

    words: ParsedWords
    config: C | None


def all_settings(kind: type[CommandConfig]) -> dict[str, Setting]:
    """Return the flat settings of a command, with the options of every installed tuner where it has a tuner section."""
    settings = dict(kind.settings())
    if "tuner" in kind.model_fields:
        for name, owners in tuner_flags().items():
            settings.setdefault(name, owners[0])
    return settings


def load_config(kind: type[C], argv: Sequence[str]) -> C:
    """Build a config from command line words: defaults < files left to right < flags.

    Raises:
        ConfigError: with every problem of files, words and values at once.
    """
    config = understand(kind, argv).config
    if config is None:
        raise ConfigError([Problem("--help", "asks for help, there is nothing to load")])
    return config


def understand(kind: type[C], argv: Sequence[str]) -> Invocation[C]:
    """Parse words, read the files they name and build the config.

    Raises:
        ConfigError: with every problem of files, words and values at once.
    """
    settings = all_settings(kind)
    words = parse_words(argv, settings)
    if words.help:
        return Invocation(words, None)
    problems = list(words.problems)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for path in config_files(words):
        found, places = read_config_file(path, problems)
        for name, value in found.items():
            target = ALIASES.get(name, name) if name not in settings else name
            if target != name and target in settings:
                words.hints.append(f"{places[name]}: {name} is called {target} here")
            else:
                target = name
            values[target] = value
            sources[target] = places[name]
    values.update(words.values)
    sources.update(dict.fromkeys(words.values, "flag"))
    return Invocation(words, kind.from_values(values, sources, problems))


def config_files(words: ParsedWords) -> list[Path]:
    """Return the files that settings are read from, in order of precedence.

    A resumed run goes on with its own settings; files and flags given beside `--resume_from_checkpoint` win over them.
    """
    folder = words.values.get("resume_from_checkpoint")
    saved = Path(folder) / ARGS_FILE if isinstance(folder, str) else None
    return [*([saved] if saved is not None and saved.is_file() else []), *words.files]
