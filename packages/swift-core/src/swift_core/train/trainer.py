"""The training loop: plan, forward, backward, update, log, evaluate, save."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState, set_seed

from swift_core.batching.feed import Stream
from swift_core.batching.loader import Dealer, StepBatches, train_steps
from swift_core.config.training import TrainingConfig
from swift_core.errors import CheckpointError, DataError, Interrupted, TrainingError
from swift_core.protocols import EncodedSample, Tuner
from swift_core.train.auto_batch import find_budget, with_auto_budget
from swift_core.train.callbacks import Callbacks, load_callbacks
from swift_core.train.checkpoint import clean, rotate, short_of_room, write_checkpoint
from swift_core.train.dealing import count_units, make_feed, make_packs, make_shape
from swift_core.train.evaluating import EvaluationStopped, eval_share, measure_all
from swift_core.train.exhausted import explained_failures
from swift_core.train.health import refuse_step
from swift_core.train.methods import Methods, method_callbacks
from swift_core.train.module import LossModule
from swift_core.train.optim import evaluated_weights, make_optimizer, make_scheduler, set_training, warmup_steps
from swift_core.train.output import TrainOutput
from swift_core.train.parallel import World, make_world
from swift_core.train.progress import Progress
from swift_core.train.report import LOG_FILE, Report, duration, peak_memory_gib
from swift_core.train.resuming import read_progress, restore_counters, restore_generators, write_progress
from swift_core.train.rundir import RunLock, find_resume_checkpoint, new_run_dir, write_args
from swift_core.train.sharding.choose import make_engine, spread
from swift_core.train.signals import StopSignals
from swift_core.train.state import STATE, capture_rng, load_optimization, rng_file, save_optimization
from swift_core.train.task import ActsInSteps, CausalLm, KeepsState, LogsValues, Task
from swift_core.train.tuning import FollowsSteps, saver_for, start_tuner, tuner_rates
from swift_core.train.utilisation import Utilisation, occupancy
from swift_core.train.watchdog import Watchdog

STREAM = "stream.json"


class Trainer:
    """Trains a model on encoded samples.

    Args:
        model: the model, prepared by a tuner or trainable as it is.
        args: settings; `Seq2SeqTrainingArguments(...)` or a command's config.
        train_dataset: samples with `input_ids` and `labels`, or a stream of them.
        eval_dataset: samples to evaluate on.
        tokenizer: saved with every checkpoint.
        processor: of a multimodal model; saved in place of the tokenizer, which is a part of it.
        tuner: knows how to save and restore the trained part; found from the model when not given.
        callbacks: `transformers.TrainerCallback` objects.
        world: the processes of the run, when they have been joined already.
        task: what the model is trained for; default: next-token prediction.

    Raises:
        DataError: when there is nothing to train on.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingConfig,
        train_dataset: Sequence[EncodedSample] | Stream,
        eval_dataset: Sequence[EncodedSample] | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        processor: Any = None,
        tuner: Tuner | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        world: World | None = None,
        task: Task | None = None,
    ) -> None:
        if isinstance(train_dataset, Sequence) and not train_dataset:
            raise DataError("there are no samples to train on", fix="check --dataset and --max_length")
        self.args = args
        self.model = model
        self.tokenizer = tokenizer
        self.processor = processor
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset or []
        self.world = world or make_world(args)
        self.tuner = tuner or saver_for(model)
        self.task: Task = task or CausalLm(packs=args.training.padding_free is not False)
        self.packs = make_packs(args, self.task, train_dataset) if isinstance(train_dataset, Sequence) else None
        self.shape = make_shape(args, self.task, self.world, count_units(args, train_dataset, self.packs))
        self.feed = None if isinstance(train_dataset, Sequence) else make_feed(args, self.task, train_dataset, self.shape)
        epochs = args.training.num_train_epochs
        self.total_steps = args.training.max_steps if args.training.max_steps > 0 else math.ceil(epochs * self.shape.steps_per_epoch - 1e-9)
        if args.optimization.learning_rate is None:
            args.derive("learning_rate", 1e-4 if hasattr(model, "peft_config") else 1e-5, "derived: from the kind of tuning")
        self.engine = make_engine(args, self.world)
        # Where weights are spread, reading them past their modules would find a part of them; the table refuses --fuse_layers there.
        self.methods = Methods(model, args, self.tuner, self.world.device, whole=not self.engine.in_step)
        self.engine.place(self.model)
        start_tuner(self.tuner, self.model, args, self.task, train_dataset, total_steps=self.total_steps, pad_token_id=self._pad_token_id())
        if processor is not None and processor is not tokenizer and self.world.accelerator.ddp_handler is not None:
            # Some vision towers have layers that their output does not pass; ranks must not wait for their gradient.
            self.world.accelerator.ddp_handler.find_unused_parameters = True
        module = LossModule(self.model, self.task, self.methods.activations)
        spread(self.engine, module, args)
        self.optimizer = make_optimizer(
            self.model,
            args.optimization,
            args.memory,
            seed=args.training.seed,
            warmup=warmup_steps(args.optimization, self.total_steps),
            rates=tuner_rates(self.tuner, self.model, args),
        )
        self.module = self.engine.wrap(module, self.optimizer)
        self.scheduler = make_scheduler(self.optimizer, args.optimization, self.total_steps)
        self.state = TrainerState(max_steps=self.total_steps, num_train_epochs=math.ceil(self.total_steps / self.shape.steps_per_epoch))
        self.state.is_world_process_zero = self.world.is_main
        self.state.is_local_process_zero = self.world.accelerator.is_local_main_process
        self.progress = Progress()
        self.utilisation = Utilisation(self.model, self.world.device, processes=self.world.size)
        self.callbacks = Callbacks(
            [*method_callbacks(args), *load_callbacks(args.training.callbacks), *callbacks],
            args,
            self.state,
            model=self.model,
            processing_class=tokenizer,
            optimizer=self.optimizer,
            lr_scheduler=self.scheduler,
        )
        self.watchdog = Watchdog(args.launch.hang_timeout, rank=self.world.rank, size=self.world.size, together=self.world.wait)
        self.signals = StopSignals()
        self.run_dir: Path | None = None
        self._report: Report | None = None
        self._last_checkpoint: Path | None = None

    # ---- the run ---------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        """Train to the end.

        Args:
            resume_from_checkpoint: checkpoint or run folder, or True for the newest run; default: as the settings say.

        Raises:
            TrainingError: when loss or gradient are not finite; the weights are those before the step.
            CheckpointError: when a checkpoint cannot be written or resumed.
            Interrupted: after SIGTERM or SIGINT, once the state is saved.
            OutOfMemory: with a table of what is taken, and what to change.
            LaunchError: when another process of the job has gone.
        """
        if resume_from_checkpoint:
            self.args.saving.resume_from_checkpoint = (
                str(resume_from_checkpoint).lower() if resume_from_checkpoint is True else str(resume_from_checkpoint)
            )
        checkpoint, remarks = self._find_checkpoint()
        self.run_dir = checkpoint.parent if checkpoint is not None else self.locate()
        lock = RunLock(self.run_dir) if self.world.is_main else contextlib.nullcontext()
        with lock, explained_failures(self.args, self.model, self.optimizer, self.world.device), self.watchdog, self.signals:
            self.shape = with_auto_budget(self.shape, self.args, checkpoint, self._find_budget, told=self.world.is_main)
            if self.world.is_main:
                clean(self.run_dir)
                write_args(self.run_dir, self.args, self.run_dir)
            self.world.wait()
            set_seed(self.args.training.seed + self.world.data_rank)
            if checkpoint is not None:
                self._resume(checkpoint)
            self._report = Report(
                self.args.reporting, self.run_dir, total=self.total_steps, resumed_step=self.state.global_step, active=self.world.is_main
            )
            for remark in remarks:
                self._say(remark)
            if checkpoint is not None:
                self._say(f"resumed from {checkpoint} at step {self.state.global_step}")
            try:
                self._loop()
            finally:
                self._report.close()
        return self._finish()

    def locate(self) -> Path:
        """Agree with all ranks on the folder of the run and return it."""
        if self.run_dir is None:
            checkpoint, _ = self._find_checkpoint()
            self.run_dir = checkpoint.parent if checkpoint is not None else Path(self.world.broadcast(str(new_run_dir(self.args.saving))))
        return self.run_dir

    def _find_checkpoint(self) -> tuple[Path | None, list[str]]:
        if not self.args.saving.resume_from_checkpoint:
            return None, []
        checkpoint, remarks = find_resume_checkpoint(self.args.saving)
        return Path(self.world.broadcast(str(checkpoint))), remarks

    def _loop(self) -> None:
        training = self.args.training
        self.callbacks.call("on_train_begin")
        if training.eval_on_start and self.state.global_step == 0:
            self._evaluate_and_log()
        elif self._evaluation_is_due() and not self._evaluated_now():
            # The run was told to stop in the middle of it.
            self._evaluate_and_log()
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(self._last_checkpoint)
        self.module.train()
        set_training(self.optimizer, True)
        for batches in self.progress.timed(self._batches()):
            if self.state.global_step % self.shape.steps_per_epoch == 0:
                self.callbacks.call("on_epoch_begin")
            self.callbacks.call("on_step_begin")
            grad_norm, stop = self._step(batches)
            self._after_step(grad_norm)
            if self.callbacks.control.should_evaluate or self.callbacks.control.should_save:
                # These take long; who stops the run meanwhile does not wait for another step.
                stop = stop or self.signals.agreed(*self.world.sum(*self.signals.votes()))
            if stop:
                self._stop(stop)
            self.watchdog.step_done()
            if self.callbacks.control.should_training_stop:
                break
        if self.args.saving.save_strategy != "no" and self._step_of_last_checkpoint() != self.state.global_step:
            if self.args.training.eval_strategy != "no" and not self._evaluated_now():
                self._evaluate_and_log()
            self._save()
        self.callbacks.call("on_train_end")

    def _find_budget(self) -> int:
        module: Any = self.world.accelerator.unwrap_model(self.module)
        return find_budget(module, self.task, self.train_dataset, self.shape, self.args, self.world, pad_token_id=self._pad_token_id())

    def _batches(self) -> Iterator[StepBatches]:
        task = self.task
        dealer = Dealer(self.shape, self.world.data_rank, self._pad_token_id(), task.collate, task.weight, task.length)
        start, stop = self.state.global_step, self.total_steps
        if self.feed is not None:
            return self.feed.steps(dealer, start=start, stop=stop)
        samples = cast(Sequence[EncodedSample], self.train_dataset)
        workers = self.args.training.dataloader_num_workers
        return train_steps(samples, dealer, start=start, stop=stop, packs=self.packs, num_workers=workers)

    def _step(self, batches: StepBatches) -> tuple[float, int]:
        """Do one optimizer step; returns the gradient norm and the stop signal that any rank has received."""
        engine = self.engine
        if isinstance(self.task, ActsInSteps):
            with self.world.accelerator.autocast():
                self.task.begin_step(self.model, batches.micros)
        # Ranks average their gradients; the loss is a mean over the trained tokens of all of them.
        losses = engine.run(self.module, batches.micros, self.world.data_size / max(batches.trained_tokens, 1), self.watchdog.beat)
        for batch in batches.micros:
            self.progress.slots(*occupancy(batch))
        # Ranks that share their samples count once.
        loss_sum, *votes = self.world.sum(sum(losses) * self.world.data_size / self.world.size, *self.signals.votes())
        if not math.isfinite(loss_sum):
            refuse_step("loss", self.state.global_step + 1, losses, batches.micros, self.world)
        if isinstance(self.tuner, FollowsSteps):
            self.tuner.before_step(self.model, self.state.global_step + 1)
        grad_norm = engine.clip(self.model, self.optimizer, self.args.optimization.max_grad_norm)
        if not math.isfinite(grad_norm):
            refuse_step("gradient", self.state.global_step + 1, losses, batches.micros, self.world)
        engine.step(self.optimizer)
        if isinstance(self.tuner, FollowsSteps):
            self.tuner.after_step(self.model, self.state.global_step + 1)
        if isinstance(self.task, ActsInSteps):
            self.task.end_step(self.model, self.state.global_step + 1)
        self.scheduler.step()
        engine.zero_grad(self.optimizer)
        self.progress.add(loss_sum=loss_sum, trained_tokens=batches.trained_tokens, tokens=batches.tokens, samples=batches.samples)
        return grad_norm, self.signals.agreed(*votes)

    def _after_step(self, grad_norm: float) -> None:
        state, saving = self.state, self.args.saving
        self.watchdog.beat("updating weights and calling callbacks")
        state.global_step += 1
        state.epoch = state.global_step / self.shape.steps_per_epoch
        state.num_input_tokens_seen = self.progress.tokens
        at_end = state.global_step >= self.total_steps
        epoch_end = state.global_step % self.shape.steps_per_epoch == 0
        first = self.args.reporting.logging_first_step and state.global_step == 1
        control = self.callbacks.control
        control.should_log = first or at_end or state.global_step % self.args.reporting.logging_steps == 0
        control.should_evaluate = self._evaluation_is_due()
        control.should_save = _due(saving.save_strategy, saving.save_steps, state.global_step, epoch_end)
        control = self.callbacks.call("on_step_end")
        if epoch_end:
            control = self.callbacks.call("on_epoch_end")
        if self._report is not None:
            self._report.advance()
        if control.should_log:
            self._log(self._train_line(grad_norm))
        if control.should_evaluate:
            self._evaluate_and_log()
        if control.should_save:
            self._save(required=False)

    def _evaluation_is_due(self) -> bool:
        step, training = self.state.global_step, self.args.training
        return step > 0 and _due(training.eval_strategy or "no", training.eval_steps or 1, step, step % self.shape.steps_per_epoch == 0)

    def _train_line(self, grad_norm: float) -> dict[str, Any]:
        eta = self.progress.eta(self.total_steps - self.state.global_step)
        window = self.progress.window()
        return {
            **window,
            **self.utilisation.line(window["tokens_per_second"]),
            **(self.task.log_values() if isinstance(self.task, LogsValues) else {}),
            "grad_norm": grad_norm,
            "learning_rate": self.scheduler.get_last_lr()[0],
            f"trained_{self.task.unit}": self.progress.trained_tokens,
            "memory_gib": round(peak_memory_gib(self.world.device), 3),
            "elapsed_seconds": round(self.progress.elapsed, 1),
            **({"eta_seconds": round(eta, 1)} if eta is not None else {}),
        }

    def _log(self, values: dict[str, Any]) -> None:
        line = {"step": self.state.global_step, "total_steps": self.total_steps, "epoch": round(self.state.epoch or 0.0, 4), **values}
        self.state.log_history.append(line)
        self.callbacks.call("on_log", logs=values)
        if self._report is not None:
            self._report.log(line)

    def _say(self, text: str) -> None:
        if self._report is not None:
            self._report.say(text)

    def _stop(self, signal_number: int) -> None:
        if self._step_of_last_checkpoint() != self.state.global_step:
            self._save()
        raise Interrupted(
            f"stopped by signal {signal_number} after step {self.state.global_step}; "
            f"everything is saved, go on with --resume_from_checkpoint {self._last_checkpoint}",
            signal_number=signal_number,
        )

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Return `eval_loss`, the task's other metrics (`eval_token_accuracy`, ...) and speed on the evaluation samples.

        Raises:
            DataError: when there are none.
        """
        if not self.eval_dataset:
            raise DataError("there are no samples to evaluate on", fix="add --val_dataset FILE or --split_dataset_ratio 0.05")
        module = self.module
        started = time.monotonic()
        was_training = module.training
        module.eval()
        batches = eval_share(self.eval_dataset, self.task, self.args.training.per_device_eval_batch_size, self.engine, self._pad_token_id())
        try:
            with self.world.accelerator.autocast(), evaluated_weights(self.optimizer), self.watchdog.unlimited("evaluating"):
                parts = measure_all(self.engine, module, batches, stopping=lambda: bool(self.signals.received))
        finally:
            module.train(was_training)
        metrics = self.task.metrics(parts)
        elapsed = time.monotonic() - started
        return {
            **{f"eval_{name}": value for name, value in metrics.items()},
            "eval_runtime": round(elapsed, 3),
            "eval_samples_per_second": round(len(self.eval_dataset) / max(elapsed, 1e-9), 3),
        }

    def _evaluate_and_log(self) -> None:
        started = time.monotonic()
        try:
            metrics = self.evaluate()
        except EvaluationStopped:
            return  # a resumed run starts with this evaluation
        self._log(dict(metrics))
        with self.watchdog.unlimited("calling callbacks"):
            self.callbacks.call("on_evaluate", metrics=metrics)
        name = self.args.saving.metric_for_best_model
        value = metrics.get(name, metrics.get(f"eval_{name}"))
        if value is None:
            raise TrainingError(f"--metric_for_best_model {name!r} is not measured", fix=f"one of {', '.join(metrics)}")
        best = self.state.best_metric
        if best is None or (value > best if self.args.saving.greater_is_better else value < best):
            self.state.best_metric = value
            self.state.best_global_step = self.state.global_step
        self.progress.pause(time.monotonic() - started)

    def _evaluated_now(self) -> bool:
        return any("eval_runtime" in line for line in self.state.log_history if line["step"] == self.state.global_step)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def save_model(self, folder: str | Path) -> None:
        """Write the trained weights, the tokenizer and the settings into a folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.tuner.save(self.model, path)
        described = self.processor or self.tokenizer
        if described is not None:
            described.save_pretrained(str(path))
        self.task.save(path)
        write_args(path, self.args, self.run_dir or path)

    def _save(self, *, required: bool = True) -> None:
        """Write a checkpoint; where that fails, go on without it unless it is required, since a later one may succeed."""
        started = time.monotonic()
        assert self.run_dir is not None and self._report is not None
        with self.watchdog.unlimited("saving a checkpoint"):
            problem = self._save_or_say_why()
            if not problem:
                self._last_checkpoint = self.run_dir / f"checkpoint-{self.state.global_step}"
                self.callbacks.call("on_save")
                if not self.signals.received:  # somebody waits for the end
                    self._report.plot()
            elif required:
                raise CheckpointError(problem, fix=f"free some space, then go on from {self._last_checkpoint or 'the start'}")
            else:
                self._say(f"warning: {problem}; training goes on, and the next save tries again")
        self.progress.pause(time.monotonic() - started)

    def _save_or_say_why(self) -> str:
        assert self.run_dir is not None
        generators = self.world.gather(capture_rng())
        best_before, problem = self.state.best_model_checkpoint, ""
        if self.state.best_global_step == self.state.global_step and self.state.best_metric is not None:
            self.state.best_model_checkpoint = str(self.run_dir / f"checkpoint-{self.state.global_step}")
        with evaluated_weights(self.optimizer):
            # In here, so that the state says which of its weights are in the file.
            optimizer_state = {} if self.args.saving.save_only_model else self.engine.optimizer_state(self.optimizer)
            with self.engine.saving(self.model):
                if self.world.is_main:
                    write = partial(self._write, generators=generators, optimizer_state=optimizer_state)
                    try:
                        self._say(f"saved {write_checkpoint(self.run_dir, self.state.global_step, write)}")
                    except CheckpointError as error:
                        problem = error.message
        problem = self.world.broadcast(problem)
        if problem:
            self.state.best_model_checkpoint = best_before
        elif self.world.is_main:
            best = Path(self.state.best_model_checkpoint) if self.state.best_model_checkpoint else None
            rotate(self.run_dir, keep=self.args.saving.save_total_limit, best=best)
            warning = short_of_room(self.run_dir / f"checkpoint-{self.state.global_step}")
            if warning and self.state.global_step < self.total_steps:
                self._say(f"warning: {warning}")
        return problem

    def _write(self, folder: Path, generators: list[dict[str, Any]], optimizer_state: dict[str, Any]) -> None:
        self.save_model(folder)
        self.state.save_to_json(str(folder / STATE))
        if self.args.saving.save_only_model:
            return
        save_optimization(folder, optimizer_state, self.scheduler)
        if isinstance(self.task, KeepsState):
            self.task.save_state(folder)
        write_progress(folder, self.progress.saved(), self.shape, ranks=self.world.size)
        if self.feed is not None:
            (folder / STREAM).write_text(json.dumps(self.feed.state_dict()), encoding="utf-8")
        for rank, state in enumerate(generators):
            torch.save(state, folder / rng_file(rank))

    def _resume(self, folder: Path) -> None:
        with self.engine.restoring(self.model):
            self.tuner.restore(self.model, folder)
        load_optimization(folder, partial(self.engine.load_optimizer_state, self.optimizer), self.scheduler)
        restore_counters(self.state, folder, total_steps=self.total_steps)
        self.progress = Progress.restored(read_progress(folder, self.shape, ranks=self.world.size))
        self._last_checkpoint = folder
        if self.feed is not None:
            self.feed.load_state_dict(json.loads((folder / STREAM).read_text(encoding="utf-8")))
        if isinstance(self.task, KeepsState):
            self.task.load_state(folder)
        restore_generators(folder, rank=self.world.rank, seed=self.args.training.seed, step=self.state.global_step)

    def _step_of_last_checkpoint(self) -> int:
        return int(self._last_checkpoint.name.rpartition("-")[2]) if self._last_checkpoint is not None else -1

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _finish(self) -> TrainOutput:
        assert self.run_dir is not None and self._report is not None
        set_training(self.optimizer, False)
        self.methods.release()
        best = Path(self.state.best_model_checkpoint) if self.state.best_model_checkpoint else None
        if self.args.saving.load_best_model_at_end and best is not None and best != self._last_checkpoint:
            with self.engine.restoring(self.model):
                self.tuner.restore(self.model, best)
        self._report.plot()
        metrics = {**self.progress.totals(), "memory_gib": round(peak_memory_gib(self.world.device), 3)}
        return TrainOutput(self.run_dir, self._last_checkpoint, best, self.state.global_step, metrics)

    def _pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id if self.tokenizer is not None else None
        return int(pad) if isinstance(pad, int) else 0


def _due(strategy: str, every: int, step: int, epoch_end: bool) -> bool:
    return (strategy == "steps" and step % every == 0) or (strategy == "epoch" and epoch_end)


__all__ = ["LOG_FILE", "TrainOutput", "Trainer", "duration"]
