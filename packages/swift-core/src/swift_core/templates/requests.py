"""Conversations as clients send them: contents may be lists of parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from swift_core.data.media_tags import Sources, place
from swift_core.data.parts import read_parts
from swift_core.data.values import Refused
from swift_core.errors import TemplateError
from swift_core.protocols import Message, Sample

Tools = list[dict[str, Any]]


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
