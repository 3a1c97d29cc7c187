"""`swift rlhf --rlhf_type dpo|cpo|simpo|orpo|kto`: from settings to a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from swift_core.batching.media import packed_position_ids
from swift_core.data.sources import load_datasets
from swift_core.models.config import load_config
from swift_core.models.loading import max_model_length
from swift_core.models.modules import unwrap
from swift_core.scoring.attention import NAME, SAMPLEWISE, text_attention
from swift_core.tasks import running
from swift_core.tasks.console import indented, say
from swift_core.tasks.encoding import TextReport
from swift_core.tasks.sft import build_model
from swift_core.templates.adapted import AdapterTemplate
from swift_core.templates.chat import ChatTemplate
from swift_core.templates.media import ProcessorTemplate, build_processor_template
from swift_core.train.output import TrainOutput
from swift_core.train.parallel import World, make_world
from torch import nn

from swift_rlhf.config.command import RlhfConfig
from swift_rlhf.preference.answers import AnswerScores, Following
from swift_rlhf.preference.kto_task import KtoTask
from swift_rlhf.preference.objectives import make_objective
from swift_rlhf.preference.pair_task import PairTask
from swift_rlhf.preference.precompute import fill_reference, model_key, scored_rows
from swift_rlhf.preference.reference import Reference
from swift_rlhf.preference.references import build_reference, reference_folders
from swift_rlhf.preference.samples import Answer, Encoding, encode_judged, encode_pairs
from swift_rlhf.preference.scoring import silence_dropout

_WITH_REFERENCE = frozenset({"dpo", "kto"})


@dataclass(slots=True, kw_only=True)
class Prepared(running.Prepared):
    """What a run over judged answers needs but the models.

    Attributes:
        template: renders and masks.
    """

    template: ChatTemplate


def prepare(config: RlhfConfig) -> Prepared:
    """Fetch the model folder, read the data and encode it; no weights are loaded.

    Raises:
        NotFoundError: when model or data are not where they were said to be.
        DataError: for bad rows, or when nothing is left to train on.
    """
    kto = config.task.rlhf_type == "kto"
    # Data first: a typing error in a row is found before gigabytes are fetched.
    data = load_datasets(config.data, config.loading, task="kto" if kto else "preference")
    opened = running.open_model(config.loading)
    if not config.given("loss_scale"):
        # Turns before the last question are the same on both sides.
        config.derive("loss_scale", "last_round", "derived: what is judged is the last answer")
    template = build_processor_template(opened.processor, config.chat, config.media)
    max_length = config.chat.max_length or max_model_length(load_config(config.loading, opened.folder), opened.tokenizer)
    policy: Any = "fail" if config.data.on_bad_row == "fail" else "skip"
    encoding = Encoding(template, max_length, cast(Any, config.chat.truncation_strategy), policy)
    unrelated = kto and config.task.loss_type == ["kto"]

    def encode(samples: Sequence[Any]) -> tuple[list[Answer], TextReport]:
        return encode_judged(samples, encoding, unrelated=unrelated) if kto else encode_pairs(samples, encoding)

    train_rows, train_report = encode(data.train)
    val_rows, val_report = encode(data.val) if data.val else ([], None)
    reports = (train_report, val_report)
    return Prepared(opened=opened, template=template, train=train_rows, val=val_rows, rows=data.report, reports=reports)


def train(config: RlhfConfig) -> TrainOutput:
    """Run the training from start to end.

    Raises:
        SwiftError: with the fix, for everything that can go wrong on the way.
    """
    world = make_world(config)
    prepared = prepare(config)
    say(world, _data_lines(config, prepared))
    model, tuner = build_model(config, prepared.folder)
    if config.judged.disable_dropout:
        silence_dropout(model)
    scores = _scores(config, prepared, model, world)
    task = KtoTask(config, scores) if config.task.rlhf_type == "kto" else PairTask(make_objective(config), scores)
    return running.fit(config, prepared, model, tuner, task, world)


def show(config: RlhfConfig) -> None:
    """Print the first rows as the model reads them and what became of the data; nothing is trained.

    Raises:
        SwiftError: for everything that would stop the run before its first step.
    """
    prepared = prepare(config)
    decode = prepared.tokenizer.decode
    lines: list[str] = []
    for row in prepared.train[:3]:
        label = "" if row.label is None else f", {'good' if row.label else 'bad'}"
        lines.append(f"--- {row.origin or 'row'}{label}, {row.shared} tokens of the prompt are shared")
        names = ("answer",) if row.rejected is None else ("better", "worse")
        for name, answer in zip(names, row.answers, strict=True):
            trained = [token for token, mark in zip(answer.input_ids, answer.labels, strict=True) if mark != -100]
            lines += [
                f"{name} ({len(answer)} tokens, {len(trained)} compared): {decode(answer.input_ids)}",
                f"  compared: {decode(trained)}",
            ]
    running.show_lines(lines, _data_lines(config, prepared))


def _scores(config: RlhfConfig, prepared: Prepared, model: nn.Module, world: World) -> AnswerScores:
    packed = config.training.padding_free is not False and not isinstance(prepared.template, AdapterTemplate) and _knows_branches(model)
    positions = partial(packed_position_ids, unwrap(model)) if isinstance(prepared.template, ProcessorTemplate) else None
    ld_alpha = config.dpo.ld_alpha
    section = config.reference
    following = Following(section.ref_model_sync_steps, section.ref_model_mixup_alpha) if section.sync_ref_model else None

    def scores(reference: Reference | None) -> AnswerScores:
        weight = "answers" if config.task.rlhf_type == "kto" else "pairs"
        return AnswerScores(
            reference,
            packed=packed,
            positions=positions,
            following=following,
            ld_alpha=ld_alpha,
            weighting=config.dpo.use_weighting,
            weight=weight,
        )

    if config.task.rlhf_type not in _WITH_REFERENCE:
        return scores(None)
    reference = build_reference(config, prepared.folder, prepared.tokenizer, model)
    if section.precompute_ref_log_probs:
        _precompute(config, prepared, model, world, scores(reference))
        reference = None
    return scores(reference)


def _knows_branches(model: nn.Module) -> bool:
    # Other attention functions for packed rows, such as LongLoRA's, look at segments and not at what they continue.
    return text_attention(unwrap(model)) not in SAMPLEWISE - {NAME}


def _precompute(config: RlhfConfig, prepared: Prepared, model: nn.Module, world: World, scores: AnswerScores) -> None:
    key = model_key(
        reference_folders(config, prepared.folder), str(next(model.parameters()).dtype), config.dpo.ld_alpha, str(config.quantization)
    )
    pad = prepared.tokenizer.pad_token_id
    model.to(world.device)

    def logps(batch: Any) -> torch.Tensor:
        found = scores.reference(model, batch)
        assert found is not None
        return found

    def score(rows: Sequence[Answer]) -> tuple[list[float], list[float]]:
        return scored_rows(scores.collate(rows, pad_token_id=pad if isinstance(pad, int) else 0).to(world.device), logps)

    fill_reference([*prepared.train, *prepared.val], key, world, score, say=lambda line: say(world, [line]))


def _data_lines(config: RlhfConfig, prepared: Prepared) -> list[str]:
    lines = prepared.lines()
    kind = config.task.rlhf_type
    if kind == "kto":
        lines += indented(_balance(config, prepared.train))
    beta = f", beta {config.task.beta}" if config.task.beta is not None else ""
    return [*lines, f"task: {kind}, {' + '.join(config.task.loss_type)}{beta}"]


def _balance(config: RlhfConfig, rows: Sequence[Answer]) -> str:
    good = sum(bool(row.label) for row in rows)
    bad = len(rows) - good
    text = f"{good} good and {bad} bad answers"
    weights = (config.kto.desirable_weight * good, config.kto.undesirable_weight * bad)
    if good and bad and not 1 <= weights[0] / max(weights[1], 1e-9) <= 4 / 3:
        wanted = config.kto.desirable_weight * good / bad
        text += f"\nweights times counts are {weights[0]:g} and {weights[1]:g}; the paper wants the first 1 to 1.33 times the second"
        text += f": --undesirable_weight {wanted:.3g}" if wanted <= 1 else f": --desirable_weight {bad / good:.3g}"
    return text
