"""What is said when transformers cannot load a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

from swift_core.errors import ModelError


def config_error(error: Exception, raw: dict[str, Any], folder: Path) -> ModelError:
    """Return what is wrong with a `config.json` that no config class took."""
    kind = raw.get("model_type")
    if "trust_remote_code" in str(error):
        return remote_code_error(folder)
    if kind is None or kind not in transformers.CONFIG_MAPPING:
        named = f"the architecture {kind!r}" if kind else "no architecture (model_type)"
        return ModelError(
            f"{folder / 'config.json'}: names {named}, which transformers {transformers.__version__} does not know",
            fix="update transformers, or check that this is a language model of the Hugging Face format",
        )
    return ModelError(f"{folder / 'config.json'}: {one_line(error)}", fix="fetch or copy the model again, or update transformers")


def remote_code_error(folder: Path) -> ModelError:
    """Return the refusal of a folder that brings code of its own."""
    return ModelError(
        f"{str(folder)!r} brings its own Python code, which is not run by default",
        fix="read the .py files in the folder and, if you trust them, set --trust_remote_code true",
    )


def load_error(error: Exception, folder: Path, config: PretrainedConfig) -> ModelError:
    """Return why a model was not built or its weights not read."""
    text = one_line(error)
    if "trust_remote_code" in text:
        return remote_code_error(folder)
    if "Unrecognized configuration class" in text:
        return ModelError(
            f"{str(folder)!r}: transformers {transformers.__version__} generates no text with the architecture {config.model_type!r}",
            fix="give a causal language model, or update transformers",
        )
    if "attn_implementation" in text and isinstance(error, ValueError):
        return ModelError(f"{str(folder)!r}: {text}", fix="choose another --attn_impl, such as sdpa")
    if isinstance(error, ImportError):
        return ModelError(f"{str(folder)!r} needs a library that is not installed: {text}", fix="install it, or choose another --attn_impl")
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return ModelError(f"{str(folder)!r} does not fit into memory: {text}", fix="use a smaller model or --torch_dtype bfloat16")
    return ModelError(
        f"{str(folder)!r} cannot be loaded: {text}", fix="check that the weights belong to config.json, or update transformers"
    )


def one_line(error: Exception) -> str:
    """Return the text of an error without line breaks, cut at 400 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.partition(" If you were trying to load it from")[0]  # the folder is local; the hub was not asked
    return text if len(text) <= 400 else text[:400] + " ..."
