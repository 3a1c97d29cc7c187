"""Classes and functions of a folder's own code. It runs that code, so it is called only where `--trust_remote_code true` was given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, cast

from transformers import GenerationMixin, PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model

from swift_core.errors import ModelError
from swift_core.models.adapters.base import Call, MediaAdapter, media_of


def own_function(folder: Path, name: str) -> Callable[..., Any]:
    """Return a function of a module in the folder, such as `ixc_utils.Image_transform`.

    Raises:
        ModelError: when the module or the function is not there.
    """
    try:
        found: Any = get_class_from_dynamic_module(name, str(folder), local_files_only=True)
    except (OSError, AttributeError, ImportError) as error:
        module = name.partition(".")[0]
        raise ModelError(
            f"{str(folder)!r}: {name} is needed to read images and cannot be loaded: {error}",
            fix=f"copy {module}.py of the model into the folder, and install what it imports",
        ) from error
    return found


def own_class(auto: Any, config: PretrainedConfig, folder: Path) -> type[Any]:
    """Return the class that `auto_map` of a config names for an Auto class, as transformers would load it."""
    found: Any = get_class_from_dynamic_module(config.auto_map[auto.__name__], str(folder), local_files_only=True)  # pyright: ignore[reportAttributeAccessIssue]
    found.register_for_auto_class(auto_class=auto.__name__)
    return found if auto.__name__ == "AutoModel" else add_generation_mixin_to_remote_model(found)


def adapted_class(own: type[Any], adapter: MediaAdapter) -> type[Any]:
    """Return a class like the folder's, whose `forward` and `generate` take expanded tokens and the media of a batch.

    They take `input_ids`, `attention_mask` and `media`, and give one row of logits for each token. What the model's own code calls
    in its own way, as its `generate` calls its `forward`, goes through as it is. Name, weights and saved files stay those of
    the folder's class.
    """

    @wraps(own.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _call(adapter, args, kwargs)
        run = partial(own.forward, self)
        return run(*args, **kwargs) if call is None else adapter.forward(self, run, call)

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _call(adapter, args, kwargs)
        run = partial(cast(Any, own).generate, self)
        return run(*args, **kwargs) if call is None else adapter.generate(self, run, call)

    # Where the class generates by the library's method, transformers wants to see that among the direct bases.
    bases = (own, GenerationMixin) if issubclass(own, GenerationMixin) else (own,)
    members = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    made: Any = type(own.__name__, bases, {**members, "forward": forward, "media_adapter": adapter})
    if hasattr(own, "generate"):  # code that only trains has none
        made.generate = wraps(cast(Any, own).generate)(generate)
    return made


def _call(adapter: MediaAdapter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Return a call in the adapter's terms, or None for one in the model's own."""
    if args or kwargs.get("input_ids") is None:
        return None
    media = kwargs.pop("media", None)
    if not adapter.always and (media is None or not any(sample.places for sample in media.samples)):
        return None
    # Wrappers such as PEFT's pass on every argument they know; the model's own methods know fewer.
    rest = {name: value for name, value in kwargs.items() if value is not None}
    ids, mask = rest.pop("input_ids"), rest.pop("attention_mask", None)
    return Call(ids, mask, media_of(media, len(ids)), rest)
