"""What `--loss_scale` may say: a base, and strategies that weight parts of the answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

BASES = {
    "default": "every answer",
    "last_round": "the answers after the last question",
    "all": "every token",
}
STRATEGIES = {
    "react": "calls in the ReAct layout count double, observations nothing",
    "hermes": "<tool_call> blocks count double",
    "qwen": "calls between ✿ marks count double, results nothing",
    "agentflan": "AgentFLAN: names and arguments of tools count three times",
    "alpha_umi": "α-UMi: calls count double, observations nothing",
    "ignore_empty_think": "an empty thinking block counts nothing",
    "ignore_think_prefix": "the mark that opens a thinking block counts nothing",
}
_REGEX = "regex:"


@dataclass(frozen=True, slots=True)
class LossScaleChoice:
    """A parsed `--loss_scale`.

    Attributes:
        base: which messages are trained.
        strategies: names from `STRATEGIES`.
        files: JSON files of patterns and weights.
    """

    base: str
    strategies: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def parse_loss_scale(text: str) -> LossScaleChoice:
    """Take `base[+strategy]*` apart; a missing base is `default`.

    Raises:
        ValueError: for an unknown part; the message lists what there is.
    """
    parts = [part.strip() for part in text.split("+")]
    base = parts.pop(0) if parts[0] in BASES else "default"
    strategies: list[str] = []
    patterns: list[str] = []
    for part in parts:
        if part.startswith(_REGEX) or PurePath(part).suffix == ".json":
            patterns.append(part.removeprefix(_REGEX))
        elif part in STRATEGIES:
            strategies.append(part)
        else:
            raise ValueError(
                f"unknown part {part!r}; write base[+strategy]*, with one base first ({', '.join(BASES)}) "
                f"and strategies {', '.join(STRATEGIES)} or regex:FILE.json"
            )
    return LossScaleChoice(base, tuple(dict.fromkeys(strategies)), tuple(dict.fromkeys(patterns)))
