"""DeepSpeed ZeRO 1 to 3, through Accelerate's plugin. The only file that knows DeepSpeed."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import KwargsHandler
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from swift_core.config.parallel import deepspeed_settings
from swift_core.config.training import TrainingConfig
from swift_core.errors import ConfigError, LaunchError, MissingDependencyError, Problem
from swift_core.train.module import LossModule
from swift_core.train.parallel import World
from swift_core.train.sharding.engine import Engine

logger = logging.getLogger(__name__)

_MASTER = "master_weight"


def deepspeed_accelerator(args: TrainingConfig, *, device: str, handlers: Sequence[KwargsHandler]) -> Accelerator:
    """Return an Accelerator that runs DeepSpeed.

    Raises:
        ConfigError: when the settings contradict the run.
        LaunchError: when DeepSpeed would see another device.
        MissingDependencyError: when it is not installed.
    """
    if device == "cpu":
        # `Accelerator(cpu=True)` would run plain DDP in silence; DeepSpeed is told of the device by this variable instead.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError("deepspeed", needed_for="--deepspeed", install="swift-core[deepspeed]") from error
    deepspeed.logger.setLevel(logging.WARNING)
    micro, clipping = args.training.per_device_train_batch_size, args.optimization.max_grad_norm
    settings = deepspeed_settings(args.parallel, micro_batch=micro, clipping=clipping, bf16=bool(args.training.bf16))
    if device == "cpu" and any(key.startswith("offload_") for key in settings["zero_optimization"]):
        # Runs with it on a CPU were seen to drift from the losses of one process.
        why = "offload moves weights to the memory of the CPU, where this run is already"
        raise ConfigError([Problem(f"--deepspeed {args.parallel.deepspeed}", why, "--deepspeed zero2 or zero3")])
    plugin = DeepSpeedPlugin(hf_ds_config=settings, zero3_init_flag=False)
    accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=list(handlers))
    # The plugin tells transformers of ZeRO 3, which would then load parts of weights; tuners and checkpoints look at whole ones.
    unset_hf_deepspeed_config()
    if accelerator.device.type != device:
        raise LaunchError(f"DeepSpeed runs on {accelerator.device}, not on {device}", fix=f"export DS_ACCELERATOR={device}")
    return accelerator


class ZeroEngine(Engine):
    """DeepSpeed over all ranks.

    Args:
        world: the processes of the run, joined through `deepspeed_accelerator`.
    """

    in_step = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._engine: Any = None
        self._base: Any = None
        self._stage = 0
        self._parameters: list[nn.Parameter] = []
        self._shapes: list[torch.Size] = []
        self._counts: list[int] = []

    def wrap(self, module: LossModule, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Return DeepSpeed's engine.

        Raises:
            LaunchError: when something else came out, or over other processes.
        """
        import deepspeed  # pyright: ignore[reportMissingImports]

        # DeepSpeed puts flat parts into the groups, and takes the shapes away: a checkpoint counts by what there was before.
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._shapes = [parameter.shape for parameter in self._parameters]
        self._counts = [len(group["params"]) for group in optimizer.param_groups]
        halved = any(parameter.dtype == torch.bfloat16 for parameter in module.parameters())
        plugin = cast(DeepSpeedPlugin, self.world.accelerator.deepspeed_plugin)
        if halved:
            plugin.deepspeed_config["bf16"] = {"enabled": True}
        engine: Any = self.world.accelerator.prepare(module, optimizer)[0]
        unset_hf_deepspeed_config()
        found = deepspeed.comm.get_world_size()
        if not isinstance(engine, deepspeed.DeepSpeedEngine) or found != self.world.size:
            raise LaunchError(
                f"DeepSpeed was asked for, and a {type(engine).__name__} over {found} of {self.world.size} processes came out",
                fix="start with NPROC_PER_NODE=N swift ..., or use --fsdp full_shard",
            )
        self._engine = engine
        self._base, self._stage = cast(Any, engine.optimizer).optimizer, engine.zero_optimization_stage()
        logger.info("DeepSpeed ZeRO %s over %s processes", self._stage, found)
        return engine

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Tell DeepSpeed whether this micro-batch is the last of a step."""
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Compute gradients."""
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only counts the micro-batch

    def clip(self, model: nn.Module, optimizer: torch.optim.Optimizer, limit: float) -> float:
        """Take the step: DeepSpeed measures, clips and updates in one, and takes none when the norm is not finite."""
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        if getattr(self._engine.optimizer, "overflow", False):
            return math.inf
        return float(norm) if norm is not None else 0.0

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: the step is taken."""

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: DeepSpeed has done it."""

    def measure(self, module: nn.Module, batch: Any) -> Any:
        """Return what the task's metrics need, through a forward call, which puts the weights together."""
        with torch.no_grad():
            return module(batch, measure=True)

    @contextlib.contextmanager
    def saving(self, model: nn.Module) -> Iterator[None]:
        """Hold whole weights inside the block: all of them, or those of the adapters."""
        adapters = hasattr(model, "peft_config")
        with self._gathered([parameter for parameter in model.parameters() if parameter.requires_grad or not adapters]):
            yield

    @contextlib.contextmanager
    def restoring(self, model: nn.Module) -> Iterator[None]:
        """Hold whole weights inside the block, and train on with what they are at its end."""
        with self._gathered(list(model.parameters()), changed=True):
            yield
            values = [parameter.detach().float().clone() for parameter in self._parameters]
        for parameter, value in zip(self._parameters, values, strict=True):
            self._set(parameter, value)  # the optimizer updates copies in float32

    def _gathered(self, parameters: list[nn.Parameter], *, changed: bool = False) -> AbstractContextManager[Any]:
        if self._stage < 3:
            return contextlib.nullcontext()
        import deepspeed  # pyright: ignore[reportMissingImports]

        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if changed else None)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the optimizer's state as one process would have it: whole tensors, by the parameters' own order."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state  # pyright: ignore[reportMissingImports]

        self._link()
        names, numbers = self._kept()
        state: dict[int, dict[str, Any]] = {}
        for number, parameter in enumerate(self._parameters):
            found = {name: safe_get_full_optimizer_state(parameter, name) for name in names}
            if parameter.dtype != torch.float32:
                found[_MASTER] = safe_get_full_fp32_param(parameter)  # the weights of the checkpoint are rounded
            # Each weight has a count of its own: one that all shared would go up once for each of them.
            own = {name: _copy(value) for name, value in numbers.items()}
            state[number] = {**own, **{name: value.detach().cpu().clone() for name, value in found.items() if value is not None}}
        groups, at = list[dict[str, Any]](), 0
        for group, count in zip(self._base.param_groups, self._counts, strict=True):
            kept = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            groups.append({**kept, "params": list(range(at, at + count))})
            at += count
        return {"state": state, "param_groups": groups}

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Take the state that one process would have.

        Raises:
            ValueError: when it is that of other parameters.
        """
        sizes = [len(group["params"]) for group in state["param_groups"]]
        if sizes != self._counts:
            raise ValueError(f"it has groups of {sizes} parameters, and the run has groups of {self._counts}")
        for group, saved in zip(self._base.param_groups, state["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
        first = next(iter(state["state"].values()), None)
        if first is None:
            return
        self._make_state(first)
        for number, values in state["state"].items():
            parameter = self._parameters[number]
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.shape == self._shapes[number] and value.ndim > 0:
                    self._set(parameter, value.float(), None if name == _MASTER else name)

    def _make_state(self, like: dict[str, Any]) -> None:
        """Give the optimizer the empty state that it would make in its first step."""
        zero = self._engine.optimizer
        flat = zero.single_partition_of_fp32_groups if self._stage < 3 else zero.fp32_partitioned_groups_flat
        for part in flat:
            self._base.state[part] = {
                name: torch.zeros_like(part) if isinstance(value, torch.Tensor) and value.ndim > 0 else _copy(value)
                for name, value in like.items()
                if name != _MASTER
            }
        self._link()

    def _link(self) -> None:
        """Let each weight find its part of the state: DeepSpeed's stages 1 and 2 do it for the first group only."""
        if self._stage == 3:
            return
        from deepspeed.utils import lazy_init_hp_params_optimizer_state  # pyright: ignore[reportMissingImports]

        zero = self._engine.optimizer
        for weights, part in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            if part in self._base.state:
                lazy_init_hp_params_optimizer_state(weights, part, self._base.state)

    def _set(self, parameter: nn.Parameter, value: torch.Tensor, name: str | None = None) -> None:
        """Set the float32 copy of a weight, or its state of a name, from the whole value."""
        from deepspeed import utils  # pyright: ignore[reportMissingImports]

        value = value.to(self.world.device)
        if self._stage < 3:
            if name is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, name)
            return
        # The last part of a weight may be longer than what is left of it.
        part = cast(Any, parameter).ds_tensor.numel()
        flat = torch.nn.functional.pad(value.flatten(), (0, part * self.world.size - value.numel()))
        mine = flat.narrow(0, part * self.world.rank, part)
        if name is None:
            utils.safe_set_local_fp32_param(parameter, mine)
        else:
            utils.safe_set_local_optimizer_state(parameter, mine, name)

    def _kept(self) -> tuple[list[str], dict[str, Any]]:
        """Return the names of the state's tensors, and what else it holds, such as the number of steps."""
        values = next(iter(self._base.state.values()), {})
        names = [name for name, value in values.items() if isinstance(value, torch.Tensor) and value.ndim > 0]
        return names, {name: value for name, value in values.items() if name not in names}


def _copy(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
