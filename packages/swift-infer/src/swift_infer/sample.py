"""`swift sample`: several answers to every row, judged, and the best ones written as training data."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swift_core.errors import ConfigError, DataError, Problem
from swift_core.plugins import load_plugin_files
from swift_core.protocols import Engine, InferResponse, Message, Sample, TextEngine
from swift_core.registry import REWARDS, import_target

from swift_infer.batch import Progress, Question, load_questions
from swift_infer.checkpoint import Checkpoint
from swift_infer.config import SampleConfig, SampleSection

Judge = Callable[[Sequence[Question], Sequence[Sequence[str]]], list[list[float]]]


@dataclass(frozen=True, slots=True)
class Judged:
    """The answers to one row.

    Attributes:
        question: the row.
        answers: texts, in the order in which they were drawn.
        rewards: one for each; None where nobody judges.
        finished: whether each came to its own end.
    """

    question: Question
    answers: list[str]
    rewards: list[float] | None
    finished: list[bool]

    def ranked(self) -> list[int]:
        """Return the numbers of the answers, best first; the same text counts once."""
        first = {text: number for number, text in reversed(list(enumerate(self.answers)))}
        numbers = sorted(first.values())
        rewards = self.rewards
        return numbers if rewards is None else sorted(numbers, key=lambda number: -rewards[number])


def sample_dataset(config: SampleConfig, checkpoint: Checkpoint | None, build_engine: Callable[[], Engine]) -> int:
    """Answer all rows, keep what is good, and return the exit code.

    Raises:
        ConfigError: for a reward that does not exist.
        DataError: for bad rows, or an output file of other rows or settings.
        SwiftError: when the model cannot be loaded or a row cannot be answered.
    """
    section, path = config.sampling, Path(config.sampling.output_file).expanduser()
    questions = load_questions(config, checkpoint, path)
    judges = [_by_function(name) for name in section.reward_funcs]
    output = SampleFile(path, fingerprint=_fingerprint(config, questions))
    if output.done >= len(questions):
        sys.stderr.write(f"{path}: all {output.done} rows are sampled already\n")
        return 0
    if output.done:
        sys.stderr.write(f"{path}: {output.done} of {len(questions)} rows are sampled already\n")
    engine = build_engine()
    model = _reward_engine(config) if section.reward_model else None
    if model is not None:
        judges.append(_by_model(model))
    progress, kept = Progress(total=len(questions), done=output.done), 0
    size = config.inference.write_batch_size or max(1, config.inference.max_batch_size // section.num_return_sequences)
    try:
        for start in range(output.done, len(questions), size):
            part = questions[start : start + size]
            responses = _answers(engine, config, part, start)
            rows = [row for judged in _judged(part, responses, judges) for row in rows_of(judged, section)]
            output.append(rows, start + len(part))
            kept += len(rows)
            progress.add(responses)
    finally:
        engine.close()
        if model is not None:
            model.close()
    progress.finish()
    sys.stderr.write(f"kept {kept} rows: {path}\n")
    return 0


def rows_of(judged: Judged, section: SampleSection) -> list[dict[str, Any]]:
    """Return the training rows of one prompt.

    Answers that were cut off, and those below `min_reward`, are no examples; a pair needs a worse answer too.
    """
    question, rewards = judged.question, judged.rewards

    def worth(number: int) -> bool:
        return judged.finished[number] and (section.min_reward is None or rewards is None or rewards[number] >= section.min_reward)

    def example(number: int) -> dict[str, Any]:
        told = {} if rewards is None else {"reward": rewards[number]}
        tools = {"tools": question.sample.tools} if question.sample.tools else {}
        answer = Message(role="assistant", content=judged.answers[number])
        return {"messages": [*question.messages, answer], **tools, **told, "origin": question.sample.origin}

    if section.output_format == "all":
        found = {"messages": question.messages, "responses": judged.answers, "rewards": rewards, "finished": judged.finished}
        return [{**found, "labels": question.labels, "origin": question.sample.origin}]
    ranked = judged.ranked()
    good = [number for number in ranked if worth(number)]
    if section.output_format == "sft":
        return [example(number) for number in good[: section.n_best_to_keep]]
    assert rewards is not None
    worst = ranked[-1]
    pairs = [number for number in good[: section.n_best_to_keep] if rewards[number] > rewards[worst]]
    return [
        {
            **example(number),
            "rejected_response": judged.answers[worst],
            "rejected_reward": rewards[worst],
            "margin": rewards[number] - rewards[worst],
        }
        for number in pairs
    ]


class SampleFile:
    """Rows, and beside them how far sampling has come, so that a run that was stopped goes on.

    Args:
        path: the jsonl file.
        fingerprint: of rows and settings.

    Raises:
        DataError: when the file was made from other rows or with other settings.
    """

    def __init__(self, path: Path, *, fingerprint: str) -> None:
        self._path, self._state, self._fingerprint = path, path.with_name(path.name + ".state"), fingerprint
        path.parent.mkdir(parents=True, exist_ok=True)
        self.done = 0
        if not self._state.is_file():
            if path.exists() and path.stat().st_size:
                raise DataError(f"{path} exists and is not of this run", fix="give another --output_file, or move it away")
            return
        state: Any = json.loads(self._state.read_text(encoding="utf-8"))
        if state.get("fingerprint") != fingerprint:
            raise DataError(f"{path} was sampled from other rows or with other settings", fix="give another --output_file, or move it away")
        self.done = int(state["done"])
        with path.open("ab") as file:
            file.truncate(int(state["bytes"]))  # what a crash left behind

    def append(self, rows: Sequence[Mapping[str, Any]], done: int) -> None:
        """Write rows, then that so many prompts are done."""
        with self._path.open("ab") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        fresh = self._state.with_name(self._state.name + ".new")
        fresh.write_text(json.dumps({"done": done, "bytes": size, "fingerprint": self._fingerprint}), encoding="utf-8")
        fresh.replace(self._state)
        self.done = done


def _answers(engine: Engine, config: SampleConfig, questions: Sequence[Question], start: int) -> list[InferResponse]:
    request = replace(config.generation.as_request(), n=config.sampling.num_return_sequences)
    if request.seed is None:
        return engine.infer([question.request() for question in questions], request)
    # A seed for each row: going on after a stop gives the same answers as going through.
    seeded = [replace(request, seed=(request.seed + (start + place) * 1_000_003) % 2**63) for place in range(len(questions))]

    async def together() -> list[InferResponse]:
        return list(
            await asyncio.gather(*(engine.ainfer(question.request(), one) for question, one in zip(questions, seeded, strict=True)))
        )

    return asyncio.run(together())


def _judged(questions: Sequence[Question], responses: Sequence[InferResponse], judges: Sequence[Judge]) -> list[Judged]:
    answers = [[choice.message.content or "" for choice in response.choices] for response in responses]
    finished = [[choice.finish_reason == "stop" for choice in response.choices] for response in responses]
    tables = [judge(questions, answers) for judge in judges]
    rewards = [[float(sum(values)) for values in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)] if tables else None
    return [
        Judged(question, texts, rewards[place] if rewards is not None else None, ended)
        for place, (question, texts, ended) in enumerate(zip(questions, answers, finished, strict=True))
    ]


def _by_function(reference: str) -> Judge:
    """Return a judge that is a reward function: a registered name, `file.py:attribute` or `module:attribute`.

    Raises:
        ConfigError: when there is none of that name.
    """
    try:
        if reference in REWARDS or ":" not in reference:
            found: Any = REWARDS.load(reference)
        else:
            place, _, attribute = reference.rpartition(":")
            module = load_plugin_files([place])[0] if place.endswith(".py") else place
            found = import_target(f"{module}:{attribute}", needed_for=f"reward {reference!r}")
        function: Any = found() if inspect.isclass(found) else found
    except (LookupError, ImportError, TypeError) as error:
        what = f"{reference!r}: {getattr(error, 'message', error)}"
        raise ConfigError([Problem("--reward_funcs", what, getattr(error, "fix", None))]) from error

    def judge(questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        rows = [(question, text) for question, texts in zip(questions, answers, strict=True) for text in texts]
        values: Any = function([text for _, text in rows], **_columns(function, rows))
        if inspect.isawaitable(values):
            values = asyncio.run(_awaited(values))
        numbers = [0.0 if value is None else float(value) for value in values]
        if len(numbers) != len(rows):
            raise DataError(f"the reward {reference!r} gave {len(numbers)} values for {len(rows)} answers", fix="return one for each")
        return _split(numbers, answers)

    return judge


async def _awaited(value: Any) -> Any:
    return await value


def _columns(function: Any, rows: Sequence[tuple[Question, str]]) -> dict[str, list[Any]]:
    names = {name for question, _ in rows for name in question.sample.extra}
    table: dict[str, list[Any]] = {name: [question.sample.extra.get(name) for question, _ in rows] for name in names}
    table.setdefault("solution", [question.labels for question, _ in rows])
    table["messages"] = [[*question.messages, Message(role="assistant", content=text)] for question, text in rows]
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return table
    return {parameter.name: table[parameter.name] for parameter in parameters if parameter.name in table}


def _reward_engine(config: SampleConfig) -> TextEngine:
    from swift_core.config.sections import ModelSection

    from swift_infer.config import EngineConfig, ServedTaskSection
    from swift_infer.engines.texts import TextEngine as Reader

    loading = ModelSection(model=config.sampling.reward_model, torch_dtype=config.loading.torch_dtype)
    return Reader(EngineConfig(loading=loading, task=ServedTaskSection(task_type="seq_cls", num_labels=1), use_cpu=config.launch.use_cpu))


def _by_model(engine: TextEngine) -> Judge:
    """Return a judge that is a reward model: one number for a conversation."""

    def judge(questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        samples = [
            Sample([*question.messages, Message(role="assistant", content=text)])
            for question, texts in zip(questions, answers, strict=True)
            for text in texts
        ]
        return _split([float(row[-1]) for row in engine.classify(samples).scores], answers)

    return judge


def _split(numbers: Sequence[float], answers: Sequence[Sequence[str]]) -> list[list[float]]:
    left = iter(numbers)
    return [[next(left) for _ in texts] for texts in answers]


def _fingerprint(config: SampleConfig, questions: Sequence[Question]) -> str:
    section = config.sampling.model_dump(exclude={"output_file"})
    model = [config.loading.model, *config.loading.adapters, config.endpoint.base_url, config.endpoint.endpoint_model]
    values = [section, config.generation.model_dump(), config.chat.model_dump(), model, [question.messages for question in questions]]
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


__all__ = ["Judged", "SampleFile", "rows_of", "sample_dataset"]
