"""The trainer of GRPO: model, rewards and prompts put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from swift_core.config.training import TrainingConfig
from swift_core.errors import DataError, EngineError
from swift_core.protocols import EncodedSample, Tuner
from swift_core.templates.chat import ChatTemplate
from swift_core.train.optim import evaluated_weights
from swift_core.train.parallel import World, make_world
from swift_core.train.trainer import Trainer
from swift_core.train.tuning import saver_for
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback

from swift_rlhf.config.python import GRPOConfig
from swift_rlhf.grpo.evaluation import Evaluation
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.prompts import PromptCursor
from swift_rlhf.grpo.record import EVALUATED, Completions
from swift_rlhf.grpo.setup import (
    as_samples,
    make_experts,
    make_objective,
    make_passes,
    make_rollouts,
    make_round,
    make_task,
    template_of,
    usable,
)
from swift_rlhf.grpo.stream import RolloutStream
from swift_rlhf.rewards.asked import reward_pool
from swift_rlhf.rollout.choosing import make_engine
from swift_rlhf.rollout.engine import RolloutEngine
from swift_rlhf.rollout.schedulers import Scheduler, SingleTurn
from swift_rlhf.rollout.scheduling import load_scheduler


class GRPOTrainer(Trainer):
    """Trains a model on answers of its own.

    Args:
        model: from `get_model_tokenizer`, or prepared by `Swift.prepare_model`.
        reward_funcs: functions `reward(completions, **columns)`, sync or async, or what `--reward_funcs` takes; added to those of `args`.
        args: `GRPOConfig(...)`, or the config of `swift rlhf`.
        train_dataset: prompts, in any format of `--dataset`; further columns go to the rewards.
        eval_dataset: prompts to evaluate on.
        processing_class: the tokenizer. `tokenizer` is the same thing.
        template: renders prompts; default: the tokenizer's own chat template.
        ref_model: model to stay close to; default: the model without its adapters.
        expert_dataset: encoded conversations with answers of experts, imitated beside it (CHORD).
        scheduler: plays the other side of conversations of several turns; default: as the settings say.
        engine: writes the answers; default: as the settings say.
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
        eval_dataset: Iterable[Any] | None = None,
        *,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        tokenizer: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        template: ChatTemplate | None = None,
        ref_model: nn.Module | None = None,
        expert_dataset: Iterable[EncodedSample] = (),
        scheduler: Scheduler | None = None,
        engine: RolloutEngine | None = None,
        tuner: Tuner | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        world: World | None = None,
    ) -> None:
        settings: Any = args or GRPOConfig()
        given = processing_class or tokenizer
        template = template or template_of(given)
        words = template.tokenizer
        world = world or make_world(settings)
        self._scheduler = scheduler or load_scheduler(settings, template) or SingleTurn()
        self.pool = reward_pool(reward_funcs, settings)
        limit = settings.chat.max_length if "chat" in type(settings).model_fields else None
        self.prompts = usable(as_samples(train_dataset), template, limit)
        held_out = usable(as_samples(eval_dataset, "eval_dataset"), template, limit).samples
        objective, meter = make_objective(settings), Meter(world)
        task = make_task(objective, meter, ref_model, settings)
        self.rollout_engine = engine or make_engine(settings, model, template, lambda: tuner or saver_for(model), world)
        known = [*self.prompts.samples, *held_out]
        rollouts = make_rollouts(self.rollout_engine, self.pool, template, self._scheduler, settings, world, known)
        passes = make_passes(model, ref_model, settings, world, objective.temperature, words.pad_token_id)
        plan = make_round(settings, world, self.pool.weights, task.answers)
        experts = make_experts(list(expert_dataset), settings, task, world)
        cursor = PromptCursor(self.prompts.samples, seed=settings.training.seed, shuffle=settings.training.train_dataloader_shuffle)
        folder = (lambda: self.locate()) if settings.sampling.log_completions and world.is_main else None
        self._records = (Completions(folder), Completions(folder, EVALUATED))
        grpo = settings.grpo
        twin = rollouts.for_evaluation(num_generations=grpo.num_generations_eval, temperature=grpo.eval_temperature)
        self.evaluation = Evaluation(twin, held_out, self.pool.weights, Meter(world), self._records[1])
        stream = RolloutStream(rollouts, cursor, passes, grpo, plan, meter, self._records[0], experts)
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

    def evaluate(self) -> dict[str, float]:
        """Return `eval_reward`, the mean of each reward function, lengths and speed, from new answers to the evaluation prompts.

        Raises:
            DataError: when there are no such prompts.
            TrainingError: when a reward fails.
            EngineError: when the engine fails.
        """
        if not len(self.evaluation):
            raise DataError("there are no prompts to evaluate on", fix="add --val_dataset FILE or --split_dataset_ratio 0.05")
        started = time.monotonic()
        with evaluated_weights(self.optimizer), self.watchdog.unlimited("evaluating"):
            metrics = self.evaluation.run(self.state.global_step)
        elapsed = time.monotonic() - started
        return {
            **{f"eval_{name}": value for name, value in metrics.items()},
            "eval_runtime": round(elapsed, 3),
            "eval_samples_per_second": round(len(self.evaluation) / max(elapsed, 1e-9), 3),
        }

    def _log(self, values: dict[str, Any]) -> None:
        super()._log(values)
        if self._report is not None:
            for name, record in zip(("completions", "eval_completions"), self._records, strict=True):
                self._report.table(name, record.fresh(), step=self.state.global_step)

    def _loop(self) -> None:
        try:
            super()._loop()
        except EngineError:
            # The engine is somebody else's process: what was learned until it failed is kept, and a resumed run goes on from here.
            if self.args.saving.save_strategy != "no" and self._step_of_last_checkpoint() < self.state.global_step:
                self._save()
            raise

    def close(self) -> None:
        """End the processes of rewards and tools, free the engine and close files."""
        for record in self._records:
            record.close()
        self.pool.close()
        self.rollout_engine.close()
        if hasattr(self._scheduler, "close"):
            self._scheduler.close()  # pyright: ignore[reportAttributeAccessIssue]
