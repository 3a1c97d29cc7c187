"""`swift rlhf --rlhf_type ppo`: from settings to a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from swift_core.protocols import Tuner
from swift_core.tasks import running
from swift_core.tasks.console import say
from swift_core.tasks.sft import build_model
from swift_core.train.dealing import CPU_TOKENS
from swift_core.train.output import TrainOutput
from swift_core.train.parallel import World, make_world
from swift_core.train.trainer import Trainer
from torch import nn
from transformers import set_seed

from swift_rlhf.config.command import RlhfConfig
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.prompts import PromptCursor
from swift_rlhf.grpo.record import Completions
from swift_rlhf.grpo.reference import LogpsPass
from swift_rlhf.grpo.rollouts import Rollouts
from swift_rlhf.grpo.samples import AnswerGroup, collate_answers
from swift_rlhf.ppo.critic import Critic, ValueHead, ValueModel, attach
from swift_rlhf.ppo.stream import Looked, PpoStream, Round
from swift_rlhf.ppo.task import PpoTask
from swift_rlhf.preference.reference import SecondModel
from swift_rlhf.preference.references import build_reference
from swift_rlhf.preference.scoring import silence_dropout
from swift_rlhf.rewards.asked import reward_pool
from swift_rlhf.rewards.model import load_classifier
from swift_rlhf.rewards.pool import RewardPool
from swift_rlhf.rollout.asked import limits_of, sampling_of, stop_tokens
from swift_rlhf.rollout.continuation import TemplatePrompter
from swift_rlhf.rollout.prompts import PromptData, prepare_prompts, show_prompts
from swift_rlhf.rollout.schedulers import SingleTurn
from swift_rlhf.rollout.scheduling import load_scheduler
from swift_rlhf.rollout.transformers_sampler import TransformersSampler


@dataclass(slots=True)
class _Parts:
    """What a run is put together from."""

    config: RlhfConfig
    data: PromptData
    world: World
    model: nn.Module
    tuner: Tuner
    critic: Critic
    reference: nn.Module | None
    pool: RewardPool

    @property
    def shared(self) -> bool:
        """Say whether answers lie side by side."""
        return self.config.training.padding_free is not False

    @property
    def pad(self) -> int:
        """Return the token that fills rows."""
        pad = self.data.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0


def train(config: RlhfConfig) -> TrainOutput:
    """Run PPO from start to end.

    Raises:
        SwiftError: with the fix, for everything that can go wrong on the way.
    """
    world = make_world(config)
    data = prepare_prompts(config)
    say(world, data.lines())
    pool = reward_pool((), config)
    record = Completions(None)
    try:
        parts = _build(config, data, world, pool)
        record = Completions((lambda: trainer.locate()) if config.sampling.log_completions and world.is_main else None)
        trainer = _trainer(parts, record)
        return running.drive(trainer, data.rows, plan=_plan_lines(parts))
    finally:
        record.close()
        pool.close()


def _build(config: RlhfConfig, data: PromptData, world: World, pool: RewardPool) -> _Parts:
    model, tuner = build_model(config, data.folder)
    if config.judged.disable_dropout:
        silence_dropout(model)
    reference = None
    if config.ppo.kl_coef:
        found = build_reference(config, data.folder, data.tokenizer, model)
        reference = found.model.to(world.device) if isinstance(found, SecondModel) else None
    critic = _critic(config, model)
    attach(model, critic)
    return _Parts(config, data, world, model, tuner, critic, reference, pool)


def _critic(config: RlhfConfig, model: nn.Module) -> Critic:
    if config.ppo.value_model is None:
        settings: Any = model.config
        return ValueHead(int(settings.get_text_config().hidden_size))
    set_seed(config.training.seed)
    found, _, _ = load_classifier(config.ppo.value_model, config)
    # An adapter goes on learning; without one, all of the model does.
    adapters = [weight for name, weight in found.named_parameters() if hasattr(found, "peft_config") and _is_adapter(name)]
    for weight in adapters or found.parameters():
        weight.requires_grad_(weight.is_floating_point())
    silence_dropout(found)
    return ValueModel(found)


def _is_adapter(name: str) -> bool:
    return "lora_" in name or "modules_to_save" in name


def _trainer(parts: _Parts, record: Completions) -> Trainer:
    config, world = parts.config, parts.world
    meter = Meter(world)
    task = PpoTask(config.ppo, parts.critic, meter, temperature=config.sampling.temperature, shared=parts.shared)
    tokens = config.training.per_device_token_budget or 4 * CPU_TOKENS
    passes = LogpsPass(
        parts.model,
        parts.reference,
        world,
        temperature=config.sampling.temperature,
        tokens=tokens,
        shared=parts.shared,
        pad_token_id=parts.pad,
    )

    def look(groups: Sequence[AnswerGroup]) -> list[Looked]:
        return passes.over(groups, parts.model, lambda part: _looked(part, parts, task))

    cursor = PromptCursor(parts.data.prompts, seed=config.training.seed, shuffle=config.training.train_dataloader_shuffle)
    stream = PpoStream(_rollouts(parts), cursor, passes, look, config.ppo, _round(parts), meter, record)
    return Trainer(
        parts.model,
        config,
        stream,
        tokenizer=parts.data.tokenizer,
        processor=parts.data.opened.processor,
        tuner=parts.tuner,
        world=world,
        task=task,
    )


def _looked(groups: Sequence[AnswerGroup], parts: _Parts, task: PpoTask) -> list[Looked]:
    """Return log-probabilities and values of the tokens of answers, one answer for each group."""
    batch = collate_answers(groups, pad_token_id=parts.pad, shared=parts.shared, inert=True).to(parts.world.device)
    scorer = task.scored_by(parts.model)
    found = scorer.predictions(batch.rows)
    logps = scorer.logps_of(found, temperature=parts.config.sampling.temperature).logps.float().split(batch.lengths)
    values = parts.critic.values(batch.rows, found).float().split(batch.lengths)
    return [(one.tolist(), other.tolist()) for one, other in zip(logps, values, strict=True)]


def _rollouts(parts: _Parts) -> Rollouts:
    config, template = parts.config, parts.data.template
    section = config.sampling
    return Rollouts(
        TransformersSampler(parts.model, parts.data.tokenizer, stop_tokens(template), max_rows=section.rollout_batch_size),
        parts.pool,
        TemplatePrompter(template),
        load_scheduler(config, template) or SingleTurn(),
        sampling=sampling_of(section),
        limits=limits_of(config),
        world=parts.world,
        decode=lambda ids: parts.data.tokenizer.decode(list(ids)),
        num_generations=1,
        seed=config.training.seed,
    )


def _round(parts: _Parts) -> Round:
    training = parts.config.training
    step = training.per_device_train_batch_size * (training.gradient_accumulation_steps or 1) * parts.world.size
    weights: torch.Tensor = parts.pool.weights
    return Round(step * parts.config.ppo.num_mini_batches, step, weights, training.seed)


def _plan_lines(parts: _Parts) -> list[str]:
    plan, ppo, config = _round(parts), parts.config.ppo, parts.config
    rewards = ", ".join(reward.name for reward in parts.pool.rewards)
    critic = f"the model {ppo.value_model}" if ppo.value_model else "a head on the policy"
    return [
        f"round: {plan.prompts} answers of at most {config.sampling.max_completion_length} tokens, trained on {ppo.num_ppo_epochs} times "
        f"in {ppo.num_mini_batches} steps each; rewards: {rewards}; critic: {critic}; kl_coef {ppo.kl_coef:g}",
    ]


def show(config: RlhfConfig) -> None:
    """Print the first prompts as the model reads them; nothing is generated or trained.

    Raises:
        SwiftError: for everything that would stop the run before its first step.
    """
    show_prompts(prepare_prompts(config))
