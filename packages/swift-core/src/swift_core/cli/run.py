"""Running a command that has a config: help, printing, dry run, and the call itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from swift_core.config.argparser import parse_words
from swift_core.config.command import CommandConfig, fit
from swift_core.config.fields import section_settings
from swift_core.config.files import read_config_file
from swift_core.config.load import config_files, understand
from swift_core.config.sections import LaunchSection
from swift_core.config.training import TrainingConfig
from swift_core.errors import ConfigError, Problem, SwiftError
from swift_core.plugins import load_plugin_files

C = TypeVar("C", bound=CommandConfig)


def run_config_command(
    kind: type[C],
    argv: Sequence[str],
    target: Callable[[C], int | None],
    *,
    summary: str,
    dry_run: Callable[[C], int | None] | None = None,
) -> int:
    """Understand the words of a command and do what they ask.

    Args:
        kind: config class of the command.
        argv: words after the command name.
        target: called with the config.
        summary: one line for the help.
        dry_run: called instead of `target` for `--dry_run`.

    Returns:
        the exit code.

    Raises:
        ConfigError: with every problem at once.
    """
    load_plugin_files(_plugin_files(argv))
    invocation = understand(kind, argv)
    words, config = invocation.words, invocation.config
    if config is None:
        from swift_core.cli.help import render_help

        sys.stdout.write(render_help(kind, summary, everything=words.help == "all"))
        return 0
    for hint in words.hints:
        sys.stderr.write(f"note: {hint}\n")
    if words.print_config:
        from swift_core.cli.show import config_as_json, config_as_yaml

        sys.stdout.write((config_as_json(config) if words.print_config == "json" else config_as_yaml(config)) + "\n")
        return 0
    if words.dry_run:
        if dry_run is None:
            raise ConfigError([Problem("--dry_run", f"`swift {kind.command}` has no dry run", "use --print_config to check the settings")])
        return dry_run(config) or 0
    try:
        return target(config) or 0
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, SwiftError) or "torch" not in sys.modules or not isinstance(config, TrainingConfig):
            raise
        from swift_core.train.exhausted import explained_failures

        with explained_failures(config):
            raise


def _plugin_files(argv: Sequence[str]) -> list[str]:
    # Plugins may register the tuner or callback that another setting names, so they are loaded before settings are checked.
    setting = section_settings(LaunchSection, section="launch")["external_plugins"]
    words = parse_words(argv, {setting.name: setting})
    if setting.name in words.values:
        return [str(path) for path in words.values[setting.name]]
    found: list[str] = []
    for file in config_files(words):
        value = read_config_file(file, [])[0].get(setting.name)
        if value is not None:
            found = [str(path) for path in fit(setting, value)]
    return found
