"""The data set that tells a model who it is, filled with a name and an author."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files

from swift_core.config.sections import DataSection
from swift_core.data.rows import Row
from swift_core.errors import ConfigError, DataError, Problem

DEFAULT_NAME = "swift-robot"
DEFAULT_AUTHOR = "swift"
_EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
_NO_THINK = " /no_think"


def rows(subset: str, data: DataSection) -> Iterator[Row]:
    """Yield the questions and answers, with name and author put in.

    Args:
        subset: `default`; `empty_think` puts an empty thought before every answer; `qwen3` also ends every question with
            the switch that turns Qwen3's thinking off.
        data: `model_name` and `model_author` hold one value for both languages, or the Chinese and the English one.
            Without them the assistant is `swift-robot` made by `swift`.

    Raises:
        ConfigError: when more than two names or authors are given.
        DataError: for an unknown subset.
    """
    if subset not in ("default", "qwen3", "empty_think"):
        raise DataError(f"self-cognition has no subset {subset!r}", fix="choose from: default, qwen3, empty_think")
    names = by_language("model_name", data.model_name, DEFAULT_NAME)
    authors = by_language("model_author", data.model_author, DEFAULT_AUTHOR)
    suffix = _NO_THINK if subset == "qwen3" else ""
    prefix = "" if subset == "default" else _EMPTY_THOUGHT
    text = files("swift_core.data").joinpath("self_cognition.jsonl").read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        record: dict[str, str] = json.loads(line)
        language = record.pop("language")
        query, response = (
            record[key].replace("{{NAME}}", names[language]).replace("{{AUTHOR}}", authors[language]) for key in ("query", "response")
        )
        yield Row({"query": query + suffix, "response": prefix + response}, f"self-cognition:{number}")


def by_language(setting: str, values: list[str], default: str) -> dict[str, str]:
    """Return the value for `zh` and `en`.

    Raises:
        ConfigError: when more than two values are given, or an empty one.
    """
    if len(values) > 2 or any(not value.strip() for value in values):
        what = f"has {len(values)} values: {' '.join(map(repr, values))}"
        raise ConfigError(
            [Problem(f"--{setting}", what, f'one for both languages, or the Chinese one and the English one: --{setting} "小雨" "Swift"')]
        )
    zh, en = {0: (default, default), 1: (values * 2)[:2]}.get(len(values), values)
    return {"zh": zh, "en": en}
