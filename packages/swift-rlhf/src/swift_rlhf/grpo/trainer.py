"""The trainer of GRPO: model, rewards and prompts put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from swift_core.config.sections import TemplateSection
from swift_core.config.training import TrainingConfig
from swift_core.data.formats import to_sample
from swift_core.errors import ConfigError, DataError, Problem
from swift_core.models.processing import tokenizer_of
from swift_core.protocols import Sample, Tuner
from swift_core.templates.chat import ChatTemplate, build_template
from swift_core.train.dealing import CPU_TOKENS
from swift_core.train.parallel import World, make_world
from swift_core.train.trainer import Trainer
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback

from swift_rlhf.config.grpo import answers_of_sample, round_size
from swift_rlhf.config.python import GRPOConfig
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.prompts import PromptCursor, question
from swift_rlhf.grpo.record import Completions
from swift_rlhf.grpo.reference import LogpsPass
from swift_rlhf.grpo.rollouts import Rollouts
from swift_rlhf.grpo.stream import RolloutStream, Round
from swift_rlhf.grpo.task import GrpoTask, Objective
from swift_rlhf.rewards.asked import reward_pool
from swift_rlhf.rewards.pool import RewardPool
from swift_rlhf.rollout.asked import sampling_of, stop_tokens
from swift_rlhf.rollout.continuation import TemplatePrompter
from swift_rlhf.rollout.engine import RolloutEngine
from swift_rlhf.rollout.play import Limits
from swift_rlhf.rollout.schedulers import Scheduler, SingleTurn
from swift_rlhf.rollout.transformers_sampler import TransformersSampler

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


class GRPOTrainer(Trainer):
    """Trains a model on answers of its own.

    Args:
        model: from `get_model_tokenizer`, or prepared by `Swift.prepare_model`.
        reward_funcs: functions `reward(completions, **columns)`, sync or async, or what `--reward_funcs` takes; added to those of `args`.
        args: `GRPOConfig(...)`, or the config of `swift rlhf`.
        train_dataset: prompts, in any format of `--dataset`; further columns go to the rewards.
        processing_class: the tokenizer. `tokenizer` is the same thing.
        template: renders prompts; default: the tokenizer's own chat template.
        ref_model: model to stay close to; default: the model without its adapters.
        scheduler: plays the other side of conversations of several turns.
        engine: writes the answers; default: the model itself, in this process.
        tuner: knows how to save and restore the trained part; found from the model when not given.
        callbacks: `transformers.TrainerCallback` objects.
        world: the processes of the run, when they have been joined already.

    Raises:
        DataError: when a row is bad or no prompt is left.
        ConfigError: for settings that cannot work.
    """

    def __init__(
        self,
        model: nn.Module,
        reward_funcs: Sequence[Callable[..., Any] | str] | Callable[..., Any] = (),
        args: TrainingConfig | None = None,
        train_dataset: Iterable[Any] | None = None,
        *,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        tokenizer: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        template: ChatTemplate | None = None,
        ref_model: nn.Module | None = None,
        scheduler: Scheduler | None = None,
        engine: RolloutEngine | None = None,
        tuner: Tuner | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        world: World | None = None,
    ) -> None:
        settings: Any = args or GRPOConfig()
        given = processing_class or tokenizer
        template = template or _template_of(given)
        words = template.tokenizer
        world = world or make_world(settings)
        self.pool = reward_pool(reward_funcs, settings)
        limit = settings.chat.max_length if "chat" in type(settings).model_fields else None
        self.prompts = usable(as_samples(train_dataset), template, limit)
        objective, meter = _objective(settings), Meter(world)
        task = GrpoTask(objective, meter, answers=answers_of_sample(settings), shared=settings.training.padding_free is not False)
        self.rollout_engine: RolloutEngine = engine or TransformersSampler(
            model, words, stop_tokens(template), max_rows=settings.sampling.rollout_batch_size
        )
        rollouts = _rollouts(self.rollout_engine, self.pool, template, scheduler or SingleTurn(), settings, world)
        passes = _passes(model, ref_model, settings, world, objective.temperature, words.pad_token_id)
        plan = _round(settings, world, self.pool.weights, task.answers)
        folder = (lambda: self.locate()) if settings.sampling.log_completions and world.is_main else None
        cursor = PromptCursor(self.prompts.samples, seed=settings.training.seed, shuffle=settings.training.train_dataloader_shuffle)
        self._record = Completions(folder)
        stream = RolloutStream(rollouts, cursor, passes, settings.grpo, plan, meter, self._record)
        super().__init__(
            model,
            settings,
            stream,
            tokenizer=words,
            processor=given if given is not words else None,
            tuner=tuner,
            callbacks=callbacks,
            world=world,
            task=task,
        )

    def close(self) -> None:
        """End the processes of rewards, free the engine and close files."""
        self._record.close()
        self.pool.close()
        self.rollout_engine.close()


def as_samples(rows: Iterable[Any] | None) -> list[Sample]:
    """Return prompts as samples.

    Raises:
        DataError: when a row is bad.
    """
    return [
        row if isinstance(row, Sample) else to_sample(_row(row), f"train_dataset[{place}]", need_answer=False)
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


def _template_of(given: PreTrainedTokenizerBase | ProcessorMixin | None) -> ChatTemplate:
    if given is None:
        raise DataError("there is no tokenizer", fix="GRPOTrainer(..., processing_class=tokenizer)")
    return build_template(tokenizer_of(given), TemplateSection())


def _rollouts(
    engine: RolloutEngine, pool: RewardPool, template: ChatTemplate, scheduler: Scheduler, settings: Any, world: World
) -> Rollouts:
    section = settings.sampling
    return Rollouts(
        engine,
        pool,
        TemplatePrompter(template),
        scheduler,
        sampling=sampling_of(section),
        limits=Limits(max_turns=section.max_turns, max_completion_length=section.max_completion_length),
        world=world,
        decode=cast(Any, template.tokenizer).decode,
        num_generations=settings.grpo.num_generations,
        seed=settings.training.seed,
    )


def _passes(model: nn.Module, ref_model: nn.Module | None, settings: Any, world: World, temperature: float, pad: Any) -> LogpsPass:
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


def _objective(settings: Any) -> Objective:
    grpo = settings.grpo
    beta = float(settings.task.beta or 0.0)
    in_reward = _prices_in_reward(settings)
    loss_type = settings.task.loss_type[0]
    if grpo.scale_rewards == "gdpo" and in_reward and beta:
        raise ConfigError([Problem("--kl_in_reward", "gdpo compares each reward by itself", "--kl_in_reward false")])
    return Objective(grpo, loss_type, 0.0 if in_reward else beta, settings.sampling.temperature, settings.sampling.max_completion_length)


def _round(settings: Any, world: World, weights: torch.Tensor, part: int) -> Round:
    training, grpo = settings.training, settings.grpo
    beta = float(settings.task.beta or 0.0)
    per_step = training.per_device_train_batch_size * (training.gradient_accumulation_steps or 1) * world.size
    total = round_size(settings)
    return Round(
        prompts=total // grpo.num_generations,
        part=part,
        updates=total // per_step * grpo.num_iterations,
        samples_per_step=per_step // part,
        beta=beta,
        kl_in_reward=bool(beta) and _prices_in_reward(settings),
        weights=weights,
        max_completion_length=settings.sampling.max_completion_length,
    )
