"""The prompts of a run, as `swift rlhf` reads them from data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swift_core.data.report import RowReport
from swift_core.data.sources import load_datasets
from swift_core.protocols import Sample
from swift_core.tasks import running
from swift_core.tasks.console import indented
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.media import build_processor_template
from transformers import PreTrainedTokenizerBase

from swift_rlhf.config.command import RlhfConfig
from swift_rlhf.grpo.prompts import question
from swift_rlhf.grpo.setup import usable


@dataclass(slots=True)
class PromptData:
    """Prompts, and the model's folder.

    Attributes:
        opened: folder and processor of the model.
        template: renders prompts.
        prompts: those that are not too long.
        rows: what reading found.
        dropped: prompts that are too long.
        longest: tokens of the longest prompt that is used.
    """

    opened: running.Opened
    template: ChatTemplate
    prompts: Sequence[Sample]
    rows: RowReport
    dropped: int
    longest: int

    @property
    def folder(self) -> Path:
        """Return the folder of the model."""
        return self.opened.folder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the model's tokenizer."""
        return self.opened.tokenizer

    def lines(self) -> list[str]:
        """Return what became of the data, for the person who started the run."""
        left_out = f", {self.dropped} left out for their length" if self.dropped else ""
        return [
            "data:",
            *indented(self.rows.summary()),
            f"prompts: {len(self.prompts)}, the longest of {self.longest} tokens{left_out}",
        ]


def prepare_prompts(config: RlhfConfig) -> PromptData:
    """Fetch the model folder and read the prompts; no weights are loaded.

    Raises:
        NotFoundError: when model or data are not where they were said to be.
        DataError: for bad rows, or when no prompt is left.
    """
    data = load_datasets(config.data, config.loading, need_answer=False)
    opened = running.open_model(config.loading)
    template = build_processor_template(opened.processor, config.chat, config.media)
    found = usable(data.train, template, config.chat.max_length)
    return PromptData(opened, template, found.samples, data.report, found.dropped, found.longest)


def show_prompts(data: PromptData) -> None:
    """Print the first prompts as the model reads them, for `--dry_run`."""
    lines: list[str] = []
    for sample in data.prompts[:3]:
        messages, columns = question(sample)
        lines += [f"--- {sample.origin}", str(data.tokenizer.decode(data.template.encode_prompt(messages, sample.tools)))]
        lines += [f"columns for rewards: {', '.join(f'{name}={value!r}' for name, value in columns.items()) or 'none'}"]
    running.show_lines(lines, data.lines())
