"""What of a model each process holds, by the way a run is spread over processes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from swift_core.config.parallel import DEEPSPEED_PRESETS, deepspeed_stage, mode_of
from swift_core.config.training import TrainingConfig

# DeepSpeed's own defaults, in numbers: a bucket of gradients, and weights that stay gathered.
_BUCKET, _GATHERED = 500_000_000, 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a whole model.

    Attributes:
        weights: all parameters.
        trained: the trained ones, as they are stored.
        numbers: how many numbers are trained.
        largest: the largest trained parameter.
        layer: the largest layer, or the largest parameter outside of layers.
        state: numbers of optimizer state for each trained number.
    """

    weights: int
    trained: int
    numbers: int
    largest: int
    layer: int
    state: float


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes that one process holds.

    Attributes:
        weights: all the time.
        gathered: weights of the others, while layers run.
        optimizer: state, and float32 copies of weights where the run keeps them.
        step: what the optimizer needs in its step on top.
        gradients: kept from the start of a pass; None: those that the pass makes.
        received: gradients that stay once the processes have exchanged them; None: all of them.
        buffer: for exchanging gradients, all the time.
    """

    weights: int
    gathered: int = 0
    optimizer: int = 0
    step: int = 0
    gradients: int | None = None
    received: int | None = None
    buffer: int = 0


def processes(config: TrainingConfig, size: int) -> int:
    """Return among how many processes weights, gradients or state are dealt."""
    mode = mode_of(config)
    if mode == "tensor":
        return config.parallel.tensor_parallel_size
    return config.parallel.pipeline_parallel_size if mode == "pipeline" else size


def share(config: TrainingConfig, sizes: Sizes, *, size: int, device: str) -> Share:
    """Return what one of `size` processes holds."""
    mode, among = mode_of(config), processes(config, size)
    state = int(sizes.trained * sizes.state)
    # PyTorch's optimizers go through the weights one by one on a CPU, and through all of them together elsewhere.
    working = 2 * sizes.largest if device == "cpu" else sizes.trained
    if mode == "deepspeed":
        return _zero(config, sizes, among, device)
    if mode == "fsdp":
        whole = "shard_grad_op" in config.parallel.fsdp
        part = Share(
            ceil(sizes.weights / among),
            gathered=sizes.weights - ceil(sizes.weights / among) if whole else 3 * sizes.layer,
            optimizer=ceil(state / among),
            step=ceil(working / among),
            received=ceil(sizes.trained / among),
        )
        return part
    if mode in ("tensor", "pipeline"):
        return Share(ceil(sizes.weights / among), optimizer=ceil(state / among), step=ceil(working / among))
    # DDP keeps gradients in buckets from the start.
    buckets = sizes.trained if size > 1 else None
    return Share(sizes.weights, optimizer=state, step=working, gradients=buckets)


def _zero(config: TrainingConfig, sizes: Sizes, among: int, device: str) -> Share:
    stage = deepspeed_stage(config.parallel)
    zero = DEEPSPEED_PRESETS.get(config.parallel.deepspeed or "", {})
    masters, states = 4 * sizes.numbers, int(4 * sizes.numbers * sizes.state)
    optimizer = ceil((masters + states) / among)
    # The optimizer sees one flat weight, and gradients are copied to float32 for it.
    step = ceil(3 * masters / among)
    if "offload_optimizer" in zero:
        optimizer, step = 0, 0
    element = sizes.trained // max(sizes.numbers, 1)
    received = ceil(sizes.trained / among)
    if stage < 3:
        # A bucket is there as a whole on a GPU; main memory is taken as far as gradients have been written to it.
        bucket = 0 if device == "cpu" else max(0, _BUCKET - sizes.numbers) * element
        return Share(sizes.weights, optimizer=optimizer, step=step, received=received, buffer=bucket)
    # Stage 3 keeps its bucket and its share of the gradients all the time, and gradients go there at once.
    bucket = (min(_BUCKET, sizes.numbers) if device == "cpu" else _BUCKET) * element
    part = ceil(sizes.weights / among)
    gathered = min(sizes.weights - part, _GATHERED * element)
    own = 0 if "offload_param" in zero else part
    return Share(own, gathered=gathered, optimizer=optimizer, step=step, gradients=0, received=0, buffer=bucket + received)
