"""Reward models as rewards: a sequence classifier reads the conversation with the answer and gives a score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from swift_core.config.sections import MediaSection, ModelSection, TemplateSection
from swift_core.errors import ModelError
from swift_core.models.loading import load_model, load_processor, max_model_length, resolve_model_folder, tokenizer_of
from swift_core.models.modules import unwrap
from swift_core.protocols import Message, Sample
from swift_core.tasks.encoding import TextEncoder, TextReport
from swift_core.tasks.headed import tell_padding, text_template
from swift_core.tasks.texts import pad_texts
from swift_core.train.parallel import training_device
from swift_core.train.tuning import load_tuner, weights_dtype
from torch import nn

ARGS = "args.json"
ADAPTER = "adapter_config.json"
BATCH = 8
"""Conversations of a forward pass."""

_PROMPT = ("template", "system", "use_chat_template", "agent_template", "enable_thinking")


class RewardModelScores:
    """Scores answers by a reward model; several outputs count by their mean.

    Args:
        model: a sequence classifier, frozen here.
        encoder: makes token ids of conversations.
    """

    def __init__(self, model: nn.Module, encoder: TextEncoder) -> None:
        self._model = model.eval().requires_grad_(False)
        self._encoder = encoder

    def __call__(self, completions: Sequence[str], *, messages: Sequence[Sequence[Message]], origins: Sequence[str]) -> list[float]:
        """Return the score of each answer.

        Args:
            completions: the answers.
            messages: the conversations that they end.
            origins: where the prompts came from.
        """
        encoded = [
            self._encoder.conversation(Sample(list(conversation), origin=origin))
            for conversation, origin in zip(messages, origins, strict=True)
        ]
        pad: Any = self._encoder.tokenizer.pad_token_id or 0
        order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))
        device = next(self._model.parameters()).device
        found = [0.0] * len(encoded)
        with torch.no_grad():
            for start in range(0, len(order), BATCH):
                part = order[start : start + BATCH]
                texts = pad_texts([encoded[place] for place in part], pad_token_id=pad).to(device)
                scores = self._model(**texts.inputs(self._model)).logits.float().mean(-1)
                for place, score in zip(part, scores.tolist(), strict=True):
                    found[place] = score
        return found


def load_reward_models(references: Sequence[str], settings: Any) -> list[tuple[str, RewardModelScores]]:
    """Return reward models with the names that they are logged by.

    Raises:
        NotFoundError: when there is no such model.
        ModelError: when it cannot be loaded, or is no sequence classifier.
    """
    return [(_name(reference, references), _loaded(reference, settings)) for reference in references]


def load_classifier(reference: str, settings: Any) -> tuple[nn.Module, ModelSection, Path]:
    """Return a sequence classifier, how it was found, and the folder that says how it reads texts.

    Args:
        reference: folder, adapter folder, or name on a hub.
        settings: of the run, for where it computes and how models are fetched.

    Raises:
        NotFoundError: when there is no such model.
        ModelError: when it cannot be loaded, or is no sequence classifier.
    """
    said, adapter = Path(reference), _json(Path(reference) / ADAPTER)
    args = _json(said / ARGS)
    base = reference
    if adapter or args.get("tuner_type", "full") != "full":
        base = str(args.get("model") or adapter.get("base_model_name_or_path") or "")
        if not base:
            raise ModelError(f"{reference!r} is an adapter and does not say of which model", fix=f"add {ARGS} of the run that made it")
    section = _section(settings).model_copy(update={"model": base, "model_type": None, "model_revision": None, "adapters": []})
    folder = resolve_model_folder(section)
    device = training_device(use_cpu=settings.launch.use_cpu)
    labels = int(args.get("num_labels") or 1) if base != reference else None
    config = _json(folder / "config.json")
    if base == reference and not any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        fix = "train one with `swift rlhf --rlhf_type rm`"
        raise ModelError(f"{reference!r} is no sequence classifier: its config.json names {config.get('architectures')}", fix=fix)
    dtype = weights_dtype(settings, folder, device=device) if hasattr(settings, "tuner") else torch.float32
    model: Any = load_model(section, folder, dtype=dtype, task_type="seq_cls", num_labels=labels, device=device)
    if base != reference:
        model = load_tuner(str(args.get("tuner_type") or "lora")).load(model, said, trainable=False)
    return model.to(device), section, said if args else folder


def _loaded(reference: str, settings: Any) -> RewardModelScores:
    model, section, source = load_classifier(reference, settings)
    folder = resolve_model_folder(section)
    args = _json(source / ARGS)
    processor = load_processor(folder, trust_remote_code=section.trust_remote_code)
    tokenizer = tokenizer_of(processor)
    chat = TemplateSection(**{name: args[name] for name in _PROMPT if args.get(name) is not None})
    template = text_template(chat, MediaSection(), folder, processor, asked=True)
    settings_of: Any = unwrap(model).config
    tell_padding(settings_of, "seq_cls", tokenizer)
    limit = max_model_length(settings_of, tokenizer)
    # The end of a conversation is what is scored, so the beginning of a long one goes.
    encoder = TextEncoder(tokenizer, template, max_length=limit, truncation="left", report=TextReport(max_length=limit))
    return RewardModelScores(model, encoder)


def _section(settings: Any) -> ModelSection:
    return settings.loading if hasattr(settings, "loading") else ModelSection()


def _name(reference: str, references: Sequence[str]) -> str:
    short = Path(reference).name
    if short.startswith("checkpoint-"):
        short = Path(reference).parent.name + "/" + short
    return reference if [Path(each).name for each in references].count(Path(reference).name) > 1 else short


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is damaged: {error}", fix="choose another checkpoint") from error
    return values if isinstance(values, dict) else {}
