"""From settings to the engine that spreads the model."""

from __future__ import annotations

from swift_core.config.parallel import mode_of
from swift_core.config.training import TrainingConfig
from swift_core.train.parallel import World
from swift_core.train.sharding.engine import Engine


def make_engine(args: TrainingConfig, world: World) -> Engine:
    """Return the engine that the settings name.

    Raises:
        ConfigError: when the number of processes does not fit it.
        MissingDependencyError: when its library is not installed.
    """
    mode = mode_of(args)
    if mode == "fsdp":
        from swift_core.train.sharding.fsdp import FullySharded

        return FullySharded(world, args.parallel, bf16=bool(args.training.bf16))
    if mode == "deepspeed":
        from swift_core.train.sharding.zero import ZeroEngine

        return ZeroEngine(world)
    if mode == "tensor":
        from swift_core.train.sharding.tensor import TensorParallel

        return TensorParallel(world, args.parallel)
    return Engine(world)
