"""Options of what `swift export` does with adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import field_validator
from swift_core.config.actions import ActionSection
from swift_core.config.fields import option
from swift_core.errors import Problem

from swift_tuners.config import shard_size

if TYPE_CHECKING:
    from swift_core.config.export import ExportConfig


class MergeActionSection(ActionSection):
    """Merge options."""

    merge_lora: bool = option(False, "fold the adapter into its base model; later actions go on with the merged model", basic=True)
    max_shard_size: str = option("5GB", "largest weight file of the merged model, such as 5GB or 500MB")
    safe_serialization: bool = option(True, "weights are written as safetensors; false is refused")

    @field_validator("max_shard_size")
    @classmethod
    def _a_size(cls, value: str) -> str:
        return shard_size(value)

    @property
    def wanted(self) -> bool:
        """Say whether a merge is asked for."""
        return self.merge_lora

    @property
    def folder_name(self) -> str:
        """Return how the folder of the result is called."""
        return "merged"

    def problems(self, config: ExportConfig) -> list[Problem]:
        """Return what is missing or cannot be done."""
        found: list[Problem] = []
        if not self.safe_serialization:
            found.append(Problem("--safe_serialization false", "pickles can run code when loaded and are not written", "remove it"))
        if self.merge_lora and not config.loading.adapters:
            found.append(Problem("--adapters", "is missing", "--adapters RUN/checkpoint-N"))
        if not self.merge_lora and config.given("max_shard_size"):
            found.append(Problem("--max_shard_size", "only acts on a merge", "add --merge_lora true, or remove it"))
        return found


class PeftActionSection(ActionSection):
    """PEFT format options."""

    to_peft_format: bool = option(False, "write a checkpoint of ms-swift as a plain PEFT adapter", basic=True)

    @property
    def wanted(self) -> bool:
        """Say whether a conversion is asked for."""
        return self.to_peft_format

    @property
    def folder_name(self) -> str:
        """Return how the folder of the result is called."""
        return "peft"

    def problems(self, config: ExportConfig) -> list[Problem]:
        """Return what is missing."""
        if self.to_peft_format and not config.loading.adapters:
            return [Problem("--adapters", "is missing", "--adapters RUN/checkpoint-N")]
        return []
