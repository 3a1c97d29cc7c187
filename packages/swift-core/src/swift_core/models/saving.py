"""Writing a model folder with everything that belongs to the model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_core.models.quiet import quiet_transformers

# Files of the base that belong to a model and that neither model nor tokenizer writes.
_KEPT = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "LICENSE*", "NOTICE*")
_GENERATION = "generation_config.json"


def save_model(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, sources: Sequence[Path], **options: Any
) -> None:
    """Write weights, tokenizer with chat template, generation settings and processor files.

    Args:
        folder: where they go.
        model: the model.
        tokenizer: its tokenizer.
        sources: folders that generation settings and processor files are copied from; the first that has one wins.
        options: further arguments of `save_pretrained`, such as `max_shard_size`.
    """
    # Settings as the authors wrote them: saving them anew refuses combinations that loading accepts.
    model.generation_config = GenerationConfig()
    with quiet_transformers():
        model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    (folder / _GENERATION).unlink(missing_ok=True)
    for pattern in (_GENERATION, *_KEPT):
        for source in sources:
            for file in source.glob(pattern):
                if file.is_file() and not (folder / file.name).exists():
                    shutil.copyfile(file, folder / file.name)
