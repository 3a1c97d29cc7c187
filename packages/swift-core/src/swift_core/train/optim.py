"""Optimizer, parameter groups and learning-rate schedule."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import get_scheduler
from transformers.optimization import Adafactor

from swift_core.config.memory import MemorySection
from swift_core.config.sections import OptimSection
from swift_core.errors import ConfigError, ModelError, Problem
from swift_core.models.modules import module_map, parameter_kind, unwrap
from swift_core.registry import OPTIMIZERS


@dataclass(slots=True)
class Request:
    """What the factory of an optimizer is given.

    Attributes:
        model: the model, whose trainable parameters are chosen.
        section: learning rate, decay, betas, further arguments.
        memory: options of methods that save memory.
        seed: seed of the run, for optimizers that draw.
        warmup: steps over which the learning rate rises.
        rates: parameter name -> learning rate, for those that a tuner lets learn at a rate of their own.
    """

    model: nn.Module
    section: OptimSection
    memory: MemorySection = field(default_factory=MemorySection)
    seed: int = 42
    warmup: int = 0
    rates: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def rate(self) -> float:
        """Return the peak learning rate."""
        return self.section.learning_rate or 1e-4

    @property
    def adam(self) -> dict[str, Any]:
        """Return the arguments that every optimizer of Adam's family takes."""
        return {"betas": (self.section.adam_beta1, self.section.adam_beta2), "eps": self.section.adam_epsilon}

    def groups(self) -> list[dict[str, Any]]:
        """Return the trainable parameters by learning rate and decay; see `parameter_groups`."""
        return parameter_groups(self.model, self.section, self.rates)

    def no_further_arguments(self) -> None:
        """Refuse `--optim_args`, for optimizers whose settings are flags.

        Raises:
            ConfigError: when there are any.
        """
        if self.section.optim_args:
            family = OPTIMIZERS.get(self.section.optim).family
            fix = f"use the flags --{family}_..., see `--help_all`"
            raise ConfigError([Problem("--optim_args", f"{self.section.optim} takes none", fix)])

    def build(self, kind: Callable[..., torch.optim.Optimizer], groups: list[dict[str, Any]], **arguments: Any) -> torch.optim.Optimizer:
        """Return an optimizer over parameter groups, with `--optim_args` on top of the arguments.

        Raises:
            ConfigError: when the optimizer has no such argument or refuses its value.
        """
        more = self.section.optim_args
        known = [name for name in inspect.signature(kind).parameters if name not in ("params", "lr", "weight_decay")]
        unknown = sorted(set(more) - set(known))
        if unknown:
            what = f"{self.section.optim} has no argument {unknown[0]!r}"
            raise ConfigError([Problem("--optim_args", what, f"one of {', '.join(known)}" if known else "remove it")])
        try:
            return kind(groups, lr=self.rate, **{**arguments, **more})
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(
                [Problem(f"--optim {self.section.optim}", f"refuses its arguments: {error}", "change --optim_args")]
            ) from error


