"""Names for what decides token ids: data files, settings, template, tokenizer, and the code that makes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import swift_core
from swift_core.config.sections import DataSection, ModelSection, TemplateSection
from swift_core.data.dataset_id import parse_dataset_id
from swift_core.data.locate import find_rows
from swift_core.data.report import RowReport
from swift_core.data.sources import check_settings
from swift_core.registry import TEMPLATES
from swift_core.templates.chat import ChatTemplate

FORMAT = 1
"""Version of the files; another one makes all caches be written anew."""


def digest(*values: Any) -> str:
    """Return a short hash of values that JSON can hold."""
    text = json.dumps(values, ensure_ascii=True, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def data_key(data: DataSection, loading: ModelSection, *, need_answer: bool = True, task: str = "causal_lm") -> str | None:
    """Return a name for the samples that settings and files give, or None when code makes rows that may change.

    A file counts as the same while path, size and time of its last change are.

    Raises:
        NotFoundError: when a data set is not where it was said to be.
        ConfigError: for settings that cannot act.
    """
    check_settings(data)
    found: list[Any] = []
    for text in (*data.dataset, *data.val_dataset):
        source = find_rows(parse_dataset_id(text), data=data, loading=loading, report=RowReport())
        if source.files is None:
            return None
        found.append([text, dict(source.columns), stamps(source.files)])
    described = stamps(Path(path).expanduser() for path in data.custom_dataset_info)
    return digest(FORMAT, code_key(), data.model_dump(mode="json"), found, described, need_answer, task)


def stamps(paths: Iterable[Path]) -> list[list[Any]]:
    """Return path, size and time of the last change of files."""
    marked: list[list[Any]] = []
    for path in paths:
        status = path.resolve().stat()
        marked.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return marked


def template_key(template: ChatTemplate, section: TemplateSection, max_length: int | None, *, further: Iterable[Path] = ()) -> str:
    """Return a name for how samples become token ids: template, tokenizer, limits, code.

    Args:
        template: in use.
        section: its settings.
        max_length: limit in tokens, after defaults.
        further: files of code that take part, such as plugins.
    """
    named = TEMPLATES.get(section.template).jinja if section.template else None
    settings = {**section.model_dump(mode="json"), "system": template.system, "max_length": max_length}
    return digest(FORMAT, code_key(), settings, named, tokenizer_key(template.tokenizer), stamps(further))


def tokenizer_key(tokenizer: Any) -> str:
    """Return a name for a tokenizer, by what it does rather than by its files."""
    if tokenizer.is_fast:
        body = tokenizer.backend_tokenizer.to_str()
    else:
        body = json.dumps(sorted(tokenizer.get_vocab().items())) + repr(tokenizer)
    template = tokenizer.chat_template
    return digest(hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest(), template, tokenizer.special_tokens_map)


@cache
def code_key() -> str:
    """Return a name for the code between rows and token ids: another release of swift or of a tokenizer library encodes anew."""
    root = Path(swift_core.__file__).parent
    hasher = hashlib.sha256()
    for path in sorted(path for folder in ("data", "templates", "batching") for path in (root / folder).glob("*.py")):
        hasher.update(path.read_bytes())
    for path in sorted((root / "cards").glob("template*")):
        if path.is_file():
            hasher.update(path.read_bytes())
    return digest(hasher.hexdigest(), *(version(name) for name in ("swift-core", "transformers", "tokenizers")))
