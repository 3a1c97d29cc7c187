"""The tokenizer of a model folder, and the processor of a multimodal one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import CONFIG_MAPPING, PROCESSOR_MAPPING, AutoProcessor, AutoTokenizer, PreTrainedModel, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_core.config.sections import ModelSection
from swift_core.errors import MissingDependencyError, ModelError, SwiftError
from swift_core.models.adapters.base import MediaAdapter
from swift_core.models.adapters.find import load_adapter
from swift_core.models.folder import read_json
from swift_core.models.load_errors import one_line, remote_code_error

logger = logging.getLogger(__name__)

_PAD_NAMES = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|PAD|>", "<|endoftext|>")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
# Import name -> what to install, for libraries that transformers names in prose.
_LIBRARIES = {"torchvision": "torchvision", "torchaudio": "torchaudio", "librosa": "librosa", "pil": "pillow", "pillow": "pillow"}

Processor = ProcessorMixin | PreTrainedTokenizerBase | MediaAdapter


def load_tokenizer(folder: Path, *, trust_remote_code: bool, new_special_tokens: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder, with a pad token from its own vocabulary.

    Args:
        folder: a model folder, or one with tokenizer files only.
        trust_remote_code: run Python code that comes with the tokenizer.
        new_special_tokens: tokens that are added; the model then needs `fit_embeddings`.

    Raises:
        ModelError: when there is no tokenizer that can be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # the library raises many kinds, from its own code and from the tokenizer's
        raise _tokenizer_error(error, folder) from error
    _complete(tokenizer, folder)
    _add_special_tokens(tokenizer, new_special_tokens)
    return tokenizer


def load_processor(
    folder: Path, *, trust_remote_code: bool, new_special_tokens: Sequence[str] = (), model_type: str | None = None
) -> Processor:
    """Return the processor of a multimodal model, or the tokenizer of a text model; either with a pad token.

    A multimodal folder without any processor file gives its tokenizer and a warning: its texts can still be used. A family
    whose trusted code lies in its folder gives its adapter, which stands in for a processor.

    Args:
        folder: a model folder.
        trust_remote_code: run Python code that comes with the model.
        new_special_tokens: tokens that are added; the model then needs `fit_embeddings`.
        model_type: family of the model; by default what its files say.

    Raises:
        MissingDependencyError: when the processor needs a library such as torchvision.
        ModelError: when processor or tokenizer cannot be read.
    """
    adapter = load_adapter(folder, model_type, new_special_tokens) if trust_remote_code else None
    if adapter is not None:
        return adapter
    named = [name for name in _PROCESSOR_FILES if (folder / name).is_file()]
    if not named:
        kind = str(read_json(folder / "config.json").get("model_type"))
        if kind in CONFIG_MAPPING and CONFIG_MAPPING[kind] in PROCESSOR_MAPPING:
            logger.warning("%s: %s models have a processor, but there is no %s: only text can be used", folder, kind, _PROCESSOR_FILES[1])
        return load_tokenizer(folder, trust_remote_code=trust_remote_code, new_special_tokens=new_special_tokens)
    try:
        processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # the library raises many kinds, from its own code and from the processor's
        raise processor_error(error, folder, named) from error
    if isinstance(getattr(processor, "tokenizer", processor), PreTrainedTokenizerBase):
        _complete(tokenizer_of(processor), folder)
        _add_special_tokens(tokenizer_of(processor), new_special_tokens)
        return processor
    # An image processor alone: the model has no processor class.
    return load_tokenizer(folder, trust_remote_code=trust_remote_code, new_special_tokens=new_special_tokens)


def section_processor(section: ModelSection, folder: Path) -> Processor:
    """Return the processor of a folder, or its tokenizer, as the settings of a command say.

    Raises:
        MissingDependencyError: when the processor needs a library such as torchvision.
        ModelError: when processor or tokenizer cannot be read.
    """
    remote, tokens = section.trust_remote_code, section.special_tokens
    return load_processor(folder, trust_remote_code=remote, new_special_tokens=tokens, model_type=section.model_type)


def tokenizer_of(processor: Processor) -> PreTrainedTokenizerBase:
    """Return the tokenizer inside a processor, or the tokenizer itself."""
    found: Any = processor if isinstance(processor, PreTrainedTokenizerBase) else cast(Any, processor).tokenizer
    return found


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Give the model a row for every token of the tokenizer and return how many were added.

    New rows start at the mean of the old ones. A model with spare rows stays as it is.
    """
    inputs: Any = model.get_input_embeddings()
    rows = int(inputs.weight.shape[0])
    wanted = len(tokenizer)
    if wanted <= rows:
        return 0
    with torch.no_grad():
        model.resize_token_embeddings(wanted, mean_resizing=False)
        layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
        for layer in filter(None, layers):
            weight = layer.weight
            weight[rows:] = weight[:rows].float().mean(0).to(weight.dtype)
            bias = getattr(layer, "bias", None)
            if bias is not None:
                bias[rows:] = bias[:rows].mean()
    return wanted - rows


