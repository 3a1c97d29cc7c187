"""Settings of GRPO and its relatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swift_core.config.fields import Section, option
from swift_core.errors import Problem

if TYPE_CHECKING:
    from swift_rlhf.config.command import RlhfConfig


class GrpoSection(Section):
    """GRPO options."""

    num_generations: int = option(8, "answers to each prompt, which are compared with one another", basic=True, ge=2)


def grpo_problems(config: RlhfConfig) -> list[Problem]:
    """Return the settings of GRPO that cannot work together."""
    return []
