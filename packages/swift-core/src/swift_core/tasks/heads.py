"""Models of tasks other than next-token prediction: a head on a backbone, or the backbone alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from swift_core.config.sections import ModelSection
from swift_core.errors import ModelError
from swift_core.models.folder import check_model_folder
from swift_core.models.quiet import quiet_transformers


def load_with_head(
    section: ModelSection,
    folder: Path,
    *,
    dtype: torch.dtype,
    num_labels: int,
    problem: str | None,
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedModel:
    """Return a model with a classification head of `num_labels` outputs; a head that the folder has is kept when it fits.

    Decoders read the last token that is no padding, so the model is told which token pads.

    Raises:
        ModelError: when the architecture has no such head.
    """
    options: dict[str, Any] = {"num_labels": num_labels, **({"problem_type": problem} if problem else {})}
    model = _load(AutoModelForSequenceClassification, section, folder, dtype=dtype, options=options)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def load_backbone(section: ModelSection, folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model without a head.

    Raises:
        ModelError: when the folder cannot be loaded.
    """
    return _load(AutoModel, section, folder, dtype=dtype, options={})


def _load(auto: Any, section: ModelSection, folder: Path, *, dtype: torch.dtype, options: dict[str, Any]) -> PreTrainedModel:
    check_model_folder(folder)
    with quiet_transformers():
        try:
            return auto.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=section.attn_impl,
                trust_remote_code=section.trust_remote_code,
                use_safetensors=True,
                local_files_only=True,
                # A head of another size starts anew.
                ignore_mismatched_sizes=True,
                **options,
            )
        except Exception as error:  # the library raises many kinds, from its own code and from the model's
            text = " ".join(str(error).split())[:400]
            raise ModelError(
                f"{str(folder)!r} cannot be loaded for this task: {text}", fix="choose another model or --task_type"
            ) from error
