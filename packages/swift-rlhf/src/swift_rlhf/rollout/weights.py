"""The weights of the model that is being trained, as bytes for engines outside of this process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save
from swift_core.errors import ModelError
from swift_core.protocols import Tuner
from torch import Tensor, nn

from swift_rlhf.rollout.folding import adapted_layers, folded_weight

ADAPTER = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
PART_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Payload:
    """Weights ready to be sent.

    Attributes:
        kind: `adapter` where LoRA is all that was trained, else `full`.
        parts: safetensors files.
    """

    kind: Literal["adapter", "full"]
    parts: tuple[bytes, ...]


class TrainedWeights:
    """Packs what is being trained: the adapter alone where that is all, else all weights with adapters folded in.

    Args:
        model: the model.
        tuner: returns what writes its trained part; asked when weights are first packed.
        part_bytes: most bytes of a part.
    """

    def __init__(self, model: nn.Module, tuner: Callable[[], Tuner], *, part_bytes: int = PART_BYTES) -> None:
        self._model, self._tuner, self._part_bytes = model, tuner, part_bytes

    def packed(self) -> Payload:
        """Return the weights as they are now.

        Raises:
            ModelError: when they cannot be brought into the form that engines take.
        """
        adapter = self.adapter()
        if adapter is not None:
            return Payload("adapter", (save(adapter[1], metadata={"adapter_config": json.dumps(adapter[0])}),))
        return Payload("full", tuple(self._full()))

    def adapter(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return settings and weights of the adapter as PEFT saves them, or None where LoRA is not all that is trained."""
        if not hasattr(self._model, "peft_config"):
            return None
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self._tuner().save(self._model, folder)
            if not (folder / ADAPTER).is_file() or not (folder / SETTINGS).is_file():
                return None
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            beside = any(settings.get(option) for option in ("modules_to_save", "use_dora", "lora_bias"))
            if settings.get("peft_type") != "LORA" or beside or settings.get("bias", "none") != "none":
                return None
            return settings, load_file(folder / ADAPTER)

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all weights under the names of the model's own files, see `whole_weights`."""
        yield from whole_weights(self._model)

    def _full(self) -> Iterator[bytes]:
        part: dict[str, Tensor] = {}
        size = 0
        for name, weight in self.whole():
            if part and size + weight.nbytes > self._part_bytes:
                yield save(part)
                part, size = {}, 0
            part[name] = weight
            size += weight.nbytes
        yield save(part)


def whole_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under the names of the model's own files, adapters folded in; weights that are shared come once.

    Raises:
        ModelError: when what was trained cannot be folded in.
    """
    if not hasattr(model, "peft_config"):
        yield from _once(model.state_dict())
        return
    base = model.get_base_model()
    layers = adapted_layers(base)
    if any("modules_to_save" in name for name, _ in base.named_parameters()):
        fix = "train it without --modules_to_save, or let this process write the answers"
        raise ModelError("modules that are trained beside adapters cannot be sent to a rollout server", fix=fix)
    found: dict[str, Tensor] = {}
    for name, weight in base.state_dict().items():
        owner, _, rest = name.partition(".base_layer.")
        if rest:
            found[f"{owner}.{rest}"] = folded_weight(layers[owner]) if rest == "weight" and owner in layers else weight
        elif not any(name.startswith(f"{layer}.") for layer in layers):
            found[name] = weight
    yield from _once(found)


def _once(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, weight in weights.items():
        if weight.data_ptr() not in seen or not weight.numel():
            seen.add(weight.data_ptr())
            yield name, weight.detach().cpu().contiguous()
