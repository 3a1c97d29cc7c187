"""The memory of a run on one of its devices, from settings and config.json: no weights are loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from swift_core.batching.packing import best_fit
from swift_core.config.memory import processes_asked
from swift_core.config.parallel import deepspeed_stage, mode_of
from swift_core.config.training import SftConfig
from swift_core.planner.batches import Fullest, fullest
from swift_core.planner.capacity import capacity_of
from swift_core.planner.formula import by_formula
from swift_core.planner.packing import packed_bytes
from swift_core.planner.record import Extra, MemoryEstimate, PlansExtra, RunEstimate
from swift_core.planner.simulate import FORWARD, Pass, Traced, trace
from swift_core.planner.sizes import sizes_of
from swift_core.planner.spread import Share, Sizes, share
from swift_core.planner.stand_in import Stack, build, find_stack, text_config
from swift_core.planner.tracing import GRADIENT, HEAD, OTHER, Moment
from swift_core.train.dealing import plan_shape, require_pack_length
from swift_core.train.parallel import training_device
from swift_core.train.tuning import weights_dtype

logger = logging.getLogger(__name__)

STEP = "optimizer's step"
# What PyTorch, its thread pools and the kernels' buffers take: seen on CPUs, and as CUDA's context on GPUs.
_RUNTIME = {"cpu": 40 * 2**20, "cuda": 600 * 2**20}
# Tokens of a sample where neither data nor --max_length say it.
_USUAL_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a run before it is traced.

    Attributes:
        config: its settings.
        folder: of the base model.
        lengths: tokens of every sample.
        device: kind of device.
        size: processes.
        fullest: the fullest micro-batch.
        steps_per_epoch: optimizer steps of an epoch.
    """

    config: SftConfig
    folder: Path
    lengths: Sequence[int]
    device: str
    size: int
    fullest: Fullest
    steps_per_epoch: int

    @property
    def extra(self) -> Extra:
        """Return what the algorithm needs besides training."""
        return self.config.planned_extra() if isinstance(self.config, PlansExtra) else Extra()


def plan_run(config: SftConfig, folder: Path, lengths: Sequence[int] | None = None) -> Plan:
    """Return what the settings say of a run.

    Args:
        config: its settings.
        folder: of the base model.
        lengths: tokens of every sample; default: a step of samples as long as `--max_length` allows.
    """
    training, device = config.training, training_device(use_cpu=config.launch.use_cpu)
    size = processes_asked()
    packed = training.padding_free is not False
    parallel = config.parallel
    sharing = parallel.tensor_parallel_size * parallel.pipeline_parallel_size * parallel.sequence_parallel_size
    dealt_to = max(1, size // sharing)
    if lengths is None:
        count = training.per_device_train_batch_size * (training.gradient_accumulation_steps or 1) * dealt_to
        lengths = [config.chat.max_length or _USUAL_LENGTH] * count
    packs = best_fit(lengths, require_pack_length(config)) if training.packing else None
    shape = plan_shape(config, len(lengths if packs is None else packs), packs=packed, device=device, data_size=dealt_to)
    return Plan(config, folder, lengths, device, size, fullest(shape, lengths, packed=packed, packs=packs), shape.steps_per_epoch)


def estimate_run(config: SftConfig, folder: Path, lengths: Sequence[int] | None = None) -> RunEstimate:
    """Return what a run takes on each of its devices.

    Args:
        config: its settings.
        folder: of the base model; `config.json` is all that is read.
        lengths: tokens of every sample; default: all as long as `--max_length` allows.

    Raises:
        ModelError: when the tuner does not fit the model, or transformers has no such architecture.
        ConfigError: when the settings of the batches contradict one another.
    """
    return examine(plan_run(config, folder, lengths))[0]


def examine(plan: Plan) -> tuple[RunEstimate, Traced]:
    """Return what a planned run takes on each of its devices, and what its fullest micro-batch was found to do.

    Raises:
        ModelError: as `estimate_run`.
    """
    config, device = plan.config, plan.device
    model = build(config, plan.folder, weights_dtype(config, plan.folder, device=device))
    sizes = sizes_of(model, config)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    held = share(config, sizes, size=plan.size, device=device)
    traced, exact = traced_run(plan, model)
    memory = fullest_moment(traced, held, sizes, runtime=_RUNTIME.get(device, 0))
    memory = with_extra(memory, plan, model, sizes)
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("NPROC_PER_NODE") or 1)
    found = RunEstimate(
        memory=memory,
        capacity=capacity_of(device, processes_here=here),
        processes=plan.size,
        parameters=numbers,
        trained=sizes.numbers,
        tokens=sum(plan.fullest.lengths),
        longest=max(plan.fullest.lengths),
        traced=exact,
    )
    return found, traced


