"""What a trainer is taught: how samples become batches, what is summed up as loss, and how an evaluation is judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import nn

from swift_core.batching.collate import Batch, Positions, collate
from swift_core.batching.media import with_dummy_media
from swift_core.protocols import EncodedSample
from swift_core.scoring.scorer import Scorer


class TaskBatch(Protocol):
    """A micro-batch of any task.

    Attributes:
        origins: where each sample came from.
    """

    origins: list[str]

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""
        ...

    def masked(self) -> Self:
        """Return the batch with nothing that carries loss: a rank without samples runs it to stay in step with the others."""
        ...


class Task(Protocol):
    """What a model is trained for.

    The loss of an optimizer step is the sum over its samples on all ranks, divided by the sum of their weights.

    Attributes:
        unit: what a weight of 1 stands for in the log, such as `tokens` or `samples`.
        packs: whether its batches can hold samples side by side without padding, in any number.
    """

    unit: str
    packs: bool

    def weight(self, sample: EncodedSample) -> int:
        """Return how much of the normaliser a sample is: its trained tokens, its pairs, or 1."""
        ...

    def length(self, sample: EncodedSample) -> int:
        """Return how many tokens a sample puts through the model, companions included."""
        ...

    def collate(self, samples: Sequence[EncodedSample], *, pad_token_id: int) -> Any:
        """Return a `TaskBatch` of the samples."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Return the summed loss of a batch, scalar; 0 with a gradient of 0 to every parameter when nothing carries loss.

        It runs on all ranks at once, so it may communicate.
        """
        ...

    def measure(self, model: nn.Module, batch: Any) -> Any:
        """Return what `metrics` needs of an evaluation batch, on the CPU; called without gradients.

        Ranks may have different numbers of evaluation batches, so it must not communicate.
        """
        ...

    def metrics(self, parts: Iterable[Any]) -> dict[str, float]:
        """Return the metrics of an evaluation, `loss` among them, from what `measure` returned for every batch of all ranks."""
        ...

    def save(self, folder: Path) -> None:
        """Write what inference needs to know besides weights and tokenizer into a folder of a checkpoint."""
        ...


@runtime_checkable
class LogsValues(Protocol):
    """A task with more to log than its loss."""

    def log_values(self) -> dict[str, float]:
        """Return what has been found since the last call; called on all ranks at once, so it may communicate."""
        ...


@runtime_checkable
class ActsInSteps(Protocol):
    """A task that needs to know a whole optimizer step: statistics over it, a reference model that follows, running means."""

    def begin_step(self, model: nn.Module, batches: Sequence[Any]) -> None:
        """Look at this rank's micro-batches before the first of them is scored, and write into them what they need.

        Called on all ranks at once, so it may communicate; the batches are not on the device yet.
        """
        ...

    def end_step(self, model: nn.Module, step: int) -> None:
        """Act after the update of step 1, 2, ...; called on all ranks at once."""
        ...


@runtime_checkable
class KeepsState(Protocol):
    """A task with a state that a resumed run goes on from."""

    def save_state(self, folder: Path) -> None:
        """Write it into a folder of a checkpoint; the state is the same on all ranks."""
        ...

    def load_state(self, folder: Path) -> None:
        """Take it from a folder of a checkpoint."""
        ...


@runtime_checkable
class CountsAnswers(Protocol):
    """A task whose samples hold several of what `--per_device_train_batch_size` counts.

    Attributes:
        answers: how many; the batch size is a multiple of it.
    """

    answers: int


class CausalLm:
    """Next-token prediction: the loss is a mean over trained tokens.

    Args:
        packs: lay samples side by side without padding.
        positions: counts the positions of a packed row, for models that do it in a way of their own.
        dummy: joins batches without media, so that every rank runs the same parts of a multimodal model.
    """

    unit = "tokens"

    def __init__(self, *, packs: bool = True, positions: Positions | None = None, dummy: EncodedSample | None = None) -> None:
        self.packs = packs
        self._positions = positions
        self._dummy = dummy
        self._scorer: Scorer | None = None

    def weight(self, sample: EncodedSample) -> int:
        """Return the trained tokens of a sample."""
        return sample.trained_tokens

    def length(self, sample: EncodedSample) -> int:
        """Return the tokens of a sample."""
        return len(sample)

    def collate(self, samples: Sequence[EncodedSample], *, pad_token_id: int) -> Batch:
        """Lay samples side by side, or pad them on the right."""
        if self._dummy is not None:
            samples = with_dummy_media(samples, self._dummy)
        return collate(samples, pad_token_id=pad_token_id, packed=self.packs, positions=self._positions)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the summed cross-entropy in nats over the trained tokens."""
        return self._scored_by(model)(with_dtype(batch, model)).loss_sum

    def measure(self, model: nn.Module, batch: Batch) -> tuple[float, int, float]:
        """Return summed loss, trained tokens and correct predictions."""
        scores = self._scored_by(model)(with_dtype(batch, model), with_correct=True)
        correct = float(scores.correct) if scores.correct is not None else 0.0
        return float(scores.loss_sum), scores.trained_tokens, correct

    def metrics(self, parts: Iterable[tuple[float, int, float]]) -> dict[str, float]:
        """Return `loss` in nats per token and `token_accuracy`."""
        loss, tokens, correct = (sum(column) for column in zip((0.0, 0, 0.0), *parts, strict=True))
        return {"loss": loss / max(tokens, 1), "token_accuracy": correct / max(tokens, 1)}

    def save(self, folder: Path) -> None:
        """Write nothing: weights and tokenizer say everything."""

    def _scored_by(self, model: nn.Module) -> Scorer:
        # One scorer for one model: it compares its fast path with the model's own logits at the first batch.
        if self._scorer is None or self._scorer.model is not model:
            self._scorer = Scorer(model)
        return self._scorer


def with_dtype(batch: Batch, model: nn.Module) -> Batch:
    """Return a batch whose pictures and sounds have the number type of the model; sizes and times keep theirs."""
    if not batch.model_inputs:
        return batch
    dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
    inputs = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1 else value
        for name, value in batch.model_inputs.items()
    }
    return replace(batch, model_inputs=inputs)
