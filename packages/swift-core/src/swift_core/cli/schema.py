"""`swift config schema COMMAND` and `swift config validate COMMAND FILE ...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from swift_core.config.command import CommandConfig
from swift_core.errors import ConfigError, Problem, RegistryError
from swift_core.registry import COMMANDS, import_target, nearest

_USAGE = """usage: swift config schema COMMAND               print the JSON schema of the command's config file
       swift config validate COMMAND FILE ...    check config files (and flags) without running anything
"""


def main(argv: Sequence[str]) -> int:
    """Run `swift config` with the words after it and return the exit code.

    Raises:
        ConfigError: for unknown words, and for every problem of a validated file.
    """
    words = list(argv)
    if not words or words[0] in ("-h", "--help") or words[1:2] in (["-h"], ["--help"]):
        (sys.stdout if words else sys.stderr).write(_USAGE)
        return 0 if words else 2
    actions = {"schema": _schema, "validate": _validate}
    if words[0] not in actions:
        near = nearest(words[0], actions)
        raise ConfigError(
            [Problem(repr(words[0]), "is no action of `swift config`", f"did you mean {near[0]}?" if near else "schema or validate")]
        )
    if len(words) < 2:
        raise ConfigError([Problem(f"swift config {words[0]}", "names no command", f"one of {', '.join(_configured())}")])
    return actions[words[0]](words[1], words[2:])


def _configured() -> list[str]:
    return [spec.name for spec in COMMANDS if spec.config is not None]


def _config_class(command: str) -> type[CommandConfig]:
    spec = COMMANDS.get(command)
    if spec.config is None:
        raise RegistryError(f"`swift {command}` has no config file", fix=f"one of {', '.join(_configured())}")
    return import_target(spec.config, needed_for=f"command {command!r}", install=spec.install)


def _schema(command: str, rest: list[str]) -> int:
    from swift_core.config.schema import json_schema

    if rest:
        raise ConfigError([Problem(repr(rest[0]), "is one word too many", f"swift config schema {command}")])
    sys.stdout.write(json.dumps(json_schema(_config_class(command)), ensure_ascii=False, indent=2) + "\n")
    return 0


def _validate(command: str, rest: list[str]) -> int:
    from swift_core.config.load import load_config

    if not rest:
        raise ConfigError([Problem(f"swift config validate {command}", "names no file", f"swift config validate {command} run.yaml")])
    load_config(_config_class(command), rest)
    sys.stdout.write(f"{' '.join(rest)}: these settings are valid for `swift {command}`\n")
    return 0
