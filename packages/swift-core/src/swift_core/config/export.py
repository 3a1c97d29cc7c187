"""Config of `swift export`, put together from the options of the registered actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import Field, create_model

from swift_core.config.actions import ActionSection
from swift_core.config.command import CommandConfig
from swift_core.config.fields import Section, option, section_settings
from swift_core.config.sections import DataSection, EncodingSection, ModelSection, TemplateSection
from swift_core.errors import Problem
from swift_core.plugins import report_broken
from swift_core.registry import EXPORTS, import_target

_MEGATRON = "there are no Megatron checkpoints here: models are read and written in Hugging Face format"


class ExportSection(Section):
    """Export options."""

    output_dir: str | None = option(
        None,
        "folder to write; with several results each gets a folder inside; default: beside the checkpoint or in this folder",
        basic=True,
    )
    exist_ok: bool = option(False, "replace results that are there already", basic=True)
    to_hf: bool = option(False, "refused: models are in Hugging Face format already")
    to_mcore: bool = option(False, "refused: there is no Megatron backend")


class _ExportConfig(CommandConfig):
    """Settings of `swift export`."""

    if TYPE_CHECKING:  # flat names, which type checkers cannot derive from the sections

        def __init__(self, **values: Any) -> None: ...

    command: ClassVar[str] = "export"
    elsewhere: ClassVar[Mapping[str, str]] = {
        "merge_lora": "swift-tuners",
        "to_peft_format": "swift-tuners",
        "quant_method": "swift-infer[quant]",
        "quant_bits": "swift-infer[quant]",
        "to_gguf": "swift-infer[transformers]",
        "to_ollama": "swift-infer[transformers]",
    }

    export: ExportSection = Field(default_factory=ExportSection)
    loading: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    encoding: EncodingSection = Field(default_factory=EncodingSection)
    chat: TemplateSection = Field(default_factory=TemplateSection)

    def action(self, name: str) -> ActionSection:
        """Return the options of an action by its registry name."""
        return cast(ActionSection, getattr(self, section_name(name)))

    def wanted_actions(self) -> list[str]:
        """Return the registry names of the actions that the settings ask for, in the order in which they run."""
        known = [spec for spec in EXPORTS if section_name(spec.name) in type(self).model_fields]
        return [spec.name for spec in sorted(known, key=lambda spec: spec.order) if self.action(spec.name).wanted]

    def check(self) -> list[Problem]:
        """Return the combinations that cannot work, each with its remedy."""
        sections = [self.action(spec.name) for spec in EXPORTS if section_name(spec.name) in type(self).model_fields]
        problems = [problem for section in sections for problem in section.problems(self)]
        problems += [Problem(f"--{name}", _MEGATRON, "remove it") for name in ("to_hf", "to_mcore") if getattr(self.export, name)]
        wanted = [section for section in sections if section.wanted]
        if not wanted and not problems:
            flags = ("--merge_lora true", "--quant_method gptq", "--to_gguf q8_0", "--to_ollama true", "--push_to_hub true")
            return [Problem("swift export", "there is nothing to do", f"add {', '.join(flags)} or --to_cached_dataset true")]
        if not problems and not self.loading.model and not self.loading.adapters:
            problems.append(Problem("--model", "is missing", "--model DIR, or --adapters RUN/checkpoint-N with --merge_lora true"))
        if wanted and not any(section.reads_dataset for section in wanted):
            names = ("dataset", "val_dataset", "split_dataset_ratio")
            what = "no action that is asked for reads rows"
            problems += [Problem(f"--{name}", what, "remove it") for name in names if self.given(name)]
        return problems


def section_name(action: str) -> str:
    """Return the attribute of the config that holds the options of an action."""
    return "action_" + "".join(letter if letter.isalnum() else "_" for letter in action)


def _assembled() -> type[_ExportConfig]:
    """Return the config class with a section for each registered action; one that cannot be used is reported by `swift doctor`."""
    taken = set(_ExportConfig.settings())
    sections: dict[str, Any] = {}
    for spec in sorted(EXPORTS, key=lambda spec: spec.order):
        try:
            found: Any = import_target(spec.options, needed_for=f"exports entry {spec.name!r}")
        except Exception as error:  # noqa: BLE001  a stranger's module may fail in any way; `swift doctor` reports it
            report_broken(f"{spec.source}: swift.exports = {spec.name}", f"{type(error).__name__}: {error}")
            continue
        if not (isinstance(found, type) and issubclass(found, ActionSection)):
            report_broken(f"{spec.source}: swift.exports = {spec.name}", "its options are no ActionSection")
            continue
        kind: type[ActionSection] = found
        names = set(section_settings(kind, section=""))
        if names & taken:
            why = f"its settings {sorted(names & taken)} have an owner already"
            report_broken(f"{spec.source}: swift.exports = {spec.name}", why)
            continue
        taken |= names
        sections[section_name(spec.name)] = (kind, Field(default_factory=kind))
    return create_model("ExportConfig", __base__=_ExportConfig, __module__=__name__, __doc__=_ExportConfig.__doc__, **sections)


if TYPE_CHECKING:
    ExportConfig = _ExportConfig
else:
    ExportConfig = _assembled()
