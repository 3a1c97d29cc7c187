"""The named adapters of an engine's model: loaded, chosen for each row, taken away."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift_core.errors import EngineError
from swift_core.registry import TUNERS
from swift_core.train.tuning import SeveralAdapters, load_tuner

from swift_infer.checkpoint import read_checkpoint

_LEAVING = "\0leaving"


@dataclass(frozen=True, slots=True)
class _Loaded:
    key: str  # what the tuner calls it: a name of a request may hold what no module's name may
    tuner: SeveralAdapters


class NamedAdapters:
    """Adapters by the name that requests use. A request without one gets the base model."""

    def __init__(self) -> None:
        self._loaded: dict[str, _Loaded] = {}
        self._count = 0

    def names(self) -> list[str]:
        """Return the names, in order of loading."""
        return list(self._loaded)

    def __contains__(self, name: object) -> bool:
        return name in self._loaded

    def add(self, model: Any, name: str, folder: Path) -> Any:
        """Return the model with one more adapter.

        Raises:
            EngineError: when the name is taken, or the model or the adapter stands alone.
            NotFoundError: when the folder holds no adapter.
            CheckpointError: when the adapter does not fit the model.
        """
        if name in self._loaded:
            raise EngineError(f"an adapter {name!r} is loaded already", fix="remove it first, or choose another name")
        if not self._loaded and hasattr(model, "peft_config"):
            raise EngineError("the model answers with an adapter without a name", fix=f"give it one too: --adapters NAME=FOLDER {name}=...")
        checkpoint = read_checkpoint(folder)
        tuner = load_tuner(checkpoint.tuner) if checkpoint.is_adapter else None
        if not isinstance(tuner, SeveralAdapters) or not TUNERS.get(checkpoint.tuner).several:
            what = f"an adapter of the tuner {checkpoint.tuner}" if checkpoint.is_adapter else "a whole model"
            raise EngineError(f"{str(folder)!r} holds {what}, which cannot stand beside others", fix="serve it alone, without NAME=")
        self._count += 1
        key = f"served_{self._count}"
        adapted: Any = tuner.add(model, folder, key)
        self._loaded[name] = _Loaded(key, tuner)
        return adapted.eval()

    def remove(self, model: Any, name: str) -> Any:
        """Return the model without an adapter.

        Raises:
            EngineError: when there is none of that name.
        """
        loaded = self._loaded.pop(name, None)
        if loaded is None:
            raise EngineError(f"no adapter {name!r} is loaded", fix=f"loaded are: {', '.join(self._loaded) or 'none'}")
        return loaded.tuner.remove(model, loaded.key)

    def replace(self, model: Any, name: str, folder: Path) -> Any:
        """Return the model with an adapter in the place of the one of that name, or beside the others.

        Raises:
            EngineError: when the adapter stands alone.
            CheckpointError: when it does not fit the model; the old one is there still.
        """
        if name not in self._loaded:
            return self.add(model, name, folder)
        fresh = f"{name}\nnew"  # a name that no request can have
        model = self.add(model, fresh, folder)
        before, self._loaded[name] = self._loaded[name], self._loaded.pop(fresh)
        return before.tuner.remove(model, before.key)

    def mixes(self, model: Any) -> bool:
        """Say whether rows of one batch may use different adapters."""
        return not self._loaded or self._tuner.mixes_rows(model)

    def using(self, model: Any, names: Sequence[str | None]) -> AbstractContextManager[None]:
        """Let forward passes in the block use these adapters, one for each row; None is the base model."""
        if not self._loaded:
            return nullcontext()
        keys = [None if name is None else self._loaded[name].key for name in names]
        return self._tuner.using(model, keys if len(set(keys)) > 1 else keys[0])

    @property
    def _tuner(self) -> SeveralAdapters:
        return next(iter(self._loaded.values())).tuner
