"""What the model wrote in a run, as completions.jsonl in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from swift_core.train.report import JsonlSink

from swift_rlhf.grpo.rollouts import Rewarded

FILE = "completions.jsonl"


class Completions:
    """Writes prompts, answers, rewards and advantages, one line for each answer.

    Args:
        folder: returns the run folder, which is known once training starts; None switches writing off.
    """

    def __init__(self, folder: Callable[[], Path] | None) -> None:
        self._folder = folder
        self._sink: JsonlSink | None = None
        self._resumed = 0

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
            self._sink = JsonlSink(self._folder() / FILE, resumed_step=self._resumed)
        for rewarded in groups:
            group = rewarded.group
            for place, answer in enumerate(group.answers):
                rewards = dict(zip(names, rewarded.rewards[place], strict=True))
                self._sink.log(
                    {
                        "step": step,
                        "group": group.group,
                        "origin": group.origin,
                        "prompt": rewarded.prompt,
                        "completion": rewarded.completions[place],
                        **{f"reward/{name}": value for name, value in rewards.items()},
                        "advantage": answer.advantage,
                        "tokens": len(answer.ids),
                        "finish_reason": rewarded.finish_reasons[place],
                        "version": group.version,
                    }
                )
