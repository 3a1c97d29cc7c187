"""Finding the tuner that saves a model, and what a tuner may do in a run besides preparing and saving."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import BaseModel
from torch import nn

from swift_core.batching.feed import Stream
from swift_core.config.sections import TunerSection
from swift_core.config.training import SftConfig, TrainingConfig
from swift_core.errors import DataError, ModelError
from swift_core.hub.adapters import adapter_folders
from swift_core.models.dtype import training_dtype
from swift_core.protocols import EncodedSample, Tuner
from swift_core.registry import TUNERS
from swift_core.train.task import Task


@dataclass(frozen=True, slots=True)
class RunStart:
    """What a tuner learns about a run before its first step.

    Attributes:
        total_steps: optimizer steps of the run.
        options: the tuner's own options, or None where Python code brings the model.
        batches: called with a number of samples and an upper bound of tokens, yields batches of training samples in an order of
            the seed, the same on all ranks, on the model's device.
        loss: summed loss of a batch, with gradient.
        resumed: whether the run goes on from a checkpoint, which brings the values that data would set.
    """

    total_steps: int
    options: BaseModel | None
    batches: Callable[[int, int | None], Iterator[Any]]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    resumed: bool


def weights_dtype(config: SftConfig, folder: Path, *, device: str) -> torch.dtype:
    """Return the number type that a run loads the weights of a model folder in."""
    frozen = TUNERS.get(config.tuner.tuner_type).half_base and config.training.bf16 is not False
    return training_dtype(config.loading, folder, device=device, frozen=frozen)


@runtime_checkable
class StartsWithData(Protocol):
    """A tuner that sets itself up once the run is known: from its length, or from its first batches."""

    def start(self, model: nn.Module, run: RunStart) -> None:
        """Set the model up, in place; called on every rank before the processes share their weights."""
        ...


@runtime_checkable
class FollowsSteps(Protocol):
    """A tuner that acts in every optimizer step."""

    def before_step(self, model: nn.Module, step: int) -> None:
        """Act on the gradients of step 1, 2, ..., summed over all ranks, before they are clipped."""
        ...

    def after_step(self, model: nn.Module, step: int) -> None:
        """Act on the weights after their update; gradients are still there."""
        ...


@runtime_checkable
class SetsRates(Protocol):
    """A tuner whose weights learn at different rates."""

    def learning_rates(self, model: nn.Module, rate: float, options: BaseModel | None) -> Mapping[str, float]:
        """Return parameter name -> learning rate, for the parameters that do not learn at `rate`."""
        ...


@runtime_checkable
class SeveralAdapters(Protocol):
    """A tuner that keeps several adapters on one model."""

    def add(self, model: nn.Module, folder: Path, name: str) -> nn.Module:
        """Return the model with a saved adapter under a name, frozen; other adapters stay as they are."""
        ...

    def remove(self, model: nn.Module, name: str) -> nn.Module:
        """Return the model without an adapter, the base model when it was the last."""
        ...

    def mixes_rows(self, model: nn.Module) -> bool:
        """Say whether the rows of one batch may use different adapters."""
        ...

    def using(self, model: nn.Module, names: str | list[str | None] | None) -> AbstractContextManager[None]:
        """Let forward passes of this thread use an adapter, none (None), or one for each row of the batch."""
        ...


def saver_for(model: nn.Module) -> Tuner:
    """Return the tuner that saves and restores a model that was prepared elsewhere: adapters by PEFT, or whole weights."""
    return load_tuner("lora" if hasattr(model, "peft_config") else "full")


def load_tuner(name: str) -> Tuner:
    """Return the tuner of a name."""
    return TUNERS.load(name)()


def adapt(model: nn.Module, config: SftConfig) -> tuple[nn.Module, Tuner]:
    """Return a loaded model with what a run trains put on, new or from `--adapters`, and its tuner.

    Raises:
        ModelError: when the tuner does not fit the model.
        NotFoundError: when a saved adapter is absent.
        CheckpointError: when it does not fit the model.
    """
    tuner = load_tuner(config.tuner.tuner_type)
    for folder in adapter_folders(config.loading):
        model = tuner.load(model, folder, trainable=True)
    if config.loading.adapters:
        return model, tuner
    options: Any = config.tuner if config.tuner.tuner_type == "full" else config.tuner.options
    return tuner.prepare(model, options), tuner


def tuner_options(args: TrainingConfig) -> BaseModel | None:
    """Return the options of a run's tuner, or None where the config has no tuner."""
    section = getattr(args, "tuner", None)
    return section.options if isinstance(section, TunerSection) else None


def tuner_rates(tuner: Tuner, model: nn.Module, args: TrainingConfig) -> Mapping[str, float]:
    """Return parameter name -> learning rate, for what the tuner does not train at `--learning_rate`."""
    if not isinstance(tuner, SetsRates):
        return {}
    return tuner.learning_rates(model, args.optimization.learning_rate or 1e-4, tuner_options(args))


def start_tuner(
    tuner: Tuner,
    model: nn.Module,
    args: TrainingConfig,
    task: Task,
    samples: Sequence[EncodedSample] | Stream,
    *,
    total_steps: int,
    pad_token_id: int,
) -> None:
    """Let a tuner that needs it set up a model on its device, before the optimizer is made."""
    if not isinstance(tuner, StartsWithData):
        return
    device = next(model.parameters()).device

    def batches(size: int, max_length: int | None) -> Iterator[Any]:
        if not isinstance(samples, Sequence):
            raise DataError("the tuner starts from the first samples, and a stream cannot be read twice", fix="--streaming false")
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(args.training.seed)).tolist()
        for start in range(0, len(order), size):
            chosen = [_cut(samples[index], max_length) for index in order[start : start + size]]
            yield task.collate(chosen, pad_token_id=pad_token_id).to(device)

    resumed = bool(args.saving.resume_from_checkpoint)
    tuner.start(model, RunStart(total_steps, tuner_options(args), batches, task.loss, resumed))


def _cut(sample: EncodedSample, length: int | None) -> EncodedSample:
    # Media cannot be cut: their placeholders must all be there.
    if length is None or len(sample) <= length or sample.model_inputs:
        return sample
    scale = sample.loss_scale[:length] if sample.loss_scale is not None else None
    return replace(sample, input_ids=sample.input_ids[:length], labels=sample.labels[:length], loss_scale=scale)


def check_checkpointing(tuner: Tuner, *, asked: bool | None, default: bool) -> bool:
    """Return whether gradient checkpointing is used.

    Raises:
        ModelError: when it is asked for and the tuner does not train with it.
    """
    fits = tuner.name not in TUNERS or TUNERS.get(tuner.name).checkpointing
    if asked and not fits:
        raise ModelError(f"the tuner {tuner.name} does not train with gradient checkpointing", fix="--gradient_checkpointing false")
    return (default and fits) if asked is None else asked
