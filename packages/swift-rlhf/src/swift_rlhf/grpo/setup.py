"""The parts of a GRPO run, made from its settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from swift_core.config.sections import TemplateSection
from swift_core.data.formats import to_sample
from swift_core.errors import ConfigError, DataError, Problem
from swift_core.models.processing import tokenizer_of
from swift_core.protocols import EncodedSample, Sample
from swift_core.templates.chat import ChatTemplate, build_template
from swift_core.train.dealing import CPU_TOKENS
from swift_core.train.parallel import World
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from swift_rlhf.config.grpo import answers_of_sample, round_size
from swift_rlhf.config.service import rounds_ahead
from swift_rlhf.grpo.experts import Experts
from swift_rlhf.grpo.following import FollowingReference
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.prompts import question
from swift_rlhf.grpo.reference import LogpsPass
from swift_rlhf.grpo.rollouts import Rollouts
from swift_rlhf.grpo.stream import Round
from swift_rlhf.grpo.task import GrpoTask, Objective
from swift_rlhf.rewards.pool import RewardPool
from swift_rlhf.rollout.asked import limits_of, sampling_of
from swift_rlhf.rollout.continuation import TemplatePrompter
from swift_rlhf.rollout.engine import RolloutEngine
from swift_rlhf.rollout.schedulers import Scheduler

KL_IN_REWARD = ("rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline")


@dataclass(frozen=True, slots=True)
class Prompts:
    """What became of the prompts.

    Attributes:
        samples: those that are used.
        dropped: how many are longer than `--max_length`.
        longest: tokens of the longest one that is used.
    """

    samples: list[Sample]
    dropped: int
    longest: int


def as_samples(rows: Iterable[Any] | None, name: str = "train_dataset") -> list[Sample]:
    """Return prompts as samples.

    Args:
        rows: samples, or rows in any format of `--dataset`.
        name: said in error messages.

    Raises:
        DataError: when a row is bad.
    """
    return [
        row if isinstance(row, Sample) else to_sample(_row(row), f"{name}[{place}]", need_answer=False)
        for place, row in enumerate(rows or [])
    ]


def _row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    # TRL's rows have the conversation in `prompt`.
    prompt = row.get("prompt")
    return {**{key: value for key, value in row.items() if key != "prompt"}, "messages": prompt} if isinstance(prompt, list) else row


def usable(samples: Sequence[Sample], template: ChatTemplate, max_length: int | None) -> Prompts:
    """Return the prompts that are not too long.

    Raises:
        DataError: when none is left.
    """
    kept: list[Sample] = []
    longest = 0
    for sample in samples:
        messages, _ = question(sample)
        length = len(template.encode_prompt(messages, sample.tools))
        if max_length is None or length <= max_length:
            kept.append(sample)
            longest = max(longest, length)
    if samples and not kept:
        raise DataError(f"all {len(samples)} prompts are longer than --max_length {max_length}", fix="raise --max_length")
    return Prompts(kept, len(samples) - len(kept), longest)


def template_of(given: PreTrainedTokenizerBase | ProcessorMixin | None) -> ChatTemplate:
    """Return the tokenizer's own chat template.

    Raises:
        DataError: without a tokenizer.
    """
    if given is None:
        raise DataError("there is no tokenizer", fix="GRPOTrainer(..., processing_class=tokenizer)")
    return build_template(tokenizer_of(given), TemplateSection())


def make_rollouts(
    engine: RolloutEngine,
    pool: RewardPool,
    template: ChatTemplate,
    scheduler: Scheduler,
    settings: Any,
    world: World,
    samples: Sequence[Sample],
) -> Rollouts:
    """Return what has the prompts `samples` answered and rewarded."""
    section = settings.sampling
    return Rollouts(
        engine,
        pool,
        TemplatePrompter(template),
        scheduler,
        sampling=sampling_of(section),
        limits=limits_of(settings),
        world=world,
        decode=cast(Any, template.tokenizer).decode,
        num_generations=settings.grpo.num_generations,
        seed=settings.training.seed,
        history=settings.turns.history,
        rows=section.rollout_batch_size,
        columns=dict.fromkeys(name for sample in samples for name in question(sample)[1]),
    )


def make_passes(model: nn.Module, ref_model: nn.Module | None, settings: Any, world: World, temperature: float, pad: Any) -> LogpsPass:
    """Return what runs policy and reference over answers before the update."""
    if ref_model is not None:
        ref_model.requires_grad_(False).eval().to(world.device)
    return LogpsPass(
        model,
        ref_model,
        world,
        temperature=temperature,
        tokens=settings.training.per_device_token_budget or 4 * CPU_TOKENS,
        shared=settings.training.padding_free is not False,
        pad_token_id=pad if isinstance(pad, int) else 0,
    )


def _prices_in_reward(settings: Any) -> bool:
    grpo = settings.grpo
    return grpo.kl_in_reward if grpo.kl_in_reward is not None else grpo.advantage_estimator in KL_IN_REWARD


def make_objective(settings: Any) -> Objective:
    """Return what is optimised.

    Raises:
        ConfigError: for a distance in the reward where rewards are compared one by one.
    """
    grpo = settings.grpo
    beta = float(settings.task.beta or 0.0)
    in_reward = _prices_in_reward(settings)
    loss_type = settings.task.loss_type[0]
    if grpo.scale_rewards == "gdpo" and in_reward and beta:
        raise ConfigError([Problem("--kl_in_reward", "gdpo compares each reward by itself", "--kl_in_reward false")])
    return Objective(grpo, loss_type, 0.0 if in_reward else beta, settings.sampling.temperature, settings.sampling.max_completion_length)


def make_task(objective: Objective, meter: Meter, ref_model: nn.Module | None, settings: Any) -> GrpoTask:
    """Return the task of a run.

    Raises:
        ConfigError: when a reference is to follow and there is none of its own.
    """
    section, phi = settings.reference, settings.chord.chord_enable_phi_function
    if section.sync_ref_model and ref_model is None:
        raise ConfigError([Problem("sync_ref_model", "there is no second model that could follow", "GRPOTrainer(..., ref_model=model)")])
    following = FollowingReference(ref_model, section) if section.sync_ref_model and ref_model is not None else None
    shared = settings.training.padding_free is not False
    return GrpoTask(objective, meter, answers=answers_of_sample(settings), shared=shared, phi=phi, following=following)


def make_round(settings: Any, world: World, weights: torch.Tensor, part: int) -> Round:
    """Return the numbers of a round.

    Args:
        settings: of the run.
        world: its processes.
        weights: of the reward functions.
        part: answers of a sample.
    """
    training, grpo = settings.training, settings.grpo
    beta = float(settings.task.beta or 0.0)
    per_step = training.per_device_train_batch_size * (training.gradient_accumulation_steps or 1) * world.size
    total = round_size(settings)
    updates = total // per_step * grpo.num_iterations
    return Round(
        prompts=total // grpo.num_generations,
        part=part,
        updates=updates,
        samples_per_step=per_step // part,
        beta=beta,
        kl_in_reward=bool(beta) and _prices_in_reward(settings),
        weights=weights,
        max_completion_length=settings.sampling.max_completion_length,
        ahead=rounds_ahead(settings, updates),
    )


def make_experts(samples: Sequence[EncodedSample], settings: Any, task: GrpoTask, world: World) -> Experts | None:
    """Return what deals answers of experts, or None without any.

    Raises:
        DataError: when experts are asked for and there are none.
    """
    chord, training = settings.chord, settings.training
    if not samples and not chord.chord_sft_dataset:
        return None
    of_pass = chord.chord_sft_per_device_train_batch_size
    if of_pass is None:
        of_pass = max(1, training.per_device_train_batch_size // settings.grpo.num_generations)
    per_step = of_pass * (training.gradient_accumulation_steps or 1) * world.size
    return Experts(samples, chord, per_step=per_step, weigh=task.weight, seed=training.seed)
