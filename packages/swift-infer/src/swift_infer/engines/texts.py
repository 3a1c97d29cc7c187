"""The engine of models that look at whole texts: vectors, relevance, classes. It reads and pools as training does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from swift_core.config.sections import TemplateSection
from swift_core.config.tasks import TaskSection
from swift_core.errors import DataError, EngineError, ModelError, RequestError
from swift_core.models.loading import (
    load_model,
    load_processor,
    load_tokenizer,
    max_model_length,
    resolve_dtype,
    resolve_model_folder,
    tokenizer_of,
)
from swift_core.protocols import EncodedSample, Message, Sample, TextScores, TextVectors, Usage
from swift_core.tasks.embedding import Embedding
from swift_core.tasks.encoding import TextEncoder, TextReport, TooLong, judge_of
from swift_core.tasks.headed import tell_padding, text_template
from swift_core.tasks.pooling import find_pooling, is_sentence_transformer, max_text_length
from swift_core.tasks.reranker import GenerativeReranker, Reranker
from swift_core.tasks.texts import Texts, pad_texts
from swift_core.train.tuning import load_tuner

from swift_infer.adapter_names import adapter_folders
from swift_infer.checkpoint import ARGS_FILE, read_checkpoint
from swift_infer.config import EngineConfig


class TextEngine:
    """Embeds texts, ranks documents or classifies texts with a transformers model in this process.

    Args:
        config: what to load; its `task` says what the model is for.

    Raises:
        NotFoundError: when the model or adapter is absent.
        ModelError: when it cannot be loaded for the task.
    """

    name = "transformers"

    def __init__(self, config: EngineConfig) -> None:
        loading, served = config.loading, config.task
        self.task = str(served.task_type)
        self.model_name = str(adapter_folders(loading)[0] if loading.adapters else loading.model)
        self.max_batch_size = config.max_batch_size
        device = "cpu" if config.use_cpu or not torch.cuda.is_available() else "cuda"
        folder = resolve_model_folder(loading)
        self._processor = _load_processor(folder, config)
        self.tokenizer = tokenizer_of(self._processor)
        self.model = _load_model(folder, config, device)
        settings = self.model.config
        tell_padding(settings, self.task, self.tokenizer)
        self.problem: str | None = getattr(settings, "problem_type", None)
        names = {name: getattr(config.chat, name) for name in TemplateSection.model_fields if name in type(config.chat).model_fields}
        template = text_template(TemplateSection(**names), config.media, folder, self._processor, asked=_was_rendered(folder, config))
        self.context_length = config.chat.max_length or max_text_length(folder) or max_model_length(settings, self.tokenizer)
        report = TextReport(max_length=self.context_length)
        self._encoder = TextEncoder(self.tokenizer, template, max_length=self.context_length, truncation="delete", report=report)
        self._section = TaskSection(
            task_type=cast(Any, self.task),
            positive_token=served.positive_token,
            negative_token=served.negative_token,
            reranker_instruction=served.reranker_instruction,
        )
        self._run = self._runner(folder, config)
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """Load the model that the settings name."""
        return cls(config)

    def _runner(self, folder: Path, config: EngineConfig) -> Callable[[Texts], torch.Tensor]:
        model, section = self.model, self._section
        if self.task == "embedding":
            source = adapter_folders(config.loading)[0] if config.loading.adapters else folder
            pooling = config.task.pooling or find_pooling(source if is_sentence_transformer(source) else folder, model.config)
            task = Embedding(section, pooling=pooling, dim=int(model.config.get_text_config().hidden_size))
            return lambda texts: F.normalize(task.embed(model, texts), dim=-1)
        if self.task == "seq_cls":
            return lambda texts: model(**texts.inputs(model)).logits.float()
        ranker = GenerativeReranker(section, self.tokenizer) if self.task == "generative_reranker" else Reranker(section)
        return lambda texts: torch.sigmoid(ranker.score(model, texts))

    def embed(self, texts: Sequence[Sample]) -> TextVectors:
        """Return the vectors of texts, in order.

        Raises:
            RequestError: when a text is too long or the model does not embed.
        """
        self._needs("embedding", "vectors come from an embedding model")
        encoded = [self._encoded(lambda sample=sample: self._encoder.text(sample)) for sample in texts]
        return TextVectors(self._forward(encoded).tolist(), _usage(encoded))

    def score(self, pairs: Sequence[tuple[Sample, Sample]]) -> TextScores:
        """Return how relevant each document is to its query: between 0 and 1 by a reranker, the cosine by an embedding model.

        A reward model, or another classifier of numbers, says how good the second text is as an answer to the first.

        Raises:
            RequestError: when a pair is too long or the model does neither.
        """
        if self.task == "embedding":
            found = self.embed([text for pair in pairs for text in pair])
            vectors = torch.tensor(found.vectors)
            return TextScores((vectors[0::2] * vectors[1::2]).sum(-1).tolist(), found.usage)
        if self.task == "seq_cls" and self.problem == "regression":
            numbers = self.classify([_answered(query, answer) for query, answer in pairs])
            return TextScores([sum(row) / len(row) for row in numbers.scores], numbers.usage)
        self._needs("reranker", "scores come from a reranker, an embedding model or a reward model")
        instruction, judge = self._section.reranker_instruction, judge_of(self._section)
        encoded = [
            self._encoded(lambda pair=pair: self._encoder.pair(pair[0], pair[1], instruction=instruction, judge=judge)) for pair in pairs
        ]
        return TextScores(self._forward(encoded).tolist(), _usage(encoded))

    def classify(self, texts: Sequence[Sample]) -> TextScores:
        """Return the probabilities of the classes of each text, or the numbers of a regression.

        Raises:
            RequestError: when a text is too long or the model does not classify.
        """
        self._needs("seq_cls", "classes come from a model of --task_type seq_cls")
        encoded = [self._encoded(lambda sample=sample: self._encoder.conversation(sample)) for sample in texts]
        logits = self._forward(encoded)
        if self.problem == "regression" or logits.shape[-1] == 1:
            return TextScores(logits.tolist(), _usage(encoded))
        chances = torch.sigmoid(logits) if self.problem == "multi_label_classification" else torch.softmax(logits, dim=-1)
        return TextScores(chances.tolist(), _usage(encoded))

    def close(self) -> None:
        """Free the model, after the batch that is running."""
        with self._lock:
            self._closed = True
            self.model = cast(Any, None)

    def _needs(self, task: str, what: str) -> None:
        if not self.task.endswith(task):
            raise RequestError(f"{self.model_name} is a model for {self.task}: {what}", fix="ask a server of such a model")

    def _encoded(self, encode: Callable[[], EncodedSample]) -> EncodedSample:
        try:
            encoded = encode()
        except TooLong as error:
            raise RequestError(
                f"a text is longer than {self.context_length} tokens", fix="shorten it", code="context_length_exceeded"
            ) from error
        except DataError as error:
            raise RequestError(error.message, fix=error.fix) from error
        if not encoded.input_ids:
            raise RequestError("a text is empty", fix="give at least one word")
        return encoded

    @torch.inference_mode()
    def _forward(self, encoded: list[EncodedSample]) -> torch.Tensor:
        """Return what the model gives for each text, on the CPU; texts of like length share a forward pass."""
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        pad: Any = self.tokenizer.pad_token_id or 0
        found: dict[int, torch.Tensor] = {}
        with self._lock:
            if self._closed:
                raise EngineError("the engine is closed", fix="make a new one")
            for start in range(0, len(order), self.max_batch_size):
                part = order[start : start + self.max_batch_size]
                texts = pad_texts([encoded[index] for index in part], pad_token_id=pad)
                rows = self._run(texts.to(self.model.device)).float().cpu()
                found.update(zip(part, rows, strict=True))
        return torch.stack([found[index] for index in range(len(encoded))])


def _answered(query: Sample, answer: Sample) -> Sample:
    """Return a text as the answer of an assistant to another."""
    return Sample([*query.messages, Message(role="assistant", content=answer.messages[-1]["content"])])


def _usage(encoded: Sequence[EncodedSample]) -> Usage:
    return Usage(sum(map(len, encoded)), 0)


def _load_processor(folder: Path, config: EngineConfig) -> Any:
    loading = config.loading
    remote, tokens = loading.trust_remote_code, loading.special_tokens
    if is_sentence_transformer(folder) and not _was_rendered(folder, config):
        return load_tokenizer(folder, trust_remote_code=remote, new_special_tokens=tokens)
    return load_processor(folder, trust_remote_code=remote, new_special_tokens=tokens)


def _load_model(folder: Path, config: EngineConfig, device: str) -> Any:
    loading, served = config.loading, config.task
    if len(loading.adapters) > 1:
        raise ModelError(f"{len(loading.adapters)} adapters are given, one can be loaded", fix="merge them first, or keep one")
    model: Any = load_model(
        loading,
        folder,
        dtype=resolve_dtype(loading, folder, device=device),
        task_type=str(served.task_type),
        num_labels=served.num_labels,
        problem_type=served.problem_type,
    )
    for adapter in adapter_folders(loading):
        model = load_tuner(read_checkpoint(adapter).tuner).load(model, adapter, trainable=False)
    return model.to(device).eval()


def _was_rendered(folder: Path, config: EngineConfig) -> bool:
    """Say whether the run that made the checkpoint put its texts into a chat template."""
    source = adapter_folders(config.loading)[0] if config.loading.adapters else folder
    if not (source / ARGS_FILE).is_file():
        return False
    args = read_checkpoint(source).args
    own = (folder / "chat_template.jinja").is_file() or (source / "chat_template.jinja").is_file()
    return bool(args.get("use_chat_template", True)) and own


__all__ = ["TextEngine"]
