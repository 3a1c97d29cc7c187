"""Which samples each task takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from swift_core.data.values import Refused
from swift_core.protocols import Sample

Task = Literal["causal_lm", "preference", "kto", "prompt", "seq_cls", "embedding", "reranker"]
"""`causal_lm` trains answers; `preference` compares two answers (DPO, reward model, ...); `kto` takes judged answers; `prompt` lets the
model answer (online RL, inference); the others are what they are called."""

_NUMBERED = "number the classes from 0, or give numbers for a regression"


def needs_answer(task: Task | None) -> bool:
    """Say whether the conversations of a task end with an answer."""
    return task in ("causal_lm", "preference", "kto")


def check_task(sample: Sample, task: Task) -> str:
    """Check that a sample can be used for a task.

    Returns:
        A remark for the summary of the data, or an empty text.

    Raises:
        Refused: with what the task needs, or what it cannot use.
    """
    return _CHECKS[task](sample) or ""


def _check_causal_lm(sample: Sample) -> str:
    if sample.rejected is not None:
        raise Refused(
            "it is a preference pair, not one conversation", "use `swift rlhf --rlhf_type dpo`; sft and pt train one conversation a row"
        )
    if sample.positives or sample.negatives:
        raise Refused("it holds texts to compare, not one conversation", "use --task_type embedding or reranker")
    if sample.label is False:
        return "label: false (undesirable for KTO) is not looked at here: these answers are trained like all others"
    return ""


def _check_preference(sample: Sample) -> None:
    if sample.rejected is None:
        raise Refused("there is no rejected answer", "give 'rejected_response', 'rejected_messages', or 'chosen' and 'rejected'")
    if _compared(sample) == _compared(sample.rejected):
        raise Refused("the rejected answer is the preferred one", "leave such rows out with --on_bad_row skip")


def _compared(sample: Sample) -> tuple[Any, ...]:
    return sample.messages, sample.images, sample.videos, sample.audios, sample.tools


def _check_kto(sample: Sample) -> None:
    if sample.rejected is not None:
        raise Refused("it is a pair, and KTO takes one judged answer a row", "use a preference method such as dpo, or split the pairs")
    if not isinstance(sample.label, bool):
        given = "there is no label" if sample.label is None else f"the label is {sample.label!r}"
        raise Refused(f"{given}, and KTO needs to know whether the answer is desirable", "give the column 'label': true or false")


def _check_prompt(sample: Sample) -> None:
    if not any(message["role"] == "user" for message in sample.messages):
        raise Refused("there is no question to answer", "give a user turn, or a column such as 'query'")


def _check_embedding(sample: Sample) -> None:
    if not sample.positives and not sample.negatives:
        raise Refused("there is no second text to compare with", "give 'positive_messages', 'positive', or 'sentence1' and 'sentence2'")
    if sample.label is not None and (isinstance(sample.label, bool) or not isinstance(sample.label, int | float)):
        raise Refused(f"the similarity is {sample.label!r}", "write a number")


def _check_reranker(sample: Sample) -> None:
    if not sample.positives and not sample.negatives:
        raise Refused("there is no document to rank", "give 'positive_messages' and 'negative_messages', or 'document' and 'label'")


def _check_class(sample: Sample) -> None:
    if sample.label is None:
        raise Refused("there is no label", "give the column 'label': a class, a list of classes, a number or a list of numbers")
    labels = sample.label if isinstance(sample.label, list) else [sample.label]
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int | float):
            raise Refused(f"the label is {sample.label!r}", _NUMBERED)


_CHECKS: dict[Task, Callable[[Sample], str | None]] = {
    "causal_lm": _check_causal_lm,
    "preference": _check_preference,
    "kto": _check_kto,
    "prompt": _check_prompt,
    "seq_cls": _check_class,
    "embedding": _check_embedding,
    "reranker": _check_reranker,
}
