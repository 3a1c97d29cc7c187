"""What says how much reward is still to come: a head on the policy, or a model of its own.

A critic lives inside the policy, so that one optimizer, one wrapper and one gradient norm hold both, and outside of its saved weights,
so that a checkpoint is a normal model folder with one more file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from swift_core.batching.collate import Batch
from swift_core.errors import CheckpointError, ModelError
from swift_core.models.modules import unwrap
from swift_core.scoring.predictions import Predictions
from swift_core.scoring.scorer import Scorer
from torch import Tensor, nn

FILE = "critic.safetensors"
_NAME = "swift_critic"


class Critic(nn.Module):
    """Expects a reward at each token."""

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_post_hook(_not_missed)

    def values(self, batch: Batch, found: Predictions) -> Tensor:
        """Return what is expected at each labelled token before it is written, `[tokens]`, float32.

        Args:
            batch: the tokens.
            found: what the policy predicts them from.
        """
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the trained weights."""
        # In safetensors no two names may share memory.
        weights = {name: weight.detach().cpu().clone() for name, weight in self.named_parameters() if weight.requires_grad}
        save_file(weights, folder / FILE)

    def load(self, folder: Path) -> None:
        """Take the trained weights back.

        Raises:
            CheckpointError: when they are absent or belong to another critic.
        """
        if not (folder / FILE).is_file():
            raise CheckpointError(f"{folder} has no {FILE}, so the critic cannot go on", fix="resume a checkpoint of PPO")
        saved = load_file(folder / FILE)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.requires_grad:
                    if name not in saved or saved[name].shape != weight.shape:
                        fix = "resume with the settings the run was started with, --value_model among them"
                        raise CheckpointError(f"{folder / FILE} belongs to another critic: {name} does not fit", fix=fix)
                    weight.copy_(saved[name])


class ValueHead(Critic):
    """One number from the policy's last hidden state; 0 before it has learned anything.

    Args:
        width: numbers of a hidden state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))

    def values(self, batch: Batch, found: Predictions) -> Tensor:
        """Return what is expected at each labelled token, `[tokens]`.

        Raises:
            ModelError: when the policy does not show its hidden states.
        """
        if not found.hidden:
            raise ModelError("a value head reads hidden states, which this model does not show", fix="--value_model MODEL")
        return found.states.float() @ self.weight + self.bias


class ValueModel(Critic):
    """A sequence classifier with one output, asked at every token.

    Args:
        model: reads the tokens of the policy.

    Raises:
        ModelError: when it has no head that could be asked at every token.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._scorer = Scorer(model)
        inner: Any = unwrap(model)
        if not isinstance(getattr(inner, "score", None), nn.Module):
            raise ModelError(f"--value_model: a {type(inner).__name__} has no head for single tokens", fix="use a decoder's classifier")

    def values(self, batch: Batch, found: Predictions) -> Tensor:
        """Return what is expected at each labelled token, `[tokens]`."""
        states = self._scorer.states(batch)
        head: Any = unwrap(self.model)
        return head.score(states).float().mean(-1)


def attach(model: nn.Module, critic: Critic) -> None:
    """Put a critic into the policy it belongs to."""
    unwrap(model).add_module(_NAME, critic.to(next(model.parameters()).device))


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


def _not_missed(module: nn.Module, found: Any) -> None:
    found.missing_keys[:] = [name for name in found.missing_keys if f"{_NAME}." not in name]
