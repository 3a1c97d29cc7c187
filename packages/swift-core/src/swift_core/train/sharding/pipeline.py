"""Pipeline parallel: each process keeps some of the layers, and hidden states go from one to the next.

The schedules are those of `torch.distributed.pipelining`. Embedding, norm and head run in the model's own code, and so do the layers:
a stage is the same model with the other stages' layers left out, given hidden states in place of token ids.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from swift_core.batching.collate import Batch
from swift_core.config.parallel import ParallelSection
from swift_core.scoring.attention import packed
from swift_core.train.module import LossModule
from swift_core.train.parallel import World
from swift_core.train.sharding.engine import Beat, Engine
from swift_core.train.sharding.stages import Stages, cut_model
from swift_core.train.sharding.tensors import Place, places_of, put

# Rows of a step are filled up to one length, which is a multiple of this, so that few lengths occur.
ROW = 64


class PipelineParallel(Engine):
    """Stages over groups of successive ranks, which work on the same samples; the groups share out the samples.

    Args:
        world: the processes of the run.
        section: `--pipeline_parallel_size` and `--pipeline_parallel_schedule`.
    """

    in_step = True

    def __init__(self, world: World, section: ParallelSection) -> None:
        super().__init__(world)
        self._count, self._schedule = section.pipeline_parallel_size, section.pipeline_parallel_schedule
        mesh = init_device_mesh(world.device.type, (world.data_size, self._count), mesh_dim_names=("data", "pipeline"))
        self._group, self._copies = mesh.get_group("pipeline"), mesh.get_group("data")
        self._ranks = dist.get_process_group_ranks(self._group)
        self._number: int = mesh.get_local_rank("pipeline")
        self._stages: Stages | None = None
        self._made: tuple[Any, Any] = (None, None)
        self._owners: dict[nn.Parameter, tuple[int, ...]] = {}

    @property
    def _first(self) -> bool:
        return self._number == 0

    @property
    def _last(self) -> bool:
        return self._number == self._count - 1

    def place(self, model: nn.Module) -> None:
        """Leave the model where it is: only the weights of a stage move to its device."""

    def shard(self, module: LossModule) -> None:
        """Keep this stage's weights, and the names and shapes of all others.

        Raises:
            ModelError: when the model is not made of layers alone, or cut into stages it finds something else.
        """
        self._stages = cut_model(module, self._count)
        for parameter, places in places_of(module.model).items():
            stages = self._stages.owners(parameter)
            kept = parameter
            if self._number not in stages:
                kept = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
                put(places, kept)
            else:
                kept.data = kept.data.to(self.world.device)
            self._owners[kept] = stages
        for part in module.modules():
            for name, buffer in part.named_buffers(recurse=False):
                part._buffers[name] = buffer.to(self.world.device)

    def wrap(self, module: LossModule, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Return the module itself: nothing is called but its parts."""
        return module

    # ---- a step ----------------------------------------------------------------------------------------------------

    def run(self, module: nn.Module, micros: Sequence[Any], scale: float, beat: Beat) -> list[float]:
        """Run forward and backward passes of a step by the schedule; returns the loss of each micro-batch."""
        assert isinstance(module, LossModule)
        moved = [batch.to(self.world.device) for batch in micros]
        beat("computing losses and gradients", waits=True)
        tokens = max(batch.input_ids.shape[1] for batch in moved)
        rows = [batch.filled(tokens + -tokens % ROW) for batch in moved]
        losses: list[torch.Tensor] = []
        schedule = self._schedule_of(module, rows)
        found = torch.zeros(len(rows), dtype=torch.float64, device=self.world.device)
        schedule.step(
            arg_mbs=[(row.input_ids,) for row in rows] if self._first else None,
            kwarg_mbs=[{"batch": row, "scale": scale} for row in rows],
            target_mbs=[row.labels for row in rows] if self._last else None,
            losses=losses if self._last else None,
            return_outputs=False,
        )
        if self._last:
            found.copy_(torch.stack([loss.detach() for loss in losses]) / scale)
        dist.broadcast(found, self._ranks[-1], group=self._group)
        self._exchange_gradients(module)
        return found.tolist()

    def _schedule_of(self, module: LossModule, rows: Sequence[Batch]) -> Any:
        shape = (len(rows), rows[0].input_ids.shape[1])
        if self._made[0] != shape:
            assert self._stages is not None
            hidden = torch.empty(1, shape[1], self._stages.width, dtype=self._stages.dtype, device="meta", requires_grad=True)
            stage = PipelineStage(
                _Part(self, module),
                self._number,
                self._count,
                self.world.device,
                input_args=torch.empty(1, shape[1], dtype=torch.long, device="meta") if self._first else hidden,
                output_args=torch.empty((), device="meta", requires_grad=True) if self._last else hidden,
                group=self._group,
            )
            # One forward, one backward keeps fewer activations, and needs a micro-batch for every stage.
            kind = Schedule1F1B if self._schedule == "1f1b" and len(rows) >= self._count else ScheduleGPipe
            self._made = shape, kind(stage, len(rows), loss_fn=lambda output, _: output, scale_grads=False)
        return self._made[1]

    def forward(self, module: LossModule, received: torch.Tensor | None, batch: Batch) -> torch.Tensor:
        """Return the hidden states that go to the next stage, or the summed loss where there is none."""
        assert self._stages is not None
        with self._stages.only(self._number, received):
            if self._last:
                return module(batch)
            with module.activations(), packed(batch.layout, batch.labels):
                return self._stages.hidden(batch)

    def _exchange_gradients(self, module: nn.Module) -> None:
        for parameter, stages in self._own(module):
            if parameter.requires_grad and len(stages) > 1:
                self._sum_of_two(parameter, stages)
            if self.world.data_size > 1 and parameter.grad is not None:
                dist.all_reduce(parameter.grad, group=self._copies)
                parameter.grad /= self.world.data_size

    def _sum_of_two(self, parameter: nn.Parameter, stages: tuple[int, ...]) -> None:
        # A weight that embedding and head share is in two stages: both take the sum of their gradients, and stay the same.
        other = self._ranks[stages[0] if self._number == stages[1] else stages[1]]
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        coming = torch.empty_like(gradient)
        both = [dist.P2POp(dist.isend, gradient, other, self._group), dist.P2POp(dist.irecv, coming, other, self._group)]
        for request in dist.batch_isend_irecv(both):
            request.wait()
        parameter.grad = gradient + coming

    def _own(self, module: nn.Module) -> Iterator[tuple[nn.Parameter, tuple[int, ...]]]:
        for parameter in module.parameters():
            if self._number in self._owners[parameter]:
                yield parameter, self._owners[parameter]

    def clip(self, model: nn.Module, optimizer: torch.optim.Optimizer, limit: float) -> float:
        """Scale the gradients of a step down to a norm and return the norm they had."""
        own = [(parameter.grad, stages) for parameter, stages in self._own(model) if parameter.grad is not None]
        squares = [gradient.detach().float().square().sum() for gradient, stages in own if stages[0] == self._number]
        total = torch.stack(squares).sum() if squares else torch.zeros((), device=self.world.device)
        dist.all_reduce(total, group=self._group)
        norm = math.sqrt(float(total)) if math.isfinite(float(total)) else float(total)
        if limit and norm > limit and math.isfinite(norm):
            for gradient, _ in own:
                gradient.mul_(limit / (norm + 1e-6))
        return norm

    def measure(self, module: nn.Module, batch: Any) -> Any:
        """Return what the task's metrics need, on all stages."""
        assert isinstance(module, LossModule) and self._stages is not None
        found: list[Any] = [None]
        with torch.no_grad():
            received = None
            if not self._first:
                received = torch.empty(*batch.input_ids.shape, self._stages.width, dtype=self._stages.dtype, device=self.world.device)
                dist.recv(received, self._ranks[self._number - 1], group=self._group)
            if self._last:
                with self._stages.only(self._number, received):
                    found[0] = module.measure(batch)
            else:
                dist.send(self.forward(module, received, batch).contiguous(), self._ranks[self._number + 1], group=self._group)
        dist.broadcast_object_list(found, self._ranks[-1], group=self._group, device=self.world.device)
        return found[0]

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Return a context without effect: gradients are exchanged once, after the last micro-batch."""
        return contextlib.nullcontext()

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def saving(self, model: nn.Module) -> Iterator[None]:
        """Hold whole weights on rank 0 inside the block: all of them, or those of the adapters."""
        adapters = hasattr(model, "peft_config")
        away: list[tuple[list[Place], nn.Parameter]] = []
        for parameter, places in places_of(model).items():
            owner = self._owners[parameter][0]
            if owner == 0 or self.world.data_rank or (adapters and not parameter.requires_grad):
                continue
            if self._number == owner:
                dist.send(parameter.detach().contiguous(), self._ranks[0], group=self._group)
            elif self._first:
                whole = torch.empty_like(parameter, device=self.world.device)
                dist.recv(whole, self._ranks[owner], group=self._group)
                away.append((places, parameter))
                put(places, nn.Parameter(whole.cpu(), requires_grad=parameter.requires_grad))
        try:
            yield
        finally:
            for places, parameter in away:
                put(places, parameter)

    @contextlib.contextmanager
    def restoring(self, model: nn.Module) -> Iterator[None]:
        """Hold places for whole weights on all ranks inside the block; each keeps what has come to its own."""
        away = [(places, parameter) for parameter, places in places_of(model).items() if parameter.is_meta]
        for places, parameter in away:
            put(places, nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=parameter.requires_grad))
        try:
            yield
        finally:
            for places, parameter in away:
                put(places, parameter)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the optimizer's state with that of all stages on their first rank."""
        state = optimizer.state_dict()
        on_cpu = {number: {name: _cpu(value) for name, value in values.items()} for number, values in state["state"].items()}
        parts: list[Any] | None = [None] * self._count if self._first else None
        dist.gather_object(on_cpu, parts, self._ranks[0], group=self._group)
        together = {number: values for part in reversed(parts or []) for number, values in part.items()}
        return {"state": dict(sorted(together.items())), "param_groups": state["param_groups"]}

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Keep the state of this stage's weights."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        own = {number: values for number, values in state["state"].items() if number >= len(parameters) or not parameters[number].is_meta}
        optimizer.load_state_dict({"state": own, "param_groups": state["param_groups"]})


class _Part(nn.Module):
    """What the schedule calls for each micro-batch."""

    def __init__(self, engine: PipelineParallel, module: LossModule) -> None:
        super().__init__()
        self._engine = engine
        self.module = module

    def forward(self, received: torch.Tensor, *, batch: Batch, scale: float) -> torch.Tensor:
        found = self._engine.forward(self.module, received if received.is_floating_point() else None, batch)
        return found * scale if not found.ndim else found


def _cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value
