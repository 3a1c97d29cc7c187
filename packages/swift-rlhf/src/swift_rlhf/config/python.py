"""Settings of trainers that Python code brings model and data to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from swift_core.config.training import TrainingConfig
from swift_core.errors import Problem

from swift_rlhf.config.algorithm import algorithm_problems, fill_algorithm
from swift_rlhf.config.chord import ChordSection
from swift_rlhf.config.grpo import GrpoSection
from swift_rlhf.config.preference import ReferenceSection
from swift_rlhf.config.rewarding import RewardingSection
from swift_rlhf.config.sampling import SamplingSection
from swift_rlhf.config.service import ServiceSection
from swift_rlhf.config.shared import RlhfSection
from swift_rlhf.config.turns import TurnsSection


class GRPOConfig(TrainingConfig):
    """Settings of `GRPOTrainer`, by flat name: `GRPOConfig(num_generations=8, max_completion_length=256, learning_rate=1e-5)`."""

    if TYPE_CHECKING:  # flat names, which type checkers cannot derive from the sections

        def __init__(self, **values: Any) -> None: ...

    command: ClassVar[str] = "grpo"
    overrides: ClassVar[Mapping[str, Any]] = {"rlhf_type": "grpo"}

    task: RlhfSection = Field(default_factory=RlhfSection)
    sampling: SamplingSection = Field(default_factory=SamplingSection)
    rewarding: RewardingSection = Field(default_factory=RewardingSection)
    turns: TurnsSection = Field(default_factory=TurnsSection)
    service: ServiceSection = Field(default_factory=ServiceSection)
    reference: ReferenceSection = Field(default_factory=ReferenceSection)
    grpo: GrpoSection = Field(default_factory=GrpoSection)
    chord: ChordSection = Field(default_factory=ChordSection)

    def finish(self) -> None:
        """Fill the defaults that depend on the algorithm, then all others."""
        fill_algorithm(self)
        super().finish()

    def check(self) -> list[Problem]:
        """Return the combinations of settings that cannot work."""
        return [*algorithm_problems(self, {"sampling", "rewarding", "turns", "service", "reference", "grpo", "chord"}), *super().check()]

    def _accumulation(self) -> int:
        return 1
