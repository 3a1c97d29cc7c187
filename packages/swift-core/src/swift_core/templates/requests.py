"""Conversations as clients send them: contents may be lists of parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from swift_core.data.media_tags import Sources, place
from swift_core.data.parts import read_parts
from swift_core.data.values import Refused
from swift_core.errors import DataError, TemplateError
from swift_core.protocols import Message, Sample
from swift_core.templates.slots import KINDS, TAGS

Tools = list[dict[str, Any]]


def request_messages(sample: Sample, messages: Sequence[Message]) -> list[Message]:
    """Return messages of a row as clients send them, with its media as parts in the place of their tags.

    Args:
        sample: gives the media; paths are taken from where its file lies.
        messages: its messages, or the first of them.
    """
    if not sample.has_media:
        return list(messages)
    sources = {kind: iter(getattr(sample, f"{kind}s")) for kind in KINDS if getattr(sample, f"{kind}s")}
    tag = re.compile("(" + "|".join(re.escape(TAGS[kind]) for kind in sources) + ")")
    written: list[Message] = []
    for message in messages:
        content: Any = message["content"]
        pieces: list[str] = tag.split(content) if isinstance(content, str) else []
        if len(pieces) < 2:
            written.append(message)
            continue
        parts: list[dict[str, Any]] = []
        for number, piece in enumerate(pieces):
            if number % 2:
                kind = piece[1:-1]
                parts.append({"type": kind, kind: _located(next(sources[kind]), sample.origin)})
            elif piece:
                parts.append({"type": "text", "text": piece})
        written.append(cast(Message, {**message, "content": parts}))
    return written


def _located(source: Any, origin: str) -> Any:
    """Return the path of a file that is named from where a row's file lies; anything else as it is."""
    if not isinstance(source, str) or "://" in source or source.startswith("data:"):
        return source
    from swift_core.data.media import MediaLoader  # texts do without the image libraries

    try:
        return str(MediaLoader().locate(source, origin))
    except DataError:
        return source  # whoever reads it says what is wrong with it


def sample_of_request(messages: Sequence[Message], tools: Tools | None = None) -> Sample:
    """Return a conversation whose contents may be lists of parts, such as `{"type": "image", "image": ...}`, as a sample.

    Raises:
        TemplateError: when a part is of an unknown type or has no source.
    """
    plain: list[Message] = []
    sources: Sources = {}
    try:
        for number, message in enumerate(messages):
            value: Any = message["content"]
            if isinstance(value, list):
                content = read_parts(cast("list[dict[str, Any]]", value), number + 1)
                sources |= {(number, at): source for at, source in content.sources.items()}
                value = content.text
            plain.append({**message, "content": value})
        if not sources:
            return Sample(plain, tools)
        placed, media = place(plain, sources, {})
    except Refused as refused:
        raise TemplateError(refused.reason, fix=refused.fix or "write the content as a text, or as a list of parts") from refused
    return Sample(placed, tools, images=media["images"], videos=media["videos"], audios=media["audios"])
