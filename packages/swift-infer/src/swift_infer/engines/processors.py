"""The tokenizer or processor that belongs to a model and its adapters, and the name they go by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swift_core.config.sections import ModelSection
from swift_core.config.training import short_name
from swift_core.models.loading import load_processor, load_tokenizer
from swift_core.templates.media import is_multimodal

from swift_infer.adapter_names import adapter_folders, split_name


def processor_for(folder: Path, loading: ModelSection) -> Any:
    """Return the processor or tokenizer of the model, with the tokenizer of the adapter in it where that has one."""
    source = _tokenizer_folder(folder, adapter_folders(loading))
    remote, tokens = loading.trust_remote_code, loading.special_tokens
    processor: Any = load_processor(folder, trust_remote_code=remote, new_special_tokens=tokens, model_type=loading.model_type)
    if source == folder:
        return processor
    tokenizer: Any = load_tokenizer(source, trust_remote_code=remote, new_special_tokens=tokens)
    if not is_multimodal(processor):
        return tokenizer
    processor.tokenizer = tokenizer
    processor.chat_template = tokenizer.chat_template or processor.chat_template
    return processor


def _tokenizer_folder(model: Path, adapters: Sequence[Path]) -> Path:
    """Return the first adapter's folder that holds a tokenizer of its own, with the chat template it was trained with."""
    for folder in adapters:
        if (folder / "tokenizer_config.json").is_file():
            return folder
    return model


def display_name(loading: ModelSection) -> str:
    """Return the name of what the settings load, for people and requests."""
    if loading.adapters and split_name(loading.adapters[0])[0] is None:
        folder = Path(loading.adapters[-1]).expanduser().resolve()
        return folder.parent.name + "-" + folder.name if folder.name.startswith("checkpoint-") else folder.name
    return short_name(loading.model or "model")
