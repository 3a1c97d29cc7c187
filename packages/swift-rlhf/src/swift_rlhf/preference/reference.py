"""The reference model: the trained one without its adapters, or a second model that stays, or follows slowly."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors.torch import load_file, save_file
from swift_core.errors import CheckpointError
from swift_core.scoring.scorer import Scorer
from torch import Tensor, nn

from swift_rlhf.preference.layout import AnswerBatch
from swift_rlhf.preference.scoring import at_rest, score_answers

STATE = "reference.safetensors"


class Reference(Protocol):
    """What the policy is held to."""

    def logps(self, model: nn.Module, batch: AnswerBatch, *, ld_alpha: float | None = None) -> Tensor:
        """Return the log-probability of each answer, `[answers]` without gradient."""
        ...


class WithoutAdapters:
    """The trained model with its adapters switched off."""

    def __init__(self) -> None:
        self._scorer: Scorer | None = None

    def logps(self, model: nn.Module, batch: AnswerBatch, *, ld_alpha: float | None = None) -> Tensor:
        """Return the log-probability of each answer, `[answers]` without gradient."""
        if self._scorer is None or self._scorer.model is not model:
            self._scorer = Scorer(model)
        disabled: AbstractContextManager[None] = cast(Any, model).disable_adapter()
        with at_rest(model), disabled:
            return score_answers(self._scorer, batch, ld_alpha=ld_alpha).logps


class SecondModel:
    """A model of its own.

    Args:
        model: frozen here.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)
        self._scorer = Scorer(self.model)

    def logps(self, model: nn.Module, batch: AnswerBatch, *, ld_alpha: float | None = None) -> Tensor:
        """Return the log-probability of each answer, `[answers]` without gradient."""
        device = batch.batch.input_ids.device
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        with torch.no_grad():
            return score_answers(self._scorer, batch, ld_alpha=ld_alpha).logps

    def follow(self, model: nn.Module, share: float) -> None:
        """Move the weights to `share` of the trained ones and the rest of their own (TR-DPO, Gorbatovski et al. 2024)."""
        trained = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.lerp_(trained[name].to(weight.device, weight.dtype), share)

    def save(self, folder: Path) -> None:
        """Write the weights."""
        # Tied weights are one parameter, so nothing is written twice.
        save_file({name: weight.detach().contiguous().cpu() for name, weight in self.model.named_parameters()}, folder / STATE)

    def load(self, folder: Path) -> None:
        """Take the weights back.

        Raises:
            CheckpointError: when they are absent.
        """
        if not (folder / STATE).is_file():
            raise CheckpointError(
                f"{folder} has no {STATE}, and --sync_ref_model needs it", fix="resume with the settings the run was started with"
            )
        saved = load_file(folder / STATE)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.copy_(saved[name])


def base_is_reference(model: nn.Module) -> bool:
    """Say whether a model without its adapters is the model as it was: adapters alone are trained, and their start changed nothing."""
    configs = getattr(model, "peft_config", None)
    if not configs or not hasattr(model, "disable_adapter"):
        return False
    if any(
        isinstance(start, str) and start not in _HARMLESS for start in (getattr(c, "init_lora_weights", True) for c in configs.values())
    ):
        return False
    # Layers that PEFT wraps fall back to what they were; anything else that is trained stays changed.
    return all(_is_switched(model, name) for name, weight in model.named_parameters() if weight.requires_grad)


_HARMLESS = ("gaussian", "orthogonal", "eva")


def _is_switched(model: nn.Module, name: str) -> bool:
    owner = name.rpartition(".")[0]
    while owner:
        module = model.get_submodule(owner)
        if hasattr(module, "disable_adapters") or hasattr(module, "modules_to_save"):
            return True
        owner = owner.rpartition(".")[0]
    return hasattr(model, "prompt_encoder") and name.startswith("prompt_encoder")
