"""`swift completion bash|zsh|fish`: a script with all commands, flags and choices of the installed packages."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from swift_core.config.load import all_settings
from swift_core.errors import ConfigError, PluginError, Problem
from swift_core.registry import COMMANDS, REGISTRIES, import_target, nearest

_HOW = {
    "bash": 'add to ~/.bashrc:  eval "$(swift completion bash)"',
    "zsh": 'add to ~/.zshrc:  autoload -U compinit bashcompinit; compinit; bashcompinit; eval "$(swift completion zsh)"',
    "fish": "swift completion fish > ~/.config/fish/completions/swift.fish",
}
_OWN_WORDS = {
    "list": tuple(REGISTRIES),
    "config": ("schema", "validate"),
    "hub": ("path",),
    "data": ("preview",),
    "completion": tuple(_HOW),
}


def main(argv: Sequence[str]) -> int:
    """Print the completion script of a shell."""
    words = list(argv)
    if not words or words[0] in ("-h", "--help"):
        lines = [f"usage: swift completion {{{','.join(_HOW)}}}", "", *(f"  {how}" for how in _HOW.values())]
        (sys.stdout if words else sys.stderr).write("\n".join(lines) + "\n")
        return 0 if words else 2
    if words[0] not in _HOW or len(words) > 1:
        near = nearest(words[0], _HOW)
        raise ConfigError(
            [Problem(" ".join(words), "is no shell known here", f"did you mean {near[0]}?" if near else f"one of {', '.join(_HOW)}")]
        )
    flags, choices = _collect()
    sys.stdout.write(_fish(flags, choices) if words[0] == "fish" else _bash(flags, choices))
    return 0


def _collect() -> tuple[dict[str, list[str]], dict[str, tuple[str, ...]]]:
    flags: dict[str, list[str]] = {}
    choices: dict[str, tuple[str, ...]] = {}
    for spec in COMMANDS:
        flags[spec.name] = list(_OWN_WORDS.get(spec.name, ()))
        if spec.config is None:
            continue
        try:
            kind = import_target(spec.config, needed_for=f"command {spec.name!r}", install=spec.install)
        except PluginError:
            continue  # a broken stranger has no completion; `swift doctor` reports it
        settings = all_settings(kind)
        flags[spec.name] = [f"--{name}" for name in [*settings, "print_config", "dry_run", "help", "help_all"]]
        for name, setting in settings.items():
            words = setting.choices or (("true", "false") if setting.shape == "bool" else ())
            if words:
                choices[f"--{name}"] = words
    return flags, choices


def _bash(flags: dict[str, list[str]], choices: dict[str, tuple[str, ...]]) -> str:
    by_flag = "\n".join(
        f'      {flag}) COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$cur")); return ;;' for flag, words in sorted(choices.items())
    )
    by_command = "\n".join(f'    {name}) words="{" ".join(words)}" ;;' for name, words in sorted(flags.items()))
    return f"""_swift() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} words=""
  if [[ $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=($(compgen -W "{" ".join(flags)}" -- "$cur")); return
  fi
  if [[ $cur != -* ]]; then
    case $prev in
{by_flag}
    esac
  fi
  case ${{COMP_WORDS[1]}} in
{by_command}
  esac
  if [[ $cur == -* || ${{words:0:1}} != - ]]; then COMPREPLY=($(compgen -W "$words" -- "$cur")); fi
}}
complete -o default -F _swift swift
"""


def _fish(flags: dict[str, list[str]], choices: dict[str, tuple[str, ...]]) -> str:
    lines = [f"complete -c swift -n __fish_use_subcommand -f -a '{' '.join(flags)}'"]
    for command, words in flags.items():
        for word in words:
            seen = f"complete -c swift -n '__fish_seen_subcommand_from {command}'"
            if not word.startswith("--"):
                lines.append(f"{seen} -f -a {word}")
                continue
            values = f" -x -a '{' '.join(choices[word])}'" if word in choices else ""
            lines.append(f"{seen} -l {word[2:]}{values}")
    return "\n".join(lines) + "\n"