def pass_of(plan: Plan) -> Pass:
    """Return how the fullest micro-batch runs."""
    config, training = plan.config, plan.config.training
    spread = mode_of(config) != "ddp"
    wanted = training.gradient_checkpointing
    # Processes that share the tokens of a sample hold an equal part each.
    part = config.parallel.sequence_parallel_size
    lengths = tuple(-(-length // part) for length in plan.fullest.lengths * plan.extra.samples)
    return Pass(
        lengths=lengths,
        trained=max(1, sum(lengths) - len(lengths)),
        device=plan.device,
        fused=(plan.device == "cpu" if training.fuse_layers is None else training.fuse_layers) and not spread,
        split=deepspeed_stage(config.parallel) < 3,
        checkpointing=training.gradient_checkpointing_policy if (plan.device != "cpu" if wanted is None else wanted) else None,
        autocast=bool(training.bf16),
        micros=plan.fullest.micros,
    )


def traced_run(plan: Plan, model: nn.Module) -> tuple[Traced, bool]:
    """Return what the fullest micro-batch holds and costs, and whether the model's code said so."""
    run = pass_of(plan)
    extra = packed_bytes(model, plan.config).unpacked
    try:
        found = _traced(plan, model, run)
    except Exception as error:  # noqa: BLE001  the code of any architecture runs here, and may ask for numbers in any way
        logger.warning("this model's code cannot be followed without its weights, so a formula is used: %s", _short(error))
        trained, element = sizes_of(model, plan.config).trained, next(model.parameters()).element_size()
        return by_formula(text_config(model), run, trained=trained, element=element), False
    for name, moment in found.moments.items():
        if name != HEAD:
            moment.kinds[OTHER] += extra
    return found, True


def _traced(plan: Plan, model: nn.Module, run: Pass) -> Traced:
    stack = find_stack(model)
    depths = stack.depths() if stack is not None else None
    if stack is None or depths is None:
        return trace(model, run)
    small, large = (_cut(plan, stack, depth, run) for depth in depths)
    return _line(small, large, (len(stack.layers) - depths[0]) / (depths[1] - depths[0]))


def _cut(plan: Plan, stack: Stack, depth: int, run: Pass) -> Traced:
    model = build(plan.config, plan.folder, weights_dtype(plan.config, plan.folder, device=plan.device))
    own = find_stack(model)
    assert own is not None
    own.cut(depth)
    return trace(model, run)


def _line(small: Traced, large: Traced, share_of: float) -> Traced:
    """Continue the line through two depths of a model to its whole depth."""

    def along(one: float, other: float) -> int:
        return int(one + (other - one) * share_of)

    moments: dict[str, Moment] = {}
    for name, moment in small.moments.items():
        other = large.moments[name]
        kinds = {kind: along(moment.kinds[kind], other.kinds[kind]) for kind in moment.kinds}
        moments[name] = Moment(sum(kinds.values()), kinds)
    seconds = {key: (1 - share_of) * count for key, count in small.costs.items()}
    for key, count in large.costs.items():
        seconds[key] = seconds.get(key, 0.0) + share_of * count
    return Traced(moments, along(small.gradients, large.gradients), seconds)


def fullest_moment(traced: Traced, held: Share, sizes: Sizes, *, runtime: int) -> MemoryEstimate:
    """Return what a process holds at its fullest moment: in a part of the passes, or in the optimizer's step."""
    found = [
        MemoryEstimate(
            weights=held.weights + held.gathered,
            gradients=_gradients_at(part, moment.kinds[GRADIENT], traced, held) + held.buffer,
            optimizer=held.optimizer,
            activations=moment.kinds[OTHER],
            head=moment.kinds[HEAD],
            runtime=runtime,
            moment="output layer" if part == HEAD else part,
        )
        for part, moment in traced.moments.items()
    ]
    received = sizes.trained if held.received is None else held.received
    step = MemoryEstimate(held.weights, received + held.buffer, held.optimizer + held.step, runtime=runtime, moment=STEP)
    return max([*found, step], key=lambda estimate: estimate.total)


def _gradients_at(part: str, traced_there: int, traced: Traced, held: Share) -> int:
    """Return the gradients that a process holds in a part of its passes."""
    if held.gradients is not None:
        return held.gradients
    if held.received is None:
        return traced_there
    # Each process keeps its share; the gradients of a pass are there as a whole until they have been exchanged at its end.
    several = traced.moments[FORWARD].kinds[GRADIENT] > 0
    before = held.received if several else 0
    if part.startswith("end"):
        return traced.gradients + held.received
    return before + (0 if several else traced_there)


def with_extra(memory: MemoryEstimate, plan: Plan, model: nn.Module, sizes: Sizes) -> MemoryEstimate:
    """Return the estimate with what the algorithm needs besides training: other models, and keys and values of sampled answers."""
    extra = plan.extra
    text = text_config(model)
    heads = int(getattr(text, "num_attention_heads", 1))
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    pairs = int(getattr(text, "num_key_value_heads", None) or heads)
    element = next(model.parameters()).element_size()
    token = 2 * int(text.num_hidden_layers) * pairs * width * element
    longest = max(plan.fullest.lengths) + extra.answer_tokens
    cache = token * extra.answers * longest
    # Answers are sampled while there are neither activations nor gradients: the fuller of the two moments counts.
    sampling = MemoryEstimate(memory.weights, 0, memory.optimizer, cache=cache, runtime=memory.runtime, moment="sampling of answers")
    found = max(memory, sampling, key=lambda estimate: estimate.total)
    return replace(found, weights=found.weights + extra.copies * sizes.weights)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
