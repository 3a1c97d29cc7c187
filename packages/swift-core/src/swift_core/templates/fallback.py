"""The prompt format of a model whose folder has no chat template: the one that checkpoints of its family are known to use."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from swift_core.config.sections import TemplateSection
from swift_core.errors import ModelError
from swift_core.models.detection import detect_folder
from swift_core.registry import TEMPLATES

logger = logging.getLogger(__name__)


def template_name(tokenizer: PreTrainedTokenizerBase, section: TemplateSection) -> str | None:
    """Return the named prompt format to use: the one that is set, else that of the family where the folder has no chat template.

    Args:
        tokenizer: of the model; it knows its folder.
        section: the settings.
    """
    if section.template or not section.use_chat_template or tokenizer.chat_template:
        return section.template
    folder = Path(str(tokenizer.name_or_path))
    if not (folder / "config.json").is_file():
        return None
    try:
        found = detect_folder(folder)
    except ModelError:  # whoever loads the model says what is wrong with it
        return None
    if not found.template or found.template not in TEMPLATES:
        return None
    logger.warning("%s has no chat template: prompts are written as %s (%s)", folder, found.template, found.reasons[0])
    return found.template
