"""A model cut into stages of successive layers, which is tried out before any weight is let go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from swift_core.batching.collate import Batch
from swift_core.errors import ModelError
from swift_core.protocols import EncodedSample
from swift_core.scoring.attention import SAMPLEWISE, packed, text_attention
from swift_core.scoring.scorer import HALF_TOLERANCE, TOLERANCE
from swift_core.train.module import LossModule
from swift_core.train.task import CausalLm

_FIX = "use --fsdp full_shard or --deepspeed zero3"
# What a base model may hold: what runs before the layers in the first stage, after them in the last one, and without weights in all.
_BEFORE, _LAYERS, _AFTER, _EVERYWHERE = "embed_tokens", "layers", "norm", "rotary_emb"


class Stages:
    """A causal language model that runs one of its stages at a time.

    Args:
        model: the model, may be wrapped by adapters.
        count: number of stages.

    Raises:
        ModelError: when it is not an embedding, layers and a norm, or has fewer layers than stages.

    Attributes:
        width: size of the hidden states.
        dtype: their number type.
    """

    def __init__(self, model: Any, count: int) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._base: Any = inner.base_model
        children = dict(self._base.named_children())
        unknown = [name for name in children if name not in (_BEFORE, _LAYERS, _AFTER, _EVERYWHERE)]
        if self._base is inner or not {_BEFORE, _LAYERS, _AFTER} <= children.keys() or unknown:
            what = f"it has {', '.join(unknown)}" if unknown else "it is not an embedding, layers and a norm"
            raise ModelError(f"--pipeline_parallel_size: a {type(inner).__name__} cannot be cut into stages: {what}", fix=_FIX)
        self._layers: list[nn.Module] = list(children[_LAYERS].children())
        self._norm = children[_AFTER]
        if len(self._layers) < count:
            fix = f"--pipeline_parallel_size {len(self._layers)} at most"
            raise ModelError(f"--pipeline_parallel_size {count}: the model has {len(self._layers)} layers", fix=fix)
        self.count = count
        self.width, self.dtype = int(inner.config.get_text_config().hidden_size), next(iter(self._norm.parameters())).dtype
        self._stages = self._owners(inner, children)
        self._received: torch.Tensor | None = None
        self._base.register_forward_pre_hook(self._swap_input, with_kwargs=True)

    def _span(self, number: int) -> tuple[int, int]:
        return number * len(self._layers) // self.count, (number + 1) * len(self._layers) // self.count

    def _owners(self, inner: nn.Module, children: dict[str, nn.Module]) -> dict[nn.Parameter, tuple[int, ...]]:
        found: dict[nn.Parameter, tuple[int, ...]] = {parameter: (0,) for parameter in children[_BEFORE].parameters()}
        for number in range(self.count):
            start, stop = self._span(number)
            found.update({parameter: (number,) for layer in self._layers[start:stop] for parameter in layer.parameters()})
        # The head may be the embedding: first and last stage then keep a copy each.
        for parameter in [*self._norm.parameters(), *inner.get_output_embeddings().parameters()]:  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            found[parameter] = (*found.get(parameter, ()), self.count - 1)
        return found

    def owners(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """Return the stages that hold a weight.

        Raises:
            ModelError: for a weight outside of embedding, layers, norm and head.
        """
        if parameter not in self._stages:
            raise ModelError("--pipeline_parallel_size: the model has weights besides embedding, layers, norm and head", fix=_FIX)
        return self._stages[parameter]

    @contextlib.contextmanager
    def only(self, number: int, received: torch.Tensor | None) -> Iterator[None]:
        """Let the model be one of its stages inside the block.

        Args:
            number: which one.
            received: hidden states `[1, tokens, width]` of the stage before it.
        """
        start, stop = self._span(number)
        whole = self._base._modules[_LAYERS]
        self._base._modules[_LAYERS] = nn.ModuleList(self._layers[start:stop])
        self._base._modules[_AFTER] = self._norm if number == self.count - 1 else nn.Identity()
        self._received = received
        try:
            yield
        finally:
            self._base._modules[_LAYERS], self._base._modules[_AFTER] = whole, self._norm
            self._received = None

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Return what the base model makes of a packed batch, `[1, tokens, width]`."""
        return self._base(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).last_hidden_state

    def _swap_input(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._received is None:
            return None
        return args, {**kwargs, "input_ids": None, "inputs_embeds": self._received}


def cut_model(module: LossModule, count: int) -> Stages:
    """Return the stages of a model that holds all its weights still.

    Args:
        module: the model and its task.
        count: number of stages.

    Raises:
        ModelError: when it cannot be cut, or finds something else then.
    """
    if not isinstance(module.task, CausalLm):
        raise ModelError("--pipeline_parallel_size: it is made for next-token prediction", fix=_FIX)
    model: Any = module.model
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    stages = Stages(model, count)
    batch = _trial(module).to(next(iter(model.parameters())).device)
    training = model.training
    model.eval()
    # The scorer chooses its way at its first batch, and needs the whole model for it.
    module.measure(batch)
    if text_attention(inner) not in SAMPLEWISE:
        raise ModelError("--pipeline_parallel_size: samples cannot run side by side in this model without padding", fix=_FIX)
    with torch.no_grad(), packed(batch.layout, batch.labels):
        expected, found = stages.hidden(batch), None
        for number in range(count):
            with stages.only(number, found):
                found = stages.hidden(batch)
    model.train(training)
    assert found is not None
    share = float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-9))
    if not share < TOLERANCE.get(expected.dtype, HALF_TOLERANCE):
        raise ModelError(f"--pipeline_parallel_size: cut into stages, the model finds something else (by {share:.1%})", fix=_FIX)
    return stages


def _trial(module: LossModule) -> Batch:
    samples = [EncodedSample(ids, list(ids), "trial") for ids in ([1, 2, 3, 4, 5, 6, 7], [3, 1, 4, 1, 5])]
    return module.task.collate(samples, pad_token_id=0)
