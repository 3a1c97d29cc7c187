"""From token vectors to one vector for a text, and the sentence-transformers files that say how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from swift_core.errors import ModelError
from swift_core.models.folder import read_json

Pooling = Literal["last", "mean", "cls"]

_MODULES = "modules.json"
_OLD_KEYS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_NEW_NAMES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_KNOWN_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Return one vector for each text; padding is on the right.

    Args:
        hidden: `[texts, seq, dim]`, the vectors of the last layer.
        attention_mask: `[texts, seq]`, 1 where there is a token.
        pooling: `last` takes the last token's vector, `cls` the first one's, `mean` the mean over the tokens.

    Returns:
        `[texts, dim]`, not normalised.
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(1) - 1]
    weights = attention_mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def is_sentence_transformer(folder: Path) -> bool:
    """Say whether a model folder has the files of sentence-transformers."""
    return (folder / _MODULES).is_file()


def find_pooling(folder: Path, config: PretrainedConfig) -> Pooling:
    """Return how a model pools: as its sentence-transformers files say; else `mean` for encoders and `last` for decoders.

    Raises:
        ModelError: when the files ask for something that is not done here.
    """
    if not is_sentence_transformer(folder):
        return "mean" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "last"
    modules = cast(list[dict[str, Any]], json.loads((folder / _MODULES).read_text(encoding="utf-8")))
    other = sorted({name for module in modules if (name := str(module["type"]).rsplit(".", 1)[-1]) not in _KNOWN_MODULES})
    if other:
        raise ModelError(
            f"{folder / _MODULES}: the model goes through {', '.join(other)}, and only Transformer, Pooling and Normalize are trained here",
            fix="choose another embedding model",
        )
    path = next((str(module["path"]) for module in modules if str(module["type"]).endswith("Pooling")), "1_Pooling")
    settings = read_json(folder / path / "config.json")
    named: list[Pooling] = [name for key, name in _OLD_KEYS.items() if settings.get(key)]
    strange = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True and key not in _OLD_KEYS]
    if settings.get("pooling_mode") in _NEW_NAMES:
        named = [_NEW_NAMES[settings["pooling_mode"]]]
    if len(named) != 1 or strange:
        raise ModelError(
            f"{folder / path / 'config.json'}: this way of pooling is not done here", fix="choose it with --pooling mean, cls or last"
        )
    return named[0]


def max_text_length(folder: Path) -> int | None:
    """Return the longest text in tokens that sentence-transformers gives the model, or None where it does not say."""
    file = folder / "sentence_bert_config.json"
    value = read_json(file).get("max_seq_length") if file.is_file() else None
    return value if isinstance(value, int) and value > 0 else None


def write_sentence_transformer(folder: Path, *, pooling: Pooling, dim: int, max_length: int | None) -> None:
    """Write the files with which sentence-transformers loads a model folder: transformer, pooling, normalisation."""
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds)
    ]
    for path, _ in kinds[1:]:
        (folder / path).mkdir(exist_ok=True)
    modes = {key: mode == pooling for key, mode in _OLD_KEYS.items()}
    _write(folder / _MODULES, modules)
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": dim, **modes})
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
