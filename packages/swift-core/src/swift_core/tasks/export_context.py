"""What the actions of `swift export` are called with and what they give back."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swift_core.config.actions import ActionSection
from swift_core.config.export import ExportConfig
from swift_core.config.load import ARGS_FILE
from swift_core.config.sections import ModelSection, TemplateSection
from swift_core.errors import ConfigError, Problem
from swift_core.hub.adapters import adapter_folders
from swift_core.hub.local import existing_path
from swift_core.hub.resolve import resolve

_PROMPT_SETTINGS = (
    *("template", "system", "use_chat_template", "chat_template_kwargs", "agent_template", "enable_thinking"),
    *("preserve_thinking", "add_non_thinking_prefix", "response_prefix"),
)


@dataclass(slots=True, kw_only=True)
class ExportResult:
    """What an action did, for the screen, the record and the model card. All values can be written as JSON.

    Attributes:
        method: one sentence for the card, such as `weights rounded to 4 bits with GPTQ`.
        settings: what the method was set to.
        metrics: name -> value that was measured.
        lines: what the user is told.
        usage: lines of Python or shell that load or run the result. `{name}` stands for what its folder or repository is called,
            `{model}` for the same as swift's flags take it, and a line `{download}` for fetching the files of a repository first.
        tags: what hubs sort models by.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    lines: list[str] = field(default_factory=list[str])
    usage: list[str] = field(default_factory=list[str])
    tags: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class ExportContext:
    """Where a plan stands.

    Attributes:
        config: the settings.
        model: the model as id or folder, once there is one without adapters: `--model`, or the merged model.
        adapter: folder of the adapter that is merged, converted or uploaded.
        args: settings of the training run that made adapter or model, where it left an args.json.
        folders: action -> folder it wrote.
        results: action -> what it did.
        final: folder of the quantised model, where there is one.
        target: where the folder of the running action will lie once it is complete.
    """

    config: ExportConfig
    model: str | None
    adapter: Path | None
    args: dict[str, Any]
    folders: dict[str, Path] = field(default_factory=dict[str, Path])
    results: dict[str, ExportResult] = field(default_factory=dict[str, ExportResult])
    final: Path | None = None
    target: Path | None = None

    def options(self, action: str) -> ActionSection:
        """Return the settings of an action."""
        return self.config.action(action)

    @property
    def merged(self) -> bool:
        """Say whether the model was merged by this plan."""
        return "merge" in self.folders

    def loading(self) -> ModelSection:
        """Return the settings that load the model as it stands.

        Raises:
            ConfigError: when there are adapters that nobody asked to merge.
        """
        if self.model is None or (self.adapter is not None and not self.merged):
            raise ConfigError([Problem("--adapters", "are no part of the model's weights yet", "add --merge_lora true")])
        values = {name: getattr(self.config.loading, name) for name in ModelSection.model_fields}
        changes: dict[str, Any] = {"model": self.model, "adapters": []}
        if self.merged:
            changes["model_revision"] = None
        return ModelSection(**{**values, **changes})

    def model_folder(self) -> Path:
        """Return the local folder of the model as it stands, fetching it where needed."""
        section = self.loading()
        return resolve(
            str(section.model),
            kind="model",
            revision=section.model_revision,
            use_hf=section.use_hf,
            offline=section.offline,
            token=section.hub_token,
        )

    def chat(self) -> TemplateSection:
        """Return the prompt settings: those given here, else those of the training run."""
        values = {name: getattr(self.config.chat, name) for name in TemplateSection.model_fields}
        taken = {name: self.args[name] for name in _PROMPT_SETTINGS if self.args.get(name) is not None and not self.config.given(name)}
        return TemplateSection(**{**values, **taken})

    def say(self, lines: Sequence[str]) -> None:
        """Tell the user something while the plan runs."""
        sys.stderr.write("".join(f"  {line}\n" for line in lines))
        sys.stderr.flush()


def begin(config: ExportConfig) -> ExportContext:
    """Return the state before the first action.

    Raises:
        ConfigError: when several adapters are given, or a checkpoint with the whole model beside another model.
    """
    loading = config.loading
    if len(loading.adapters) > 1:
        what = f"{len(loading.adapters)} adapters are given, but one is exported at a time"
        raise ConfigError([Problem("--adapters", what, "export the first, then the next with --model <merged folder>")])
    adapter = adapter_folders(loading)[0] if loading.adapters else None
    model = loading.model
    if adapter is not None and (adapter / "config.json").is_file() and not (adapter / "adapter_config.json").is_file():
        if model:
            raise ConfigError([Problem("--adapters", f"{str(adapter)!r} holds a whole model, not an adapter", f"--model {adapter}")])
        model, adapter = str(adapter), None
    local = adapter or existing_path(model or "")
    return ExportContext(config, model, adapter, _args_of(local) if local is not None else {})


def _args_of(folder: Path) -> dict[str, Any]:
    file = folder / ARGS_FILE
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError([Problem(str(file), f"is damaged: {error}", "choose another checkpoint")]) from error
    if not isinstance(value, dict):
        raise ConfigError([Problem(str(file), "is not a JSON object", "choose another checkpoint")])
    return value
