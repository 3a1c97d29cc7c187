"""Rows with judged answers to token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from swift_core.batching.collate import IGNORED
from swift_core.batching.encode import CutsMedia
from swift_core.errors import DataError, TemplateError
from swift_core.protocols import EncodedSample, Sample
from swift_core.tasks.encoding import TextReport
from swift_core.templates.chat import ChatTemplate

CHUNK = 512
"""Conversations that go through the tokenizer in one call."""

Truncation = Literal["delete", "left", "right"]


@dataclass(slots=True)
class Answer(EncodedSample):
    """An answer with its prompt.

    Attributes:
        shared: tokens at the start that this answer and `rejected` have in common and that are not trained.
        reference: log-probability of the answer under the reference model in nats, where it was computed beforehand.
        unrelated: the prompt of this answer with an answer to another prompt, for the KL of KTO.
    """

    shared: int = 0
    reference: float | None = None
    unrelated: Answer | None = field(default=None)

    @property
    def answers(self) -> list[Answer]:
        """Return the answers whose log-probabilities are compared: a pair, the better one first, or one."""
        return [self] if self.rejected is None else [self, as_answer(self.rejected)]


def as_answer(sample: EncodedSample) -> Answer:
    """Return a sample as an answer."""
    if isinstance(sample, Answer):
        return sample
    return Answer(
        sample.input_ids,
        sample.labels,
        sample.origin,
        sample.loss_scale,
        sample.model_inputs,
        sample.channel,
        sample.label,
        sample.rejected,
    )


@dataclass(slots=True)
class Encoding:
    """How conversations become token ids.

    Attributes:
        template: renders and masks.
        max_length: limit of a conversation in tokens, or None.
        truncation: `delete` leaves longer rows out, `left` and `right` cut at that side.
        on_bad_row: `skip` counts rows that cannot be rendered instead of raising.
    """

    template: ChatTemplate
    max_length: int | None
    truncation: Truncation
    on_bad_row: Literal["fail", "skip"]


def encode_pairs(samples: Sequence[Sample], encoding: Encoding) -> tuple[list[Answer], TextReport]:
    """Encode pairs of a better and a worse answer.

    Returns:
        the better answers, each with the worse one as `rejected`, and what became of the rows.

    Raises:
        TemplateError: for a row that cannot be rendered when bad rows fail.
        DataError: when nothing is left.
    """
    report = TextReport(max_length=encoding.max_length)
    kept: list[Answer] = []
    for sample, (chosen, rejected) in _encoded(samples, _both, encoding, report):
        lengths = (len(chosen), len(rejected))
        report.lengths += lengths
        report.longest = max(report.longest, (max(lengths), sample.origin), key=lambda pair: pair[0])
        fitted = _within([chosen, rejected], encoding, report)
        if fitted is None:
            continue
        chosen, rejected = fitted
        if chosen.input_ids == rejected.input_ids and not chosen.model_inputs:
            report.dropped["both answers are the same" + (" up to --max_length" if max(lengths) > len(chosen) else "")] += 1
        else:
            chosen.channel, chosen.rejected, chosen.shared = sample.channel, rejected, shared_tokens(chosen, rejected)
            kept.append(chosen)
    return _checked(kept, samples, report)


def encode_judged(samples: Sequence[Sample], encoding: Encoding, *, unrelated: bool) -> tuple[list[Answer], TextReport]:
    """Encode answers that are good (`label` true) or bad.

    Args:
        samples: rows with a label.
        encoding: how.
        unrelated: whether each prompt is also set to the answer of an earlier row with another prompt.

    Raises:
        TemplateError: for a row that cannot be rendered when bad rows fail.
        DataError: when nothing is left, or no other prompt is there.
    """
    report = TextReport(max_length=encoding.max_length)
    partners = _partners(samples) if unrelated else {}

    def conversations(sample: Sample) -> list[Sample]:
        return [sample, partners[id(sample)]] if unrelated else [sample]

    kept: list[Answer] = []
    for sample, encoded in _encoded(samples, conversations, encoding, report):
        report.lengths.append(len(encoded[0]))
        report.longest = max(report.longest, (len(encoded[0]), sample.origin), key=lambda pair: pair[0])
        fitted = _within(encoded, encoding, report)
        if fitted is None:
            continue
        answer = fitted[0]
        answer.label, answer.channel = sample.label, sample.channel
        answer.unrelated = fitted[1] if unrelated else None
        kept.append(answer)
    return _checked(kept, samples, report)


def shared_tokens(first: EncodedSample, second: EncodedSample) -> int:
    """Return how many tokens two conversations begin with in common before any trained one, at least one left in each."""
    limit = min(len(first) - 1, len(second) - 1, _first_trained(first), _first_trained(second))
    pairs = zip(first.input_ids[:limit], second.input_ids[:limit], strict=True)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), max(limit, 0))


def _first_trained(sample: EncodedSample) -> int:
    return next((place for place, label in enumerate(sample.labels) if label != IGNORED), len(sample))


def _both(sample: Sample) -> list[Sample]:
    assert sample.rejected is not None
    return [sample, replace(sample.rejected, origin=sample.origin)]


def _partners(samples: Sequence[Sample]) -> dict[int, Sample]:
    """Return for each row its prompt with the answer of the nearest row before it, around the end, that has another prompt.

    Raises:
        DataError: when all rows have the same prompt.
    """
    prompts = [_prompt_key(sample) for sample in samples]
    found: dict[int, Sample] = {}
    for number, sample in enumerate(samples):
        other = next((samples[number - back] for back in range(1, len(samples)) if prompts[number - back] != prompts[number]), None)
        if other is None:
            fix = "add rows with other prompts, or --loss_type apo_zero_unpaired, which compares with no other prompt"
            raise DataError("KTO compares each prompt with an answer to another one, and all rows have the same", fix=fix)
        found[id(sample)] = replace(sample, messages=[*sample.messages[: _answer_at(sample)], *other.messages[_answer_at(other) :]])
    return found


def _answer_at(sample: Sample) -> int:
    asked = [place for place, message in enumerate(sample.messages) if message["role"] != "assistant"]
    return asked[-1] + 1 if asked else 0


def _prompt_key(sample: Sample) -> str:
    return repr(sample.messages[: _answer_at(sample)])


def _encoded(
    samples: Sequence[Sample], conversations: Callable[[Sample], list[Sample]], encoding: Encoding, report: TextReport
) -> Iterator[tuple[Sample, list[Answer]]]:
    """Yield each row with its conversations as token ids."""
    for start in range(0, len(samples), CHUNK):
        used: list[tuple[Sample, int]] = []
        marked = []
        for sample in samples[start : start + CHUNK]:
            report.rows += 1
            try:
                found = [encoding.template.mark(each) for each in conversations(sample)]
            except TemplateError as error:
                if encoding.on_bad_row == "fail":
                    fix = f"{error.fix or 'mend the row'}; or leave such rows out with --on_bad_row skip"
                    raise TemplateError(error.message, fix=fix) from error
                report.dropped[f"cannot be rendered: {error.message}"] += 1
                continue
            marked += found
            used.append((sample, len(found)))
        ready = iter(encoding.template.tokenize(marked))
        for sample, count in used:
            answers = [as_answer(next(ready)) for _ in range(count)]
            if any(answer.loss_scale is not None for answer in answers):
                raise DataError(
                    "tokens weigh differently, and answers that are compared count whole",
                    location=sample.origin or None,
                    fix="remove weights from --loss_scale and the messages; default, last_round and all have none",
                )
            yield sample, answers


def _within(answers: list[Answer], encoding: Encoding, report: TextReport) -> list[Answer] | None:
    """Return the conversations of a row within the limit, or None where it is left out; all are cut at the same place."""
    limit, longest = encoding.max_length, max(map(len, answers))
    fitted: list[Answer] = answers
    if limit is not None and longest > limit:
        start = longest - limit if encoding.truncation == "left" else 0
        parts = [None if encoding.truncation == "delete" else _cut(answer, start, start + limit, encoding) for answer in answers]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts):
            report.dropped[f"longer than {limit:,} tokens (--max_length)"] += 1
            return None
        report.notes[f"rows cut to {limit:,} tokens (--max_length)"] += 1
        fitted = whole
    if any(answer.trained_tokens == 0 for answer in fitted):
        cut = limit is not None and longest > limit
        report.dropped["no token of an answer is trained" + (f" after the cut to {limit:,} tokens (--max_length)" if cut else "")] += 1
        return None
    return fitted


def _cut(answer: Answer, start: int, stop: int, encoding: Encoding) -> Answer | None:
    stop = min(stop, len(answer))
    if start == 0 and stop == len(answer):
        return answer
    if start >= stop:
        return replace(answer, input_ids=answer.input_ids[:1], labels=[IGNORED])
    if answer.model_inputs:
        found = encoding.template.cut(answer, start, stop) if isinstance(encoding.template, CutsMedia) else None
        return None if found is None else as_answer(found)
    return replace(answer, input_ids=answer.input_ids[start:stop], labels=answer.labels[start:stop])


def _checked(kept: list[Answer], samples: Sequence[Sample], report: TextReport) -> tuple[list[Answer], TextReport]:
    parts = [part for answer in kept for part in answer.answers]
    report.kept, report.texts, report.tokens = len(kept), len(parts), sum(map(len, parts))
    if samples and not kept:
        reason, count = report.dropped.most_common(1)[0]
        fix = "look at the rows with `swift data preview --rlhf_type dpo`"
        if "--max_length" in reason:
            fix = f"raise --max_length (the shortest has {min(report.lengths)} tokens), or --truncation_strategy right or left"
        raise DataError(f"no row is left: {count} of {report.rows} are dropped: {reason}", location=samples[0].origin or None, fix=fix)
    return kept, report
