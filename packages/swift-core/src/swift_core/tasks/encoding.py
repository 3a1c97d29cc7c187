"""Samples of tasks that look at whole texts to token ids, within a length limit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from swift_core.config.tasks import TaskSection
from swift_core.errors import DataError, SwiftError, TemplateError
from swift_core.protocols import EncodedSample, Message, Sample
from swift_core.templates.chat import ChatTemplate

JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
"""System message of the Qwen3 rerankers, with their words for the two answers."""


def judge_of(section: TaskSection) -> str:
    """Return the system message of a reranker with the words for its two answers."""
    words = (section.positive_token, section.negative_token) if section.task_type == "generative_reranker" else ("yes", "no")
    return JUDGE.replace('"yes"', f'"{words[0]}"').replace('"no"', f'"{words[1]}"')


@dataclass(slots=True)
class TextReport:
    """What became of the rows of a data set.

    Attributes:
        rows: samples given.
        kept: samples that are trained.
        texts: texts or pairs of these.
        tokens: tokens of these.
        longest: tokens of the longest text before any cut, and its origin.
        max_length: the limit, or None.
        lengths: tokens of every text before any cut.
        dropped: reason -> samples left out.
        notes: remark -> number of cases.
    """

    rows: int = 0
    kept: int = 0
    texts: int = 0
    tokens: int = 0
    longest: tuple[int, str] = (0, "")
    max_length: int | None = None
    lengths: list[int] = field(default_factory=list[int])
    dropped: Counter[str] = field(default_factory=Counter[str])
    notes: Counter[str] = field(default_factory=Counter[str])

    def summary(self) -> str:
        """Return the counts as text."""
        lines = [f"{self.kept:,} samples of {self.rows:,} rows: {self.texts:,} texts, {self.tokens:,} tokens"]
        if self.longest[0]:
            lines.append(f"longest text: {self.longest[0]:,} tokens" + (f" ({self.longest[1]})" if self.longest[1] else ""))
        lines += [f"{count:,} dropped: {reason}" for reason, count in self.dropped.most_common()]
        lines += [f"{count:,} {remark}" for remark, count in self.notes.most_common()]
        return "\n".join(lines)


class TooLong(Exception):
    """A text exceeds the limit and is not to be cut."""


class TextEncoder:
    """Turns messages into the tokens that a model with a head, an embedding model or a reranker reads.

    Args:
        tokenizer: of the model.
        template: renders messages; None joins their texts and adds the special tokens that the tokenizer puts around a text, as
            encoders and sentence-transformers models want it.
        max_length: limit of a text in tokens, or None.
        truncation: `delete` refuses longer texts, `left` and `right` cut them at that side.
        report: counts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate | None,
        *,
        max_length: int | None,
        truncation: Literal["delete", "left", "right"],
        report: TextReport,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.report = report
        self._limit = max_length
        self._truncation: Literal["delete", "left", "right"] = truncation

    def conversation(self, sample: Sample) -> EncodedSample:
        """Return a conversation; where the last turn is not the assistant's, the model is asked for its answer.

        Raises:
            TooLong: when it exceeds the limit and is not to be cut.
        """
        if self.template is None:
            return self._words(self._joined(sample), None, sample.origin)
        return self._rendered(sample, prompt=sample.messages[-1]["role"] != "assistant")

    def text(self, sample: Sample) -> EncodedSample:
        """Return a text for an embedding; a lone turn is the user's, whoever is said to have written it.

        Raises:
            TooLong: when it exceeds the limit and is not to be cut.
        """
        if self.template is None:
            return self._words(self._joined(sample), None, sample.origin)
        lone = len(sample.messages) == 1
        messages = [Message(role="user", content=sample.messages[0]["content"])] if lone else sample.messages
        return self._rendered(replace(sample, messages=messages), prompt=False)

    def pair(self, query: Sample, document: Sample, *, instruction: str, judge: str) -> EncodedSample:
        """Return a query and a document as one text.

        Without a template they are the two parts that the tokenizer knows. With one they stand in a user turn as the Qwen3
        rerankers have it, and the model is asked for its answer.

        Args:
            query: its system message takes the place of the instruction.
            document: the other part.
            instruction: what relevant means.
            judge: system message that tells the model what to answer.

        Raises:
            TooLong: when it exceeds the limit and is not to be cut.
        """
        if self.template is None:
            return self._words(self._joined(query), self._joined(document), query.origin)
        own = [message for message in query.messages if message["role"] == "system"]
        asked = [message for message in query.messages if message["role"] != "system"]
        what = own[0]["content"] if own else instruction
        content = f"<Instruct>: {what}\n<Query>: {_joined(asked)}\n<Document>: {_joined(document.messages)}"
        messages = [Message(role="system", content=judge), Message(role="user", content=content)]
        # The media of the query come first, as their tags do.
        media: dict[str, Any] = {name: [*getattr(query, name), *getattr(document, name)] for name in ("images", "videos", "audios")}
        return self._rendered(Sample(messages, origin=query.origin, **media), prompt=True)

    def _rendered(self, sample: Sample, *, prompt: bool) -> EncodedSample:
        template: Any = self.template
        if template.takes_media:
            encoded: EncodedSample = template.encode_media_prompt(sample) if prompt else template.encode(sample)
            return self._fitted(encoded, sample.origin)
        if sample.has_media:
            template.mark(sample)  # says why it cannot
        text = template.render(sample.messages, sample.tools, add_generation_prompt=prompt, variables=sample.chat_template_kwargs)
        ids: Any = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return self._fitted(EncodedSample(list(ids), []), sample.origin)

    def _fitted(self, encoded: EncodedSample, origin: str) -> EncodedSample:
        length, limit = len(encoded), self._limit
        self._count(length, origin)
        if limit is None or length <= limit:
            return replace(encoded, labels=[], loss_scale=None, origin=origin)
        start = 0 if self._truncation == "right" else length - limit
        template: Any = self.template
        cut = template.cut(encoded, start, start + limit) if encoded.model_inputs else encoded
        if cut is None:
            raise TooLong  # media and their places in the text would part
        ids = cut.input_ids if encoded.model_inputs else encoded.input_ids[start : start + limit]
        return EncodedSample(ids, [], origin, model_inputs=cut.model_inputs)

    def _joined(self, sample: Sample) -> str:
        if sample.has_media:
            raise DataError("this model reads plain texts, and the row has images, videos or sounds", fix="choose a multimodal model")
        return _joined(sample.messages)

    def _words(self, first: str, second: str | None, origin: str) -> EncodedSample:
        # The tokenizer cuts by itself, because the special tokens around a text must stay.
        encoded: Any = self.tokenizer(first, second, verbose=False)
        self._count(len(encoded["input_ids"]), origin)
        if self._limit is not None and len(encoded["input_ids"]) > self._limit:
            usual = self.tokenizer.truncation_side
            self.tokenizer.truncation_side = self._truncation
            try:
                encoded = self.tokenizer(first, second, truncation="longest_first", max_length=self._limit, verbose=False)
            finally:
                self.tokenizer.truncation_side = usual
        types: list[int] | None = encoded.get("token_type_ids")
        return EncodedSample(
            list(encoded["input_ids"]), [], origin, model_inputs={"token_type_ids": torch.tensor(types)} if types and any(types) else None
        )

    def _count(self, length: int, origin: str) -> None:
        self.report.longest = max(self.report.longest, (length, origin), key=lambda pair: pair[0])
        self.report.lengths.append(length)
        if self._limit is None or length <= self._limit:
            return
        if self._truncation == "delete":
            raise TooLong
        self.report.notes[f"texts cut to {self._limit:,} tokens (--max_length)"] += 1


