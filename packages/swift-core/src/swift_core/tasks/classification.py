"""Sequence classification and regression: a head on the whole text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from swift_core.errors import DataError
from swift_core.losses import classification as losses
from swift_core.metrics.classification import accuracy, macro_f1, matthews, micro_f1
from swift_core.metrics.correlation import mean_squared_error, pearson, spearman
from swift_core.protocols import EncodedSample
from swift_core.tasks.texts import LabelledBatch, pad_texts

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
Part = tuple[NDArray[np.float32], NDArray[Any]]

_LOSSES: dict[Problem, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "single_label_classification": losses.single_label,
    "multi_label_classification": losses.multi_label,
    "regression": losses.regression,
}


@dataclass(frozen=True, slots=True)
class Labels:
    """What the labels of a data set are.

    Attributes:
        problem: one class, several classes, or numbers.
        count: how many classes, or how many numbers.
    """

    problem: Problem
    count: int


def find_labels(samples: Sequence[EncodedSample], *, problem: Problem | None, count: int | None) -> Labels:
    """Return what the labels of a data set are, and check every one.

    Without a `problem` a list of whole numbers is several classes, any fraction makes a regression, all else is one class.

    Args:
        samples: training and evaluation samples.
        problem: what is already known.
        count: number of classes or numbers, when known.

    Raises:
        DataError: at the first label that does not fit.
    """
    for sample in samples:
        if sample.label is None or not all(_is_number(item) for item in _as_list(sample.label)):
            what = "there is no label" if sample.label is None else f"the label is {sample.label!r}"
            raise DataError(
                what, location=sample.origin or None, fix="label: a class number, a list of them, a number or a list of numbers"
            )
    labels = [sample.label for sample in samples]
    if problem is None:
        fractions = any(isinstance(item, float) for label in labels for item in _as_list(label))
        several = any(isinstance(label, list) for label in labels)
        problem = "regression" if fractions else "multi_label_classification" if several else "single_label_classification"
    if count is None:
        sizes = (len(_as_list(label)) for label in labels)
        largest = (item + 1 for label in labels for item in _as_list(label))
        count = int(max(sizes if problem == "regression" else largest, default=1))
        count = count if problem == "regression" else max(count, 2 if problem == "single_label_classification" else 1)
    for sample in samples:
        reason = _misfit(sample.label, problem, count)
        if reason:
            raise DataError(f"the label is {sample.label!r}, {reason}", location=sample.origin or None, fix=_fix(problem))
    return Labels(problem, count)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_list(label: Any) -> list[Any]:
    return label if isinstance(label, list) else [label]


def _misfit(label: Any, problem: Problem, count: int) -> str:
    items = _as_list(label)
    if problem == "regression":
        return "" if len(items) == count else f"and each row has {count} number{'s' if count > 1 else ''}"
    if problem == "single_label_classification" and len(items) != 1:
        return "and one class is wanted"
    wrong = next((item for item in items if not float(item).is_integer() or not 0 <= item < count), None)
    return "" if wrong is None else f"and classes go from 0 to {count - 1} (num_labels {count})"


def _fix(problem: Problem) -> str:
    return {
        "regression": "give every row the same number of numbers, or set --num_labels",
        "single_label_classification": "raise --num_labels, or --problem_type multi_label_classification or regression",
        "multi_label_classification": "raise --num_labels, or --problem_type regression",
    }[problem]


class SequenceClassification:
    """A class, several classes or numbers for each text, from the model's own classification head.

    Args:
        labels: what the head predicts.
    """

    unit = "samples"
    packs = False

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self._loss = _LOSSES[labels.problem]

    def weight(self, sample: EncodedSample) -> int:
        """Return 1: the loss is a mean over samples."""
        return 1

    def length(self, sample: EncodedSample) -> int:
        """Return the tokens of a sample."""
        return len(sample)

    def collate(self, samples: Sequence[EncodedSample], *, pad_token_id: int) -> LabelledBatch:
        """Return padded texts with their labels."""
        texts = pad_texts(samples, pad_token_id=pad_token_id)
        return LabelledBatch(texts, self._labels([sample.label for sample in samples]), True, [sample.origin for sample in samples])

    def _labels(self, labels: Sequence[Any]) -> torch.Tensor:
        if self.labels.problem == "single_label_classification":
            return torch.tensor([int(_as_list(label)[0]) for label in labels], dtype=torch.long)
        if self.labels.problem == "regression":
            return torch.tensor([_as_list(label) for label in labels], dtype=torch.float32)
        rows = torch.zeros((len(labels), self.labels.count), dtype=torch.float32)
        for row, label in enumerate(labels):
            rows[row, [int(item) for item in _as_list(label)]] = 1
        return rows

    def loss(self, model: nn.Module, batch: LabelledBatch) -> torch.Tensor:
        """Return the summed loss over the samples of a batch."""
        summed = self._loss(self._logits(model, batch), batch.labels).sum()
        return summed if batch.live else summed * 0

    def measure(self, model: nn.Module, batch: LabelledBatch) -> Part:
        """Return the logits `[batch, numbers]` and the labels."""
        return self._logits(model, batch).cpu().numpy(), batch.labels.cpu().numpy()

    def _logits(self, model: nn.Module, batch: LabelledBatch) -> torch.Tensor:
        return model(**batch.texts.inputs(model)).logits.float()

    def metrics(self, parts: Iterable[Part]) -> dict[str, float]:
        """Return `loss` and, by the kind of labels: `acc`, `f1` (macro), `mcc`; `acc` (all classes right), `f1`, `f1_micro`; `mse`,
        `pearson`, `spearman` (means over the numbers).
        """  # noqa: D205
        found = list(parts)
        logits, labels = np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])
        loss = float(self._loss(torch.from_numpy(logits), torch.from_numpy(labels)).mean())
        classes = self.labels.count
        if self.labels.problem == "regression":
            ours, theirs = logits.astype(np.float64), labels.astype(np.float64)
            columns = range(classes)
            return {
                "loss": loss,
                "mse": mean_squared_error(ours, theirs),
                "pearson": float(np.mean([pearson(ours[:, column], theirs[:, column]) for column in columns])),
                "spearman": float(np.mean([spearman(ours[:, column], theirs[:, column]) for column in columns])),
            }
        if self.labels.problem == "multi_label_classification":
            chosen, truth = (logits > 0).astype(np.int64), labels.astype(np.int64)
            return {
                "loss": loss,
                "acc": accuracy(chosen, truth),
                "f1": macro_f1(chosen, truth, classes=classes),
                "f1_micro": micro_f1(chosen, truth, classes=classes),
            }
        best = logits.argmax(-1).astype(np.int64)
        return {
            "loss": loss,
            "acc": accuracy(best, labels),
            "f1": macro_f1(best, labels, classes=classes),
            "mcc": matthews(best, labels, classes=classes),
        }

    def save(self, folder: Path) -> None:
        """Write nothing: the head's size and kind are in the model's config."""
