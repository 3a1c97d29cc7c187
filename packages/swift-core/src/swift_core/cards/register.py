"""Making models of your own known by name: in a plugin file, or through the entry point group `swift.models`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swift_core.cards.models import ModulePaths
from swift_core.errors import RegistryError
from swift_core.registry import MODELS
from swift_core.specs import ModelSpec

TASKS = ("causal_lm", "seq_cls", "embedding", "reranker", "generative_reranker", "reward", "prm")


def register_model(
    model_type: str,
    *,
    models: Sequence[str | tuple[str, str]] = (),
    template: str = "",
    architectures: Sequence[str] = (),
    task_type: str = "causal_lm",
    multimodal: bool = False,
    modules: Mapping[str, Sequence[str]] | None = None,
    needs: Sequence[str] = (),
    loader: Callable[..., Any] | str = "",
    exist_ok: bool = False,
) -> list[ModelSpec]:
    """Register a family of models and its checkpoints, and return their specs.

    A package does the same with the entry point `swift.models`, which names an iterable of `ModelSpec`.

    Args:
        model_type: name of the family, as `--model_type` takes it.
        models: ids `ORG/NAME` that are the same on both hubs, or pairs of the ids on Hugging Face and ModelScope.
        template: named prompt format for checkpoints without a chat template of their own.
        architectures: class names in `config.json` by which a folder is recognised.
        task_type: what it is loaded for when no task is set.
        multimodal: whether it takes images, videos or sound.
        modules: dotted paths of `language_model`, `aligner`, `vision_tower`, `generator`, `embedding`, `layers`, `lm_head`.
        needs: libraries as pip takes them; those that are absent are reported when the model is loaded.
        loader: function of a module, or `module:function`, called with folder, `ModelSection` and dtype; it returns the model.
        exist_ok: replace entries of the same name.

    Raises:
        RegistryError: when a name is taken, or the description is wrong.
    """
    known = set(ModulePaths.__dataclass_fields__)
    strange = sorted(set(modules or {}) - known)
    if strange:
        raise RegistryError(f"register_model {model_type!r}: modules has no {strange[0]!r}", fix=f"known: {', '.join(sorted(known))}")
    if task_type not in TASKS:
        raise RegistryError(f"register_model {model_type!r}: unknown task_type {task_type!r}", fix=f"one of {', '.join(TASKS)}")
    pairs = [(item, item) if isinstance(item, str) else item for item in models] or [("", "")]
    specs: list[ModelSpec] = []
    for hf_id, ms_id in pairs:
        spec = ModelSpec(
            name=(hf_id or ms_id).rpartition("/")[2] or model_type,
            summary=f"{model_type}, {'multimodal' if multimodal else 'text'}",
            model_type=model_type,
            hf_id=hf_id,
            ms_id=ms_id,
            template=template,
            architectures=tuple(architectures),
            kind=_kind(task_type, multimodal),
            task_type=task_type,
            multimodal=multimodal,
            needs=tuple(needs),
            loader=loader if isinstance(loader, str) else _target(loader),
            modules={key: tuple(paths) for key, paths in (modules or {}).items()},
        )
        MODELS.names()  # the table first, so that a name in it is found to be taken
        MODELS.register(spec, source="register_model", override=exist_ok)
        specs.append(spec)
    return specs


def _kind(task_type: str, multimodal: bool) -> str:
    special = {"embedding": "embedding", "reranker": "reranker", "generative_reranker": "reranker", "reward": "reward", "prm": "reward"}
    return special.get(task_type) or ("mllm" if multimodal else "llm")


def _target(function: Callable[..., Any]) -> str:
    name = str(getattr(function, "__qualname__", ""))
    if not name or "<" in name:
        raise RegistryError("the loader must be a function of a module: other processes find it by name", fix="define it with def")
    return f"{function.__module__}:{name}"
