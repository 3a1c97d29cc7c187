"""Where media belong in texts: tags in rows, slots in texts that are being rendered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from swift_core.protocols import Message, Sample

KINDS = ("image", "video", "audio")

TAGS = {"image": "<image>", "video": "<video>", "audio": "<audio>"}

SLOTS = {kind: f"\uf8f0{kind}\uf8f1" for kind in KINDS}
"""Stand in texts where a medium belongs. A tag such as <video> may also be plain text; these characters have no other meaning."""

SLOT = re.compile("\uf8f0(image|video|audio)\uf8f1")


def slotted(sample: Sample, slots: Mapping[str, str]) -> Sample:
    """Return a sample with `slots` in place of the tags of the media that it has."""
    kinds = [kind for kind in KINDS if getattr(sample, f"{kind}s")]
    if not kinds:
        return sample
    tag = re.compile("|".join(TAGS[kind] for kind in kinds))

    def slot(match: re.Match[str]) -> str:
        return slots.get(match[0][1:-1], "")

    messages = [
        Message(**{**message, "content": tag.sub(slot, message["content"])}) if isinstance(cast(Any, message["content"]), str) else message
        for message in sample.messages
    ]
    return replace(sample, messages=messages)