def parameter_groups(model: nn.Module, section: OptimSection, rates: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """Split the trainable parameters by learning rate and decay: matrices decay, vectors (biases, norms, scales) do not.

    Args:
        model: what is trained.
        section: rates and decay.
        rates: parameter name -> learning rate, for those that a tuner lets learn at a rate of their own.

    Raises:
        ModelError: when nothing is trainable, or a rate is given for a part that the model does not train.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ModelError("no parameter is trainable", fix="check --tuner_type, --target_modules and the freeze settings")
    rates = {**_rates(model, list(trainable), section), **(rates or {})}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        groups.setdefault((rates[name], parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": group, "lr": rate, "weight_decay": section.weight_decay if decays else 0.0} for (rate, decays), group in groups.items()
    ]


def _rates(model: nn.Module, names: list[str], section: OptimSection) -> dict[str, float]:
    rate = section.learning_rate or 1e-4
    rates = dict.fromkeys(names, rate)
    special = {"vision_tower": section.vit_lr, "audio_tower": section.vit_lr, "aligner": section.aligner_lr}
    if any(special.values()):
        parts = module_map(unwrap(model))
        kinds = {name: parameter_kind(name, parts) for name in names}
        for flag, wanted in (("vit_lr", ("vision_tower", "audio_tower")), ("aligner_lr", ("aligner",))):
            if getattr(section, flag) and not any(kind in wanted for kind in kinds.values()):
                raise ModelError(
                    f"--{flag}: this run trains no such part of the model", fix=f"remove it, or train that part: --freeze_{flag[:-3]} false"
                )
        rates = {name: special.get(kind) or rate for name, kind in kinds.items()}
    if section.embedding_lr:
        found = embedding_names(model) & set(names)
        if not found:
            raise ModelError(
                "--embedding_lr: this run trains neither embedding nor output head",
                fix="remove it, or train them: --modules_to_save embed_tokens lm_head, or --tuner_type full",
            )
        rates.update(dict.fromkeys(found, section.embedding_lr))
    return rates


def embedding_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters in the input embedding and the output head, adapters on them included."""
    parts: list[nn.Module] = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        get = getattr(model, getter, None)
        with contextlib.suppress(NotImplementedError):  # models without words, such as towers alone
            part = get() if get is not None else None
            if isinstance(part, nn.Module):
                parts.append(part)
    inside = {id(parameter) for part in parts for parameter in part.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in inside}


def make_optimizer(
    model: nn.Module,
    section: OptimSection,
    memory: MemorySection | None = None,
    *,
    seed: int = 42,
    warmup: int = 0,
    rates: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Build the optimizer that `--optim` names over the trainable parameters of a model.

    Args:
        model: the prepared model.
        section: settings of the optimizer.
        memory: settings of methods that save memory.
        seed: seed of the run.
        warmup: steps over which the learning rate rises.
        rates: as in `Request`.

    Raises:
        ModelError: when nothing is trainable, or the optimizer needs whole weights and the model trains adapters.
        MissingDependencyError: when its library is not installed.
        ConfigError: when it does not take `--optim_args`.
    """
    spec = OPTIMIZERS.get(section.optim)
    if spec.full_only and hasattr(model, "peft_config"):
        raise ModelError(f"--optim {spec.name} needs whole weights, and this model trains adapters", fix="use --optim adamw_torch")
    if spec.paged and not torch.accelerator.is_available():
        raise ModelError(
            f"--optim {spec.name} moves its state between an accelerator and main memory, and there is no accelerator here",
            fix=f"use --optim {spec.name.removeprefix('paged_')}",
        )
    request = Request(model, section, memory or MemorySection(), seed, warmup, rates or {})
    return cast(torch.optim.Optimizer, OPTIMIZERS.load(section.optim)(request))


def adamw(request: Request) -> torch.optim.Optimizer:
    """Return PyTorch's AdamW."""
    return request.build(torch.optim.AdamW, request.groups(), **request.adam)


def adamw_fused(request: Request) -> torch.optim.Optimizer:
    """Return PyTorch's AdamW with one kernel for all weights."""
    return request.build(torch.optim.AdamW, request.groups(), **request.adam, fused=True)


def adafactor(request: Request) -> torch.optim.Optimizer:
    """Return Adafactor with the learning rate of the schedule instead of one of its own."""
    return request.build(Adafactor, request.groups(), scale_parameter=False, relative_step=False)


def sgd(request: Request) -> torch.optim.Optimizer:
    """Return stochastic gradient descent, without momentum unless `--optim_args` has it."""
    return request.build(torch.optim.SGD, request.groups())


def adagrad(request: Request) -> torch.optim.Optimizer:
    """Return Adagrad."""
    return request.build(torch.optim.Adagrad, request.groups())


def rmsprop(request: Request) -> torch.optim.Optimizer:
    """Return RMSprop."""
    return request.build(torch.optim.RMSprop, request.groups(), eps=request.section.adam_epsilon)


def set_training(optimizer: torch.optim.Optimizer, training: bool) -> None:
    """Switch an optimizer that trains other weights than it evaluates, such as a schedule-free one; others have no modes."""
    switch = getattr(optimizer, "train" if training else "eval", None)
    if callable(switch):
        switch()


@contextlib.contextmanager
def evaluated_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Show the weights that are evaluated and saved, inside the block."""
    training = any(group.get("train_mode", False) for group in optimizer.param_groups)
    set_training(optimizer, False)
    try:
        yield
    finally:
        if training:
            set_training(optimizer, True)


def warmup_steps(section: OptimSection, total_steps: int) -> int:
    """Return the number of warm-up steps."""
    return section.warmup_steps or int(-(-total_steps * section.warmup_ratio // 1))


def make_scheduler(optimizer: torch.optim.Optimizer, section: OptimSection, total_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the schedule that `--lr_scheduler_type` names.

    Raises:
        ConfigError: when `--lr_scheduler_kwargs` has an argument that this schedule does not know.
    """
    try:
        return get_scheduler(
            section.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup_steps(section, total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=dict(section.lr_scheduler_kwargs),
        )
    except TypeError as error:
        raise ConfigError(
            [Problem("--lr_scheduler_kwargs", f"{section.lr_scheduler_type} does not take this: {error}", "remove it")]
        ) from error