def _joined(messages: Sequence[Message]) -> str:
    found: list[str] = []
    for message in messages:
        content: Any = message["content"]
        if not isinstance(content, str):
            raise TemplateError(f"a message has no text: {content!r}", fix="give it a content of text")
        found.append(content)
    return "".join(found)


def encode_rows(
    samples: Sequence[Sample],
    encode: Callable[[Sample], EncodedSample | list[EncodedSample] | str],
    report: TextReport,
    *,
    on_bad_row: Literal["fail", "skip"],
) -> list[EncodedSample]:
    """Encode rows and count what becomes of them.

    Args:
        samples: rows as read.
        encode: returns the samples of a row, or the reason why there is none.
        report: counts.
        on_bad_row: `skip` drops and counts rows that cannot be encoded instead of raising.

    Raises:
        SwiftError: for a row that cannot be encoded when `on_bad_row` is `fail`.
        DataError: when nothing is left.
    """
    kept: list[EncodedSample] = []
    for sample in samples:
        report.rows += 1
        try:
            found = encode(sample)
        except TooLong:
            report.dropped[f"longer than {report.max_length:,} tokens (--max_length)"] += 1
            continue
        except SwiftError as error:
            if on_bad_row == "fail":
                if not sample.origin or error.message.startswith(sample.origin):
                    raise
                raise DataError(error.message, location=sample.origin, fix=error.fix) from error
            report.dropped[error.message] += 1
            continue
        if isinstance(found, str):
            report.dropped[found] += 1
            continue
        kept += found if isinstance(found, list) else [found]
    parts = [part for sample in kept for part in (sample, *sample.positives, *sample.negatives) if part.input_ids]
    report.kept, report.texts, report.tokens = len(kept), len(parts), sum(len(part) for part in parts)
    if samples and not kept:
        reason, count = report.dropped.most_common(1)[0]
        fix = (
            "raise --max_length, or --truncation_strategy right"
            if "--max_length" in reason
            else "look at the rows with `swift data preview`"
        )
        raise DataError(f"no sample is left: {count} of {report.rows} rows are dropped: {reason}", fix=fix)
    return kept


