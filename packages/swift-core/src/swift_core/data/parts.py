"""Content that is a list of parts, as OpenAI, Anthropic and transformers write it: text with media tags, sources, calls, results."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from swift_core.data.media_tags import TAGS, split_legacy
from swift_core.data.values import Refused, kind_of, plain_text

_KINDS = {
    "image": "images",
    "image_url": "images",
    "input_image": "images",
    "video": "videos",
    "video_url": "videos",
    "audio": "audios",
    "audio_url": "audios",
    "input_audio": "audios",
}
_TEXTS = ("text", "input_text", "output_text")
_ALLOWED = "text, image, image_url, video, video_url, audio, audio_url, input_audio, tool_use, tool_result, thinking"


@dataclass(slots=True)
class Content:
    """The parts of one turn.

    Attributes:
        text: texts joined, with a tag for each medium.
        sources: character of a tag in `text` -> source, None where a column must give it.
        thoughts: text of thinking blocks.
        calls: tool calls, in OpenAI's form.
        results: tool results, each with the id of its call.
    """

    text: str = ""
    sources: dict[int, Any] = field(default_factory=dict[int, Any])
    thoughts: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    results: list[tuple[str | None, Content]] = field(default_factory=list["tuple[str | None, Content]"])

    def add_text(self, text: str) -> None:
        """Append a text; `<img>path</img>` in it becomes a tag with a source."""
        text, found = split_legacy(text)
        self.sources.update({len(self.text) + at: source for at, source in found.items()})
        self.text += text

    def add_medium(self, kind: str, source: Any) -> None:
        """Append the tag of a medium."""
        self.sources[len(self.text)] = source
        self.text += TAGS[kind]


def is_parts(value: Any, *, known: bool = False) -> bool:
    """Say whether a content is a list of typed parts.

    Args:
        value: the content.
        known: whether only texts and media count, since the data of a tool may have fields called `type` too.
    """
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in value):
        return False
    return not known or all(part["type"] in _TEXTS or part["type"] in _KINDS for part in value)


def read_parts(parts: list[dict[str, Any]], number: int) -> Content:
    """Return the content of turn `number`.

    Raises:
        Refused: when a part is of an unknown type or lacks what its type needs.
    """
    content = Content()
    for part in parts:
        kind = part["type"]
        if kind in _TEXTS:
            content.add_text(plain_text(part.get("text"), f"a text part of turn {number}"))
        elif kind in _KINDS:
            content.add_medium(_KINDS[kind], _source(part, kind, number))
        elif kind == "tool_use":
            content.calls.append(_call(part, number))
        elif kind == "tool_result":
            content.results.append((part.get("tool_use_id"), _result(part.get("content"), number)))
        elif kind == "thinking":
            content.thoughts += plain_text(part.get("thinking"), f"a thinking part of turn {number}")
        else:
            raise Refused(f"turn {number} holds a content part of type {kind!r}", f"allowed types: {_ALLOWED}")
    return content


def _source(part: dict[str, Any], kind: str, number: int) -> Any:
    """Return the source of a media part, or None where only the place of the medium is said."""
    value = next((part[key] for key in (kind, _KINDS[kind][:-1], "source", "url", "path", "image_url") if part.get(key) is not None), None)
    if value is None and part.get("base64"):
        value = {"data": part["base64"]}
    if isinstance(value, dict) and not (value.get("bytes") or (value.get("path") and not value.get("url"))):
        value = _from_object(value, kind)
    if value is None and kind in ("image", "video", "audio"):
        return None
    if value is None or value == "" or isinstance(value, bool | int | float):
        raise Refused(f"a part of type {kind!r} in turn {number} has no source", f'write {{"type": "{kind}", "{kind}": "path or URL"}}')
    return value


def _from_object(value: dict[str, Any], kind: str) -> Any:
    if value.get("url"):
        return value["url"]
    if not isinstance(value.get("data"), str) or not value["data"]:
        return None
    # Anthropic names the media type, OpenAI the format of a sound.
    family = _KINDS[kind][:-1]
    media_type = value.get("media_type") or f"{family}/{value.get('format') or {'image': 'png', 'video': 'mp4', 'audio': 'wav'}[family]}"
    return f"data:{media_type};base64,{value['data']}"


def _call(part: dict[str, Any], number: int) -> dict[str, Any]:
    name, arguments = part.get("name"), part.get("input")
    if not isinstance(name, str) or not name or not isinstance(arguments, dict | str | None):
        raise Refused(f"a tool_use part of turn {number} needs a 'name' and an object 'input'")
    identity = {"id": part["id"]} if part.get("id") else {}
    return {**identity, "type": "function", "function": {"name": name, "arguments": {} if arguments is None else arguments}}


def _result(value: Any, number: int) -> Content:
    if is_parts(value, known=True):
        return read_parts(value, number)
    content = Content()
    if isinstance(value, dict | list) and value:
        value = json.dumps(value, ensure_ascii=False)
    if value is not None and not isinstance(value, str | list | dict):
        raise Refused(f"the content of a tool_result in turn {number} is {kind_of(value)}, not a text")
    content.add_text(plain_text(value or "", f"a tool_result of turn {number}"))
    return content
