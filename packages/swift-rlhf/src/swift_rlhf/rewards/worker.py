"""The process that runs rewards which keep a core busy or may hang: it can be killed, a thread cannot.

Started as a module, it talks with the pool that started it over its own pipes: a length and a message in JSON each way.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from swift_core.errors import TrainingError

HEADER = struct.Struct(">Q")


def pack(message: Any) -> bytes:
    """Return a message with its length before it.

    Raises:
        TrainingError: when a column of a row is nothing that JSON can say.
    """
    body = json.dumps(message, default=_refuse).encode()
    return HEADER.pack(len(body)) + body


def _refuse(value: Any) -> Any:
    kind = type(value).__name__
    raise TrainingError(f"a column holds a {kind}, which cannot go to another process", fix="leave the column out, or make it text")


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until the pool closes the pipe.

    `("load", key, reference, options, plugin_files)` makes a reward, `("score", key, completion, columns)` asks it about one sample.
    A reply is `("ok", value)` or `("error", text)`.
    """
    functions: dict[str, Any] = {}
    while header := requests.read(HEADER.size):
        message = json.loads(requests.read(*HEADER.unpack(header)))
        try:
            reply = ("ok", _answer(functions, *message))
        except Exception as error:  # noqa: BLE001  whatever the user's function raises is told to the pool
            reply = ("error", f"{type(error).__name__}: {error}")
        replies.write(pack(reply))
        replies.flush()


def _answer(functions: dict[str, Any], kind: str, key: str, *rest: Any) -> Any:
    if kind == "load":
        from swift_core.plugins import load_plugin_files

        from swift_rlhf.rewards.functions import load_reward

        reference, options, plugin_files = rest
        load_plugin_files(plugin_files)
        functions[key] = load_reward(reference, options)
        return None
    completion, columns = rest
    return _one(functions[key], completion, columns)


def _one(function: Any, completion: str, columns: Mapping[str, Any]) -> Any:
    values = function([completion], **columns)
    if len(values) != 1:
        raise ValueError(f"{len(values)} rewards for one sample")
    return None if values[0] is None else float(values[0])


if __name__ == "__main__":
    # What a reward prints must not end up between the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, replies)