def draw(items: Sequence[Sample], count: int, *, key: str) -> list[Sample]:
    """Return at most `count` of the items in their order, chosen by the key: the same for the same key."""
    if len(items) <= count:
        return list(items)
    chosen = random.Random(key).sample(range(len(items)), count)
    return [items[index] for index in sorted(chosen)]


def encode_pairs(encoder: TextEncoder, sample: Sample, section: TaskSection, *, seed: int, training: bool) -> EncodedSample | str:
    """Return a row of a reranker: every document of it together with the query, or the reason why it is left out.

    Training takes at most `max_positive_samples` and `max_negative_samples` documents, evaluation all.

    Raises:
        DataError: when the row has no documents.
    """
    positives, negatives = sample.positives, sample.negatives
    if not positives and not negatives:
        raise DataError("there is no document to rank", fix="give positive_messages and negative_messages")
    if training:
        positives = draw(positives, section.max_positive_samples, key=f"{seed}/{sample.origin}/positive")
        negatives = draw(negatives, section.max_negative_samples, key=f"{seed}/{sample.origin}/negative")
    if section.loss == "listwise_reranker":
        if not positives:
            return "no relevant document, which listwise_reranker needs"
        if len(positives) + len(negatives) < section.listwise_min_group_size:
            return f"fewer than {section.listwise_min_group_size} documents (--listwise_min_group_size)"
    judge = judge_of(section)

    def pairs(documents: Sequence[Sample]) -> list[EncodedSample]:
        return [encoder.pair(sample, document, instruction=section.reranker_instruction, judge=judge) for document in documents]

    return EncodedSample([], [], sample.origin, channel=sample.channel, positives=pairs(positives), negatives=pairs(negatives))


def encode_texts(encoder: TextEncoder, sample: Sample, section: TaskSection, *, seed: int, training: bool) -> list[EncodedSample]:
    """Return a row of embedding data: for infonce one sample for each positive, else one sample with all texts.

    Training takes at most `max_positive_samples`, `max_negative_samples` and `infonce_hard_negatives` texts, evaluation all.

    Raises:
        DataError: when there is nothing to compare with, or the label does not fit the loss.
    """
    _check_similarity(sample, section)
    positives, negatives = sample.positives, sample.negatives
    if training:
        positives = draw(positives, section.max_positive_samples, key=f"{seed}/{sample.origin}/positive")
        hard = section.infonce_hard_negatives
        most = section.max_negative_samples if hard is None else min(section.max_negative_samples, hard)
        negatives = draw(negatives, most, key=f"{seed}/{sample.origin}/negative")
    anchor = encoder.text(sample)
    near, far = [encoder.text(text) for text in positives], [encoder.text(text) for text in negatives]
    groups = [[text] for text in near] if section.loss == "infonce" else [near]
    label = sample.label if section.loss != "infonce" else None
    return [replace(anchor, channel=sample.channel, label=label, positives=group, negatives=far) for group in groups]


def _check_similarity(sample: Sample, section: TaskSection) -> None:
    label: Any = sample.label
    if section.loss == "infonce" and not sample.positives:
        raise DataError("there is no positive text, which infonce needs", fix="give positive_messages")
    if not sample.positives and not sample.negatives:
        raise DataError("there is no second text to compare with", fix="give positive_messages, or negative_messages")
    if label is None:
        return
    if isinstance(label, bool) or not isinstance(label, int | float):
        raise DataError(f"the similarity is {label!r}", fix="write a number")
    if section.loss == "infonce" and label != 1:
        raise DataError(
            f"the texts have the similarity {label}, and infonce takes every positive as a match",
            fix="--loss_type cosine_similarity or contrastive for rows with a similarity",
        )
    if section.loss in ("contrastive", "online_contrastive") and label not in (0, 1):
        raise DataError(f"the similarity is {label}, and {section.loss} takes 0 or 1", fix="--loss_type cosine_similarity")
    if not -1 <= label <= 1:
        raise DataError(
            f"the similarity is {label}, and a cosine is between -1 and 1", fix="divide the similarities by their largest value"
        )