def _add_special_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    known = tokenizer.get_vocab()
    new = [token for token in dict.fromkeys(tokens) if token not in known]
    if new:
        tokenizer.add_tokens(new, special_tokens=True)


def _complete(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Warn about a missing eos token and fill in a missing pad token."""
    if tokenizer.eos_token_id is None:
        logger.warning(
            "%s: the tokenizer has no eos token, so answers end at the token limit only; set eos_token in tokenizer_config.json", folder
        )
    if tokenizer.pad_token_id is None:
        _set_pad_token(tokenizer, folder)


def _missing_library(error: ImportError, folder: Path) -> SwiftError:
    text = one_line(error)
    library = error.name or next((name for name in _LIBRARIES if name in text.lower()), None)
    if library is None:
        return ModelError(f"{str(folder)!r}: the processor cannot be loaded: {text}", fix="install the library it names")
    return MissingDependencyError(library, needed_for=f"the processor of {str(folder)!r}", install=_LIBRARIES.get(library, library))


def processor_error(error: Exception, folder: Path, files: Sequence[str]) -> SwiftError:
    """Return why a processor was not loaded."""
    if isinstance(error, ImportError):
        return _missing_library(error, folder)
    if "trust_remote_code" in str(error):
        return remote_code_error(folder)
    for name in files:
        try:
            read_json(folder / name)
        except ModelError as damaged:
            return damaged
    return ModelError(
        f"{str(folder)!r}: the processor ({', '.join(files)}) cannot be read: {one_line(error)}",
        fix="fetch or copy the processor and tokenizer files again, or update transformers",
    )


def _tokenizer_error(error: Exception, folder: Path) -> ModelError:
    if "trust_remote_code" in str(error):
        return remote_code_error(folder)
    names = {path.name for path in folder.glob("*")}
    for name in sorted(names & {"config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}):
        try:
            read_json(folder / name)
        except ModelError as damaged:
            return damaged
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json", "tekken.json", "spiece.model"}:
        return ModelError(
            f"{str(folder)!r} holds no tokenizer (tokenizer.json or tokenizer.model)",
            fix="copy the tokenizer files of the model into the folder",
        )
    return ModelError(f"{str(folder)!r}: the tokenizer cannot be read: {one_line(error)}", fix="fetch or copy the tokenizer files again")


def _set_pad_token(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Take a token that exists: a new one would need new rows in the embedding."""
    vocabulary = tokenizer.get_vocab()
    names = [name for name in _PAD_NAMES if name in vocabulary]
    chosen = next(iter(names), None) or tokenizer.eos_token or tokenizer.unk_token
    if chosen is None:
        raise ModelError(
            f"{str(folder)!r}: the tokenizer has no pad, eos or unk token, so batches cannot be padded",
            fix="set pad_token in tokenizer_config.json to a token of its vocabulary",
        )
    tokenizer.pad_token = chosen
