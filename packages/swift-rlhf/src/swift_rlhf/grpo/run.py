"""`swift rlhf --rlhf_type grpo`: from settings to a trained model."""

from __future__ import annotations

from typing import Any

from swift_core.batching.encode import encode_samples
from swift_core.data.sources import LoadedData, load_datasets
from swift_core.hub.adapters import adapter_folder
from swift_core.models.loading import load_model, resolve_model_folder
from swift_core.protocols import EncodedSample
from swift_core.tasks import running
from swift_core.tasks.console import indented, say
from swift_core.tasks.sft import build_model
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.media import build_processor_template
from swift_core.train.output import TrainOutput
from swift_core.train.parallel import make_world, training_device
from swift_core.train.tuning import load_tuner, weights_dtype
from torch import nn

from swift_rlhf.config import RlhfConfig
from swift_rlhf.config.grpo import round_size
from swift_rlhf.grpo.trainer import GRPOTrainer
from swift_rlhf.rollout.prompts import prepare_prompts, show_prompts


def train(config: RlhfConfig) -> TrainOutput:
    """Run GRPO from start to end.

    Raises:
        SwiftError: with the fix, for everything that can go wrong on the way.
    """
    world = make_world(config)
    data, template, opened = _prepare(config)
    say(world, ["data:", *indented(data.report.summary())])
    model, tuner = build_model(config, opened.folder)
    trainer = GRPOTrainer(
        model,
        (),
        config,
        data.train,
        data.val,
        processing_class=opened.processor,
        template=template,
        ref_model=_reference(config),
        expert_dataset=_experts(config, template),
        tuner=tuner,
        world=world,
    )
    try:
        return running.drive(trainer, data.report, plan=_round_lines(config, trainer))
    finally:
        trainer.close()


def _prepare(config: RlhfConfig) -> tuple[LoadedData, ChatTemplate, running.Opened]:
    data = load_datasets(config.data, config.loading, need_answer=False)
    opened = running.open_model(config.loading)
    return data, build_processor_template(opened.processor, config.chat, config.media), opened


def _reference(config: RlhfConfig) -> nn.Module | None:
    """Return the reference model; None where the model without its adapters is it, or none is needed."""
    task = config.task
    if not task.beta:
        return None
    full = config.tuner.tuner_type == "full"
    if task.ref_model is None and not full and not config.loading.adapters:
        return None
    values: dict[str, Any] = {"model": task.ref_model or config.loading.model}
    if task.ref_model is not None:
        values |= {"model_type": task.ref_model_type, "model_revision": task.ref_model_revision}
    section = config.loading.model_copy(update=values)
    folder = resolve_model_folder(section)
    device = training_device(use_cpu=config.launch.use_cpu)
    model: nn.Module = load_model(section, folder, dtype=weights_dtype(config, folder, device=device), task_type="causal_lm", device=device)
    for adapter in task.ref_adapters or ([] if task.ref_model is not None else config.loading.adapters):
        model = load_tuner(config.tuner.tuner_type).load(model, adapter_folder(adapter, section), trainable=False)
    return model


def _experts(config: RlhfConfig, template: ChatTemplate) -> list[EncodedSample]:
    """Return the answers of experts that are imitated, encoded.

    Raises:
        DataError: for bad rows, or when nothing is left of them.
    """
    if not config.chord.chord_sft_dataset:
        return []
    section = config.data.model_copy(update={"dataset": config.chord.chord_sft_dataset, "val_dataset": [], "split_dataset_ratio": 0.0})
    rows = load_datasets(section, config.loading).train
    policy = "fail" if config.data.on_bad_row == "fail" else "skip"
    return encode_samples(rows, template, config.chat, max_length=config.chat.max_length, on_bad_row=policy)[0]


def _round_lines(config: RlhfConfig, trainer: GRPOTrainer) -> list[str]:
    prompts = trainer.prompts
    dropped = f", {prompts.dropped} left out for their length" if prompts.dropped else ""
    total = round_size(config)
    count = config.grpo.num_generations
    return [
        f"prompts: {len(prompts.samples)}, the longest of {prompts.longest} tokens{dropped}",
        f"round: {total // count} prompts x {count} answers of at most {config.sampling.max_completion_length} tokens, "
        f"{trainer.task.answers} of a sample; rewards: {', '.join(reward.name for reward in trainer.pool.rewards)}",  # pyright: ignore[reportAttributeAccessIssue]
    ]


def show(config: RlhfConfig) -> None:
    """Print the first prompts as the model reads them; nothing is generated or trained.

    Raises:
        SwiftError: for everything that would stop the run before its first step.
    """
    show_prompts(prepare_prompts(config))
