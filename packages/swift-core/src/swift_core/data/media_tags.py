"""Media of a row: one source for each `<image>`, `<video>` and `<audio>` tag, in the order of the tags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from swift_core.data.values import Refused, absent, kind_of, parse_json
from swift_core.protocols import Message

TAGS = {"images": "<image>", "videos": "<video>", "audios": "<audio>"}
COLUMNS = {"images": ("images", "image"), "videos": ("videos", "video"), "audios": ("audios", "audio")}
Sources = dict[tuple[int, int], Any]
"""Where a media source stands: (message, character of its tag) -> source; None where a column gives it."""
Media = dict[str, list[Any]]
"""Kind (`images`, `videos`, `audios`) -> sources in order."""

_NAMES = {"images": ("image", "images"), "videos": ("video", "videos"), "audios": ("audio", "audios")}
_LEGACY = re.compile(r"<img>([^<>\n]+)</img>")
# <video> and <audio> are HTML elements too: where a row has no such medium, they mean one only at the edge of a question.
_MEANT = {
    "images": re.compile("<image>"),
    "videos": re.compile(r"^\s*<video>|<video>\s*$"),
    "audios": re.compile(r"^\s*<audio>|<audio>\s*$"),
}


def split_legacy(text: str) -> tuple[str, dict[int, str]]:
    """Return a text with `<img>path</img>` written as `<image>`, and character of each such tag -> path."""
    if "<img>" not in text:
        return text, {}
    pieces: list[str] = []
    sources: dict[int, str] = {}
    length = end = 0
    for match in _LEGACY.finditer(text):
        before = text[end : match.start()]
        sources[length + len(before)] = match[1].strip()
        pieces += [before, TAGS["images"]]
        length += len(before) + len(TAGS["images"])
        end = match.end()
    return "".join([*pieces, text[end:]]), sources


def media_list(value: Any, kind: str, what: str) -> list[Any]:
    """Return the sources of a media column: one source, a list of them, or that list as a JSON text.

    Raises:
        Refused: when something in it cannot be a source.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json(value, what)
    items = value if isinstance(value, list) else [value]
    return [_source(item, kind, f"item {number} of {what}" if len(items) > 1 else what) for number, item in enumerate(items, start=1)]


def _source(item: Any, kind: str, what: str) -> Any:
    if isinstance(item, dict):
        if all(absent(item.get(key)) for key in ("bytes", "path", "url")) and item.get("array") is None:
            raise Refused(f"{what} has neither 'bytes' nor 'path'", 'give a path, a URL, a data URI or {"bytes": ..., "path": ...}')
        return item
    if isinstance(item, list):
        if kind != "videos" or not item:
            raise Refused(f"{what} is a list", "only a video may be a list, of its frames")
        return [_source(frame, "images", f"frame {number} of {what}") for number, frame in enumerate(item, start=1)]
    if item is None or isinstance(item, bool | int | float) or (isinstance(item, str | bytes) and not item.strip()):
        shown = "empty" if isinstance(item, str | bytes) else kind_of(item)
        raise Refused(f"{what} is {shown}, not {_article(kind)}", "give a path, a URL, a data URI or bytes")
    return item


def _article(kind: str) -> str:
    return {"images": "an image", "videos": "a video", "audios": "a sound"}[kind]


def place(messages: list[Message], sources: Sources, given: Mapping[str, Sequence[Any]]) -> tuple[list[Message], Media]:
    """Return the messages and one source for each tag in them.

    Tags without a source of their own take those of the columns in order. Where a kind has no tag at all, its tags are put
    before the text of the first question (or make one), images first, then videos, then sounds.

    Args:
        messages: the conversation, with tags in its texts.
        sources: sources that content parts brought, by the place of their tag.
        given: sources that columns brought.

    Raises:
        Refused: when tags and sources do not match in number.
    """
    media: Media = {kind: [] for kind in TAGS}
    if not given and not sources and not any("<" in message["content"] for message in messages):
        return messages, media
    missing = ""
    for kind, tag in TAGS.items():
        column = list(given.get(kind, ()))
        slots = [sources.get((index, at), None) for index, at in _tags(messages, tag)]
        own = sum(slot is not None for slot in slots)
        if not column and not own and not any(messages[i]["content"].startswith(tag, at) for i, at in sources):
            _check_unmeant(messages, kind)
        elif column and not slots:
            missing += tag * len(column)
            media[kind] = column
        elif len(slots) - own != len(column):
            raise _mismatch(kind, len(slots), own + len(column))
        else:
            rest = iter(column)
            media[kind] = [next(rest) if slot is None else slot for slot in slots]
    return (_put_in_front(messages, missing) if missing else messages), media


def _tags(messages: list[Message], tag: str) -> list[tuple[int, int]]:
    return [
        (index, match.start())
        for index, message in enumerate(messages)
        if tag in message["content"]
        for match in re.finditer(tag, message["content"])
    ]


def _check_unmeant(messages: list[Message], kind: str) -> None:
    for number, message in enumerate(messages, start=1):
        if message["role"] == "user" and TAGS[kind] in message["content"] and _MEANT[kind].search(message["content"]):
            one, many = _NAMES[kind]
            raise Refused(
                f"turn {number} has the tag <{one}>, and the row has no {many}",
                f"give the column {many!r}, or remove the tag from the text",
            )


def _mismatch(kind: str, tags: int, sources: int) -> Refused:
    one, many = _NAMES[kind]
    return Refused(
        f"{tags} <{one}> tag{'s' * (tags != 1)} and {sources} {many if sources != 1 else one}",
        f"write one <{one}> tag for each of the {many}, or no tag at all to have them in front",
    )


def _put_in_front(messages: list[Message], tags: str) -> list[Message]:
    first = next((index for index, message in enumerate(messages) if message["role"] == "user"), None)
    if first is not None:
        return [{**message, "content": tags + message["content"]} if index == first else message for index, message in enumerate(messages)]
    # A caption without a question: the media are what is asked.
    start = 1 if messages[0]["role"] == "system" else 0
    return [*messages[:start], Message(role="user", content=tags), *messages[start:]]
