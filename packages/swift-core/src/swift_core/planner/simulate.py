"""One optimizer step on a model without numbers: what it holds, and what it computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from swift_core.batching.layout import Layout
from swift_core.models.modules import unwrap
from swift_core.planner.stand_in import fuse, materialise
from swift_core.planner.tracing import HEAD, MemoryTrace, Moment
from swift_core.registry import FUSIONS
from swift_core.scoring.attention import NAME, packed, set_text_attention
from swift_core.scoring.dense_attention import causal_bias
from swift_core.scoring.head import chunked_cross_entropy
from swift_core.scoring.linear_head import linear_cross_entropy
from swift_core.train.checkpointing import enable_checkpointing

FORWARD, BACKWARD = "forward pass", "backward pass"
# Parts of a micro-batch before the last one of a step, which is the fullest.
_EARLIER = "earlier "


@dataclass(frozen=True, slots=True)
class Pass:
    """How a micro-batch runs.

    Attributes:
        lengths: tokens of its samples.
        trained: rows that the output layer sees.
        device: kind of device.
        fused: layers are fused.
        split: the output layer sees trained rows only, in chunks.
        checkpointing: policy of recomputation, or None.
        autocast: computed in bfloat16 over weights of another type.
        micros: micro-batches of a step; from the second on, gradients are there from the start.
    """

    lengths: tuple[int, ...]
    trained: int
    device: str
    fused: bool = True
    split: bool = True
    checkpointing: str | None = None
    autocast: bool = False
    micros: int = 1

    @property
    def tokens(self) -> int:
        """Return the tokens of the micro-batch."""
        return sum(self.lengths)


@dataclass(slots=True)
class Traced:
    """What a pass was found to hold and to cost.

    Attributes:
        moments: part of the pass -> its fullest moment.
        gradients: bytes of all gradients.
        costs: as in `MemoryTrace`, of one micro-batch.
    """

    moments: dict[str, Moment] = field(default_factory=dict[str, Moment])
    gradients: int = 0
    costs: Mapping[tuple[str, int, int], float] = field(default_factory=dict[tuple[str, int, int], float])


def trace(model: nn.Module, plan: Pass) -> Traced:
    """Run forward and backward pass of a model on the meta device; it is changed and can be used for nothing else.

    Raises:
        Exception: of many kinds, where the model's code needs numbers.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    materialise(model, mode, plan.device)
    if plan.fused:
        fuse(model, {name: FUSIONS.load(name)() for name in FUSIONS.names()})
    set_text_attention(unwrap(model), NAME)
    if plan.checkpointing is not None:
        enable_checkpointing(model, plan.checkpointing)
    model.train()
    watch = MemoryTrace([*model.parameters(), *model.buffers()])
    with _own_biases(), mode, watch, packed(Layout(plan.lengths)):
        if plan.micros > 1:
            _micro_batch(model, plan, watch, earlier=True)
        _micro_batch(model, plan, watch)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    moments = {part: moment for part, moment in watch.moments(gradients, halved=BACKWARD).items() if not part.startswith(_EARLIER)}
    costs = {key: float(count) for key, count in watch.costs.items() if not key[0].startswith(_EARLIER)}
    return Traced(moments, sum(one.numel() * one.element_size() for one in gradients), costs)


@contextmanager
def _own_biases() -> Iterator[None]:
    # Kept between calls: neither may numbers come in here, nor may tensors without numbers get out.
    causal_bias.cache_clear()
    try:
        yield
    finally:
        causal_bias.cache_clear()


def _micro_batch(model: nn.Module, plan: Pass, watch: MemoryTrace, *, earlier: bool = False) -> None:
    watch.prefix = _EARLIER if earlier else ""
    watch.part(FORWARD)
    ids = torch.zeros(1, plan.tokens, dtype=torch.long, device=plan.device)
    places = torch.zeros_like(ids)
    with torch.autocast(plan.device, dtype=torch.bfloat16, enabled=plan.autocast):
        loss = _loss(model, plan, watch, ids, places)
    watch.part(BACKWARD)
    loss.backward()


def _loss(model: nn.Module, plan: Pass, watch: MemoryTrace, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    inner: Any = unwrap(model)
    rows = torch.arange(plan.trained, device=plan.device)
    targets = torch.zeros(plan.trained, dtype=torch.long, device=plan.device)
    if not plan.split:
        logits = model(input_ids=ids, position_ids=places, use_cache=False).logits
        watch.part(HEAD)
        return F.cross_entropy(logits[0][rows].float(), targets, reduction="none").sum()
    hidden = inner.base_model(input_ids=ids, position_ids=places, use_cache=False).last_hidden_state[0][rows]
    watch.part(HEAD)
    head = inner.get_output_embeddings()
    if type(head) is nn.Linear and head.bias is None and head.weight.dtype == hidden.dtype and not plan.autocast:
        return linear_cross_entropy(hidden, targets, head.weight)
    return chunked_cross_entropy(hidden, targets, head, list(head.parameters()))
