"""What a pass over a model keeps in memory, found by running it on tensors that have shapes and no numbers.

Every operation goes through the code that training runs: the model's own layers, fused layers, packed attention, recomputation.
Nothing is computed, so a model of any size is traced on any machine.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
# What code asks the numbers for: a CPU looks for probabilities that have lost their digits, and finds none.
_ANSWERS: dict[Any, Callable[[torch.Tensor], Any]] = {
    _aten.nonzero.default: lambda given: given.new_empty((0, given.ndim), dtype=torch.long),
    _aten._local_scalar_dense.default: lambda given: False if given.dtype == torch.bool else 0,
}
GRADIENT, HEAD, OTHER = "gradients", "head", "activations"


@dataclass(slots=True)
class Moment:
    """The moment of a part of a pass that holds most.

    Attributes:
        total: bytes that the pass has made and still holds.
        kinds: the same by kind: gradients, head, activations.
    """

    total: int = 0
    kinds: dict[str, int] = field(default_factory=dict[str, int])


class MemoryTrace(TorchDispatchMode):
    """Follows the storages that operations make, from their birth to their end.

    Args:
        known: tensors that were there before, such as weights.
        numbers: whether tensors hold numbers; without them code that asks for some gets zeros.

    Attributes:
        costs: `(part, operations, bytes read and written)` -> how many kernels cost that.
        prefix: stands before the names of the parts that begin from now on.
    """

    def __init__(self, known: Iterable[torch.Tensor], *, numbers: bool = False) -> None:
        super().__init__()
        self._answers = {} if numbers else _ANSWERS
        self.costs: Counter[tuple[str, int, int]] = Counter()
        self._serials: dict[int, int] = {tensor.untyped_storage()._cdata: -1 for tensor in known}
        # (part, serial, bytes), where bytes are negative at the end of a storage.
        self._events: list[tuple[str, int, int]] = []
        self._births: list[str] = []
        self.prefix = ""
        self._part = ""

    def part(self, name: str) -> None:
        """Begin a part of the pass."""
        self._part = self.prefix + name

    def moments(self, gradients: Iterable[torch.Tensor], *, halved: str) -> dict[str, Moment]:
        """Return part -> its fullest moment.

        Args:
            gradients: what has become of the pass's gradients.
            halved: a part whose second half counts as a part of its own, `end of the ...`.
        """
        final = {self._serials.get(tensor.untyped_storage()._cdata, -1) for tensor in gradients}
        held: dict[str, int] = dict.fromkeys((GRADIENT, HEAD, OTHER), 0)
        found: dict[str, Moment] = {}
        left = sum(part == halved for part, _, _ in self._events) // 2
        for part, serial, size in self._events:
            held[GRADIENT if serial in final else HEAD if self._births[serial].endswith(HEAD) else OTHER] += size
            left -= part == halved
            name = part if part != halved or left >= 0 else f"end of the {part}"
            moment, total = found.setdefault(name, Moment()), sum(held.values())
            if total >= moment.total:
                moment.total, moment.kinds = total, dict(held)
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run an operation on shapes and note what it made."""
        if func in self._answers:
            return self._answers[func](args[0])
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.prim.device.default:
            return output
        made = [tensor for tensor in tree_iter(output) if isinstance(tensor, torch.Tensor)]
        for tensor in made:
            self._note(tensor)
        if made and not func.is_view:
            self._count(func, args, kwargs or {}, output, made)
        return output

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._serials:
            serial, size = len(self._births), storage.nbytes()
            self._serials[key] = serial
            self._births.append(self._part)
            self._events.append((self._part, serial, size))
            weakref.finalize(storage, self._end, key, serial, size).atexit = False

    def _end(self, key: int, serial: int, size: int) -> None:
        self._serials.pop(key, None)
        self._events.append((self._part, serial, -size))

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, made: list[torch.Tensor]) -> None:
        rule = flop_registry.get(func.overloadpacket)
        operations = int(rule(*args, **kwargs, out_val=output)) if rule is not None else 0
        read = [tensor for tensor in tree_iter(args) if isinstance(tensor, torch.Tensor)]
        self.costs[self._part, operations, sum(tensor.numel() * tensor.element_size() for tensor in (*read, *made))] += 1
