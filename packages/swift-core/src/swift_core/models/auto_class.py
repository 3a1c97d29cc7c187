"""Which Auto class of transformers builds a model for a task."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification

from swift_core.errors import ModelError
from swift_core.models.detection import TASK_TYPES

GENERATING = frozenset({"causal_lm", "generative_reranker"})
SCORING = frozenset({"seq_cls", "reranker", "reward"})

# For each task the Auto classes that may build the model, the fitting one first, as `auto_map` of a config names them too.
_CLASSES: dict[str, tuple[tuple[Any, Any], ...]] = {
    "seq_cls": ((AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),),
    "reranker": ((AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),),
    "reward": ((AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),),
    "embedding": ((AutoModel, MODEL_MAPPING),),
    "prm": ((AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),),
}
_CAUSAL = (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING)
_MULTIMODAL = (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING)


def auto_class(config: PretrainedConfig, task_type: str, folder: Path) -> Any:
    """Return the Auto class for a task; one of the model's own code is chosen by `auto_map`.

    Raises:
        ModelError: when neither transformers nor the model's own code has a class for the task.
    """
    if task_type not in TASK_TYPES:
        raise ModelError(f"--task_type {task_type!r} is not known", fix=f"one of {', '.join(TASK_TYPES)}")
    own: dict[str, Any] = getattr(config, "auto_map", None) or {}
    classes = _generating(config) if task_type in GENERATING else _CLASSES[task_type]
    if type(config).__module__.startswith("transformers_modules."):
        # Trusted code of the folder; its config class may be called like one of transformers.
        named = next((auto for auto, _ in classes if auto.__name__ in own), None)
        if named is not None:
            return named
    for auto, mapping in classes:
        if type(config) in mapping or auto.__name__ in own:
            return auto
    if task_type in SCORING and type(config) in MODEL_MAPPING and "AutoModel" not in own:
        return scoring_class(MODEL_MAPPING[type(config)])
    # Heads of a model's own code, such as reward models, are often published under the plain class.
    if "AutoModel" in own and (task_type in ("reward", "prm", "reranker") or task_type in GENERATING):
        return AutoModel
    known = f"transformers {transformers.__version__}"
    if task_type in GENERATING:
        raise ModelError(
            f"{str(folder)!r}: {known} generates no text with the architecture {config.model_type!r}",
            fix="give a causal language model, or update transformers",
        )
    raise ModelError(
        f"{str(folder)!r}: {known} has no class for --task_type {task_type} with the architecture {config.model_type!r}",
        fix="choose another --task_type or another model",
    )


@cache
def scoring_class(backbone: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a class that scores with a backbone, as transformers makes its own `...ForSequenceClassification`.

    It puts a linear layer `score` on the last token, and is for architectures that transformers has no such class for,
    which is most multimodal ones.
    """
    base = next(kind for kind in backbone.__mro__ if kind.__name__.endswith("PreTrainedModel"))
    name = backbone.__name__.removesuffix("Model") + "ForSequenceClassification"
    members = {"__module__": __name__, "__doc__": f"A {backbone.__name__} with a score on its last token."}
    made: Any = type(name, (GenericForSequenceClassification, base), members)
    return made


def _generating(config: PretrainedConfig) -> tuple[tuple[Any, Any], ...]:
    """Put the multimodal class first, unless the checkpoint says that it is the language model alone."""
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    text_only = causal is not None and getattr(causal, "__name__", "") in (config.architectures or ())
    return (_CAUSAL, _MULTIMODAL) if text_only else (_MULTIMODAL, _CAUSAL)
