"""The loss of each channel and of each data file, besides that of all samples together."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swift_core.batching.collate import IGNORED, Batch
from swift_core.train.parallel import World
from swift_core.train.task import CausalLm, with_dtype

FILE = "channels.json"
_PLACE = re.compile(r"(?:[:#]\d+)+$")


class ChannelLm(CausalLm):
    """Next-token prediction that keeps the losses of channels and data files apart.

    Every trained token belongs to one channel and one file, so their sums add up to the loss of all samples. They are added up
    over micro-batches here and over ranks at the end of each step, from where they are the same on all ranks.

    Args:
        world: the processes of the run.
        settings: as `CausalLm` takes them.
    """

    def __init__(self, world: World, **settings: Any) -> None:
        super().__init__(**settings)
        self._world = world
        self._step: dict[str, list[float]] = {}
        self._window: dict[str, list[float]] = {}

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the summed cross-entropy in nats over the trained tokens."""
        scores = self._scored_by(model)(with_dtype(batch, model), with_each=True)
        if torch.is_grad_enabled() and scores.each is not None:
            self._count(batch, scores.each)
        return scores.loss_sum

    def begin_step(self, model: nn.Module, batches: Sequence[Any]) -> None:
        """Start from nothing."""
        self._step.clear()

    def end_step(self, model: nn.Module, step: int) -> None:
        """Add up what the ranks have found; those that share their samples count once."""
        for found in self._world.gather(self._step)[:: self._world.sharing]:
            for name, (total, tokens) in found.items():
                kept = self._window.setdefault(name, [0.0, 0.0])
                kept[0], kept[1] = kept[0] + total, kept[1] + tokens

    def log_values(self) -> dict[str, float]:
        """Return the mean loss in nats, and the trained tokens, of each channel and each file since the last call."""
        values: dict[str, float] = {}
        files = [name for name in self._window if name.startswith("dataset")]
        for name in sorted(self._window):
            if name.startswith("dataset") and len(files) == 1:
                continue  # it would be the loss of all
            total, tokens = self._window[name]
            kind, _, key = name.partition("/")
            values[f"{kind}_loss/{key}"], values[f"{kind}_tokens/{key}"] = total / max(tokens, 1), int(tokens)
        self._window.clear()
        return values

    def save_state(self, folder: Path) -> None:
        """Write what the next log line will hold."""
        (folder / FILE).write_text(json.dumps(self._window), encoding="utf-8")

    def load_state(self, folder: Path) -> None:
        """Go on from there; a run that was started without channels has nothing yet."""
        file = folder / FILE
        self._window = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def _count(self, batch: Batch, each: torch.Tensor) -> None:
        counts = trained_by_sample(batch)
        for origin, channel, losses in zip(batch.origins, batch.channels, each.double().split(counts), strict=False):
            if not len(losses):
                continue
            total = float(losses.sum())
            for name in (f"channel/{channel or 'none'}", f"dataset/{dataset_of(origin)}"):
                kept = self._step.setdefault(name, [0.0, 0.0])
                kept[0], kept[1] = kept[0] + total, kept[1] + len(losses)


def trained_by_sample(batch: Batch) -> list[int]:
    """Return the trained tokens of each sample of a batch."""
    trained = batch.labels != IGNORED
    if batch.segments is None:
        return trained[:, 1:].sum(1).tolist()
    # The first token of a segment carries no loss.
    return [int(part.sum()) for part in trained[0].split(list(batch.segments))]


def dataset_of(origin: str) -> str:
    """Return the name of the file or data set that a sample came from."""
    return Path(_PLACE.sub("", origin)).name
