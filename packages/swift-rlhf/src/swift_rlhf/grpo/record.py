"""What the model wrote in a run, as completions.jsonl in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from swift_core.train.report import JsonlSink

from swift_rlhf.grpo.rewarded import Rewarded

FILE = "completions.jsonl"
EVALUATED = "eval_completions.jsonl"
SHOWN = 32
"""Answers of a round that trackers get as a table."""


class Completions:
    """Writes prompts, answers, rewards and advantages, one line for each answer.

    Args:
        folder: returns the run folder, which is known once training starts; None switches writing off.
        file: name of the file there.
    """

    def __init__(self, folder: Callable[[], Path] | None, file: str = FILE) -> None:
        self._folder, self._file = folder, file
        self._sink: JsonlSink | None = None
        self._resumed = 0
        self._fresh: list[dict[str, Any]] = []

    def resume(self, step: int) -> None:
        """Drop lines of rounds after a step: they will come again."""
        self.close()
        self._resumed = step

    def close(self) -> None:
        """Close the file."""
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def write(self, groups: Sequence[Rewarded], names: Sequence[str], *, step: int) -> None:
        """Append the answers of a round.

        Args:
            groups: of the round.
            names: of the reward functions.
            step: first optimizer step that trains on it.
        """
        if self._folder is None:
            return
        if self._sink is None:
            self._sink = JsonlSink(self._folder() / self._file, resumed_step=self._resumed)
        fresh: list[dict[str, Any]] = []
        for rewarded in groups:
            for line in lines_of(rewarded, names):
                self._sink.log({"step": step, **line})
                fresh.append(line)
        self._fresh = fresh[:SHOWN]

    def fresh(self) -> list[dict[str, Any]]:
        """Return some lines of the newest round, once."""
        lines, self._fresh = self._fresh, []
        return lines


def lines_of(rewarded: Rewarded, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one line for each episode of a group."""
    group = rewarded.group
    tokens, advantages = [0] * len(rewarded.completions), [0.0] * len(rewarded.completions)
    for answer in group.answers:
        tokens[answer.episode] += len(answer.ids)
        advantages[answer.episode] = answer.advantage
    return [
        {
            "group": group.group,
            "origin": group.origin,
            "prompt": rewarded.prompt,
            "completion": completion,
            **{f"reward/{name}": value for name, value in zip(names, rewarded.rewards[place], strict=True)},
            "advantage": advantages[place],
            "tokens": tokens[place],
            "turns": rewarded.turns[place],
            "finish_reason": rewarded.finish_reasons[place],
            "version": group.version,
            **{f"episode_{name}": value for name, value in rewarded.info[place].items()},
        }
        for place, completion in enumerate(rewarded.completions)
    ]
