"""A reference model that follows the trained one."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from swift_rlhf.config.preference import ReferenceSection
from swift_rlhf.preference.reference import SecondModel


class FollowingReference:
    """Moves a reference model towards the trained one every so many steps, and keeps it in checkpoints.

    Args:
        model: the reference.
        section: how often, and how far.
    """

    def __init__(self, model: nn.Module, section: ReferenceSection) -> None:
        self._second = SecondModel(model)
        self._every, self._share = section.ref_model_sync_steps, section.ref_model_mixup_alpha

    def after(self, model: nn.Module, step: int) -> None:
        """Follow the trained model after a step."""
        if step % self._every == 0:
            self._second.follow(model, self._share)

    def save(self, folder: Path) -> None:
        """Write the reference into a checkpoint."""
        self._second.save(folder)

    def load(self, folder: Path) -> None:
        """Take it from a checkpoint.

        Raises:
            CheckpointError: when it is absent.
        """
        self._second.load(folder)
