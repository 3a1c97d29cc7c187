"""Supervised fine-tuning and continued pre-training: from settings to a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn
from transformers import set_seed

from swift_core.batching.cache import DataPlan
from swift_core.batching.media import packed_position_ids
from swift_core.config.training import SftConfig
from swift_core.models.config import load_config
from swift_core.models.loading import load_model, max_model_length
from swift_core.models.modules import freeze_parts, unwrap
from swift_core.protocols import Tuner
from swift_core.tasks import running
from swift_core.tasks.console import say
from swift_core.templates.adapted import AdapterTemplate
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.media import ProcessorTemplate, build_processor_template
from swift_core.train.channels import ChannelLm
from swift_core.train.output import TrainOutput
from swift_core.train.parallel import World, layers_over_devices, make_world, training_device
from swift_core.train.task import CausalLm
from swift_core.train.tuning import adapt, weights_dtype


@dataclass(slots=True, kw_only=True)
class Prepared(running.Prepared):
    """What a run of chat samples needs but the model.

    Attributes:
        template: renders and masks.
    """

    template: ChatTemplate


def prepare(config: SftConfig) -> Prepared:
    """Fetch the model folder, read the data and encode it; the model's weights are not loaded.

    Raises:
        NotFoundError: when model or data are not where they were said to be.
        DataError: for bad rows, or when nothing is left to train on.
    """
    # Data first: a typing error in a row is found before gigabytes are fetched.
    data = DataPlan(config.data, config.loading, config.encoding, config.launch.external_plugins)
    opened = running.open_model(config.loading)
    template = build_processor_template(opened.processor, config.chat, config.media)
    max_length = config.chat.max_length or max_model_length(load_config(config.loading, opened.folder), opened.tokenizer)
    found = data.encode(template, config.chat, max_length=max_length)
    reports = (found.train_report, found.val_report)
    return Prepared(opened=opened, template=template, train=found.train, val=found.val, rows=found.rows, reports=reports)


def build_model(config: SftConfig, folder: Path) -> tuple[nn.Module, Tuner]:
    """Load the model and put the trainable parts on.

    Raises:
        ModelError: when the model cannot be loaded or the tuner does not fit it.
    """
    device = training_device(use_cpu=config.launch.use_cpu)
    dtype = weights_dtype(config, folder, device=device)
    # The starting values of new weights must not depend on what ran before.
    set_seed(config.training.seed)
    model: nn.Module = load_model(
        config.loading,
        folder,
        dtype=dtype,
        task_type="causal_lm",
        quantization=config.quantization,
        device=device,
        device_map=layers_over_devices(config.parallel),
        trainable=True,
    )
    freeze_parts(model, config.tuner)
    model.config.use_cache = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return adapt(model, config)


def train(config: SftConfig) -> TrainOutput:
    """Run `swift sft` or `swift pt` from start to end.

    Raises:
        SwiftError: with the fix, for everything that can go wrong on the way.
    """
    world = make_world(config)
    prepared = prepare(config)
    say(world, prepared.lines())
    model, tuner = build_model(config, prepared.folder)
    return running.fit(config, prepared, model, tuner, _task(config, prepared, model, world), world)


def _task(config: SftConfig, prepared: Prepared, model: nn.Module, world: World) -> CausalLm:
    packs = config.training.padding_free is not False
    make = partial(ChannelLm, world) if config.reporting.enable_channel_loss else CausalLm
    if isinstance(prepared.template, AdapterTemplate):
        return make(packs=False, dummy=prepared.template.dummy() if world.size > 1 else None)
    if not isinstance(prepared.template, ProcessorTemplate):
        return make(packs=packs)
    dummy = prepared.template.dummy() if world.size > 1 else None
    return make(packs=packs, positions=partial(packed_position_ids, unwrap(model)), dummy=dummy)
