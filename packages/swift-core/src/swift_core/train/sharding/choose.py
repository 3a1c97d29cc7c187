"""From settings to the engine that spreads the model."""

from __future__ import annotations

from swift_core.config.parallel import mode_of
from swift_core.config.training import TrainingConfig
from swift_core.train.module import LossModule
from swift_core.train.parallel import World
from swift_core.train.sharding.engine import Engine


def make_engine(args: TrainingConfig, world: World) -> Engine:
    """Return the engine that the settings name.

    Raises:
        ConfigError: when the number of processes does not fit it.
        MissingDependencyError: when its library is not installed.
    """
    engine = _engine(args, world)
    # Ranks that share rows meet in every forward pass.
    engine.in_step = engine.in_step or args.parallel.sequence_parallel_size > 1
    return engine


def spread(engine: Engine, module: LossModule, args: TrainingConfig) -> None:
    """Spread samples and weights over processes as the settings say, in place, before the optimizer is made.

    Raises:
        ModelError: when the model cannot be spread that way.
    """
    if args.parallel.sequence_parallel_size > 1:
        from swift_core.train.sharding.sequence import share_sequences

        share_sequences(module, engine.world, args.parallel)
    engine.shard(module)


def _engine(args: TrainingConfig, world: World) -> Engine:
    mode = mode_of(args)
    if mode == "fsdp":
        from swift_core.train.sharding.fsdp import FullySharded

        return FullySharded(world, args.parallel, bf16=bool(args.training.bf16))
    if mode == "deepspeed":
        from swift_core.train.sharding.zero import ZeroEngine

        return ZeroEngine(world)
    if mode == "pipeline":
        from swift_core.train.sharding.pipeline import PipelineParallel

        return PipelineParallel(world, args.parallel)
    if mode == "tensor":
        from swift_core.train.sharding.tensor import TensorParallel

        return TensorParallel(world, args.parallel)
    return Engine(world)
