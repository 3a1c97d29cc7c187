"""The transformers config of a model folder, with the settings that change it: positions, length, head."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_core.config.sections import ModelSection
from swift_core.errors import ModelError
from swift_core.models.folder import read_json
from swift_core.models.load_errors import config_error

logger = logging.getLogger(__name__)

_LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "seq_length",
    "max_seq_len",
    "max_sequence_length",
    "n_ctx",
    "max_target_positions",
)
_NO_LIMIT = 10**9


def load_config(section: ModelSection, folder: Path) -> PretrainedConfig:
    """Return the config of a folder with `--rope_scaling` and `--max_model_len` put in.

    Raises:
        ModelError: when the folder is no model, its code is not trusted, or a setting does not fit it.
    """
    raw = read_json(folder / "config.json")
    if (folder / "adapter_config.json").is_file():
        # transformers would look up and load the base model by itself, from the hub if need be.
        raise ModelError(
            f"{str(folder)!r} is an adapter, not a model", fix=f"give the base model to --model and {str(folder)!r} to --adapters"
        )
    if section.attn_impl and "/" in section.attn_impl and not section.trust_remote_code:
        raise ModelError(
            f"attn_impl {section.attn_impl!r} would download and run a kernel from the hub",
            fix="use sdpa, eager or flash_attention_2, or set --trust_remote_code true",
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=section.trust_remote_code, local_files_only=True)
    except Exception as error:  # config classes check their fields in their own ways
        raise config_error(error, raw, folder) from error
    if not section.trust_remote_code:
        _drop_hub_kernels(config, folder)
    if section.rope_scaling is not None or section.max_model_len is not None:
        _set_positions(config, section, folder)
    return config


def _drop_hub_kernels(config: PretrainedConfig, folder: Path) -> None:
    """Undo kernels of the hub that a config names: they are code as well, fetched and run at load."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    for part in parts:
        for key in ("_attn_implementation_internal", "_experts_implementation_internal"):
            named = getattr(part, key, None)
            if isinstance(named, str) and "/" in named:
                logger.warning(
                    "%s: config.json asks for the kernel %r of the hub, which is not used without trust_remote_code", folder, named
                )
                setattr(part, key, None)


def _set_positions(config: PretrainedConfig, section: ModelSection, folder: Path) -> None:
    """Put position scaling and the context length into the text part of a config."""
    text: Any = config.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    setting = "--rope_scaling" if section.rope_scaling is not None else "--max_model_len"
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        what = "turns positions in a way of its own for each kind of layer" if isinstance(rope, dict) else "has no rotary positions"
        raise ModelError(f"{setting}: {str(folder)!r} {what}", fix=f"remove {setting}, or limit samples with --max_length")
    native = int(rope.get("original_max_position_embeddings") or text.max_position_embeddings)
    limit = int(text.max_position_embeddings)
    wanted = section.max_model_len
    if section.rope_scaling is None:
        if wanted is not None and wanted > limit:
            raise ModelError(
                f"--max_model_len {wanted} is more than the {limit} tokens of {str(folder)!r}",
                fix=f"add --rope_scaling yarn, or stay within {limit}",
            )
        text.max_position_embeddings = wanted
        return
    scaling: dict[str, Any] = dict(section.rope_scaling) if isinstance(section.rope_scaling, dict) else {"rope_type": section.rope_scaling}
    scaling["rope_type"] = scaling.pop("type", None) or scaling["rope_type"]
    native = int(scaling.get("original_max_position_embeddings") or native)
    if "factor" not in scaling:
        if wanted is None:
            raise ModelError(
                f"--rope_scaling {scaling['rope_type']} says nothing of how far", fix=f"add --max_model_len, such as {2 * native}"
            )
        scaling["factor"] = max(1.0, float(math.ceil(wanted / native)))
    if scaling["rope_type"] == "yarn":
        scaling.setdefault("original_max_position_embeddings", native)
    text.rope_parameters = {**{key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}, **scaling}
    text.max_position_embeddings = wanted or int(native * scaling["factor"])


def max_model_length(model_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens the model takes, or None when neither config nor tokenizer says."""
    text_config = model_config.get_text_config()
    for key in _LENGTH_KEYS:
        value = getattr(text_config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    limit = tokenizer.model_max_length
    return int(limit) if 0 < limit < _NO_LIMIT else None
