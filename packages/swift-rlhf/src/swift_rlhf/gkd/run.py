"""`swift rlhf --rlhf_type gkd`: from settings to a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swift_core.batching.encode import EncodeReport, encode_samples
from swift_core.data.sources import load_datasets
from swift_core.errors import ConfigError, DataError, Problem
from swift_core.hub.adapters import adapter_folders
from swift_core.models.config import load_config, max_model_length
from swift_core.models.dtype import training_dtype
from swift_core.models.loading import load_model, resolve_model_folder
from swift_core.protocols import Sample
from swift_core.tasks import running
from swift_core.tasks.console import say
from swift_core.tasks.sft import build_model
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.media import build_processor_template
from swift_core.train.output import TrainOutput
from swift_core.train.parallel import World, make_world
from swift_core.train.trainer import Trainer
from swift_core.train.tuning import load_tuner
from torch import nn

from swift_rlhf.config.command import RlhfConfig
from swift_rlhf.gkd.endpoint import EndpointTeacher
from swift_rlhf.gkd.samples import Lesson, teacher_prompt
from swift_rlhf.gkd.stream import GkdStream, Sources, Writing
from swift_rlhf.gkd.task import GkdTask
from swift_rlhf.gkd.teacher import LocalTeacher, Measure, Teacher
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.prompts import PromptCursor, question
from swift_rlhf.grpo.record import Completions
from swift_rlhf.grpo.setup import usable
from swift_rlhf.preference.reference import SecondModel
from swift_rlhf.preference.references import build_reference, check_tokens
from swift_rlhf.preference.scoring import silence_dropout
from swift_rlhf.rollout.asked import limits_of, sampling_of, stop_tokens
from swift_rlhf.rollout.continuation import TemplatePrompter
from swift_rlhf.rollout.engine import RolloutEngine
from swift_rlhf.rollout.schedulers import SingleTurn
from swift_rlhf.rollout.scheduling import load_scheduler
from swift_rlhf.rollout.transformers_sampler import TransformersSampler


@dataclass(slots=True, kw_only=True)
class Prepared(running.Prepared):
    """What a run needs but the models.

    Attributes:
        template: renders and masks.
        prompts: what is answered.
        teacher_prompts: what the teacher reads instead of each of them; empty: the same.
    """

    template: ChatTemplate
    prompts: Sequence[Sample]
    teacher_prompts: Sequence[list[int]]


def prepare(config: RlhfConfig) -> Prepared:
    """Fetch the model folder, read the data and encode it; no weights are loaded.

    Raises:
        NotFoundError: when model or data are not where they were said to be.
        DataError: for bad rows, or when nothing is left to train on.
    """
    gkd = config.gkd
    from_data = gkd.lmbda < 1 and not gkd.seq_kd
    data = load_datasets(config.data, config.loading, need_answer=from_data or bool(config.has_eval_data))
    opened = running.open_model(config.loading)
    if not config.given("loss_scale"):
        config.derive("loss_scale", "last_round", "derived: the teacher is asked about the last answer")
    template = build_processor_template(opened.processor, config.chat, config.media)
    limit = config.chat.max_length or max_model_length(load_config(config.loading, opened.folder), opened.tokenizer)
    needed = not gkd.teacher_model and not gkd.teacher_model_server
    samples, train, report = usable(data.train, template, limit).samples, [], None
    if from_data:
        train, report = _lessons(samples, config, template, limit, needed=needed)
        kept = {lesson.origin: lesson for lesson in train}
        samples = [sample for sample in samples if sample.origin in kept]
        train = [kept[sample.origin] for sample in samples]
    val, val_report = _lessons(data.val, config, template, limit, needed=needed) if data.val else ([], None)
    prompts = [teacher_prompt(sample, template, needed=needed) for sample in samples]
    return Prepared(
        opened=opened,
        train=train,
        val=val,
        rows=data.report,
        reports=(report, val_report),
        template=template,
        prompts=samples,
        teacher_prompts=prompts,
    )


def _lessons(
    samples: Sequence[Sample], config: RlhfConfig, template: ChatTemplate, limit: int | None, *, needed: bool
) -> tuple[list[Lesson], EncodeReport]:
    """Return conversations of the data as lessons, and what became of them."""
    policy: Any = "fail" if config.data.on_bad_row == "fail" else "skip"
    encoded, report = encode_samples(samples, template, config.chat, max_length=limit, on_bad_row=policy)
    rows = {sample.origin: sample for sample in samples}
    lessons: list[Lesson] = []
    for each in encoded:
        if each.model_inputs or each.loss_scale is not None:
            what = "has media" if each.model_inputs else "has weights of tokens"
            raise DataError(f"the row {what}, which distillation does not read", location=each.origin or None, fix="leave such rows out")
        prompt = teacher_prompt(rows[each.origin], template, needed=needed)
        lessons.append(Lesson(each.input_ids, each.labels, each.origin, channel=each.channel, teacher_prompt=prompt))
    return lessons, report


def train(config: RlhfConfig) -> TrainOutput:
    """Run the distillation from start to end.

    Raises:
        SwiftError: with the fix, for everything that can go wrong on the way.
    """
    world = make_world(config)
    prepared = prepare(config)
    say(world, _data_lines(config, prepared))
    model, tuner = build_model(config, prepared.folder)
    if config.judged.disable_dropout:
        silence_dropout(model)
    teacher = build_teacher(config, prepared, model, world)
    meter = Meter(world)
    record = Completions((lambda: trainer.locate()) if config.sampling.log_completions and world.is_main else None)
    try:
        trainer = Trainer(
            model,
            config,
            _stream(config, prepared, model, teacher, world, meter, record),
            prepared.val,
            tokenizer=prepared.tokenizer,
            processor=prepared.opened.processor,
            tuner=tuner,
            world=world,
            task=GkdTask(teacher, meter, sft_alpha=config.gkd.sft_alpha, packed=config.training.padding_free is not False),
        )
        return running.drive(trainer, prepared.rows)
    finally:
        record.close()


def build_teacher(config: RlhfConfig, prepared: Prepared, model: nn.Module, world: World) -> Teacher:
    """Return who is learned from.

    Raises:
        ModelError: when the teacher cannot be loaded, or reads other tokens than the student.
        EngineError: when its server does not answer.
        ConfigError: when it is to be offloaded and there is nowhere else.
    """
    gkd = config.gkd
    measure = Measure(0.5 if config.task.beta is None else config.task.beta, gkd.gkd_temperature, gkd.gkd_logits_topk)
    if gkd.teacher_model_server:
        far = EndpointTeacher(
            gkd.teacher_model_server,
            measure,
            model=gkd.teacher_server_model,
            key=gkd.teacher_server_key,
            timeout=gkd.teacher_server_timeout,
        )
        far.check()
        return far
    if gkd.offload_teacher_model and world.device.type == "cpu":
        what = "the teacher is in main memory anyway: there is no accelerator"
        raise ConfigError([Problem("--offload_teacher_model", what, "remove it")])
    if gkd.teacher_model is None:
        found = build_reference(config, prepared.folder, prepared.tokenizer, model)
        return LocalTeacher(found.model if isinstance(found, SecondModel) else None, measure, world.device)
    return LocalTeacher(_teacher_model(config, prepared, world), measure, world.device, offload=gkd.offload_teacher_model)


def _teacher_model(config: RlhfConfig, prepared: Prepared, world: World) -> nn.Module:
    gkd = config.gkd
    changes = {"model": gkd.teacher_model, "model_type": gkd.teacher_model_type, "model_revision": gkd.teacher_model_revision}
    section = config.loading.model_copy(update={**changes, "adapters": gkd.teacher_adapters})
    folder = resolve_model_folder(section)
    check_tokens("--teacher_model", str(gkd.teacher_model), config.loading, folder, prepared.tokenizer)
    device = world.device.type
    dtype = training_dtype(section, folder, device=device, frozen=True)
    model: nn.Module = load_model(section, folder, dtype=dtype, task_type="causal_lm", device=device)
    for adapter in adapter_folders(section):
        model = load_tuner("lora").load(model, adapter, trainable=False)
    return model


def _stream(
    config: RlhfConfig, prepared: Prepared, model: nn.Module, teacher: Teacher, world: World, meter: Meter, record: Completions
) -> GkdStream:
    section, training, tokenizer = config.sampling, config.training, prepared.tokenizer
    writing = Writing(
        prompter=TemplatePrompter(prepared.template),
        scheduler=load_scheduler(config, prepared.template) or SingleTurn(),
        sampling=sampling_of(section),
        limits=limits_of(config),
        world=world,
        decode=lambda ids: tokenizer.decode(list(ids)),
        seed=training.seed,
    )

    def engine(writer: nn.Module) -> RolloutEngine:
        return TransformersSampler(writer, tokenizer, stop_tokens(prepared.template), max_rows=section.rollout_batch_size)

    other = engine(teacher.model) if config.gkd.seq_kd and isinstance(teacher, LocalTeacher) and teacher.model is not None else None
    sources = Sources(prepared.train, prepared.teacher_prompts, engine(model), other, config.gkd.lmbda)
    cursor = PromptCursor(prepared.prompts, seed=training.seed, shuffle=training.train_dataloader_shuffle)
    step = training.per_device_train_batch_size * (training.gradient_accumulation_steps or 1) * world.size
    return GkdStream(sources, writing, cursor, step, meter, record)


def _data_lines(config: RlhfConfig, prepared: Prepared) -> list[str]:
    gkd = config.gkd
    teacher = gkd.teacher_model or gkd.teacher_model_server or "the model as it was, shown teacher_prompt"
    rest = "of the teacher" if gkd.seq_kd else "of the data"
    share = f"{gkd.lmbda:.0%} of the steps on the student's own answers" + (f", the others on answers {rest}" if gkd.lmbda < 1 else "")
    return [*prepared.lines(), f"prompts: {len(prepared.prompts)}", f"task: gkd, beta {config.task.beta:g}, teacher: {teacher}, {share}"]


def show(config: RlhfConfig) -> None:
    """Print the first rows as both models read them; nothing is generated or trained.

    Raises:
        SwiftError: for everything that would stop the run before its first step.
    """
    prepared = prepare(config)
    decode = prepared.tokenizer.decode
    lines: list[str] = []
    for place, sample in enumerate(prepared.prompts[:3]):
        prompt = prepared.teacher_prompts[place]
        shown = prepared.train[place].input_ids if prepared.train else None
        lines += [f"--- {sample.origin}"]
        lines += [f"{'conversation' if shown else 'prompt'}: {decode(shown or _prompt_ids(prepared, sample))}"]
        lines += [f"teacher reads: {decode(prompt)}"] if prompt else []
    running.show_lines(lines, _data_lines(config, prepared))


def _prompt_ids(prepared: Prepared, sample: Sample) -> list[int]:
    return prepared.template.encode_prompt(question(sample)[0], sample.tools)
