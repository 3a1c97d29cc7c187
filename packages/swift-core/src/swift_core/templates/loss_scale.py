"""How much each part of a conversation counts in the loss."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from swift_core.config.loss_scales import LossScaleChoice, parse_loss_scale
from swift_core.errors import NotFoundError, TemplateError
from swift_core.protocols import Message

# Joined texts keep tool calls as turns of their own; chat templates get them inside assistant messages.
_ANSWERS = ("assistant", "tool_call")

Weighted = tuple[int, int, float]
"""Characters [start, end) and the weight of their loss."""

Weigh = Callable[[str, str], Iterable[Weighted]]
"""Takes an answer and the question before it; returns the parts of the answer with a weight of their own."""


def choose_messages(messages: Sequence[Message], base: str) -> tuple[list[int], list[int]]:
    """Return the indices of the assistant messages that are trained, and of those that are not.

    `default` and `all` train every assistant message, `last_round` those after the last user message (an answer with tool calls
    is several messages). A message's own `loss` beats the rule.

    Raises:
        TemplateError: when a message of another role has a `loss` that contradicts the rule.
    """
    last_user = last_question(messages)
    trained: list[int] = []
    untrained: list[int] = []
    for index, message in enumerate(messages):
        own = message.get("loss")
        if message["role"] not in _ANSWERS:
            if own is not None and own != (base == "all"):
                raise TemplateError(
                    f"message {index + 1} has loss: {str(own).lower()}, but its role is {message['role']!r}",
                    fix="set loss on assistant messages only; --loss_scale all trains every token",
                )
            continue
        wanted = own if own is not None else (base != "last_round" or index > last_user)
        (trained if wanted else untrained).append(index)
    return trained, untrained


def last_question(messages: Sequence[Message]) -> int:
    """Return the index of the last user message, turns that only hold results of tools left out; -1 when there is none."""
    questions = (index for index, message in enumerate(messages) if message["role"] == "user" and not message.get("tool_results"))
    return max(questions, default=-1)


@dataclass(frozen=True, slots=True)
class Marks:
    """Texts that divide an answer into parts, each with the weight of the mark itself and of what follows up to the next mark.

    The part before the first mark counts 1. Marks are found without regard to case.
    """

    weights: Mapping[str, tuple[float, float]]

    def __call__(self, answer: str, question: str) -> Iterable[Weighted]:
        """Yield the weighted parts of an answer."""
        found = list(re.finditer("|".join(map(re.escape, sorted(self.weights, key=len, reverse=True))), answer, re.IGNORECASE))
        ends = [*(match.start() for match in found[1:]), len(answer)]
        table = {mark.lower(): pair for mark, pair in self.weights.items()}
        for match, end in zip(found, ends, strict=True):
            own, following = table[match.group().lower()]
            yield match.start(), match.end(), own
            yield match.end(), end, following


@dataclass(frozen=True, slots=True)
class Patterns:
    """Regular expressions and the weight of what they match."""

    weights: Mapping[str, float]

    def __call__(self, answer: str, question: str) -> Iterable[Weighted]:
        """Yield the weighted parts of an answer."""
        for pattern, weight in self.weights.items():
            for match in re.finditer(pattern, answer, re.DOTALL):
                yield match.start(), match.end(), weight


@dataclass(frozen=True, slots=True)
class Questions:
    """Weights of the whole answer by what the question holds; other answers are weighted by `otherwise`."""

    weights: Mapping[str, float]
    otherwise: Weigh

    def __call__(self, answer: str, question: str) -> Iterable[Weighted]:
        """Yield the weighted parts of an answer."""
        weight = next((weight for words, weight in self.weights.items() if words in question), None)
        return self.otherwise(answer, question) if weight is None else [(0, len(answer), weight)]


_NAMES = ("Name:", "Action:", "Tool:", "Command:", "Arguments:", "action input:", "ACTION_INPUT:")
_ASKS = ("What is the tool", "What is the next tool", "What are the arguments", "What are the parameters", "Give me the parameters")

STRATEGIES: dict[str, Weigh] = {
    "react": Marks(
        {
            "Thought:": (1.0, 1.0),
            "Action:": (2.0, 2.0),
            "Action Input:": (2.0, 2.0),
            "Observation:": (2.0, 0.0),
            "Final Answer:": (1.0, 1.0),
        }
    ),
    "hermes": Patterns({r"<tool_call>.+?</tool_call>": 2.0}),
    "qwen": Marks({"✿FUNCTION✿:": (2.0, 2.0), "✿ARGS✿:": (2.0, 2.0), "✿RESULT✿:": (2.0, 0.0), "✿RETURN✿:": (1.0, 1.0)}),
    "agentflan": Questions(
        dict.fromkeys(_ASKS, 3.0),
        Marks(
            {
                **dict.fromkeys(_NAMES, (1.0, 3.0)),
                "Thought:": (1.0, 1.0),
                "Observation:": (2.0, 0.0),
                "Final Answer:": (1.0, 1.0),
            }
        ),
    ),
    "alpha_umi": Marks(
        {
            "Action:": (2.0, 2.0),
            "Action Input:": (2.0, 2.0),
            "Next:": (2.0, 2.0),
            "Observation:": (2.0, 0.0),
            "Final Answer:": (1.0, 1.0),
        }
    ),
    "ignore_empty_think": Patterns({r"^\s*<think>\s*</think>\s*": 0.0}),
    "ignore_think_prefix": Patterns({r"^\s*<think>\n?": 0.0}),
}


class LossScale:
    """The weights that a `--loss_scale` gives to answers.

    Args:
        text: `base[+strategy]*`.

    Raises:
        TemplateError: when the text or a pattern file is wrong.
        NotFoundError: when a pattern file is absent.
    """

    def __init__(self, text: str) -> None:
        try:
            self.choice: LossScaleChoice = parse_loss_scale(text)
        except ValueError as error:
            raise TemplateError(f"--loss_scale {text}: {error}") from error
        self._strategies: tuple[Weigh, ...] = (
            *(STRATEGIES[name] for name in self.choice.strategies),
            *(weigh for file in self.choice.files for weigh in read_patterns(file)),
        )

    @property
    def base(self) -> str:
        """Return what is trained at all: `default`, `last_round` or `all`."""
        return self.choice.base

    def weigh(self, answer: str, question: str, message: Message) -> list[Weighted]:
        """Return the parts of an answer whose weight is not 1, in order; strategies multiply.

        Args:
            answer: text that is trained, end of turn included.
            question: the user message before it.
            message: gives the answer a weight of its own by `loss_scale`, which takes the place of the strategies.

        Raises:
            TemplateError: when that weight is not a number of at least 0.
        """
        own: Any = cast("dict[str, Any]", message).get("loss_scale")
        if own is not None:
            if isinstance(own, bool) or not isinstance(own, int | float) or own < 0:
                raise TemplateError(f"a message has loss_scale {own!r}", fix="give a number of at least 0")
            return [(0, len(answer), float(own))] if own != 1 else []
        return reduce(multiply, ([part for part in weigh(answer, question)] for weigh in self._strategies), [])


def multiply(one: list[Weighted], other: list[Weighted]) -> list[Weighted]:
    """Return the product of two weightings; parts that neither names count 1 and are left out.

    >>> multiply([(0, 4, 2.0)], [(2, 6, 3.0)])
    [(0, 2, 2.0), (2, 4, 6.0), (4, 6, 3.0)]
    """
    borders = sorted({border for start, stop, _ in (*one, *other) for border in (start, stop)})
    product: list[Weighted] = []
    for start, stop in pairwise(borders):
        weight = 1.0
        for low, high, factor in (*one, *other):
            if low <= start and stop <= high:
                weight *= factor
        if weight == 1.0:
            continue
        if product and product[-1][1] == start and product[-1][2] == weight:
            start = product.pop()[0]
        product.append((start, stop, weight))
    return product


def read_patterns(path: str) -> list[Weigh]:
    """Return the weightings of a JSON file: `{"pattern": [weight]}` or `{"mark": [weight of the mark, weight of what follows]}`.

    Raises:
        NotFoundError: when the file is absent.
        TemplateError: when it is not of that form.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise NotFoundError(f"--loss_scale regex:{path}: there is no such file", fix="give the path of a JSON file of patterns and weights")
    fix = 'write {"regular expression": 2.0} or {"mark": [1.0, 2.0]} (weight of the mark, weight of what follows)'
    try:
        table: Any = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path} is not JSON: {error}", fix=fix) from error
    if not isinstance(table, dict) or not table:
        raise TemplateError(f"{path} holds no patterns", fix=fix)
    patterns: dict[str, float] = {}
    marks: dict[str, tuple[float, float]] = {}
    for pattern, value in cast("dict[str, Any]", table).items():
        numbers = [float(number) for number in _list(value) if isinstance(number, int | float) and number >= 0]
        if not pattern or len(numbers) != len(_list(value)) or len(numbers) not in (1, 2):
            raise TemplateError(f"{path}: the weight of {pattern!r} is {value!r}", fix=fix)
        if len(numbers) == 2:
            marks[pattern] = (numbers[0], numbers[1])
            continue
        try:
            re.compile(pattern)
        except re.error as error:
            raise TemplateError(f"{path}: {pattern!r} is not a regular expression: {error}", fix=fix) from error
        patterns[pattern] = numbers[0]
    made: list[Weigh] = []
    if patterns:
        made.append(Patterns(patterns))
    if marks:
        made.append(Marks(marks))
    return made


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]
